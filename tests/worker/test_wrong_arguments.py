"""Wrong arguments, of a worker and of a send: a clear error, and nothing is stored."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from dutiful import ConfigError, UnknownTask, Worker


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
    "url", ["", "sqlite://", "sqlite://x", "sqlite://jobs.db", "mysql://host/db", "sqlite:///"]
)
def test_a_wrong_store_is_refused_when_the_worker_is_made(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError):
        Worker(url)

    assert list(tmp_path.iterdir()) == []
