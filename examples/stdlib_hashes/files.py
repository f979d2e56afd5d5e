"""
The worker of the demo: for each path it stores the file's SHA-256, size and line count.

    python files.py FOLDER      works on FOLDER/jobs.db until its standard input is closed
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dutiful import Context, Keep, Worker

BLOCK_BYTES = 1024 * 1024


@dataclass
class File:
    """The payload."""

    path: str


@dataclass
class Facts:
    """The result, stored with the job."""

    sha256: str
    size: int
    lines: int


def facts(path: str) -> Facts:
    digest, size, lines = hashlib.sha256(), 0, 0
    with open(path, "rb") as file:  # noqa: PTH123  # a third of the time of Path.open, thousands of times
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            lines += block.count(b"\n")
    return Facts(digest.hexdigest(), size, lines)


def make_worker(folder: Path, note: Callable[[str], None] = print) -> Worker:
    """Make the worker that sends (in one process) and that works (in another)."""

    def look(job: File, ctx: Context) -> Facts:
        note(f"run {ctx.id} {ctx.attempt}")
        return facts(job.path)

    # All results are to be checked at the end, so none may be pruned before.
    keep = Keep(count=1_000_000)
    store = folder / "jobs.db"
    return Worker(store, name="hasher", handlers={File: look}, concurrency=4, keep_completed=keep)


def main() -> None:
    folder = Path(sys.argv[1])
    # One line per start and per run of a handler, written at once: it tells afterwards what ran
    # twice. Opened to append, so that lines never mix and a kill loses none.
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: str) -> None:
        os.write(ledger, f"{time.monotonic():.6f} {os.getpid()} {what}\n".encode())

    note("start 0 0")
    with make_worker(folder, note):
        sys.stdin.read()


if __name__ == "__main__":
    main()
