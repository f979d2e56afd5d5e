"""`worker.on`: told of events by their types, and never in the way."""

from __future__ import annotations

import logging

import pytest

from dutiful import ConfigError, Retry, errors
from dutiful.events import Event, JobDead, JobFailed, WorkerStarted, WorkerStopped
from tests.worker.tools import finished


def fail(payload: object) -> None:
    raise ValueError("no")


def test_a_listener_hears_the_events_of_its_type_alone(started, seen):
    worker = started(handlers={"t": fail}, retry=Retry(max_attempts=1))

    worker.on(JobDead, seen.add)
    job = worker.send(1, task="t")

    (event,) = seen.wait(1)
    assert (event.job_id, event.task, event.attempt, event.error) == (job.id, "t", 1, "ValueError: no")


def test_a_union_of_types_and_all_of_them(make, seen):
    worker = make(handlers={"t": fail}, retry=Retry(max_attempts=1))
    everything: list[Event] = []
    worker.on(Event, everything.append)

    @worker.on(WorkerStarted | JobDead | JobFailed)
    def note(event: WorkerStarted | JobDead | JobFailed) -> None:
        seen.add(type(event))

    worker.start()
    finished(worker.send(1, task="t"))
    worker.stop()

    assert seen.wait(2) == [WorkerStarted, JobDead]
    assert [type(event) for event in everything] == [WorkerStarted, JobDead, WorkerStopped]


def test_it_returns_the_function_so_that_it_decorates(make):
    worker = make()

    assert worker.on(JobDead, fail) is fail
    assert worker.on(JobDead)(fail) is fail


def test_a_listener_that_fails_is_logged_and_changes_nothing(started, seen, caplog):
    worker = started(handlers={"t": fail}, retry=Retry(max_attempts=1))
    worker.on(JobDead, fail)
    worker.on(JobDead, seen.add)

    with caplog.at_level(logging.ERROR, logger="dutiful"):
        finished(worker.send(1, task="t"))
        seen.wait(1)

    assert any("a listener failed on JobDead" in record.getMessage() for record in caplog.records)
    finished(worker.send(2, task="t"))


@pytest.mark.parametrize("wrong", [ValueError, 5, "JobDead", int | str, JobDead | int])
def test_what_is_no_event_is_refused(make, wrong):
    with pytest.raises(ConfigError, match="no event"):
        make().on(wrong, print)


def test_the_error_of_the_same_name_is_told_from_the_event(make):
    with pytest.raises(ConfigError, match=r"Use dutiful\.events\.JobFailed"):
        make().on(errors.JobFailed, print)


def test_what_cannot_be_called_is_refused(make):
    async def listener(event: Event) -> None: ...

    for wrong in (5, listener):
        with pytest.raises(ConfigError, match="no plain function"):
            make().on(JobDead, wrong)
