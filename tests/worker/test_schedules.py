"""Schedules as their users see them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dutiful import ConfigError, State
from tests.worker.tools import finished, until


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


def completed(worker, task):
    return [job for job in worker.jobs(task=task) if job.state is State.COMPLETED]


def test_a_function_is_called_each_time(make, store):
    worker = make(store)

    @worker.every("100ms")
    def tick():
        return "tock"

    assert tick() == "tock"
    with worker:
        assert until(lambda: len(completed(worker, "tick")) >= 3)
        assert worker.job(worker.schedules["tick"].last_job).result(5) == "tock"


def test_several_workers_fire_each_time_once(make, path):
    workers = [make(name=f"w{n}") for n in range(3)]
    for worker in workers:
        worker.every("100ms", name="tick", missed="all")(lambda: None)
        worker.start()

    until(lambda: len(completed(workers[0], "tick")) >= 12)

    for worker in workers:
        worker.stop()
    instants = sorted(job.due_at for job in make().jobs(task="tick", limit=1000))
    assert instants == list(range(instants[0], instants[-1] + 1, 100))


def test_a_schedule_keeps_what_it_was_declared_with(make, store):
    worker = make(store, queues=["default", "nightly"])

    @worker.cron(
        "0 3 * * mon-fri",
        tz="Europe/Berlin",
        name="report",
        queue="nightly",
        payload={"days": 7},
        missed="skip",
    )
    def report(days: int, ctx):
        return [days, ctx.id]

    with worker:
        (shown,) = worker.schedules
        assert shown == worker.schedules["report"]
        assert (shown.spec, shown.missed, shown.queue) == (
            "cron 0 3 * * mon-fri Europe/Berlin",
            "skip",
            "nightly",
        )
        assert (shown.paused, shown.stale, shown.last_at, shown.last_job) == (False, False, None, None)

        job = worker.schedules.run("report")

        assert job.result(20) == [7, job.id]
        assert finished(job).queue == "nightly"
        assert worker.schedules["report"].next_at == shown.next_at


def test_a_paused_schedule_fires_no_more_until_it_is_resumed(make, store):
    worker = make(store)
    worker.every("100ms", name="tick")(lambda: None)
    worker.every("100ms", name="other")(lambda: None)
    with worker:
        until(lambda: completed(worker, "tick"))
        worker.schedules.pause("tick")
        assert worker.schedules["tick"].paused
        last_job, before = worker.schedules["tick"].last_job, len(completed(worker, "other"))
        until(lambda: len(completed(worker, "other")) > before + 2)
        assert worker.schedules["tick"].last_job == last_job

        worker.schedules.resume("tick")

        until(lambda: worker.schedules["tick"].last_job > last_job)


def test_what_is_declared_while_the_worker_runs_fires(started, store):
    worker = started(store)

    worker.every(timedelta(milliseconds=100), name="tick")(lambda: None)

    until(lambda: completed(worker, "tick"))


def test_a_schedule_that_no_worker_declares_does_not_fire_and_can_be_forgotten(make, store, request):
    if store == ":memory:":
        store = request.getfixturevalue("path")
    old = make(store)
    old.every("100ms", name="tick")(lambda: None)
    with old:
        until(lambda: completed(old, "tick"))
    new = make(store)
    new.every("100ms", name="other")(lambda: None)
    last_job = new.schedules["tick"].last_job
    with new:
        until(lambda: len(completed(new, "other")) > 3)
        assert new.schedules["tick"].last_job == last_job

        new.schedules.forget("tick")

        assert [each.name for each in new.schedules] == ["other"]


def test_what_was_missed_while_no_worker_ran_is_made_up_for(make, path):
    """The instants between the last firing of one life and the first of the next have their jobs too."""
    for _life in range(2):
        worker = make()
        worker.every("100ms", name="tick", missed="all")(lambda: None)
        with worker:
            count = len(worker.jobs(task="tick", limit=1000))
            until(lambda worker=worker, count=count: len(worker.jobs(task="tick", limit=1000)) > count + 2)

    instants = sorted(job.due_at for job in make().jobs(task="tick", limit=1000))
    assert instants == list(range(instants[0], instants[-1] + 1, 100))


@pytest.mark.parametrize(
    ("span", "options"),
    [
        ("soon", {}),
        ("1ms", {}),
        (-5, {}),
        ("1s", {"missed": "some"}),
        ("1s", {"name": "no name"}),
        ("1s", {"queue": ""}),
        ("1s", {"nmae": "x"}),
        ("1s", {"priority": "high"}),
        ("1s", {"timeout": -1}),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_declared(make, span, options):
    worker = make()

    with pytest.raises(ConfigError):
        worker.every(span, **options)(lambda: None)

    assert not worker.schedules.declared
    assert not worker.handlers


def test_a_name_can_be_declared_once(make):
    worker = make()
    worker.every("1h", name="a")(abs)

    with pytest.raises(ConfigError, match="already"):
        worker.cron("0 3 * * *", name="a")(print)

    assert worker.handlers["a"].fn is abs


def test_a_function_that_does_not_take_the_payload_is_refused(make):
    worker = make()

    with pytest.raises(ConfigError, match="payload"):

        @worker.every("1h")
        def report(days: int): ...

    assert not worker.schedules.declared


@pytest.mark.parametrize("action", ["pause", "resume", "run", "forget", "__getitem__"])
def test_a_schedule_that_is_not_there_is_told(make, action):
    worker = make()

    with pytest.raises(ConfigError, match="no schedule 'a'"):
        getattr(worker.schedules, action)("a")
