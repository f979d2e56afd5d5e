"""What a handler returns: a result, Snooze, Cancel, Discard, or something that is none of these."""

import logging
from dataclasses import dataclass

import pytest

from dutiful import Cancel, Discard, JobFailed, Retry, Snooze, State
from tests.worker.tools import Seen, finished, result, until

ONCE = Retry(max_attempts=1)


@dataclass
class Receipt:
    number: int
    lines: list[str]


@pytest.fixture(params=["sync", "async", "with ctx"])
def returning(request, started, path):
    """Start a worker whose handler returns a value that the test chooses."""
    store = path if request.param == "sync" else ":memory:"

    def returning(value, **options):
        worker = started(store, handlers={"fine": lambda n: n})
        chosen = value if callable(value) else lambda _attempt: value

        if request.param == "async":

            @worker.handler("t", **options)
            async def handle(n, ctx):
                return chosen(ctx.attempt)

        elif request.param == "with ctx":

            @worker.handler("t", **options)
            def handle(n, ctx):
                return chosen(ctx.attempt)

        else:
            attempts = Seen()

            @worker.handler("t", **options)
            def handle(n):
                attempts.add(n)
                return chosen(len(attempts.all))

        return worker

    return returning


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (0, 0),
        ("ä", "ä"),
        ({"a": [1.5, None]}, {"a": [1.5, None]}),
        (Receipt(1, ["a"]), {"number": 1, "lines": ["a"]}),
    ],
)
def test_the_value_is_the_result(returning, value, expected):
    worker = returning(value)

    assert result(worker.send(0, task="t")) == expected


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, float("nan"), "\ud800", "x" * 2_000_000],
    ids=lambda value: type(value).__name__,
)
def test_a_result_that_cannot_be_stored_is_dropped_and_the_job_is_completed(returning, caplog, value):
    worker = returning(value)

    with caplog.at_level(logging.WARNING, "dutiful"):
        job = worker.send(0, task="t")
        record = finished(job)

    assert (record.state, record.result, record.attempt) == (State.COMPLETED, None, 1)
    assert any(f"job {job.id} " in line and "not kept" in line for line in caplog.messages)


def test_snooze_runs_the_job_again_later_and_is_no_failure(returning):
    worker = returning(lambda attempt: Snooze(0.2) if attempt < 3 else "done")

    job = worker.send(0, task="t")

    assert result(job) == "done"
    record = job.refresh()
    assert (record.attempt, record.failures, record.errors) == (3, 0, ())
    assert record.finished_at - record.created_at >= 400


def test_snooze_waits_in_the_store(returning):
    worker = returning(Snooze(3600))

    job = worker.send(0, task="t")

    record = until(lambda: (it := job.refresh()).state is State.PENDING and it.attempt and it)
    assert (record.attempt, record.failures) == (1, 0)
    assert 3_590_000 < record.due_at - record.created_at < 3_620_000


def test_cancel_ends_the_job_as_cancelled(returning):
    worker = returning(Cancel("no longer wanted"))

    job = worker.send(0, task="t")

    record = finished(job)
    assert (record.state, record.attempt) == (State.CANCELLED, 1)
    assert record.errors[0].message == "no longer wanted"
    with pytest.raises(JobFailed, match=r"cancelled: .*no longer wanted"):
        job.result()


def test_discard_makes_the_job_dead_at_once(returning):
    worker = returning(Discard("no such user"))

    job = worker.send(0, task="t")

    record = finished(job)
    assert (record.state, record.attempt, record.failures) == (State.DEAD, 1, 0)
    assert record.errors[0].message == "no such user"
    with pytest.raises(JobFailed, match=r"dead: .*no such user"):
        job.result()


@pytest.mark.parametrize(("value", "state"), [(Cancel(), State.CANCELLED), (Discard(), State.DEAD)])
def test_a_reason_is_not_needed(returning, value, state):
    assert finished(returning(value).send(0, task="t")).state is state


ODD = [
    Snooze("5"),
    Snooze(None),
    Snooze(float("inf")),
    Snooze(float("nan")),
    Snooze(1e300),
    Snooze(10**400),
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:40])
def test_an_odd_value_in_it_fails_the_attempt_and_says_so(returning, value):
    worker = returning(value, retry=ONCE)

    job = worker.send(0, task="t")

    record = finished(job)
    assert (record.state, record.failures) == (State.DEAD, 1)
    assert type(value).__name__ in record.errors[0].message
    assert result(worker.send(7, task="fine")) == 7


@pytest.mark.parametrize("kind", [Cancel, Discard])
@pytest.mark.parametrize(
    "reason", [ValueError("x"), 5, ["a"], object(), "\ud800 half a pair", "x" * 3_000_000]
)
def test_a_reason_that_cannot_be_stored_as_it_is_harms_nobody(returning, kind, reason):
    worker = returning(kind(reason), retry=ONCE)

    record = finished(worker.send(0, task="t"))

    assert record.state in (State.CANCELLED, State.DEAD)
    assert 0 < len(record.errors[0].message) < 100_000
    assert result(worker.send(7, task="fine")) == 7


def test_an_outcome_inside_another_value_is_just_a_value(returning):
    worker = returning([Snooze(5)])

    assert finished(worker.send(0, task="t")).state is State.COMPLETED


def test_the_class_instead_of_a_value_is_no_outcome(returning):
    """`return Cancel` for `return Cancel()`: it completes, and its result is dropped."""
    worker = returning(lambda _attempt: Cancel)

    assert finished(worker.send(0, task="t")).result is None
