"""Failures: when a job is tried again, when it is given up, and what is kept of it."""

import asyncio
from itertools import pairwise

import pytest

from dutiful import Backoff, JobFailed, JobNotFound, Retry, State, WrongState
from dutiful.testing import override
from tests.worker.tools import WAIT_S, Seen, finished, result, until

AT_ONCE = Backoff(first_s=0)


def register(worker, times, retry, seen):
    """Register a handler that fails so many times."""

    @worker.handler("t", retry=retry)
    def handle(payload, ctx):
        seen.add(ctx.attempt)
        if ctx.failures < times:
            raise ValueError(f"failure {ctx.failures + 1}")
        return "done"

    return worker


def test_a_failed_job_is_tried_again_after_growing_waits(make, store, seen):
    retry = Retry(backoff=Backoff(first_s=60, factor=2, jitter=0))
    worker = register(make(name="one"), 3, retry, seen)
    with override(worker, store=store, errors="keep") as clock:
        job = worker.send(0, task="t")
        clock.advance("1h")
        record, ended = job.refresh(), job.result()

    assert ended == "done"
    assert (record.attempt, record.failures, seen.all) == (4, 3, [1, 2, 3, 4])
    assert [(error.attempt, error.type, error.message, error.worker) for error in record.errors] == [
        (n, "ValueError", f"failure {n}", "one") for n in (1, 2, 3)
    ]
    assert all("raise ValueError" in error.traceback for error in record.errors)
    times = [error.at for error in record.errors] + [record.finished_at]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == [60_000, 120_000, 240_000]


def test_a_job_that_used_up_its_attempts_is_dead_and_kept(started, store, seen):
    worker = register(started(store), 9, Retry(max_attempts=3, backoff=AT_ONCE), seen)

    job = worker.send({"n": 1}, task="t")

    record = finished(job)
    assert (record.state, record.failures, len(seen.all)) == (State.DEAD, 3, 3)
    assert (record.payload, len(record.errors)) == ('{"n":1}', 3)
    with pytest.raises(JobFailed, match="failure 3") as caught:
        job.result()
    assert caught.value.state == "dead"


def test_by_default_there_are_twenty_attempts(started, store, seen):
    worker = register(started(store, retry=Retry(backoff=AT_ONCE)), 99, None, seen)

    assert finished(worker.send(0, task="t")).failures == 20
    assert seen.all == list(range(1, 21))


def test_a_handlers_own_policy_wins_over_the_workers(started, seen):
    worker = started(":memory:", retry=Retry(max_attempts=1))
    register(worker, 2, Retry(backoff=AT_ONCE), seen)

    @worker.handler("other")
    def other(n):
        raise ValueError

    assert finished(worker.send(0, task="t")).state is State.COMPLETED
    assert finished(worker.send(0, task="other")).failures == 1


def test_a_policy_can_depend_on_the_exception(started, store, seen):
    asked = Seen()

    def decide(error, failures):
        asked.add((type(error), failures))
        return {ValueError: 0, KeyError: None, OSError: False}[type(error)]

    worker = started(store)

    @worker.handler("t", retry=Retry(backoff=AT_ONCE, decide=decide))
    def handle(n, ctx):
        raise (ValueError, KeyError, OSError)[ctx.failures]("no")

    record = finished(worker.send(0, task="t"))

    assert (record.state, record.failures) == (State.DEAD, 3)
    assert asked.all == [(ValueError, 1), (KeyError, 2), (OSError, 3)]
    assert [error.type for error in record.errors] == ["ValueError", "KeyError", "OSError"]


@pytest.mark.parametrize("says", [lambda *_: 1 / 0, lambda *_: "soon", lambda *_: float("nan"), lambda: None])
def test_a_policy_that_fails_itself_leaves_it_to_the_backoff(started, says):
    worker = started(":memory:")

    @worker.handler("t", retry=Retry(max_attempts=2, backoff=AT_ONCE, decide=says))
    def handle(n):
        raise ValueError("theirs")

    record = finished(worker.send(0, task="t"))

    assert (record.state, record.failures) == (State.DEAD, 2)
    assert all("theirs" in error.traceback for error in record.errors)


