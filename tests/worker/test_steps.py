"""What a handler does once, though it is run again: steps, sleeps and events; on every store."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from dutiful import Backoff, ConfigError, Context, EventTimeout, LeaseLost, Retry, State
from tests.worker.tools import WAIT_S, finished, result, until

NOW = Retry(max_attempts=4, backoff=Backoff(first_s=0.001))
LONG_S = 3600.0


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@dataclass
class Receipt:
    amount: int


def is_asleep(job):
    """Whether the job waits for its time, and no attempt of it runs."""
    record = job.refresh()
    return record.state is State.PENDING and record.attempt > 0


# --- steps ---------------------------------------------------------------------------------------


def test_a_retry_skips_the_steps_that_are_stored(started, store, seen):
    worker = started(store, retry=NOW)

    def charge(amount: int) -> Receipt:
        seen.add(amount)
        return Receipt(amount)

    @worker.handler("pay")
    def pay(amount: int, ctx: Context):
        receipt = ctx.step("charge", charge, amount)
        if ctx.failures < 2:
            raise ValueError("the mail server is down")
        return receipt

    job = worker.send(5, task="pay")

    assert result(job) == {"amount": 5}
    assert seen.all == [5]
    assert job.attempt == 3


def test_each_time_the_result_is_what_its_function_says(started, store, seen):
    worker = started(store, retry=NOW)

    def charge() -> Receipt:
        return Receipt(1)

    @worker.handler("pay")
    def pay(ctx: Context):
        seen.add((ctx.step("charge", charge), ctx.step("plain", lambda: (1, 2)), ctx.step("none", print)))
        if not ctx.failures:
            raise ValueError("again")

    finished(worker.send(None, task="pay"))

    assert seen.all == [(Receipt(1), [1, 2], None)] * 2


def test_a_step_that_failed_is_run_again(started, store, seen):
    worker = started(store, retry=NOW)

    def flaky(ctx):
        seen.add(ctx.attempt)
        if len(seen.all) < 3:
            raise OSError("refused")
        return "ok"

    @worker.handler("call")
    def call(ctx: Context):
        try:
            return ctx.step("call", flaky, ctx)
        except OSError:
            return ctx.step("call", flaky, ctx)  # once more in this attempt

    assert result(worker.send(None, task="call")) == "ok"
    assert seen.all == [1, 1, 2]


def test_async_steps_are_stored_too(started, store, seen):
    worker = started(store, retry=NOW)

    async def fetch(name: str) -> str:
        await asyncio.sleep(0)
        seen.add(name)
        return name.upper()

    @worker.handler("call")
    async def call(ctx: Context):
        names = await asyncio.gather(*(ctx.astep(name, fetch, name) for name in "ab"))
        names.append(await ctx.astep("in a thread", str.upper, "c"))
        if not ctx.failures:
            raise ValueError("again")
        return names

    assert result(worker.send(None, task="call")) == ["A", "B", "C"]
    assert sorted(seen.all) == ["a", "b"]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda ctx: [ctx.step("a", str), ctx.step("a", str)], "two steps named 'a'"),
        (lambda ctx: ctx.step("", str), "the name of a step is ''"),
        (lambda ctx: ctx.step("\ud800", str), "It was not run"),
        (lambda ctx: ctx.sleep("a\0", 1), "It was not run"),
        (lambda ctx: ctx.step("a", asyncio.sleep, 0), "await ctx.astep('a', …)"),
        (lambda ctx: ctx.step("a", lambda: asyncio.sleep(0)), "await ctx.astep('a', …)"),
        (lambda ctx: ctx.step("a", object), "It has run, and its job runs it again"),
        (lambda ctx: ctx.sleep("a", "soon"), "a text such as"),
        (lambda ctx: ctx.sleep("a", -1), "0 to a century"),
        (lambda ctx: ctx.wait_event(""), "the name of an event is ''"),
        (lambda ctx: ctx.wait_event("\ud800"), "half of a surrogate pair"),
    ],
)
def test_what_is_wrong_with_a_step_is_said(started, wrong, text):
    worker = started(retry=Retry(max_attempts=1))
    worker.handlers["wrong"] = lambda ctx: [wrong(ctx)]

    (error,) = finished(worker.send(None, task="wrong")).errors

    assert text in error.message


def test_a_step_of_an_attempt_that_lost_its_job_is_not_stored(started, store, gate):
    worker = started(store)
    lost = []

    @worker.handler("slow")
    def slow(ctx: Context):
        gate.hold(None)
        for wrong in (
            lambda: ctx.step("late", str),
            lambda: ctx.sleep("nap", 1),
            lambda: ctx.wait_event("e"),
        ):
            with pytest.raises(LeaseLost):
                wrong()
            lost.append(ctx.id)

    job = worker.send(None, task="slow")
    gate.entered.wait()
    with worker.opened().sql() as sql:  # as if it had been rescued, and claimed again
        sql.change("UPDATE {job} SET attempt = attempt + 1 WHERE id = ?", job.id)
    gate.open()
    until(lambda: len(lost) == 3)

    with worker.opened().sql_look() as look:
        assert look.rows("SELECT * FROM {step}") == []


def test_a_handler_that_should_stop_stops_at_its_next_step(started, store, seen):
    worker = started(store)

    @worker.handler("slow")
    def slow(ctx: Context):
        seen.add("begun")
        assert ctx.wait(WAIT_S)
        ctx.step("late", seen.add, "late")

    job = worker.send(None, task="slow")
    seen.wait()
    job.cancel()

    assert finished(job).state is State.CANCELLED
    assert seen.all == ["begun"]


def test_a_step_inside_of_a_transaction_is_refused(started, store):
    worker = started(store, retry=Retry(max_attempts=1))

    @worker.handler("pay")
    def pay(ctx: Context):
        with ctx.transaction():
            ctx.step("charge", str)

    record = finished(worker.send(None, task="pay"))

    assert record.state is State.DEAD
    assert "transaction" in record.errors[0].message


def test_a_person_who_retries_a_dead_job_goes_on_where_it_was(started, store, seen):
    worker = started(store, retry=Retry(max_attempts=1))
    broken = [True]

    @worker.handler("pay")
    def pay(ctx: Context):
        ctx.step("charge", seen.add, "charged")
        if broken:
            raise ValueError(broken.pop())

    job = worker.send(None, task="pay")
    assert finished(job).state is State.DEAD
    job.retry()

    assert finished(job).state is State.COMPLETED
    assert seen.all == ["charged"]


# --- sleeping -------------------------------------------------------------------------------------


def test_a_job_that_sleeps_holds_no_slot(started, store):
    worker = started(store, concurrency=1)
    worker.handlers["sleepy"] = lambda ctx: ctx.sleep("nap", "3 days")
    worker.handlers["other"] = lambda: "ran"
    sleepy = worker.send(None, task="sleepy")

    assert until(lambda: is_asleep(sleepy))
    assert result(worker.send(None, task="other")) == "ran"
    record = sleepy.refresh()
    assert 2.9 < (record.due_at - time.time() * 1000) / 86_400_000 < 3.1


def test_a_sleep_ends_and_is_no_failure(started, store, seen):
    worker = started(store, retry=Retry(max_attempts=1))

    @worker.handler("sleepy")
    def sleepy(ctx: Context):
        seen.add(ctx.attempt)
        ctx.sleep("first", 0.01)
        ctx.sleep("second", 0.01)
        return ctx.failures

    job = worker.send(None, task="sleepy")

    assert result(job) == 0
    assert seen.all == [1, 2, 3]
    assert job.errors == ()


def test_async_handlers_sleep_and_wait(started, store, seen):
    worker = started(store)

    @worker.handler("sleepy")
    async def sleepy(ctx: Context):
        await ctx.asleep("nap", 0.01)
        seen.add("awake")
        async with asyncio.TaskGroup() as group:  # wraps what is raised in it
            waits = [group.create_task(ctx.await_event(name)) for name in ("a", "b")]
        return [wait.result() for wait in waits]

    job = worker.send(None, task="sleepy")
    worker.send_event("a", 1)
    seen.wait()
    until(lambda: is_asleep(job))
    worker.send_event("b", 2)

    assert result(job) == [1, 2]


def test_what_ends_an_attempt_cannot_be_taken_for_an_error(started, store, seen):
    worker = started(store, retry=Retry(max_attempts=1))

    @worker.handler("careful")
    def careful(ctx: Context):
        try:
            ctx.sleep("nap", 0.01)
        except Exception:
            seen.add("never")
        return "done"

    @worker.handler("careless")
    def careless(ctx: Context):
        try:
            ctx.sleep("nap", LONG_S)
        except BaseException:
            return "done"

    assert result(worker.send(None, task="careful")) == "done"
    assert seen.all == []
    record = finished(worker.send(None, task="careless"))
    assert record.state is State.DEAD
    assert "let BaseException pass" in record.errors[0].message


def test_a_sleeping_job_can_be_cancelled(started, store):
    worker = started(store)
    worker.handlers["sleepy"] = lambda ctx: ctx.sleep("nap", "3 days")
    job = worker.send(None, task="sleepy")
    until(lambda: is_asleep(job))

    job.cancel()

    assert finished(job).state is State.CANCELLED


# --- events ---------------------------------------------------------------------------------------


def test_an_event_wakes_the_job_at_once(started, store):
    worker = started(store)
    worker.handlers["wait"] = lambda ctx: ctx.wait_event("paid")
    job = worker.send(None, task="wait")
    until(lambda: is_asleep(job))

    assert worker.send_event("paid", {"amount": 5}) == job

    assert result(job) == {"amount": 5}
    assert job.attempt == 2


def test_several_tasks_of_a_handler_wait_one_after_the_other(started, store, seen):
    worker = started(store)

    @worker.handler("wait")
    async def wait(ctx: Context):
        async def one(name):
            seen.add(await ctx.await_event(name, LONG_S))

        async with asyncio.TaskGroup() as group:
            for name in "ab":
                group.create_task(one(name))

    job = worker.send(None, task="wait")
    until(lambda: is_asleep(job))
    worker.send_event("b", 2)
    worker.send_event("a", 1)

    assert finished(job).state is State.COMPLETED
    assert set(seen.all) == {1, 2}


def test_an_event_of_another_process_does_too(started, make, path):
    worker = started()
    worker.handlers["wait"] = lambda ctx: ctx.wait_event("paid")
    job = worker.send(None, task="wait")
    until(lambda: is_asleep(job))

    make(path).send_event("paid")

    assert finished(job).state is State.COMPLETED


def test_an_event_that_was_sent_before_is_kept_for_the_first(started, store):
    worker = started(store)
    worker.handlers["wait"] = lambda ctx: ctx.wait_event("paid", LONG_S)
    assert worker.send_event("paid", 1) is None

    first = worker.send(None, task="wait")
    assert result(first) == 1
    assert first.attempt == 1
    second = worker.send(None, task="wait")
    until(lambda: is_asleep(second))


def test_events_come_one_by_one_if_each_wait_has_a_name(started, store):
    worker = started(store)

    @worker.handler("chat")
    def chat(ctx: Context):
        return [ctx.wait_event("said", step=f"line {number}") for number in range(3)]

    job = worker.send(None, task="chat")
    for word in "abc":
        worker.send_event("said", word)

    assert result(job) == ["a", "b", "c"]


def test_a_wait_that_is_over_says_so_in_each_attempt(started, store, seen):
    worker = started(store, retry=NOW)

    @worker.handler("wait")
    def wait(ctx: Context):
        try:
            ctx.wait_event("paid", 0.01)
        except EventTimeout as error:
            seen.add(str(error))
        if not ctx.failures:
            raise ValueError("again")

    job = worker.send(None, task="wait")

    assert finished(job).state is State.COMPLETED
    assert len(seen.all) == 2
    assert "the event 'paid' did not come in time" in seen.all[0]


async def _anevent(worker):
    return await worker.asend_event("paid", 3)


def test_an_event_can_be_sent_from_a_coroutine(started, store):
    worker = started(store)
    worker.handlers["wait"] = lambda ctx: ctx.wait_event("paid")
    job = worker.send(None, task="wait")
    until(lambda: is_asleep(job))

    assert asyncio.run(_anevent(worker)) == job
    assert job.result(WAIT_S) == 3


def test_a_job_of_a_limit_that_waits_is_woken_too(started, store):
    from dutiful import Limit

    worker = started(store)
    worker.handler("wait", limit=Limit(concurrency=1))(lambda ctx: ctx.wait_event("paid"))
    jobs = worker.send_many([None] * 3, task="wait")
    until(lambda: all(job.refresh().attempt > 0 for job in jobs))
    for number in range(3):
        worker.send_event("paid", number)

    assert sorted(map(result, jobs)) == [0, 1, 2]


def test_an_event_needs_a_name_and_a_value_that_can_be_stored(make):
    worker = make()

    for name in (None, "", "\ud800", "a\0b", "x" * 195):
        with pytest.raises(ConfigError, match="Nothing was changed"):
            worker.send_event(name)
    with pytest.raises(TypeError, match="Nothing was stored"):
        worker.send_event("paid", object())
