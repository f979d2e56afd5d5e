"""Queues and tasks that are paused, for all workers."""

from __future__ import annotations

import pytest

from dutiful import ConfigError, Handler, Limit, State
from dutiful.store.special import pauses
from tests.worker.tools import finished, result, until


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


def test_jobs_of_a_paused_task_are_out_of_the_line_and_come_back_in_order(started, store):
    """So that many of them do not slow the others, and none has lost its place."""
    ran: list[int] = []
    worker = started(store, handlers={"held": ran.append, "free": abs}, concurrency=1)
    worker.pause(task="held")
    worker.send_many(range(20), task="held")
    until(lambda: worker.counts().parked == 20)
    assert result(worker.send(-1, task="free")) == 1

    worker.resume(task="held")

    until(lambda: len(ran) == 20)
    assert ran == list(range(20))


def test_jobs_of_a_paused_task_come_back_if_its_resume_was_cut_short(make, path):
    """The row is gone, and the jobs are still out of the line: the next worker to start takes them back."""
    ran: list[int] = []
    with make(handlers={"held": ran.append}) as worker:
        worker.pause(task="held")
        worker.send_many(range(3), task="held")
        until(lambda: worker.counts().parked == 3)
        with worker.opened().sql() as sql:
            pauses.resume(sql, "task", "held")

    with make(handlers={"held": ran.append}):
        until(lambda: len(ran) == 3)


def test_a_paused_task_holds_up_nobody_in_the_limit_that_it_shares(started, store, seen):
    limit = Limit(concurrency=1, name="shared")
    handlers = {"held": Handler(seen.add, limit=limit), "free": Handler(seen.add, limit=limit)}
    worker = started(store, handlers=handlers)
    worker.pause(task="held")
    held = worker.send(1, task="held")
    free = worker.send(2, task="free")

    assert finished(free).state is State.COMPLETED
    worker.resume(task="held")
    assert finished(held).state is State.COMPLETED
