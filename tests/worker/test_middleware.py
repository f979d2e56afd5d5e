"""Middleware: one generator around every handler, whatever its kind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import contextmanager

import pytest

from dutiful import (
    AlreadyStarted,
    Backoff,
    ConfigError,
    Context,
    Discard,
    Handler,
    JobFailed,
    Retry,
    State,
    Worker,
)
from tests.worker import handlers as child
from tests.worker.tools import WAIT_S, finished, result

ONCE = Retry(max_attempts=1)
current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="none")


def sync_add(n: int) -> int:
    return n + 1


async def async_add(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


def sync_fail(n: int) -> None:
    raise ValueError("no")


async def async_fail(n: int) -> None:
    raise ValueError("no")


@pytest.fixture(params=["sync", "async", "process", "batch", "batch in a process"])
def handlers(request):
    """A handler that adds, and one that fails, of each kind."""
    match request.param:
        case "sync":
            return {"add": sync_add, "fail": sync_fail}
        case "async":
            return {"add": async_add, "fail": async_fail}
        case "process":
            made = {"add": child.add, "fail": child.fail_with_no}
            return {name: Handler(fn, process=True) for name, fn in made.items()}
        case "batch in a process":
            made = {"add": child.add_together, "fail": child.fail_together}
            return {name: Handler(fn, process=True, batch=5) for name, fn in made.items()}
        case _:
            return {
                "add": Handler(lambda numbers: [n + 1 for n in numbers], batch=5),
                "fail": Handler(lambda numbers: sync_fail(0), batch=5),
            }


def test_it_runs_around_each_handler_the_first_outermost(make, handlers, seen):
    def outer(call):
        seen.add(("outer", call.task, call.id, call.attempt))
        value = yield
        seen.add(("outer", value))

    worker = make(handlers=handlers, middleware=[outer])

    @worker.middleware
    def inner(call):
        seen.add(("inner", call.payload))
        yield
        seen.add("inner")

    with worker:
        job = worker.send(1, task="add")
        assert result(job) == 2

    given, value = ([1], [2]) if handlers["add"] is not None and _is_batch(handlers) else (1, 2)
    assert seen.all == [
        ("outer", "add", job.id, 1),
        ("inner", given),
        "inner",
        ("outer", value),
    ]


def _is_batch(handlers):
    return isinstance(handlers["add"], Handler) and handlers["add"].batch is not None


def test_an_exception_passes_through_it_as_the_handlers_own(make, handlers, seen):
    def watch(call):
        try:
            yield
        except ValueError as error:
            seen.add(str(error))
            raise

    with make(handlers=handlers, middleware=[watch], retry=ONCE) as worker:
        record = finished(worker.send(1, task="fail"))

    assert seen.all == ["no"]
    assert record.state is State.DEAD
    assert (record.errors[0].type, record.errors[0].message) == ("ValueError", "no")


def test_it_can_make_something_else_of_it(make, handlers):
    def give_up(call):
        try:
            yield
        except ValueError:
            return Discard("not worth it")

    with make(handlers=handlers, middleware=[give_up]) as worker:
        record = finished(worker.send(1, task="fail"))

    assert (record.state, record.attempt) == (State.DEAD, 1)
    assert record.errors[0].message == "not worth it"


def test_it_can_raise_another(make, handlers):
    def other(call):
        try:
            yield
        except ValueError as error:
            raise LookupError("changed") from error

    with make(handlers=handlers, middleware=[other], retry=ONCE) as worker:
        assert finished(worker.send(1, task="fail")).errors[0].type == "LookupError"


def test_it_can_answer_in_the_handlers_place(make, handlers):
    def refuse(call):
        if call.task == "add":
            return Discard("not today")
        yield

    with make(handlers=handlers, middleware=[refuse]) as worker:
        assert finished(worker.send(1, task="add")).errors[0].message == "not today"


def test_one_that_forgets_to_yield_drops_no_job(make, handlers):
    def forgets(call):
        if call.task == "nothing":
            yield

    with make(handlers=handlers, middleware=[forgets], retry=ONCE) as worker:
        with pytest.raises(JobFailed, match="ended without a yield"):
            result(worker.send(1, task="add"))


def test_one_that_yields_twice_is_told(make, handlers):
    def twice(call):
        yield
        yield

    with make(handlers=handlers, middleware=[twice], retry=ONCE) as worker:
        for task in ("add", "fail"):
            record = finished(worker.send(1, task=task))
            assert task == "fail" or "a second time" in record.errors[0].message


def test_what_fails_before_the_handler_is_retried_like_it(make, handlers):
    calls = []

    def first_fails(call):
        calls.append(call.attempt)
        if len(calls) == 1:
            raise OSError("not yet")
        yield

    retry = Retry(backoff=Backoff(first_s=0))
    with make(handlers=handlers, middleware=[first_fails], retry=retry) as worker:
        assert result(worker.send(1, task="add")) == 2

    assert calls == [1, 2]


def test_a_result_that_it_changes_is_the_result(make):
    def double(call):
        value = yield
        return value * 2

    with make(handlers={"add": sync_add}, middleware=[double]) as worker:
        assert result(worker.send(1, task="add")) == 4


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_headers_can_be_carried_into_contextvars(make, kind):
    def carry(call):
        if "trace" in call.headers:
            current.set(call.headers["trace"])
        yield

    async def ahandle(n):
        await asyncio.sleep(0)
        return current.get()

    handler = ahandle if kind == "async" else lambda n: current.get()
    with make(handlers={"t": handler}, middleware=[carry], concurrency=1) as worker:
        assert result(worker.send(1, task="t", headers={"trace": "abc"})) == "abc"
        # A thread, or a loop, that has served one job begins the next with nothing of it.
        assert result(worker.send(1, task="t")) == "none"


def test_a_batch_shows_all_its_jobs(make, seen):
    def watch(call):
        seen.add([(job.id, job.attempt, job.failures, dict(job.headers)) for job in call.jobs])
        yield

    handler = Handler(lambda numbers: None, batch=2, wait=60)
    with make(handlers={"t": handler}, middleware=[watch]) as worker:
        one = worker.send(1, task="t", headers={"a": "1"})
        two = worker.send(2, task="t")
        finished(two)

    assert seen.all == [[(one.id, 1, 0, {"a": "1"}), (two.id, 1, 0, {})]]


def test_arguments_by_name_are_the_payload(make, seen):
    def watch(call):
        seen.add(call.payload)
        yield

    worker = make(middleware=[watch])

    @worker.task
    def add(x: int, y: int, ctx: Context) -> int:
        return x + y

    with worker:
        assert add.send(1, 2).result(WAIT_S) == 3

    assert seen.all == [{"x": 1, "y": 2}]


def test_steps_and_sleeps_pass_through_it(make, seen):
    def watch(call):
        try:
            yield
        finally:
            seen.add(call.attempt)

    worker = make(middleware=[watch])

    @worker.handler("t")
    def handle(n, ctx):
        ctx.sleep("nap", 0.01)
        return n

    with worker:
        assert result(worker.send(5, task="t")) == 5

    assert seen.all == [1, 2]


def test_a_transaction_completes_the_job_inside_of_it(make, path):
    def watch(call):
        yield

    worker = make(middleware=[watch])

    @worker.handler("t")
    def handle(n, ctx):
        with ctx.transaction() as db:
            db.execute("CREATE TABLE seen (n)")

    with worker:
        assert finished(worker.send(1, task="t")).state is State.COMPLETED


def test_an_async_handler_is_cancelled_through_it(make, seen):
    entered = threading.Event()

    def watch(call):
        try:
            yield
        except BaseException as error:
            seen.add(type(error).__name__)
            raise

    async def handle(n):
        entered.set()
        await asyncio.sleep(WAIT_S)

    with make(handlers={"t": handle}, middleware=[watch]) as worker:
        job = worker.send(1, task="t")
        assert entered.wait(WAIT_S)
        job.cancel()
        assert finished(job).state is State.CANCELLED

    assert seen.all == ["CancelledError"]


def test_a_handler_that_raises_stop_iteration_fails_with_it(make):
    def watch(call):
        yield

    def stops(n):
        raise StopIteration("odd")

    with make(handlers={"t": stops}, middleware=[watch], retry=ONCE) as worker:
        assert finished(worker.send(1, task="t")).errors[0].type == "StopIteration"


@contextmanager
def not_this(call):
    yield


async def nor_this(call):
    yield


@pytest.mark.parametrize("wrong", [print, not_this, nor_this, 5, lambda call: None])
def test_what_is_no_generator_is_refused(make, wrong):
    with pytest.raises(ConfigError, match="generator function"):
        make().middleware(wrong)
    with pytest.raises(ConfigError, match="generator function"):
        make(middleware=[wrong])


def test_it_cannot_come_to_a_worker_that_runs(started):
    def late(call):
        yield

    with pytest.raises(AlreadyStarted):
        started().middleware(late)


# --- headers of all sends -------------------------------------------------------------------------


def test_every_send_can_have_headers(started, store):
    worker: Worker = started(store)

    @worker.outgoing_headers
    def trace():
        return {"trace": current.get()}

    @worker.handler("head")
    def head(n, ctx):
        return dict(ctx.headers)

    @worker.handler("sends")
    def sends(n, ctx):
        ctx.send(1, task="head", unique=True)

    async def asend():
        one = await worker.asend(1, task="head")
        (two,) = await worker.asend_many([1], task="head")
        return [one, two]

    token = current.set("abc")
    jobs = [worker.send(1, task="head"), *worker.send_many([1], task="head"), *asyncio.run(asend())]
    mixed = worker.send(1, task="head", headers={"trace": "mine", "more": "1"})
    current.reset(token)

    assert [result(job) for job in jobs] == [{"trace": "abc"}] * 4
    assert result(mixed) == {"trace": "mine", "more": "1"}
    finished(worker.send(1, task="sends"))
    (sent,) = [record for record in worker.jobs(task="head") if record.id > mixed.id]
    assert result(worker.job(sent.id)) == {"trace": "none"}


def test_when_that_fails_nothing_is_stored(make):
    worker = make()

    @worker.outgoing_headers
    def wrong():
        raise LookupError("no trace")

    with pytest.raises(LookupError):
        worker.send(1, task="t")
    assert worker.jobs() == []


def test_only_a_plain_function_gives_headers(make):
    async def later():
        return {}

    for wrong in (5, later):
        with pytest.raises(ConfigError, match="plain function"):
            make().outgoing_headers(wrong)
