"""Handlers that do their worst: the attempt fails, the worker lives."""

import asyncio
import functools
import logging
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from dutiful import Backoff, ConfigError, NotDecodable, Retry, State
from tests.worker.tools import WAIT_S, Seen, background, finished, result, until

ONCE = Retry(max_attempts=1)


class Rude(Exception):
    def __str__(self):
        raise ValueError("no text of mine")

    __repr__ = __str__


class RudeBase(BaseException):
    def __str__(self):
        raise SystemExit


class Odd(BaseException):
    pass


class NoText(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307


class Endless(Exception):
    def __init__(self):
        self.__cause__ = self


def loop(n):
    yield n


async def aloop(n):
    yield n


class Looping:
    def __call__(self, n):
        yield n


def recurse(n):
    return recurse(n + 1)


ERRORS = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    MemoryError(),
    StopIteration(1),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    Odd("odd"),
    Rude(),
    RudeBase(),
    NoText(),
    Endless(),
    ValueError("\ud800"),
    ValueError("x" * 10_000_000),
    ExceptionGroup("many", [ValueError(1), ExceptionGroup("more", [KeyError(2)])]),
    NotDecodable("t", "theirs"),
]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("with_ctx", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_handler_raises_is_a_failure_of_its_attempt(started, error, asynchronous, with_ctx):
    worker = started(":memory:", concurrency=1, handlers={"fine": lambda n: n})

    def fail(n, ctx=None):
        raise error

    async def afail(n, ctx=None):
        raise error

    def plain(n):
        raise error

    worker.handler("t", retry=ONCE)(afail if asynchronous else fail if with_ctx else plain)

    record = finished(worker.send(0, task="t"))

    assert (record.state, record.failures) == (State.DEAD, 1)
    if not (asynchronous and isinstance(error, StopIteration)):  # Python makes a RuntimeError of it
        assert record.errors[0].type == type(error).__name__
    assert len(record.errors[0].message) < 50_000
    assert result(worker.send(7, task="fine")) == 7


def test_a_recursion_without_end_is_a_failure(started, store):
    worker = started(store, handlers={"t": recurse, "fine": lambda n: n}, retry=ONCE)

    assert finished(worker.send(0, task="t")).errors[0].type == "RecursionError"
    assert result(worker.send(7, task="fine")) == 7


def test_a_task_that_an_async_handler_left_behind_cannot_end_the_loop(started, store):
    worker = started(store, retry=ONCE)

    @worker.handler("t")
    async def leave(n):
        async def exit_later():
            sys.exit(3)

        task = asyncio.get_running_loop().create_task(exit_later())
        await asyncio.sleep(0.01)
        return task.done()

    @worker.handler("fine")
    async def fine(n):
        await asyncio.sleep(0)
        return n

    finished(worker.send(0, task="t"))

    assert result(worker.send(7, task="fine")) == 7


def test_an_async_handler_that_stops_its_loop_harms_nobody(started):
    worker = started(":memory:", retry=ONCE)

    @worker.handler("t")
    async def leave(n):
        asyncio.get_running_loop().stop()

    @worker.handler("fine")
    async def fine(n):
        await asyncio.sleep(0)
        return n

    worker.send(0, task="t")

    assert result(worker.send(7, task="fine")) == 7


def test_a_log_handler_that_raises_harms_nobody(started, store):
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("the log is down")

    broken, log = Broken(), logging.getLogger("dutiful")
    log.addHandler(broken)
    try:
        worker = started(store, handlers={"t": lambda n: 1 / 0, "fine": lambda n: n}, retry=ONCE)
        assert finished(worker.send(0, task="t")).state is State.DEAD
        assert result(worker.send(7, task="fine")) == 7
        worker.stop()
    finally:
        log.removeHandler(broken)


def test_a_failure_is_one_log_line_with_the_job(started, caplog):
    worker = started(":memory:", retry=Retry(max_attempts=2, backoff=Backoff(first_s=0)))
    worker.handlers["t"] = lambda n: 1 / 0

    with caplog.at_level(logging.INFO, "dutiful"):
        job = worker.send("secret payload", task="t")
        finished(job)
        worker.stop()

    lines = [line for line in caplog.messages if line.startswith(f"job {job.id} (t)")]
    assert len(lines) == 2
    assert "ZeroDivisionError" in lines[0]
    assert "dead" in lines[1]
    assert "secret" not in caplog.text


def test_a_slow_decoding_during_a_stop_runs_nothing_after_it(make, path):
    """What is claimed either runs before `stop` returns, or goes back."""
    begun, ended, ran = threading.Event(), threading.Event(), Seen()

    @dataclass
    class Slow:
        x: int

        def __post_init__(self):
            if threading.current_thread() is not threading.main_thread():
                begun.set()
                ended.wait(WAIT_S)

    worker = make(path, handlers={Slow: ran.add})
    worker.start()
    job = worker.send(Slow(1))
    assert begun.wait(WAIT_S)

    stop = background(worker.stop, timeout=0.1)
    time.sleep(0.3)  # past the timeout, so that it has to decide
    ended.set()
    stop.result(WAIT_S)
    count = len(ran.all)
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("dutiful-handler")])

    assert len(ran.all) == count
    assert job.refresh().state is (State.COMPLETED if count else State.PENDING)


# --- calls that never ran ---------------------------------------------------------------------------


class Later:
    """Awaitable, and no coroutine."""

    def __await__(self):
        yield


@pytest.mark.parametrize(
    ("made", "hint"),
    [
        (lambda: asyncio.sleep(0), "make it async def"),
        (lambda: loop(1), "without yield"),
        (lambda: aloop(1), "without yield"),
        (Later, "make it async def"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "ctx", "async"])
def test_what_a_handler_returned_and_never_ran_is_a_failure(started, made, hint, kind):
    """It would be called completed, and nothing have happened."""
    worker = started(retry=ONCE)

    async def coroutine(payload):
        return made()

    worker.handlers["t"] = {
        "plain": lambda payload: made(),
        "ctx": lambda payload, ctx: made(),
        "async": coroutine,
    }[kind]
    job = worker.send(1, task="t")

    assert finished(job).state is State.DEAD
    assert job.errors[0].type == "TypeError"
    assert "never ran" in job.errors[0].message
    assert hint in job.errors[0].message


@pytest.mark.parametrize("fn", [loop, aloop, Looping(), functools.partial(loop)])
def test_a_generator_is_no_handler(make, fn):
    worker = make()

    with pytest.raises(ConfigError, match="is a generator"):
        worker.handlers["t"] = fn
    with pytest.raises(ConfigError, match="is a generator"):
        worker.process(fn)
