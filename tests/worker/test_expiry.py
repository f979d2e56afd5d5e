"""`expires`: dead if not started in time. `deadline`: for all attempts together."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from dutiful import Backoff, ConfigError, Handler, Retry, State
from tests.worker import handlers as child
from tests.worker.tools import finished


def test_one_that_nobody_started_in_time_is_dead(started, shared, seen):
    worker = started(shared, handlers={"t": seen.add}, concurrency=1)

    late = worker.send("late", task="t", delay=60, expires=0.1)

    record = finished(late)
    assert (record.state, record.errors[0].type) == (State.DEAD, "Expired")
    assert seen.all == []


@pytest.mark.parametrize("expires", [timedelta(hours=1), 3600, datetime.now(UTC) + timedelta(hours=1)])
def test_one_that_starts_in_time_runs(started, shared, seen, expires):
    worker = started(shared, handlers={"t": seen.add})

    worker.send("in time", task="t", expires=expires)

    assert seen.wait(1) == ["in time"]


def test_one_that_came_too_late_lets_the_next_of_its_key_go(started, make, shared, seen):
    client = make(shared)
    client.send("late", task="t", key="k", expires=0.05)
    client.send("next", task="t", key="k")
    time.sleep(0.1)  # past its time; nothing happens meanwhile that could be waited for

    started(shared, handlers={"t": seen.add})

    assert seen.wait(1) == ["next"]


def test_a_deadline_ends_the_retries(started, shared):
    def fail(payload: object) -> None:
        raise ValueError

    retry = Retry(max_attempts=1000, backoff=Backoff(first_s=0.05, factor=1))
    worker = started(shared, handlers={"t": fail}, retry=retry)

    record = finished(worker.send(1, task="t", deadline=0.4))

    assert record.state is State.DEAD
    assert record.errors[-1].type == "Expired" or "timeout" in record.errors[-1].type.lower()


def test_a_deadline_bounds_the_attempt_that_runs(started, shared):
    async def slow(payload: object) -> None:
        import asyncio

        await asyncio.sleep(60)

    worker = started(shared, handlers={"t": slow}, retry=Retry(max_attempts=1))

    assert finished(worker.send(1, task="t", deadline=0.2)).state is State.DEAD


def test_a_deadline_bounds_an_attempt_in_a_child_process(started, path, tmp_path):
    handler = Handler(child.sleep, process=True, retry=Retry(max_attempts=1))
    worker = started(path, handlers={"t": handler})

    record = finished(worker.send(str(tmp_path / "told"), task="t", deadline=1))

    assert (record.state, record.errors[0].type) == (State.DEAD, "TimeoutError")


@pytest.mark.parametrize("expires", [0, -1, datetime(2030, 1, 1), float("inf"), True])  # noqa: DTZ001
def test_what_is_no_expiry_is_refused(make, expires):
    with pytest.raises(ConfigError, match="Nothing was stored"):
        make().send(1, task="t", expires=expires)
