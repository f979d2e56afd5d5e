"""
The life of a store that the power-loss test records: three worker processes, one after the other.

The first sends with several threads and waits for results, the second sends in bulk, the third is a
client beside a worker. The log is checkpointed often, so that cuts fall into checkpoints and into the
log's new beginnings. Arguments: the app, its folder.
"""

from __future__ import annotations

import signal
import subprocess
import sys

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


SMALL_LOG = ("--checkpoint-bytes", "200000")

end(start("--senders", "4", "--jobs", "20", "--wait"))
end(
    start("--senders", "2", "--jobs", "150", "--batch", "25", "--pad", "6000", "--first", "10000", *SMALL_LOG)
)
worker = start(*SMALL_LOG)
until(worker, "ready")
client = start("--no-work", "--senders", "3", "--jobs", "20", "--first", "30000", "--wait", *SMALL_LOG)
until(client, "stopped")
end(worker)
