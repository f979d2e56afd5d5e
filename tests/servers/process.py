"""What any server of ours needs: a folder, a port, a watchdog."""

import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers import programs, watchdog

# Below the range that outgoing connections get theirs from (32768 and up on Linux, 49152 elsewhere). A port
# of that range may be taken, while the server is down, by one of the clients that try to reconnect to it.
PORTS = range(15000, 32000)


class ServerError(Exception):
    """A server did not do as told; the text has the end of its log."""


def new_folder(name: str) -> Path:
    """Make a folder for a server, its user's own; short, since a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix=f"dutiful-{name}-"))
    os.chown(folder, *programs.unprivileged())
    return folder


def watch(folder: Path, owner: int) -> subprocess.Popen[bytes]:
    """Have a watchdog remove the folder, and what runs in it, when the process `owner` is gone."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", watchdog.__file__, str(owner), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on, from `PORTS`."""
    for port in random.SystemRandom().sample(PORTS, 100):  # tests seed `random`, the same in each worker
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError:
                continue
            return port
    raise ServerError(f"no free port on {host} in {PORTS}")


def children(pid: int) -> list[int]:
    """Return the pids of the processes that `pid` has started."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = (line.split() for line in table.splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]
