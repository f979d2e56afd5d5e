"""Queues and tasks that are paused, for all workers."""

from __future__ import annotations

import pytest

from dutiful import ConfigError, State
from tests.worker.tools import finished, until


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@pytest.mark.parametrize("kind", ["queue", "task"])
def test_no_job_of_what_is_paused_begins_until_it_is_resumed(started, store, kind):
    worker = started(store, queues=["default", "other"], handlers={"a": abs, "b": abs})
    what = {"queue": "other"} if kind == "queue" else {"task": "b"}
    worker.pause(**what)

    held = worker.send(-1, task="b", queue="other")
    free = [worker.send(-2, task="a") for _ in range(20)]
    assert [finished(job).state for job in free] == [State.COMPLETED] * 20
    assert held.refresh().state is State.PENDING
    assert [(each.kind, each.name) for each in worker.paused()] == [(kind, what[kind])]

    assert worker.resume(**what)
    assert finished(held).state is State.COMPLETED
    assert worker.paused() == []
    assert not worker.resume(**what)


def test_a_worker_all_of_whose_queues_are_paused_rests(started, store):
    worker = started(store, handlers={"a": abs})
    worker.pause(queue="default")
    jobs = worker.send_many([-1] * 10, task="a")
    assert worker.counts().by_state[State.PENDING] == 10

    worker.resume(queue="default")

    assert [finished(job).state for job in jobs] == [State.COMPLETED] * 10


def test_another_worker_heeds_it_too(make, started, path):
    running = started(handlers={"a": abs, "b": abs})
    client = make()
    client.pause(task="b")
    until(lambda: running._runner._pauses.tasks)

    held = client.send(-1, task="b")
    assert finished(client.send(-1, task="a")).state is State.COMPLETED
    assert held.refresh().state is State.PENDING

    client.resume(task="b")
    assert finished(held).state is State.COMPLETED


def test_jobs_in_memory_go_back_and_what_runs_goes_on(started, gate, store):
    worker = started(store, concurrency=1, handlers={"a": gate.hold})
    first, *others = worker.send_many([None] * 5, task="a")
    gate.entered.wait(1)

    worker.pause(task="a")
    gate.open()

    assert finished(first).state is State.COMPLETED
    assert until(lambda: all(job.refresh().state is State.PENDING for job in others))
    worker.resume(task="a")
    assert {finished(job).state for job in others} == {State.COMPLETED}


def test_a_pause_outlives_the_workers(make, started):
    client = make(handlers={"a": abs})
    client.pause(queue="default")
    job = client.send(-1, task="a")
    worker = started(handlers={"a": abs}, queues=["default", "other"])

    assert finished(worker.send(-1, task="a", queue="other")).state is State.COMPLETED
    assert job.refresh().state is State.PENDING


@pytest.mark.parametrize("wrong", [{}, {"queue": "a", "task": "b"}, {"queue": "no name"}, {"task": ""}])
def test_it_takes_a_queue_or_a_task(make, wrong):
    worker = make()

    for action in (worker.pause, worker.resume):
        with pytest.raises(ConfigError):
            action(**wrong)
    assert worker.paused() == []


def test_a_worker_drains_though_something_is_paused(make):
    worker = make(":memory:", handlers={"a": abs})
    worker.start()
    worker.pause(task="a")
    worker.send(-1, task="a")

    worker.stop(drain=True)  # returns
