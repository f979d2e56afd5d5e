"""Handlers that take too long: coroutines are cancelled, threads reported and replaced."""

import asyncio
import gc
import logging
import threading
import time

import pytest

from dutiful import Backoff, Retry, State
from dutiful.runner.attempt import Attempt
from tests.worker.tools import WAIT_S, Seen, finished, result, until

ONCE = Retry(max_attempts=1)
AT_ONCE = Retry(backoff=Backoff(first_s=0))


def test_a_coroutine_is_cancelled_and_tried_again(started, store, seen):
    worker = started(store)

    @worker.handler("t", timeout=0.1, retry=AT_ONCE)
    async def handle(n, ctx):
        if ctx.attempt > 1:
            return "done"
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            seen.add("cancelled")
            raise

    job = worker.send(0, task="t")

    assert result(job) == "done"
    record = job.refresh()
    assert (record.failures, seen.all) == (1, ["cancelled"])
    assert record.errors[0].type == "TimeoutError"
    assert "0.1" in record.errors[0].message


def test_the_timeout_counts_for_each_attempt(started):
    worker = started(":memory:")

    @worker.handler("t", timeout=0.1, retry=Retry(max_attempts=3, backoff=Backoff(first_s=0)))
    async def handle(n):
        await asyncio.sleep(WAIT_S)

    record = finished(worker.send(0, task="t"))

    assert (record.state, record.failures) == (State.DEAD, 3)
    assert record.finished_at - record.created_at >= 300


def test_a_coroutine_that_ends_in_time_is_not_disturbed(started):
    worker = started(":memory:")

    @worker.handler("t", timeout=WAIT_S)
    async def handle(n):
        await asyncio.sleep(0.01)
        return n

    assert [result(job) for job in worker.send_many(range(50), task="t")] == list(range(50))


@pytest.fixture
def stuck(started, store, gate):
    """Start a worker with one slot, and a job that is stuck in it."""

    def stuck(**options):
        worker = started(
            store, concurrency=1, handlers={"fine": lambda n: n}, lease_s=options.pop("lease_s", 60)
        )

        @worker.handler("stuck", timeout=0.1, **{"retry": AT_ONCE, **options})
        def hold(n, ctx):
            if ctx.attempt == 1:
                gate.hold(n)
                return ["late", ctx.cancelled]
            return "again"

        job = worker.send(0, task="stuck")
        gate.entered.wait()
        return worker, job

    return stuck


def test_a_stuck_thread_is_reported_and_another_slot_takes_its_place(stuck, caplog):
    with caplog.at_level(logging.ERROR, "dutiful"):
        worker, job = stuck()

        assert result(worker.send(7, task="fine")) == 7

    assert job.state is State.RUNNING
    (line,) = [line for line in caplog.messages if "still running after its timeout" in line]
    assert line.startswith(f"job {job.id} (stuck)")


def test_its_job_is_tried_again_when_the_thread_ends(stuck, gate):
    worker, job = stuck()
    result(worker.send(7, task="fine"))

    gate.open()

    assert result(job) == "again"
    record = job.refresh()
    assert (record.attempt, record.failures, record.errors[0].type) == (2, 1, "TimeoutError")


def test_its_job_is_given_up_when_the_lease_has_passed_and_the_late_outcome_is_fenced(stuck, gate, caplog):
    with caplog.at_level(logging.WARNING, "dutiful"):
        _worker, job = stuck(lease_s=0.3)

        assert result(job) == "again"
        assert not gate._open.is_set()
        gate.open()
        until(lambda: any("lost the job" in line for line in caplog.messages))

    record = job.refresh()
    assert (record.attempt, record.failures, record.result) == (2, 1, '"again"')
    (line,) = [line for line in caplog.messages if "lost the job" in line]
    assert line.startswith(f"job {job.id}: attempt 1 ")


def test_a_policy_decides_about_a_stuck_thread_too(stuck, gate):
    _worker, job = stuck(retry=Retry(give_up_on=(TimeoutError,)), lease_s=0.2)

    assert finished(job).state is State.DEAD
    assert not gate._open.is_set()


def test_the_handler_can_see_that_it_should_stop(started, store):
    worker = started(store, concurrency=1)

    @worker.handler("t", timeout=0.1, retry=ONCE)
    def look(n, ctx):
        assert not ctx.cancelled
        assert ctx.wait(WAIT_S)
        assert ctx.cancelled
        ctx.check()

    record = finished(worker.send(0, task="t"))

    assert [(error.type, error.attempt) for error in record.errors] == [("TimeoutError", 1)]


def test_the_bound_on_handlers_holds_again_when_the_stuck_thread_ends(started, path, gate):
    worker = started(path, concurrency=1)
    together, most, mutex, ran = [0], [0], threading.Lock(), Seen()

    @worker.handler("stuck", timeout=0.1)
    def stuck(n):
        gate.hold(n)

    @worker.handler("t")
    def count(n):
        with mutex:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.001)
        with mutex:
            together[0] -= 1
        ran.add(n)
        if n == 100:
            gate.open()

    worker.send(0, task="stuck")
    gate.entered.wait()
    worker.send_many(range(400), task="t")

    assert ran.wait(400) == list(range(400))
    assert most == [1]


def test_with_the_most_slots_there_can_be_one_more(started, path, gate):
    worker = started(path, concurrency=4096, handlers={"fine": lambda n: n})

    @worker.handler("stuck", timeout=0.1)
    def stuck(n):
        gate.hold(n)

    for _ in range(3):
        worker.send(0, task="stuck")
    gate.entered.wait(3)
    time.sleep(0.3)  # beyond the timeouts

    assert [result(job) for job in worker.send_many(range(20), task="fine")] == list(range(20))


def test_a_stop_leaves_a_stuck_thread_and_its_job_to_themselves(stuck, gate):
    worker, _job = stuck()
    result(worker.send(7, task="fine"))
    began = time.monotonic()

    worker.stop(timeout=0.2, drain=False)

    assert time.monotonic() - began < WAIT_S / 2


def test_timeouts_that_were_not_needed_hold_on_to_nothing(started, store, seen):
    worker = started(store, keep_completed=0)

    @worker.handler("t", timeout=3600)
    def handle(n):
        seen.add(n)

    worker.send_many(range(5000), task="t")
    seen.wait(5000)

    def attempts():
        gc.collect()
        return sum(isinstance(each, Attempt) for each in gc.get_objects())

    until(lambda: attempts() < 100)
