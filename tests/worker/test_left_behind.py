"""What is left when a worker has stopped: no thread, no file descriptor, no warning."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from dutiful import Handler
from tests.worker import handlers
from tests.worker.tools import ran, result


def open_fds():
    """Return what is open, by number and name."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        try:
            found[each.name] = str(each.readlink())
        except FileNotFoundError:  # the listing's own
            continue
    return found


async def aresult(n):
    await asyncio.to_thread(int)
    return n


def live(worker, kinds):
    """One worker's life, with jobs of all kinds."""
    worker.handlers.update({"thread": lambda n: n, "async": aresult, "fail": lambda n: 1 / 0})
    if "process" in kinds:
        worker.handlers["process"] = Handler(handlers.double, process=True)
    with worker:
        for kind in kinds:
            result(worker.send(1, task=kind))
        worker.send(1, task="fail")
        worker.send(1, task="thread", delay=3600)
        asyncio.run(asend(worker))


async def asend(worker):
    await (await worker.asend(2, task="async"))


@pytest.mark.parametrize("kinds", [("thread", "async"), ("thread", "async", "process")])
def test_no_thread_and_no_descriptor_is_left(make, store, kinds):
    live(make(store), kinds)  # what Python itself opens once is open now
    threads, before = set(threading.enumerate()), open_fds()

    for _ in range(3):
        live(make(store), kinds)

    gc.collect()
    assert set(threading.enumerate()) <= threads
    assert set(open_fds()) == set(before), (before, open_fds())


def test_starting_again_and_again_leaves_nothing_either(make, store):
    worker = make(store, handlers={"t": lambda n: n})
    with worker:
        pass
    before = set(open_fds())

    for n in range(10):
        with worker:
            assert result(worker.send(n, task="t")) == n

    assert set(open_fds()) == before


def test_a_client_leaves_nothing(make, path):
    before = set(open_fds())
    for n in range(5):
        client = make(path)
        client.send(n, task="t")
        client.stop()

    assert set(open_fds()) == before


def test_a_start_that_failed_leaves_nothing(make, tmp_path):
    (tmp_path / "jobs.db").write_text("this is no database, but long enough to look like one" * 100)
    before, threads = set(open_fds()), set(threading.enumerate())
    worker = make(tmp_path / "jobs.db")

    for _ in range(3):
        with pytest.raises(Exception, match=r"jobs\.db"):
            worker.start()

    assert set(open_fds()) == before
    assert set(threading.enumerate()) == threads


LIFE = """
    import gc

    async def handle(n):
        await asyncio.sleep(0)
        return n

    def double(n):
        return 2 * n

    async def asending(worker):
        await (await worker.asend(2, task="async"))
        await worker.asend_many([1, 2], task="async")

    if __name__ == "__main__":
        for store in (sys.argv[1], ":memory:") * 2:
            worker = Worker(store, handlers={"t": lambda n: n, "async": handle, "fail": lambda n: 1 / 0})
            worker.handlers["process"] = Handler(double, process=True)
            with worker:
                assert worker.send(4, task="process").result(20) == 8
                worker.send(1, task="t").result(20)
                worker.send(1, task="fail")
                worker.send_many(range(2000), task="t")
                asyncio.run(asending(worker))
            del worker
            gc.collect()
        say("well")
"""


@pytest.mark.parametrize("dev", ["", "1"])
def test_no_warning_is_given_even_where_warnings_are_errors(tmp_path, path, dev):
    assert ran(tmp_path, LIFE, path, env={"PYTHONDEVMODE": dev}).lines == ["well"]
