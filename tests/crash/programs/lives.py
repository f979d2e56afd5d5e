"""
The life of a store that the power-loss test records: three worker processes, one after the other.

The first sends with several threads and waits for results, the second sends in bulk with payloads
large enough to make the log be checkpointed, the third is a client beside a worker. Arguments: the
app, its folder.
"""

from __future__ import annotations

import signal
import subprocess
import sys

signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it is for the apps: where do you hang?
app, folder = sys.argv[1:]


def start(*options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-u", app, folder, *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return
    raise SystemExit(f"no {word!r}")


def end(process: subprocess.Popen[str]) -> None:
    until(process, "sent")
    process.send_signal(signal.SIGTERM)
    until(process, "stopped")
    if process.wait():
        raise SystemExit(f"exit status {process.returncode}")


end(start("--senders", "4", "--jobs", "20", "--wait"))
end(start("--senders", "2", "--jobs", "200", "--batch", "25", "--pad", "12000", "--first", "10000"))
worker = start("--first", "20000")
until(worker, "ready")
client = start("--no-work", "--senders", "3", "--jobs", "20", "--first", "30000", "--wait")
until(client, "stopped")
end(worker)
