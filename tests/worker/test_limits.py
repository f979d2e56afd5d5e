"""Limits: how many at once, and how many in a time, over all workers together."""

from __future__ import annotations

import threading
import time

import pytest

from dutiful import Backoff, ConfigError, Handler, Limit, Retry, State
from tests.worker.tools import finished, has_failed_once, script


class Crowd:
    """How many handlers were inside at once, at most."""

    def __init__(self) -> None:
        self.most = 0
        self.done = threading.Semaphore(0)
        self._inside = 0
        self._changing = threading.Lock()

    def handle(self, payload: object) -> None:
        with self._changing:
            self._inside += 1
            self.most = max(self.most, self._inside)
        threading.Event().wait(0.005)
        with self._changing:
            self._inside -= 1
        self.done.release()

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.done.acquire(timeout=20)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_run_at_once_than_the_limit_allows(started, shared, workers):
    crowd = Crowd()
    handler = Handler(crowd.handle, limit=Limit(concurrency=3))
    made = [started(shared, handlers={"t": handler}, concurrency=8) for _ in range(workers)]

    made[0].send_many(range(60), task="t")

    crowd.wait(60)
    assert crowd.most == 3


def test_each_text_of_by_has_a_limit_of_its_own(started, shared):
    crowd = Crowd()
    handler = Handler(crowd.handle, limit=Limit(concurrency=1, by=str))
    worker = started(shared, handlers={"t": handler}, concurrency=8)

    worker.send_many([n % 4 for n in range(40)], task="t")

    crowd.wait(40)
    assert 1 < crowd.most <= 4


def test_handlers_can_share_a_limit_by_its_name(started, shared):
    crowd = Crowd()
    handler = Handler(crowd.handle, limit=Limit(concurrency=2, name="api"))
    worker = started(shared, handlers={"a": handler, "b": handler}, concurrency=8)

    worker.send_many(range(20), task="a")
    worker.send_many(range(20), task="b")

    crowd.wait(40)
    assert crowd.most == 2


def test_a_rate_is_kept_smoothly_after_its_burst(started, shared, seen):
    def note(_payload: object) -> None:
        seen.add(time.monotonic())

    handler = Handler(note, limit=Limit(rate="20/s", burst=3))
    worker = started(shared, handlers={"t": handler}, concurrency=8)

    began = time.monotonic()
    worker.send_many(range(9), task="t")

    times = [at - began for at in sorted(seen.wait(9))]
    # Never early; how late depends on the machine. Instants are in whole milliseconds.
    for n, at in enumerate(times):
        assert at >= (n - 2) * 0.05 - 0.002, times


def test_a_waiting_retry_takes_no_slot(started, shared, seen):
    fail = has_failed_once()

    def handle(n: int) -> None:
        if n == 0:
            fail()
        seen.add(n)

    handler = Handler(handle, limit=Limit(concurrency=1), retry=Retry(backoff=Backoff(first_s=0.5)))
    worker = started(shared, handlers={"t": handler})
    worker.send_many(range(3), task="t")

    assert seen.wait(3) == [1, 2, 0]


def test_a_delayed_job_takes_no_slot_and_comes_in_time(started, shared, seen):
    handler = Handler(seen.add, limit=Limit(concurrency=1))
    worker = started(shared, handlers={"t": handler})

    worker.send("later", task="t", delay=0.3)
    worker.send("now", task="t")

    assert seen.wait(2) == ["now", "later"]


def test_a_killed_worker_leaks_no_slot(started, shared, tmp_path, seen):
    source = """
        worker = Worker(sys.argv[1])

        @worker.handler("t", limit=Limit(concurrency=2))
        def handle(n):
            say("inside")
            time.sleep(60)

        worker.send_many(range(6), task="t")
        worker.start()
        time.sleep(60)
    """
    with script(tmp_path, source, shared) as victim:
        victim.wait_for("inside")
        victim.kill()
    crowd = Crowd()

    worker = started(shared, handlers={"t": Handler(crowd.handle, limit=Limit(concurrency=2))})

    crowd.wait(6)
    assert crowd.most <= 2
    assert finished(worker.job(6)).state is State.COMPLETED


def test_a_task_with_a_limit_is_not_sent_in_an_own_transaction(make, path):
    import sqlite3

    worker = make(handlers={"t": Handler(print, limit=Limit(concurrency=2))})
    worker.counts()
    with sqlite3.connect(path) as own:
        own.execute("BEGIN")
        with pytest.raises(ConfigError, match="has a limit"):
            worker.send(1, task="t", transaction=own)
        with pytest.raises(ConfigError, match="has a limit"):
            worker.send_many([1], task="t", transaction=own)
        own.rollback()
    own.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "limits nothing"),
        ({"concurrency": 0}, "1 or more"),
        ({"rate": "fast"}, "write it as"),
        ({"rate": "0/s"}, "write it as"),
        ({"rate": "5/s", "burst": 0}, "1 or more"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Limit(**options)
