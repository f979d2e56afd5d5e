"""No job starves behind more urgent ones."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from dutiful import ConfigError, State, Strict, WorkerStopped
from tests.worker.tools import WAIT_S, finished, until


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@pytest.fixture
def flood():
    """Keep so many urgent jobs waiting that a worker never gets to the others by itself."""
    over = threading.Event()
    threads = []

    def begin(worker, **options):
        def pour():
            with suppress(WorkerStopped):
                while not over.is_set():
                    if worker.counts().by_state[State.PENDING] < 400:
                        worker.send_many(range(400), task="urgent", priority=9, **options)
                    over.wait(0.002)

        worker.send_many(range(2000), task="urgent", priority=9, **options)
        threads.append(threading.Thread(target=pour, daemon=True))
        threads[-1].start()

    yield begin
    over.set()
    for thread in threads:
        thread.join(WAIT_S)


def slow(n):
    """Take a millisecond, so that a flood can keep up."""
    threading.Event().wait(0.001)


def test_jobs_that_have_waited_long_get_a_share(make, store, seen, flood):
    """Under a flood that never ends, and in the order in which they were due."""
    worker = make(store, handlers={"urgent": slow, "low": seen.add}, concurrency=1, age_s=0.1)
    worker.send_many(range(20), task="low")
    flood(worker)

    with worker:
        assert seen.wait(20) == list(range(20))
        assert worker.counts().by_state[State.PENDING] > 0


def test_urgent_jobs_keep_most_of_the_starts(make, store, seen):
    worker = make(
        store,
        handlers={"urgent": lambda n: seen.add("urgent"), "low": lambda n: seen.add("low")},
        concurrency=1,
        age_s=0.0,
    )
    worker.send_many(range(3000), task="low")
    worker.send_many(range(3000), task="urgent", priority=1)

    with worker:
        order = seen.wait(6000)

    last = len(order) - 1 - order[::-1].index("urgent")
    assert order[: last + 1].count("low") <= 3000 / 7 + 10


def test_it_can_be_off(make, store, seen):
    worker = make(
        store,
        handlers={"urgent": lambda n: seen.add("urgent"), "low": lambda n: seen.add("low")},
        concurrency=1,
        age_s=None,
    )
    worker.send(0, task="low")
    worker.send_many(range(3000), task="urgent", priority=1)

    with worker:
        assert seen.wait(3001)[-1] == "low"


def test_strictly_means_that_other_queues_wait(make, store, seen):
    """Age counts within a queue."""
    worker = make(
        store,
        queues=Strict("a", "b"),
        handlers={"urgent": lambda n: seen.add("urgent"), "low": lambda n: seen.add("low")},
        concurrency=1,
        age_s=0.0,
    )
    worker.send(0, task="low", queue="b")
    worker.send_many(range(3000), task="urgent", queue="a")

    with worker:
        assert seen.wait(3001)[-1] == "low"


def test_a_job_among_very_many_priorities_comes_to_its_turn(make, store, seen, flood):
    """More than are looked at at once."""
    worker = make(store, handlers={"urgent": slow, "low": seen.add}, concurrency=1, age_s=0.1)
    jobs = [worker.send(n, task="low", priority=-n) for n in range(150)]
    flood(worker)

    with worker:
        finished(jobs[149])
        assert worker.counts().by_state[State.PENDING] > 0


@pytest.mark.parametrize("wrong", [-1, "x", True])
def test_a_wrong_age_is_refused(make, wrong):
    with pytest.raises(ConfigError, match="age_s"):
        make(age_s=wrong)


def test_a_worker_that_keeps_up_never_looks(started, store, monkeypatch):
    """It costs nothing while nobody waits."""
    looks = []
    worker = started(store, handlers={"t": abs}, age_s=0.0)
    monkeypatch.setattr("dutiful.runner.line.levels", lambda *args, **more: looks.append(args) or ([], None))
    line = worker._runner._line
    until(lambda: not worker._runner._backlog)

    line.look(("default",), (), is_behind=worker._runner._backlog)

    assert looks == []
