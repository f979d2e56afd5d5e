"""What a handler can ask of its job."""

import asyncio
import contextlib
import threading

import pytest

from dutiful import Backoff, ConfigError, Context, LeaseLost, Retry, State
from tests.worker.tools import WAIT_S, background, finished, result


def facts(ctx):
    return [ctx.id, ctx.attempt, ctx.failures, ctx.task, ctx.queue, ctx.cancelled]


def test_it_tells_which_job_it_is(started, store):
    worker = started(store, queues=("mail", "default"), retry=Retry(backoff=Backoff(first_s=0)))

    @worker.handler("by.name")
    def by_name(n, ctx):
        if ctx.failures < 2:
            raise ValueError
        return facts(ctx)

    @worker.handler("by.type")
    async def by_type(n, job: Context):
        return facts(job)

    @worker.task
    def task(x: int, *, context: Context) -> list:
        return [x, *facts(context)]

    one, three = worker.send(1, task="by.name"), task.send(7)
    two = worker.send(1, task="by.type", queue="default")

    assert result(one) == [one.id, 3, 2, "by.name", "mail", False]
    assert result(two) == [two.id, 1, 0, "by.type", "default", False]
    assert result(three) == [7, three.id, 1, 0, "task", "mail", False]


def test_wait_sleeps_and_says_no(started):
    worker = started(":memory:")

    @worker.handler("t")
    def handle(n, ctx):
        ctx.check()
        return ctx.wait(0.01)

    assert result(worker.send(0, task="t")) is False


def waits(n, ctx):
    return ctx.wait(WAIT_S)


def polls(n, ctx):
    while not ctx.cancelled:
        threading.Event().wait(0.005)
    return True


@pytest.mark.parametrize("handle", [waits, polls])
def test_a_handler_can_end_early_when_the_worker_stops(make, path, gate, handle):
    worker = make(path)

    @worker.handler("t")
    def wrapped(n, ctx):
        gate.entered.add(n)
        return handle(n, ctx)

    worker.start()
    job = worker.send(0, task="t")
    gate.entered.wait()

    background(worker.stop).result(WAIT_S)

    assert make(path).job(job.id).result(timeout=0) is True


@pytest.mark.parametrize("catches", [False, True])
def test_check_at_a_stop_interrupts_and_is_no_failure(make, path, gate, catches):
    worker = make(path)

    @worker.handler("t")
    def handle(n, ctx):
        gate.entered.add(n)
        while True:
            ctx.wait(WAIT_S)
            try:
                ctx.check()
            except LeaseLost as error:
                if catches:
                    raise RuntimeError("cleaned up") from error
                raise

    worker.start()
    job = worker.send(0, task="t")
    gate.entered.wait()

    background(worker.stop).result(WAIT_S)

    record = make(path).job(job.id).refresh()
    if catches:  # what it raised itself is a failure like any other
        assert (record.state, record.failures) == (State.PENDING, 1)
    else:
        assert (record.state, record.failures, record.crashes, record.errors) == (State.PENDING, 0, 0, ())


def test_an_interrupted_job_runs_first_at_the_next_start(make, path, gate, seen):
    worker = make(path, concurrency=1)

    @worker.handler("t")
    def handle(n, ctx):
        seen.add(n)
        if n == 0 and ctx.attempt == 1:
            gate.entered.add(n)
            assert ctx.wait(WAIT_S)
            ctx.check()

    worker.send_many(range(5), task="t")
    worker.start()
    gate.entered.wait()
    background(worker.stop).result(WAIT_S)

    worker.start()

    assert seen.wait(6) == [0, 0, 1, 2, 3, 4]
    assert finished(worker.job(1)).attempt == 2


def test_a_coroutine_is_cancelled_when_the_time_of_a_stop_is_up_and_that_is_no_failure(
    make, path, gate, seen
):
    worker = make(path)

    @worker.handler("t")
    async def handle(n):
        gate.entered.add(n)
        try:
            await asyncio.sleep(2 * WAIT_S)
        finally:
            seen.add("unwound")

    worker.start()
    job = worker.send(0, task="t")
    gate.entered.wait()

    background(worker.stop, timeout=0.1).result(WAIT_S)

    record = make(path).job(job.id).refresh()
    assert seen.all == ["unwound"]
    assert (record.state, record.failures, record.crashes, record.errors) == (State.PENDING, 0, 0, ())


def test_a_coroutine_that_ignores_its_cancellation_does_not_hold_up_a_stop(make, path, gate):
    worker = make(path)
    go_on = threading.Event()

    @worker.handler("t")
    async def handle(n):
        gate.entered.add(n)
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    worker.start()
    worker.send(0, task="t")
    gate.entered.wait()

    background(worker.stop, timeout=0.1).result(WAIT_S)
    go_on.set()


# --- transactions -----------------------------------------------------------------------------------


def test_a_transaction_inside_of_another_is_refused_in_words(started, shared):
    worker = started(shared, retry=Retry(max_attempts=1))

    @worker.handler("nested")
    def nested(ctx: Context):
        with ctx.transaction(), pytest.raises(ConfigError, match="is inside of ctx"):
            ctx.transaction()

    job = worker.send(None, task="nested")

    assert finished(job).state is State.COMPLETED
    assert job.errors == ()


def test_a_blocking_transaction_is_not_awaited(started, shared):
    worker = started(shared, retry=Retry(max_attempts=1))

    @worker.handler("awaits")
    async def awaits(ctx: Context):
        async with ctx.transaction():
            pass

    job = worker.send(None, task="awaits")

    assert finished(job).state is State.DEAD
    assert job.errors[0].type == "ConfigError"
    assert "Use `with`" in job.errors[0].message
