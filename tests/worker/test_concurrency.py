"""How many handlers run at once: `concurrency` of all kinds together, no more and no fewer."""

import asyncio
import threading
import time

import pytest

from dutiful import Handler
from tests.worker import handlers
from tests.worker.tools import WAIT_S, Seen, finished, result


def test_the_bound_holds_for_all_kinds_together(started, store, tmp_path):
    (tmp_path / "crowd").mkdir()
    worker = started(
        store,
        concurrency=3,
        handlers={
            "thread": handlers.crowd,
            "async": handlers.acrowd,
            "process": Handler(handlers.crowd, process=True),
        },
    )

    jobs = [
        worker.send(str(tmp_path / "crowd"), task=("thread", "async", "process")[n % 3]) for n in range(90)
    ]

    counts = [job.result(timeout=2 * WAIT_S) for job in jobs]
    assert max(counts) <= 3
    assert counts.count(3) > 10


@pytest.mark.parametrize("count", [2, 20])
def test_so_many_threads_run_at_once(started, store, count):
    barrier = threading.Barrier(count)
    worker = started(store, concurrency=count, handlers={"t": lambda n: barrier.wait(WAIT_S) >= 0})

    assert all(map(result, worker.send_many(range(3 * count), task="t")))


@pytest.mark.parametrize("count", [2, 200])
def test_so_many_coroutines_run_at_once(started, store, count):
    worker = started(store, concurrency=count)
    barriers = []

    @worker.handler("t")
    async def handle(n):
        if not barriers:
            barriers.append(asyncio.Barrier(count))
        async with asyncio.timeout(WAIT_S):
            await barriers[0].wait()

    for job in worker.send_many(range(2 * count), task="t"):
        assert finished(job).failures == 0


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_with_one_slot_handlers_never_overlap(started, store, kind):
    worker = started(store, concurrency=1)
    inside, order = [], Seen()

    def enter(n):
        inside.append(n)
        assert inside == [n]

    def leave(n):
        inside.remove(n)
        order.add(n)

    if kind == "thread":

        @worker.handler("t")
        def handle(n):
            enter(n)
            time.sleep(0.0005)
            leave(n)

    else:

        @worker.handler("t")
        async def handle(n):
            enter(n)
            await asyncio.sleep(0.0005)
            leave(n)

    worker.send_many(range(200), task="t")

    assert order.wait(200) == list(range(200))


def test_coroutines_that_block_do_not_keep_threads_from_running(started, store, gate):
    worker = started(store, concurrency=2, handlers={"fine": lambda n: n})

    @worker.handler("blocking")
    async def block(n):
        gate.hold(n)

    worker.send(0, task="blocking")
    gate.entered.wait()

    assert [result(job) for job in worker.send_many(range(50), task="fine")] == list(range(50))


def test_a_handler_may_send_and_wait_for_another_job(started, store):
    worker = started(store, concurrency=2, handlers={"inner": lambda n: 2 * n})
    worker.handlers["outer"] = lambda n: result(worker.send(n, task="inner"))

    @worker.handler("async.outer")
    async def outer(n):
        return await (await worker.asend(n, task="inner"))

    assert result(worker.send(4, task="outer")) == 8
    assert result(worker.send(5, task="async.outer")) == 10


def test_slots_are_given_back_whatever_happened_in_them(started, store):
    worker = started(store, concurrency=2, handlers={"fine": lambda n: n})

    @worker.handler("bad", timeout=0.05)
    async def bad(n):
        if n % 3 == 0:
            raise SystemExit
        if n % 3 == 1:
            await asyncio.sleep(WAIT_S)

    jobs = worker.send_many(range(20), task="bad", priority=1)

    assert [result(job) for job in worker.send_many(range(20), task="fine")] == list(range(20))
    for job in jobs:
        if job.state == "pending":
            job.cancel()
