"""Cancelling a job: while it waits, while it runs, and in between."""

import asyncio
import threading

import pytest

from dutiful import Backoff, JobFailed, Retry, Snooze, State, WrongState
from tests.worker.tools import WAIT_S, finished, result, until


def test_a_waiting_job_is_cancelled_at_once(make, started, store, seen):
    worker = started(store, handlers={"t": seen.add, "fine": lambda n: n})
    job = worker.send(1, task="t", delay=3600)

    job.cancel()

    assert job.state is State.CANCELLED
    with pytest.raises(JobFailed, match="cancelled"):
        result(job)
    with pytest.raises(WrongState):
        job.cancel()


def test_a_cancelled_job_does_not_run_at_the_next_start(make, path, seen):
    worker = make(path, handlers={"t": seen.add}, concurrency=1)
    jobs = worker.send_many(range(5), task="t")
    jobs[2].cancel()

    with worker:
        assert seen.wait(4) == [0, 1, 3, 4]
    assert seen.all == [0, 1, 3, 4]


def test_a_running_coroutine_is_cancelled(started, store, seen):
    worker = started(store)

    @worker.handler("t")
    async def handle(n):
        seen.add("begun")
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            seen.add("cancelled")
            raise

    job = worker.send(1, task="t")
    seen.wait(1)

    job.cancel()

    record = finished(job)
    assert (record.state, record.failures, seen.all) == (State.CANCELLED, 0, ["begun", "cancelled"])


def test_a_thread_sees_that_it_should_stop(started, store, seen):
    worker = started(store)

    @worker.handler("t")
    def handle(n, ctx):
        seen.add("begun")
        while True:
            ctx.wait(WAIT_S)
            ctx.check()

    job = worker.send(1, task="t")
    seen.wait(1)

    job.cancel()

    assert finished(job).state is State.CANCELLED
    assert job.refresh().failures == 0


@pytest.mark.parametrize("with_ctx", [False, True])
def test_a_job_whose_handler_raises_after_the_cancel_is_cancelled(started, store, gate, with_ctx):
    """Also when the worker has not yet looked for cancellations."""
    worker = started(store)
    retry = Retry(backoff=Backoff(first_s=0))

    def plain(n):
        gate.hold(n)
        raise ValueError("gives up")

    def asking(n, ctx):
        plain(n)

    worker.handler("t", retry=retry)(asking if with_ctx else plain)
    job = worker.send(1, task="t")
    gate.entered.wait()

    job.cancel()
    gate.open()

    assert finished(job).state is State.CANCELLED
    assert job.attempt == 1


@pytest.mark.parametrize("with_ctx", [False, True])
def test_a_job_that_completes_all_the_same_is_completed(started, store, gate, with_ctx):
    worker = started(store)
    asking = lambda n, ctx: gate.hold(n)  # noqa: E731
    worker.handlers["t"] = asking if with_ctx else gate.hold
    job = worker.send(1, task="t")
    gate.entered.wait()

    job.cancel()
    gate.open()

    assert result(job) == 1


def test_a_job_that_snoozes_after_the_cancel_is_cancelled(started, store, gate):
    worker = started(store)

    @worker.handler("t")
    def handle(n):
        gate.hold(n)
        return Snooze(3600)

    job = worker.send(1, task="t")
    gate.entered.wait()

    job.cancel()
    gate.open()

    assert finished(job).state is State.CANCELLED


def test_a_job_that_waits_in_the_workers_memory_is_cancelled(started, store, gate, seen):
    worker = started(store, concurrency=1)

    @worker.handler("t")
    def handle(n):
        seen.add(n)
        if n == 500:
            gate.hold(n)

    jobs = worker.send_many(range(1000), task="t")
    gate.entered.wait()

    for job in jobs[501:520]:
        job.cancel()
    until(lambda: {job.state for job in jobs[501:520]} == {State.CANCELLED})
    gate.open()

    assert seen.wait(981) == [n for n in range(1000) if not 501 <= n < 520]
    assert {job.attempt for job in jobs[501:520]} <= {0, 1}


def test_a_job_that_waits_for_its_retry_is_cancelled(started, store):
    worker = started(store, handlers={"t": lambda n: 1 / 0})
    job = worker.send(1, task="t")
    until(lambda: job.refresh().failures)

    job.cancel()

    record = finished(job)
    assert (record.state, record.attempt, len(record.errors)) == (State.CANCELLED, 1, 1)


def test_another_process_can_cancel(make, started, path, gate, seen):
    """Or another worker on the same file, which is the same to the one that runs it."""
    worker = started(path)

    @worker.handler("t")
    async def handle(n):
        seen.add(n)
        await asyncio.sleep(WAIT_S)

    job = make(path).send(1, task="t")
    seen.wait(1)

    job.cancel()

    assert finished(job).state is State.CANCELLED


def test_cancelling_twice_is_once(started, store, gate):
    worker = started(store)

    @worker.handler("t")
    def handle(n, ctx):
        gate.hold(n)
        ctx.check()
        assert ctx.wait(WAIT_S)
        ctx.check()

    job = worker.send(1, task="t")
    gate.entered.wait()

    job.cancel()
    job.cancel()
    gate.open()

    assert finished(job).state is State.CANCELLED


def test_jobs_that_are_cancelled_while_they_start_are_done_or_cancelled(started, store, seen):
    worker = started(store, handlers={"t": seen.add}, concurrency=2)
    refused = []

    def cancel(jobs):
        for job in jobs:
            try:
                job.cancel()
            except WrongState:
                refused.append(job.id)

    jobs = worker.send_many(range(400), task="t")
    threads = [threading.Thread(target=cancel, args=(jobs[n::2],)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    states = [finished(job).state for job in jobs]
    assert set(states) <= {State.COMPLETED, State.CANCELLED}
    assert len(seen.all) >= states.count(State.COMPLETED)
    assert len(set(seen.all)) == len(seen.all)
