"""`dutiful demo`: a worker is killed with SIGKILL in the middle of its work, and nothing is lost."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dutiful.cli import codes, show
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Generator

    from dutiful import Counts, Worker

JOBS = 600
CONCURRENCY = 4
LIMIT_S = 60.0  # on a machine that is very busy; else it takes about 5 s
LOOK_S = 0.02

# What a user's own file looks like. The notes are for the proof: they are made outside of the store.
_APP = f"""\
import os, time
from dutiful import Worker

worker = Worker("demo.db", concurrency={CONCURRENCY})
notes = os.open("notes.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@worker.handler("square")
def square(n: int) -> int:
    time.sleep(0.02)
    os.write(notes, f"{{n}}\\n".encode())
    return n * n
"""

_EPILOG = """\
examples:
  dutiful demo

It takes about 5 s, in a temporary folder that is removed."""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    del args
    with tempfile.TemporaryDirectory(prefix="dutiful-demo-") as name:
        folder = Path(name)
        (folder / "app.py").write_text(_APP, "utf-8")
        with opened(str(folder / "demo.db"), make=True) as client:
            return _show(client, folder)


def _show(client: Worker, folder: Path) -> int:
    began = time.monotonic()
    client.send_many(range(JOBS), task="square")
    _say(f"{JOBS} jobs stored in {(time.monotonic() - began) * 1000:.0f} ms: on disk, no worker yet")
    with _worker(folder) as process:
        _watch(client, folder, f"worker {process.pid}", until=lambda counts: _done(counts) >= JOBS // 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = _by_name(client.counts())
    cut = f"{killed['running']} were running or next in line, {killed['pending']} waiting"
    _say(f"kill -9 {process.pid}: {killed['completed']} jobs are done, {cut}")
    with _worker(folder) as process:
        _watch(client, folder, f"worker {process.pid}", until=lambda counts: _done(counts) >= JOBS)
        process.send_signal(signal.SIGTERM)
        process.wait()
    return _proof(client.counts(), folder)


def _say(line: str) -> None:
    show.line("  ", line)
    sys.stdout.flush()  # before the bar, which is on the other stream


def _by_name(counts: Counts) -> dict[str, int]:
    return {str(state): count for state, count in counts.by_state.items()}


def _done(counts: Counts) -> int:
    return _by_name(counts)["completed"]


@contextmanager
def _worker(folder: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    import subprocess

    command = [sys.executable, "-P", "-m", "dutiful", "run", "app:worker"]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # this very program
            command, cwd=folder, stdout=log, stderr=log, process_group=0
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _watch(client: Worker, folder: Path, label: str, *, until: Callable[[Counts], bool]) -> None:
    limit_at = time.monotonic() + LIMIT_S
    with show.progress(label, JOBS) as update:
        while not until(counts := client.counts()):
            update(_done(counts), f"{_done(counts)} of {JOBS}")
            if time.monotonic() > limit_at:
                raise codes.Refused(
                    f"the demo's worker did not get on; it said:\n{_log(folder)}", codes.FAILED
                )
            time.sleep(LOOK_S)
        update(_done(counts), f"{_done(counts)} of {JOBS}")


def _log(folder: Path) -> str:
    return (folder / "worker.log").read_text("utf-8", "replace")[-2000:]


def _proof(counts: Counts, folder: Path) -> int:
    """Compare the store with the notes that the handler took outside of it."""
    noted = (folder / "notes.txt").read_text("utf-8").split()
    completed = _by_name(counts)["completed"]
    lost = JOBS - len(set(noted))
    twice = len(noted) - len(set(noted))
    is_well = lost == 0 and completed == JOBS
    show.line()
    _say(f"completed {completed} of {JOBS}")
    show.line("  ", (f"lost {lost}", "bold green" if is_well else "bold red"))
    _say(f"run twice {twice}" + (" (cut off between their end and its note in the store)" if twice else ""))
    return codes.OK if is_well else codes.FAILED
