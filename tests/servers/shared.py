"""
The one cluster of a test run, shared by all its processes.

Whoever needs it first starts it, under a lock in the folder that the run's processes share. It ends with the
process that the run began with: pytest itself, or the controller of pytest-xdist's workers. How that one ends
does not matter, the watchdog sees it.
"""

import fcntl
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import watchdog
from tests.servers.postgres import Server
from tests.servers.process import ServerError

PREFIX = "dutiful_test_"
_keepers: list[subprocess.Popen[str]] = []  # kept: they outlive us, and that is right


def run_url(run_folder: Path, controller: int) -> str:
    """Return the URL of the run's server; the first who asks starts it."""
    with (run_folder / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note = run_folder / "postgres.json"
        if not note.exists():
            url = start(controller)
            note.touch(0o600)
            note.write_text(json.dumps({"url": url}))
        return str(json.loads(note.read_text())["url"])


def start(controller: int) -> str:
    """Start a server that lives as long as the process `controller`, not as long as this one."""
    command = [sys.executable, "-m", "tests.servers.shared", str(controller)]
    # As deaf to Ctrl-C as the server itself.
    keeper = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    with keeper.stdout, keeper.stderr:
        url = keeper.stdout.readline().strip()
        if not url:
            raise ServerError(f"the run's server did not start:\n{keeper.stderr.read()}")
    _keepers.append(keeper)
    return url


def keep(controller: int) -> None:
    """Start the server, print its URL, and keep it until the process `controller` has ended."""
    with Server.create() as server:
        server.start()
        print(server.url(), flush=True)
        watchdog.wait_for_end(controller)


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """Make a database beside that of `url`; it is dropped at the end, whoever is still connected."""
    import psycopg

    name = PREFIX + secrets.token_hex(6)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


if __name__ == "__main__":
    keep(int(sys.argv[1]))
