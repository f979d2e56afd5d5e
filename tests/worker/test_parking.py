"""Jobs of tasks that nobody here knows: kept, not counted, and run as soon as somebody knows them."""

import logging

import pytest

from dutiful import State
from tests.worker.tools import WAIT_S, Seen, background, finished, result, until


def parked(job):
    """Whether it was put back for later."""
    record = job.refresh()
    assert (record.state, record.attempt, record.failures) == (State.PENDING, 0, 0)
    return record.due_at - record.created_at > 30_000


def test_a_job_of_an_unknown_task_is_parked_and_its_attempt_is_not_counted(started, store):
    worker = started(store, handlers={"fine": lambda n: n})

    job = worker.send(1, task="unknown")

    assert until(lambda: parked(job))
    assert result(worker.send(7, task="fine")) == 7


def test_it_is_warned_about_once_however_many_there_are(started, path, caplog):
    with caplog.at_level(logging.WARNING, "dutiful"):
        worker = started(path, handlers={"fine": lambda n: n})
        jobs = worker.send_many(range(300), task="unknown")
        for job in (jobs[0], jobs[299]):
            until(lambda job=job: parked(job))
        result(worker.send(7, task="fine"))

    assert len([line for line in caplog.messages if "no handler here for unknown" in line]) == 1


def test_many_unknown_jobs_do_not_hold_back_known_ones(started, store, seen):
    worker = started(store, handlers={"fine": seen.add}, concurrency=1)
    worker.send_many(range(3000), task="unknown", priority=9)

    worker.send_many(range(10), task="fine")

    assert seen.wait(10) == list(range(10))


def test_a_handler_that_is_registered_later_gets_them_in_their_order(started, store, seen):
    worker = started(store, concurrency=1)
    jobs = worker.send_many(range(50), task="later")
    for job in (jobs[0], jobs[49]):
        until(lambda job=job: parked(job))

    worker.handlers["later"] = seen.add

    assert seen.wait(50) == list(range(50))


def test_a_starting_worker_that_knows_them_runs_them_at_once(started, path):
    job = started(path, name="old").send(4, task="new")
    until(lambda: parked(job))

    started(path, handlers={"new": lambda n: 2 * n}, name="new")

    assert job.result(timeout=3) == 8


def test_a_job_goes_to_the_live_worker_that_knows_it(started, path):
    one = started(path, handlers={"x": lambda n: ["one", n]}, name="one")
    two = started(path, handlers={"y": lambda n: ["two", n]}, name="two")

    for n in range(20):
        assert one.send(n, task="y").result(timeout=3) == ["two", n]
        assert two.send(n, task="x").result(timeout=3) == ["one", n]


def test_a_handler_that_was_taken_away_and_comes_back_gets_the_jobs_of_the_time_between(started, store):
    worker = started(store, handlers={"t": lambda n: n, "fine": lambda n: n})
    del worker.handlers["t"]

    jobs = worker.send_many(range(20), task="t")
    assert [result(job) for job in worker.send_many(range(20), task="fine")] == list(range(20))
    worker.handlers["t"] = lambda n: 2 * n

    assert [result(job) for job in jobs] == [2 * n for n in range(20)]
    assert {job.attempt for job in jobs} == {1}


@pytest.mark.parametrize("drain", [True, False])
def test_a_stop_does_not_wait_for_them(started, store, drain):
    worker = started(store)
    worker.send_many(range(10), task="unknown")

    background(worker.stop, drain=drain).result(WAIT_S)


def test_they_outlive_restarts_of_workers_that_do_not_know_them(make, path):
    worker = make(path)
    jobs = worker.send_many(range(10), task="unknown")
    for _ in range(3):
        with worker:
            until(lambda: parked(jobs[9]))

    seen = Seen()
    knowing = make(path, handlers={"unknown": seen.add}, concurrency=1)
    with knowing:
        assert seen.wait(10) == list(range(10))
        assert [finished(knowing.job(job.id)).attempt for job in jobs] == [1] * 10


def test_a_parked_job_can_be_cancelled_and_deleted(started, path):
    worker = started(path)
    job, other = worker.send_many([1, 2], task="unknown")
    until(lambda: parked(job) and parked(other))

    job.cancel()
    other.delete()

    assert job.state is State.CANCELLED
    assert [record.id for record in worker.jobs()] == [job.id]
