"""`drain()`: all that is ready is run, and then it returns."""

from __future__ import annotations

import threading

import pytest

from dutiful import AlreadyStarted, Backoff, ConfigError, DrainTimeout, Retry, State, WorkerStopped
from tests.worker.tools import WAIT_S, background, has_failed_once, result, until, within


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


def chain(worker, length):
    """Register a handler that sends the next one, `length` times."""

    @worker.handler("link")
    def link(number: int) -> int:
        if number < length:
            worker.send(number + 1, task="link")
        return number


def drained(worker, timeout=None):
    return within(WAIT_S, worker.drain, timeout)


def test_a_worker_that_is_not_started_runs_all_that_is_ready_and_rests_again(make, store):
    worker = make(store)
    chain(worker, 3)
    jobs = worker.send_many([1, 2, 3], task="link")
    later = worker.send(3, task="link", delay=3600)

    assert drained(worker) == 6

    assert [job.state for job in jobs] == [State.COMPLETED] * 3
    assert later.state is State.PENDING
    assert worker.workers() == []
    assert drained(worker) == 0
    assert worker.send(3, task="link").state is State.PENDING


def test_a_worker_that_is_started_goes_on(started, store):
    worker = started(store)
    chain(worker, 5)
    worker.send(1, task="link")
    drained(worker)

    assert worker.counts().due == 0
    assert worker.counts().by_state.get(State.COMPLETED) == 5
    assert result(worker.send(5, task="link")) == 5


def test_a_retry_that_is_due_is_ready_and_one_that_waits_is_not(make, store):
    at_once = Retry(backoff=Backoff(first_s=0))
    worker = make(store)
    worker.handler("now", retry=at_once)(has_failed_once())
    worker.handler("later", retry=Retry(backoff=Backoff(first_s=3600)))(has_failed_once())
    now, later = worker.send(None, task="now"), worker.send(None, task="later")

    assert drained(worker) == 3

    assert (now.state, later.state) == (State.COMPLETED, State.PENDING)


def test_a_job_that_no_handler_is_known_for_is_no_reason_to_wait(make, store):
    worker = make(store)
    job = worker.send(1, task="unknown")

    assert drained(worker) == 0

    assert job.state is State.PENDING


def test_when_the_time_is_up_the_rest_stays_stored_and_what_runs_may_end(make, gate, store):
    worker = make(store, grace_s=0.01, concurrency=1, handlers={"hold": gate.hold})
    first, second = worker.send_many([1, 2], task="hold")
    with pytest.raises(DrainTimeout) as told:
        within(WAIT_S, worker.drain, 1.0)  # so that the first begins, even on a slow machine

    assert (told.value.worker, told.value.waited_s) == ("worker", 1.0)
    assert (first.state, second.state) == (State.RUNNING, State.PENDING)
    with pytest.raises(AlreadyStarted):
        worker.drain()
    gate.open()
    until(lambda: first.state is State.COMPLETED)
    assert second.state is State.PENDING
    for thread in threading.enumerate():
        if thread.name == "dutiful-last":  # it gives up the worker's place in the store
            thread.join(WAIT_S)
    assert drained(worker) == 1


def test_a_started_worker_goes_on_when_the_time_is_up(started, gate):
    worker = started(handlers={"hold": gate.hold})
    job = worker.send(1, task="hold")
    with pytest.raises(DrainTimeout):
        drained(worker, 0.05)
    gate.open()

    assert result(job) == 1


def test_a_stop_meanwhile_ends_it(make, gate, path):
    worker = make(concurrency=1, handlers={"hold": gate.hold})
    worker.send_many([1, 2], task="hold")
    draining = background(worker.drain)
    gate.entered.wait(1)
    stopping = background(worker.stop)
    gate.open()

    stopping.result(WAIT_S)
    with pytest.raises(WorkerStopped):
        draining.result(WAIT_S)
    assert make().counts().by_state.get(State.PENDING, 0) == 1


def test_a_handler_that_drains_is_told_that_it_would_wait_for_itself(make):
    worker = make()
    told = []

    @worker.handler("vain")
    def vain() -> None:
        with pytest.raises(ConfigError, match="wait for itself") as error:
            worker.drain()
        told.append(error)

    worker.send(None, task="vain")
    assert drained(worker) == 1
    assert told


def test_of_two_that_drain_at_once_each_returns(make, store):
    worker = make(store)
    chain(worker, 20)
    worker.send(1, task="link")
    begin = threading.Barrier(2)

    def drain() -> int:
        begin.wait()
        return worker.drain()

    both = [background(drain) for _ in range(2)]
    for each in both:
        each.result(WAIT_S)
    assert worker.counts().by_state[State.COMPLETED] == 20
