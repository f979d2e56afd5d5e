"""Handlers that send into a full buffer: in every way, they never wait for themselves."""

import asyncio

import pytest

from dutiful import BufferFull, WorkerStopped
from tests.worker.tools import WAIT_S, background, until


def sends_itself(worker, seen):
    def handle(n):
        if n:
            worker.send(n - 1, task="t")
        seen.add(n)

    return handle


def sends_many_itself(worker, seen):
    def handle(n):
        if n:
            worker.send_many([n - 1], task="t")
        seen.add(n)

    return handle


def asends_itself(worker, seen):
    async def handle(n):
        if n:
            await worker.asend(n - 1, task="t")
        seen.add(n)

    return handle


def asends_many_itself(worker, seen):
    async def handle(n):
        if n:
            await worker.asend_many([n - 1], task="t")
        seen.add(n)

    return handle


def sends_from_a_thread_of_the_loop(worker, seen):
    async def handle(n):
        if n:
            await asyncio.to_thread(worker.send, n - 1, task="t")
        seen.add(n)

    return handle


def sends_blocking_the_loop(worker, seen):
    async def handle(n):
        if n:
            worker.send(n - 1, task="t")
        seen.add(n)

    return handle


WAYS = [
    sends_itself,
    sends_many_itself,
    asends_itself,
    asends_many_itself,
    sends_from_a_thread_of_the_loop,
    sends_blocking_the_loop,
]


def refuses(worker):
    """Whether the stop has begun; the buffer is full, so nothing is stored."""
    try:
        worker.send(0, task="hold", timeout=0.01)
    except WorkerStopped:
        return True
    except BufferFull:
        return False


@pytest.mark.parametrize("way", WAYS)
def test_a_handler_that_sends_into_a_full_buffer_does_not_wait_for_itself(started, store, seen, way):
    worker = started(store, buffer=1, concurrency=1)
    worker.handlers["t"] = way(worker, seen)

    worker.send(4, task="t")

    assert sorted(seen.wait(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", WAYS)
def test_what_handlers_send_while_a_stop_drains_is_finished_too(started, store, seen, way, gate):
    worker = started(store, handlers={"hold": gate.hold}, buffer=2, concurrency=1)
    worker.handlers["t"] = way(worker, seen)
    worker.send(0, task="hold")
    worker.send(5, task="t")
    gate.entered.wait()

    stop = background(worker.stop, drain=True)
    until(lambda: refuses(worker))
    gate.open()
    stop.result(WAIT_S)

    assert sorted(seen.all) == [0, 1, 2, 3, 4, 5]
