"""Progress, results of predecessors, and jobs that are sent with the completion; typed results."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
import pytest

from dutiful import Backoff, Context, NotEncodable, Progress, Retry, Snooze, State, Unique
from tests.worker.tools import finished, result, until

ONCE = Retry(max_attempts=1)


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@dataclass
class Sum:
    total: int


# --- sends -----------------------------------------------------------------------------------------


def test_jobs_of_a_handler_are_stored_when_it_completes(started, store, gate, seen):
    worker = started(store)
    worker.handlers["next"] = seen.add

    @worker.handler("first")
    def first(ctx: Context):
        for number in range(3):
            ctx.send(number, task="next", priority=-number)
        gate.hold(None)

    job = worker.send(None, task="first")
    gate.entered.wait()
    assert worker.jobs(task="next") == []
    gate.open()

    assert finished(job).state is State.COMPLETED
    assert sorted(seen.wait(3)) == [0, 1, 2]


def test_of_an_attempt_that_fails_or_comes_back_nothing_is_stored(started, store, seen):
    worker = started(store, retry=Retry(max_attempts=3, backoff=Backoff(first_s=0.001)))
    worker.handlers["next"] = seen.add

    @worker.handler("first")
    def first(ctx: Context):
        ctx.send(ctx.attempt, task="next")
        if ctx.attempt == 1:
            raise ValueError("boom")
        ctx.sleep("nap", 0.001)
        return Snooze(0) if ctx.attempt == 3 else None

    job = worker.send(None, task="first")

    assert finished(job).state is State.COMPLETED
    assert seen.wait() == [4]
    assert len(worker.jobs(task="next")) == 1


def test_what_the_store_cannot_take_makes_the_attempt_a_failure(started, store, seen):
    """Never is the job left running, with nobody to end it."""
    worker = started(store, retry=Retry(max_attempts=2, backoff=Backoff(first_s=0.001)))
    worker.handlers["next"] = seen.add

    @worker.handler("first")
    def first(ctx: Context):
        ctx.send(1, task="next")
        if ctx.attempt == 1:  # past all checks, as a mistake of ours would be
            ctx.drafts[0] = msgspec.structs.replace(ctx.drafts[0], priority=2**70)

    job = worker.send(None, task="first")

    assert finished(job).state is State.COMPLETED
    assert seen.wait() == [1]
    (error,) = job.errors
    assert error.type == "StoreError"
    assert "ctx.send()" in error.message


@pytest.mark.parametrize(
    "option", [{"key": "\ud800"}, {"headers": {"a": "\0"}}, {"expires": 1e300}, {"after": 2**70}], ids=str
)
def test_a_wrong_option_is_the_handlers_error(started, store, option):
    worker = started(store, retry=ONCE)

    @worker.handler("first")
    def first(ctx: Context):
        ctx.send(None, task="next", **option)

    job = worker.send(None, task="first")

    assert finished(job).state is State.DEAD
    assert job.errors[0].type == "ConfigError"


def test_an_attempt_that_comes_too_late_stores_nothing(started, gate):
    worker = started(retry=ONCE, lease_s=0.01)
    ended = []

    @worker.handler("slow", timeout=0.01)
    def slow(ctx: Context):
        ctx.send(None, task="next")
        gate.hold(None)
        ended.append(ctx.id)

    worker.handlers["next"] = print
    job = worker.send(None, task="slow")
    assert finished(job).state is State.DEAD  # its time is over, and its lease
    gate.open()
    until(lambda: ended)
    worker.stop()

    assert worker.jobs(task="next") == []


def test_they_take_all_options_but_those_that_store(started, store, seen):
    worker = started(store, retry=ONCE)
    worker.handlers["next"] = seen.add

    @worker.handler("first")
    def first(ctx: Context):
        ctx.send(1, task="next", unique=Unique(within=60), headers={"trace": "t"})
        ctx.send(1, task="next", unique=Unique(within=60))
        ctx.send(2, task="next", after=[ctx])

    finished(worker.send(None, task="first"))
    assert sorted(seen.wait(2)) == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda ctx: ctx.send(1, task="x", timeout=1), "has no timeout="),
        (lambda ctx: ctx.send(1, task="x", transaction=1), "has no transaction="),
        (lambda ctx: ctx.send(object(), task="x"), "cannot be stored"),
        (lambda ctx: ctx.send(1, task="x", prio=1), "unknown option 'prio'"),
        (lambda ctx: ctx.send(1, task="x", unique=Unique(on_conflict="raise")), "cannot raise DuplicateJob"),
        (lambda ctx: [ctx.send(1, task="x"), ctx.transaction()], "no transaction was opened"),
        (lambda ctx: [ctx.transaction(), ctx.send(1, task="x")], "completed by its transaction"),
        (lambda ctx: ctx.progress("half"), "done is 'half'"),
        (lambda ctx: ctx.progress(1, float("nan")), "total is nan"),
        (lambda ctx: ctx.progress(2**70), "done is 1180591620717411303424"),
        (lambda ctx: ctx.progress(float("inf")), "done is inf"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_the_call(started, wrong, text):
    worker = started(retry=ONCE)
    worker.handlers["wrong"] = lambda ctx: [wrong(ctx)]

    (error,) = finished(worker.send(None, task="wrong")).errors

    assert text in error.message


def test_a_bound_on_unfinished_jobs_does_not_hold_a_handler_up(started, store, seen):
    worker = started(store, buffer=1)
    worker.handlers["next"] = seen.add

    @worker.handler("first")
    def first(ctx: Context):
        for number in range(5):
            ctx.send(number, task="next")

    worker.send(None, task="first")

    assert sorted(seen.wait(5)) == list(range(5))


# --- after ------------------------------------------------------------------------------------------


def test_a_job_finds_the_results_of_those_before_it(started, store):
    worker = started(store, retry=ONCE)
    worker.handlers["number"] = lambda number: {"n": number}
    worker.handlers["fail"] = lambda: 1 / 0
    worker.handlers["nothing"] = lambda: None

    @worker.handler("sum")
    def sum_(ctx: Context):
        return list(ctx.after)

    jobs = [worker.send(2, task="number"), worker.send(None, task="fail"), worker.send(None, task="nothing")]
    jobs.append(worker.send(1, task="number"))

    assert result(worker.send(None, task="sum", after=jobs, on_dead="run")) == [
        {"n": 2},
        None,
        None,
        {"n": 1},
    ]
    assert result(worker.send(None, task="sum")) == []


def test_headers_travel_with_the_job(started, store):
    worker = started(store)
    worker.handlers["head"] = lambda ctx: dict(ctx.headers)

    assert result(worker.send(None, task="head", headers={"trace": "1"})) == {"trace": "1"}
    assert result(worker.send(None, task="head")) == {}


def test_headers_count_as_part_of_the_payload(make):
    worker = make(payload_bytes_max=100)
    worker.send("x" * 50, task="t", headers={"a": "y" * 20})

    for send in (worker.send, lambda payload, **options: worker.send_many([payload], **options)):
        with pytest.raises(NotEncodable, match="52 bytes of JSON and 70 of headers, and the limit is 100"):
            send("x" * 50, task="t", headers={"a": "y" * 62})

    assert len(worker.jobs()) == 1


# --- progress ---------------------------------------------------------------------------------------


def test_others_see_how_far_a_job_has_come(started, store, gate):
    worker = started(store)

    @worker.handler("long")
    def long(ctx: Context):
        for done in range(1000):
            ctx.progress(done, 1000, "hashing")
        gate.hold(None)
        ctx.progress(1000, 1000, "done")

    job = worker.send(None, task="long")
    assert until(lambda: job.progress) == Progress(999, 1000, "hashing")
    gate.open()

    finished(job)
    assert job.progress == Progress(1000, 1000, "done")
    assert job.progress.share == 1


def test_what_a_handler_said_last_is_kept_when_it_fails(started, store):
    worker = started(store, retry=ONCE)

    @worker.handler("long")
    def long(ctx: Context):
        ctx.progress(3, message="half a pair \ud800, and \0")
        raise ValueError("boom")

    job = worker.send(None, task="long")

    assert finished(job).state is State.DEAD
    assert job.progress == Progress(3, message=r"half a pair \ud800, and \x00")  # escaped, not refused
    assert job.progress.share is None


def test_progress_costs_two_commits_a_second_at_most(started, gate, monkeypatch):
    worker = started()
    writes = []
    store = worker.opened()
    sql = store.sql
    monkeypatch.setattr(store, "sql", lambda: writes.append(time.monotonic()) or sql())

    @worker.handler("long")
    def long(ctx: Context):
        while not ctx.wait(0.001):
            ctx.progress(1)

    job = worker.send(None, task="long")
    until(lambda: len(writes) >= 3)
    job.cancel()
    finished(job)

    assert writes[2] - writes[0] > 0.9


# --- results ----------------------------------------------------------------------------------------


def test_a_result_is_what_its_handler_says(started, make, path):
    worker = started()

    @worker.handler("add")
    def add(x: int, y: int) -> Sum | Snooze:
        return Sum(x + y)

    @worker.handler("wrong")
    def wrong() -> Sum:
        return {"sum": 3}

    assert result(worker.send({"x": 1, "y": 2}, task="add")) == Sum(3)
    job = worker.send(None, task="wrong")
    assert result(job) == {"sum": 3}
    # A process that does not know the handler has no type for it.
    jobs = make(path).jobs(task="add")
    assert make(path).job(jobs[0].id).result(1) == {"total": 3}
