"""Batches of payloads that are encrypted, secret, or of an older version."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dutiful import Retry, Secret, State, version
from tests.worker.sealed import NEEDLE, OLD
from tests.worker.tools import finished, result


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@version(2)
@dataclass
class Line:
    text: Secret[str]


def of_old(old: str) -> dict[str, str]:
    return {"text": old}


def in_child(lines: list[Line]) -> list[str]:
    return [line.text.reveal() for line in lines]


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("key", [False, OLD], ids=["in clear", "encrypted"])
def test_a_batch_gets_each_payload_as_it_was_sent(started, store, key, process):
    worker = started(store, encrypt=key)
    worker.handler(batch=10, wait=0.01, process=process)(in_child)
    worker.upgrade(Line, from_version=1)(of_old)

    jobs = [*worker.send_many([Line(Secret(f"{NEEDLE} {n}")) for n in range(25)])]
    jobs += worker.send_many([f"{NEEDLE} {n}" for n in range(25, 50)], task="Line@1")

    assert [result(job) for job in jobs] == [f"{NEEDLE} {n}" for n in range(50)]


def test_a_payload_that_cannot_be_upgraded_ends_its_own_job_alone(started, store):
    worker = started(store, encrypt=OLD)
    worker.handler(batch=10, wait=0.01)(in_child)
    worker.upgrade(Line, from_version=1)(lambda old: {"text": old["text"]})

    jobs = worker.send_many([{"text": "a"}, {"wrong": "b"}, {"text": "c"}], task="Line@1")

    assert [finished(job).state for job in jobs] == [State.COMPLETED, State.DEAD, State.COMPLETED]


def test_the_errors_of_a_secret_batch_are_masked(started, store, caplog):
    worker = started(store, retry=Retry(max_attempts=1))

    @worker.handler("t", batch=10, wait=0.01, secret=True)
    def fail(texts: list[str]) -> None:
        raise ValueError(f"cannot do {texts}")

    jobs = worker.send_many([NEEDLE] * 5, task="t")

    assert {finished(job).errors[0].message for job in jobs} == {"***"}
    assert NEEDLE not in caplog.text
