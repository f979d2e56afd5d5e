"""`asend` and the other async twins: the same promises, and an event loop that is never blocked."""

import asyncio
import sys
import threading

import pytest

from dutiful import ConfigError, JobTimeout, State, UnknownTask, WorkerStopped
from tests.store import inside
from tests.worker.tools import WAIT_S, within


def run(coroutine):
    """Run a coroutine to its end, loop and all, within a bound."""
    return within(WAIT_S, asyncio.run, coroutine)


def test_many_coroutines_send_at_once(make, store, seen):
    worker = make(store, handlers={"t": seen.add})

    async def main():
        async with worker:
            jobs = await asyncio.gather(*[worker.asend(n, task="t") for n in range(300)])
            await asyncio.gather(*[job.await_() for job in jobs])
            return jobs

    jobs = run(main())

    assert len({job.id for job in jobs}) == 300
    assert sorted(seen.wait(300)) == list(range(300))


def test_async_with_starts_and_stops(make, path, seen):
    worker = make(path, handlers={"t": seen.add})

    async def main():
        async with worker as same:
            assert same is worker
            await (await worker.asend(1, task="t"))
        with pytest.raises(WorkerStopped):
            await worker.asend(2, task="t")

    run(main())

    assert seen.all == [1]


def test_a_job_can_be_awaited(started, store):
    worker = started(store, handlers={"double": lambda n: 2 * n, "never": lambda n: n})

    async def main():
        job = await worker.asend(4, task="double")
        assert await job == 8
        assert await job.aresult(timeout=WAIT_S) == 8
        assert (await job.await_()).state is State.COMPLETED
        assert (await job.arefresh()).attempt == 1
        later = await worker.asend(4, task="never", delay=3600)
        with pytest.raises(JobTimeout):
            await later.aresult(timeout=0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(later.aresult(), 0.05)
        await later.acancel()
        assert later.state is State.CANCELLED

    run(main())


def test_asend_many_takes_iterables_of_both_kinds(make, store):
    worker = make(store)

    async def payloads():
        for n in range(1200):
            yield n
            if not n % 100:
                await asyncio.sleep(0)

    async def main():
        return await worker.asend_many(payloads(), task="t"), await worker.asend_many([1, 2], task="t")

    many, few = run(main())

    assert (len(many), len(few)) == (1200, 2)
    assert worker.counts().by_state[State.PENDING] == 1202


def test_wrong_arguments_store_nothing(make):
    worker = make()

    async def main():
        for options in ({"delay": -1, "task": "t"}, {"task": "t", "transaction": object()}, {"tsak": "t"}):
            with pytest.raises(ConfigError):
                await worker.asend(1, **options)
            with pytest.raises(ConfigError):
                await worker.asend_many([1], **options)
        with pytest.raises(UnknownTask):
            await worker.asend(1)

    run(main())

    assert worker.jobs() == []


@pytest.mark.parametrize("buffer", [None, 5])
def test_a_slow_commit_does_not_block_the_loop(make, path, buffer):
    worker = make(path, buffer=buffer)
    worker.send(0, task="t")
    holding, go_on = threading.Event(), threading.Event()

    def hold_the_write_lock():
        with inside.writing(worker._store):
            holding.set()
            assert go_on.wait(WAIT_S)

    async def main():
        sending = asyncio.ensure_future(worker.asend(1, task="t"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not sending.done()
        go_on.set()
        await sending

    holder = threading.Thread(target=hold_the_write_lock)
    holder.start()
    assert holding.wait(WAIT_S)
    run(main())
    holder.join()

    assert len(worker.jobs()) == 2


def test_an_asend_that_was_cancelled_while_it_waited_for_room_stores_nothing(make, path, seen):
    worker = make(path, buffer=1, handlers={"t": seen.add})

    async def main():
        await worker.asend(0, task="t")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.asend(1, task="t"), 0.1)

    run(main())  # the loop ends although nothing makes room
    worker.start()
    assert seen.wait() == [0]
    worker.send(2, task="t", timeout=WAIT_S)

    assert seen.wait(2) == [0, 2]
    assert [record.payload for record in worker.jobs()] == ["2", "0"]


def test_loops_in_several_threads_share_a_worker(started, path, seen):
    worker = started(path, handlers={"t": seen.add})

    async def main():
        for n in range(100):
            await worker.asend(n, task="t")

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()

    assert sorted(seen.wait(400)) == sorted(list(range(100)) * 4)


def test_no_coroutine_is_forgotten_however_threads_are_switched(make, path, seen):
    worker = make(path, handlers={"t": lambda _: None}, keep_completed=0, durability="normal")

    async def main():
        async def send():
            for _ in range(400):
                await worker.asend(0, task="t")

        async with worker:
            await asyncio.gather(*[send() for _ in range(20)])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run(main())
    finally:
        sys.setswitchinterval(interval)


def test_stop_may_be_called_on_a_running_loop(started, store):
    worker = started(store)

    @worker.handler("t")
    async def handle(n):
        return n

    async def main():
        assert await (await worker.asend(5, task="t")) == 5
        worker.stop()

    run(main())

    with pytest.raises(WorkerStopped):
        worker.send(1, task="t")


def test_a_loop_that_is_closed_in_the_middle_of_a_send_harms_nobody(started, path, seen):
    worker = started(path, handlers={"t": seen.add})

    async def main():
        tasks = [asyncio.ensure_future(worker.asend(n, task="t")) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()

    run(main())
    worker.send("last", task="t")

    assert "last" in seen.wait(len(worker.jobs()))
