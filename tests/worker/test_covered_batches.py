"""Batches of payloads that are encrypted, secret, or of an older version."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dutiful import BatchContext, Retry, Secret, State, version
from tests.worker.sealed import NEEDLE, OLD, OTHER
from tests.worker.tools import finished, result, until


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


def test_a_missing_key_of_what_one_job_comes_after_puts_back_that_one(make, started, shared):
    """The others of its batch are run without it."""
    with make(shared, encrypt=OTHER, handlers={"parent": lambda payload: payload}) as elsewhere:
        parent = elsewhere.send(1, task="parent")
        result(parent)
    worker = started(shared, encrypt=OLD)

    @worker.handler("save", batch=3, wait=5)
    def save(numbers: list[int], ctx: BatchContext):
        return [sum(job.after) for job in ctx.jobs]

    others = [worker.send(number, task="save") for number in range(2)]
    lacking = worker.send(2, task="save", after=parent)

    assert [result(job) for job in others] == [0, 0]
    assert (lacking.refresh().state, lacking.refresh().failures) == (State.PENDING, 0)
    with make(shared, encrypt=[OLD, OTHER], name="both") as both:
        both.handler("save", batch=3)(save)
        assert result(lacking) == 1


def test_a_job_that_needs_two_keys_of_which_each_worker_has_one_is_no_hot_loop(make, started, shared):
    with make(shared, encrypt=OTHER, handlers={"parent": lambda payload: payload}) as elsewhere:
        parent = elsewhere.send(1, task="parent")
        result(parent)
    workers = [started(shared, encrypt=key, name=name) for key, name in ((OLD, "old"), (OTHER, "other"))]
    for worker in workers:
        worker.handlers["sum"] = lambda payload, ctx: sum(ctx.after)
    job = workers[0].send(1, task="sum", after=parent)

    until(lambda: (now := job.refresh()).attempt > 3 and now.due_at > now.created_at + 30_000)
    assert job.refresh().failures == 0