def test_some_exceptions_are_given_up_at_once(started, store):
    worker = started(store)

    @worker.handler("t", retry=Retry(give_up_on=(LookupError,)))
    def handle(n):
        raise KeyError(n)

    record = finished(worker.send(0, task="t"))

    assert (record.state, record.failures) == (State.DEAD, 1)


def test_a_timeout_can_be_given_up_at_once_too(started, store):
    worker = started(store)

    @worker.handler("t", timeout=0.05, retry=Retry(give_up_on=(TimeoutError,)))
    async def handle(n):
        await asyncio.sleep(WAIT_S)

    assert finished(worker.send(0, task="t")).state is State.DEAD


def test_a_policy_is_asked_about_a_timeout(started):
    asked = Seen()
    worker = started(":memory:")

    @worker.handler("t", timeout=0.05, retry=Retry(decide=lambda *said: asked.add(said) or False))
    async def handle(n):
        await asyncio.sleep(WAIT_S)

    finished(worker.send(0, task="t"))

    ((error, failures),) = asked.all
    assert isinstance(error, TimeoutError)
    assert failures == 1


def test_a_failing_job_does_not_hold_back_others(started, store, seen):
    worker = started(store, handlers={"fine": seen.add}, concurrency=1)

    @worker.handler("bad", retry=Retry(backoff=Backoff(first_s=3600)))
    def bad(n):
        raise ValueError

    for n in range(20):
        worker.send(n, task="bad")
        worker.send(n, task="fine")

    assert seen.wait(20) == list(range(20))
    until(lambda: worker.counts().due == 0)


def test_a_dead_job_can_be_retried_by_hand(started, store, seen):
    worker = started(store)

    @worker.handler("t", retry=Retry(max_attempts=1))
    def handle(n, ctx):
        seen.add(ctx.failures)
        if ctx.attempt < 3:
            raise ValueError(ctx.attempt)
        return "done"

    job = worker.send(0, task="t")
    for _ in range(2):
        assert finished(job).state is State.DEAD
        job.retry()
    assert result(job) == "done"

    record = job.refresh()
    assert seen.all == [0, 0, 0]  # its failures were forgotten each time
    assert (record.failures, [error.message for error in record.errors]) == (0, ["1", "2"])


def test_a_completed_or_cancelled_job_can_be_run_again(started, store, seen):
    worker = started(store, handlers={"t": seen.add})
    done, cancelled = worker.send(1, task="t"), worker.send(2, task="t", delay=3600)
    finished(done)
    cancelled.cancel()

    done.retry()
    cancelled.retry()

    assert finished(done).attempt == 2
    assert finished(cancelled).state is State.COMPLETED
    assert seen.all.count(1) == 2


def test_a_dead_job_can_be_deleted(started, store):
    worker = started(store, handlers={"t": lambda n: 1 / 0}, retry=Retry(max_attempts=1))
    job = worker.send(0, task="t")
    finished(job)

    job.delete()

    for use in (job.refresh, job.retry, job.delete, job.cancel, job.wait):
        with pytest.raises(JobNotFound):
            use()


def test_what_a_jobs_state_does_not_allow_is_refused(started, store, gate):
    worker = started(store, handlers={"hold": gate.hold})
    running, waiting = worker.send(0, task="hold"), worker.send(0, task="hold", delay=3600)
    gate.entered.wait()
    until(lambda: running.state is State.RUNNING)

    for use in (running.retry, running.delete, waiting.retry):
        with pytest.raises(WrongState, match="nothing was changed"):
            use()
    gate.open()
    finished(running)
    with pytest.raises(WrongState):
        running.cancel()


def test_a_timeout_within_the_handler_is_its_own_failure(started):
    worker = started(":memory:", retry=Retry(max_attempts=1))

    @worker.handler("t", timeout=30)
    async def handle(n):
        await asyncio.wait_for(asyncio.sleep(WAIT_S), 0.01)

    (error,) = finished(worker.send(0, task="t")).errors

    assert error.type == "TimeoutError"
    assert "30" not in error.message
    assert "wait_for" in error.traceback
