"""
A move is killed at each point between two of its writes, and anywhere; repeated, all jobs are there, once.

`DUTIFUL_TEST_KILLS` sets how many moves are killed by chance (60 without it makes 3 of them, each again and
again until it is through).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from dutiful import StoreMoved, Worker
from dutiful.config import Config
from dutiful.front.base import store_for
from tests.crash.harness import CRASHED

JOBS = 3500  # four batches
# Where it dies, and who can be used then.
POINTS = {
    "move.marked": "nobody",
    "move.received": "nobody",
    "move.in_batch:1": "nobody",
    "move.batch:1": "nobody",
    "move.in_batch:3": "nobody",
    "move.batch:4": "nobody",
    "move.copied": "nobody",
    "move.handed_over": "nobody",
    "move.done": "target",
}
WAYS = ["sqlite to postgres", "postgres to sqlite"]
MOVES = max(2, int(os.environ.get("DUTIFUL_TEST_KILLS", "60")) // 20)


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> tuple[str, str]:
    """A store with jobs, and one without."""
    file = str(tmp_path / "jobs.db")
    source, target = (file, database_url) if request.param == WAYS[0] else (database_url, file)
    worker = Worker(source)
    worker.send_many(({"n": number} for number in range(JOBS)), task="t")
    worker.cancel(range(1, 100, 3))
    worker.stop()
    return source, target


def move(pair: tuple[str, str], point: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dutiful", "move", *pair]
    return subprocess.Popen(
        command,
        env={**os.environ, "DUTIFUL_CRASHPOINT": point},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ends(program: subprocess.Popen[bytes]) -> tuple[int, str]:
    assert program.stderr is not None
    with program, program.stderr:
        errors = program.stderr.read().decode()
        return program.wait(60), errors


def jobs_of(store: str) -> list[tuple[int, str, str | None]]:
    worker = Worker(store, create=False)
    with closing(_Closing(worker)):
        return [(job.id, job.state, job.payload) for job in worker.jobs(limit=10 * JOBS)]


class _Closing:
    def __init__(self, worker: Worker) -> None:
        self.close = worker.stop


def in_charge(pair: tuple[str, str]) -> str:
    """Return which of the two lets itself be used; both never do."""
    usable = []
    for name, url in zip(("source", "target"), pair, strict=True):
        store = store_for(url, Config(), create=True)
        try:
            store.open()
            usable.append(name)
        except StoreMoved:
            continue
        finally:
            store.close()
    assert len(usable) < 2, usable
    return usable[0] if usable else "nobody"


@pytest.mark.parametrize("point", POINTS)
def test_a_move_that_dies_at_a_point_is_finished_by_the_next(pair: tuple[str, str], point: str) -> None:
    before = jobs_of(pair[0])

    status, errors = ends(move(pair, point))
    assert status == CRASHED, errors
    if point != "move.marked":  # before it, the target is not even made: looking would make it
        assert in_charge(pair) == POINTS[point]
    status, errors = ends(move(pair))
    assert status == 0, errors

    assert jobs_of(pair[1]) == before
    assert in_charge(pair) == "target"


@pytest.mark.timeout(60 + 40 * MOVES)
def test_a_move_that_is_killed_anywhere_and_repeated_loses_and_doubles_nothing(pair: tuple[str, str]) -> None:
    chance = random.Random()
    source, target = pair
    kills = 0
    for round_ in range(MOVES):
        before = jobs_of(source)
        while True:
            program = move((source, target))
            time.sleep(chance.uniform(0.1, 0.7))  # the whole takes about as long
            program.kill()
            status, errors = ends(program)
            if status == 0:
                break
            assert status == -9, errors
            kills += 1
            if kills % 5 == 0:
                status, errors = ends(move((source, target)))  # so that it comes to an end
                assert status == 0, errors
                break
        assert jobs_of(target) == before
        # And back, to a store of another name.
        source, target = target, _next(target, source, round_)
    assert kills


def _next(source: str, before: str, round_: int) -> str:
    if "://" in before:
        return f"{before.partition('?')[0]}?dutiful_schema=round_{round_}"
    return str(Path(before).with_name(f"{round_}.db"))
