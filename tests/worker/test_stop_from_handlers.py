"""Handlers that stop their own worker: it returns at once, and the worker ends behind their back."""

import asyncio

import pytest

from dutiful import State
from tests.worker.tools import WAIT_S, has_stopped, until, within


def from_a_thread_handler(worker):
    @worker.handler("t")
    def handle(n):
        worker.stop()


def from_a_handler_with_context(worker):
    @worker.handler("t", timeout=60)
    def handle(n, ctx):
        worker.stop()


def from_a_coroutine(worker):
    @worker.handler("t")
    async def handle(n):
        worker.stop()


def from_a_thread_of_a_coroutine(worker):
    @worker.handler("t")
    async def handle(n):
        await asyncio.to_thread(worker.stop)


def twice_from_a_handler(worker):
    @worker.handler("t")
    def handle(n):
        worker.stop()
        worker.stop(timeout=5, drain=True)


FROM = [
    from_a_thread_handler,
    from_a_handler_with_context,
    from_a_coroutine,
    from_a_thread_of_a_coroutine,
    twice_from_a_handler,
]


@pytest.mark.parametrize("way", FROM)
def test_a_handler_may_stop_its_own_worker(make, store, way, seen):
    worker = make(store, handlers={"t": seen.add})
    way(worker)
    stored = worker.send(1, task="t")

    worker.start()

    until(lambda: has_stopped(worker))
    within(WAIT_S, worker.stop)
    if store != ":memory:":
        assert make(store).job(stored.id).state is State.COMPLETED
    worker.handlers["t"] = seen.add
    worker.start()
    worker.send(2, task="t")
    assert seen.wait() == [2]
