"""Wrong arguments, of a worker and of a send: a clear error, and nothing is stored."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from dutiful import (
    Backoff,
    ConfigError,
    Handler,
    JobTimeout,
    Keep,
    Limit,
    Retry,
    State,
    Unique,
    UnknownTask,
    Worker,
)


@dataclass
class Note:
    text: str


WRONG = [
    {"task": "not a name"},
    {"task": ""},
    {"task": 5},
    {"queue": "not a name"},
    {"queue": ""},
    {"delay": -1},
    {"delay": "soon"},
    {"delay": float("nan")},
    {"delay": float("inf")},
    {"delay": 1e12},
    {"delay": timedelta(days=-1)},
    {"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)},
    {"run_at": datetime(2030, 1, 1)},  # noqa: DTZ001
    {"run_at": 1_900_000_000},
    {"priority": 1.5},
    {"priority": True},
    {"priority": 2**40},
    {"priority": None},
    {"transaction": "jobs.db"},
    {"timeout": "soon"},
    {"timout": 5},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
@pytest.mark.parametrize("many", [False, True])
def test_a_wrong_option_stores_nothing(make, options, many):
    worker = make(handlers={Note: print})

    with pytest.raises(ConfigError):
        if many:
            worker.send_many([Note("a"), Note("b")], **options)
        else:
            worker.send(Note("a"), **options)

    assert worker.jobs() == []


def test_an_unknown_option_names_the_near_one(make):
    with pytest.raises(ConfigError, match="timeout"):
        make().send(1, task="t", timout=5)


@pytest.mark.parametrize("payload", [Note("a"), 5, "text", None, {"a": 1}, object()])
def test_a_payload_that_nothing_handles_stores_nothing(make, payload):
    worker = make(handlers={"other": print})

    with pytest.raises(UnknownTask, match="nothing was stored"):
        worker.send(payload)
    with pytest.raises(UnknownTask, match="nothing was stored"):
        worker.send_many([payload])

    assert worker.jobs() == []


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"concurrency": "8"},
        {"concurrency": 5000},
        {"buffer": 0},
        {"buffer": -1},
        {"name": ""},
        {"name": "a b"},
        {"queues": ()},
        {"queues": "a b"},
        {"queues": ("a", 5)},
        {"durability": "some"},
        {"keep_completed": -1},
        {"keep_completed": "many"},
        {"max_crashes": 0},
        {"grace_s": -1},
        {"busy_s": float("nan")},
        {"lease_s": "x"},
        {"park_s": None},
        {"payload_bytes_max": 0},
        {"retry": 5},
        {"retry": 0},
        {"concurrency": 2.5},
        {"buffer": 2.5},
        {"max_crashes": 1.5},
        {"payload_bytes_max": 1.5},
        {"park_s": float("inf")},
        {"lease_s": float("inf")},
        {"busy_s": float("inf")},
        {"queues": None},
        {"queues": 5},
        {"handlers": print},
        {"handlers": [print]},
        {"handlers": {5: print}},
        {"handlers": {"a b": print}},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_when_the_worker_is_made(path, options):
    with pytest.raises(ConfigError):
        Worker(path, **options)
    assert not path.exists()


@pytest.mark.parametrize(
    "url",
    [
        *("", "sqlite://", "sqlite://x", "sqlite://jobs.db", "mysql://host/db", "sqlite:///"),
        *("sqlite:x.db", "sqlite:/x.db", "postgres:x", "postgresql:x", "file:x.db", "a\0b.db", 5, b"x.db"),
    ],
)
def test_a_wrong_store_is_refused_when_the_worker_is_made(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError):
        Worker(url)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: Retry(max_attempts="5"),
        lambda: Retry(max_attempts=2.5),
        lambda: Retry(max_attempts=None),
        lambda: Retry(backoff=5),
        lambda: Retry(give_up_on=[ValueError]),
        lambda: Retry(give_up_on=("ValueError",)),
        lambda: Retry(decide=5),
        lambda: Backoff(first_s="1"),
        lambda: Backoff(factor=float("nan")),
        lambda: Keep(count=1.5),
        lambda: Keep(count="x"),
        lambda: Keep(age_s=timedelta(days=1)),
        lambda: Keep(age_s=float("nan")),
        lambda: Keep(age_s=float("inf")),
        lambda: Limit(rate=5),
        lambda: Limit(concurrency=1, by="tenant"),
        lambda: Limit(concurrency=1, name=5),
        lambda: Limit(concurrency=1, name="\ud800"),
        lambda: Unique(by="id"),
        lambda: Unique(by=5),
        lambda: Unique(within=1e300),
        lambda: Handler(print, retry=3),
        lambda: Handler(print, timeout="30"),
        lambda: Handler(print, timeout=True),
        lambda: Handler(print, timeout=float("inf")),
        lambda: Handler(print, aliases=5),
        lambda: Handler(print, limit=Limit),
    ],
)
def test_what_would_fail_later_is_refused_when_it_is_made(make_it):
    with pytest.raises(ConfigError):
        make_it()


@pytest.mark.parametrize(
    "call",
    [
        lambda worker: worker.handler("x", task="y")(print),
        lambda worker: worker.handler("x", retry=3)(print),
        lambda worker: worker.every("5m", name="x", retry=3)(lambda: None),
        lambda worker: worker.cron(None, name="x"),
        lambda worker: worker.cron("0 3 * * *", tz=5, name="x"),
        lambda worker: worker.job("x"),
        lambda worker: worker.job(None),
        lambda worker: worker.job(0),
        lambda worker: worker.job(2**70),
        lambda worker: worker.jobs(limit="x"),
        lambda worker: worker.jobs(limit=-1),
        lambda worker: worker.jobs(limit=2**70),
        lambda worker: worker.jobs(before="x"),
        lambda worker: worker.jobs(task=5),
        lambda worker: worker.jobs(queue="\ud800"),
        lambda worker: worker.jobs(state=5),
        lambda worker: worker.cancel("12"),
        lambda worker: worker.retry(["x"]),
        lambda worker: worker.delete(None),
        lambda worker: worker.delete([2**70]),
        lambda worker: worker.stop("x"),
        lambda worker: worker.job(1).wait("x"),
        lambda worker: worker.job(1).wait(float("nan")),
        lambda worker: asyncio.run(worker.job(1).aresult("x")),
    ],
)
def test_a_call_with_a_wrong_argument_changes_nothing(make, call):
    worker = make()
    job = worker.send(1, task="t")

    with pytest.raises(ConfigError):
        call(worker)

    assert job.state is State.PENDING
    assert not worker.handlers


def test_jobs_are_edited_by_themselves_or_by_their_ids(make):
    worker = make()
    jobs = worker.send_many([1, 2, 3, 4, 5], task="t")

    assert worker.cancel(jobs) == jobs.ids
    assert worker.retry([jobs[0], jobs[1].id]) == jobs.ids[:2]
    assert worker.retry(jobs[2]) == [jobs[2].id]
    assert worker.cancel(jobs[2].id) == [jobs[2].id]
    assert worker.delete(job for job in jobs) == jobs.ids


def test_jobs_are_found_by_the_type_of_their_payload(make):
    worker = make(handlers={Note: Handler(print, task="note-1")})
    job = worker.send(Note("a"))
    worker.send(1, task="other")

    assert [record.id for record in worker.jobs(task=Note)] == [job.id]


def test_a_span_is_seconds_or_a_timedelta(make):
    worker = make(handlers={"t": Handler(print, timeout=timedelta(minutes=1))})
    job = worker.send(1, task="t")

    with pytest.raises(JobTimeout, match=r"after 0\.0 s"):
        job.wait(timedelta(milliseconds=1))
    assert worker.handlers["t"].timeout == 60.0
