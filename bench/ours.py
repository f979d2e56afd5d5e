"""What the benchmarks need of dutiful: fresh files, and knowing when all is done and committed."""

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers.peer import PAYLOAD
from dutiful import Keep, State, Worker

TASK = "noop"
KEEP_ALL = Keep(count=10**9)
WAIT_S = 600.0


def noop(payload: str) -> None:
    """Do nothing: what is measured is the way there and back."""


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """Give the path of a database that is not there yet; remove it with all that lies beside it."""
    place = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    try:
        yield place / "jobs.db"
    finally:
        shutil.rmtree(place)


def payloads(count: int) -> Iterator[str]:
    return itertools.repeat(PAYLOAD, count)


def wait_until_done(worker: Worker) -> None:
    """Wait until no job is left to do in the store: all are completed, and committed."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        began = time.monotonic()
        counts = worker.counts()
        if not counts.by_state[State.PENDING] and not counts.by_state[State.RUNNING]:
            return
        # Counting a million rows takes its time: look seldom enough to leave the worker alone.
        time.sleep(max(0.001, 10 * (time.monotonic() - began)))
    raise TimeoutError(f"not done after {WAIT_S} s: {worker.counts()}")


def wait_until_count(worker: Worker, jobs: int) -> float:
    """Wait until so many jobs have completed; return the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() < began + WAIT_S:
        looked = time.monotonic()
        if worker.counts().by_state[State.COMPLETED] >= jobs:
            return time.monotonic() - began
        time.sleep(max(0.005, 10 * (time.monotonic() - looked)))
    raise TimeoutError(f"not done after {WAIT_S} s: {worker.counts()}")
