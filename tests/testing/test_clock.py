"""Time that moves when a test says so: what is due by it is run at its instant, in no time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from dutiful import (
    Backoff,
    ConfigError,
    Context,
    EventTimeout,
    JobTimeout,
    Limit,
    Retry,
    Snooze,
    State,
    Unique,
    Worker,
)
from dutiful.testing import Clock, override, sent
from tests.testing.conftest import App, Order

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
BERLIN = "Europe/Berlin"


@pytest.fixture
def clock() -> Clock:
    return Clock(BEGIN)


@pytest.fixture
def worker(tmp_path, clock: Clock):
    worker = Worker(tmp_path / "jobs.db", retry=Retry(backoff=Backoff(jitter=0)))
    with override(worker, clock=clock, errors="keep"):
        yield worker


@pytest.fixture
def times(worker: Worker, clock: Clock) -> list[datetime]:
    """When jobs of "note" ran."""
    found: list[datetime] = []
    worker.handlers["note"] = lambda: found.append(clock.now())
    return found


def after(begin: datetime, *seconds: float) -> list[datetime]:
    return [begin + timedelta(seconds=each) for each in seconds]


# --- the clock itself -------------------------------------------------------------------------------


def test_it_stands_still_until_it_is_moved(clock: Clock) -> None:
    assert clock.now() == clock.now() == BEGIN
    clock.advance("1 day 2h")
    clock.advance_to("2026-03-02T03:00+00:00")
    clock.jump(timedelta(minutes=1))
    clock.jump_to(BEGIN + timedelta(days=2))

    assert clock.now() == BEGIN + timedelta(days=2)
    assert clock.time() == clock.now().timestamp()


def test_it_begins_now_if_nothing_is_said() -> None:
    assert abs(Clock().time() - time.time()) < 60


@pytest.mark.parametrize("instant", ["yesterday", "2026-03-01", datetime(2026, 3, 1), 5])  # noqa: DTZ001
def test_what_is_no_instant_is_refused(instant) -> None:
    with pytest.raises(ConfigError, match="no instant"):
        Clock(instant)


def test_it_does_not_go_back(clock: Clock) -> None:
    with pytest.raises(ConfigError, match="cannot go back"):
        clock.advance_to(BEGIN - timedelta(seconds=1))
    with pytest.raises(ConfigError, match="cannot go back"):
        clock.jump_to(BEGIN - timedelta(seconds=1))
    with pytest.raises(ConfigError, match="span"):
        clock.advance(-1)

    assert clock.now() == BEGIN


def test_it_takes_another_tool_along(tmp_path) -> None:
    told: list[datetime] = []
    clock = Clock(BEGIN, moved=told.append)
    worker = Worker(tmp_path / "jobs.db", handlers={"note": print})
    with override(worker, clock=clock):
        worker.send(None, task="note", delay=60)
        clock.advance("2m")

    assert told == after(BEGIN, 60, 120)


# --- what goes by it ----------------------------------------------------------------------------------


def test_a_delayed_job_runs_at_its_instant(worker, clock, times) -> None:
    worker.send(None, task="note", delay=90)
    worker.send(None, task="note", run_at=BEGIN + timedelta(days=20))
    assert clock.advance(89) == 0
    assert clock.advance("30 days") == 2

    assert times == [*after(BEGIN, 90), BEGIN + timedelta(days=20)]


def test_twenty_retries_take_no_time(worker, clock, times) -> None:
    """By the backoff: 1, 2, 4 … seconds, an hour at most."""

    @worker.handler("flaky")
    def flaky() -> None:
        times.append(clock.now())
        raise ConnectionError

    job = worker.send(None, task="flaky")
    clock.advance("1 day")

    waits = [min(2.0**number, 3600.0) for number in range(19)]
    assert [(b - a).total_seconds() for a, b in pairwise(times)] == waits
    assert (job.state, len(job.errors)) == (State.DEAD, 20)


def test_a_month_of_a_nightly_job_fires_each_night_at_its_hour_whatever_is_done_to_the_clocks(
    worker, clock, times
) -> None:
    worker.cron("30 2 * * *", tz=BERLIN, name="nightly")(lambda: times.append(clock.now()))
    clock.advance_to("2026-04-01T00:00+02:00")

    assert len(times) == 31
    assert {at.hour for at in times if at.day < 29} == {1}  # 02:30 in winter
    assert [at for at in times if at.day == 29] == [
        datetime(2026, 3, 29, 1, tzinfo=UTC)
    ]  # 03:00, after the gap
    assert {(at.hour, at.minute) for at in times if at.day > 29} == {(0, 30)}


def test_where_the_clocks_are_put_back_it_fires_once(tmp_path) -> None:
    clock = Clock("2026-10-25T00:00+02:00")
    worker = Worker(tmp_path / "jobs.db")
    worker.cron("30 2 * * *", tz=BERLIN, name="nightly")(lambda: None)
    worker.cron("*/30 * * * *", tz=BERLIN, name="often")(lambda: None)
    with override(worker, clock=clock):
        clock.advance_to("2026-10-25T04:10+01:00")

        assert len(sent(worker, "nightly")) == 1
        assert len(sent(worker, "often")) == 10  # five hours have passed: from 00:30 to 04:00


def test_intervals_fire_each_time_and_stay_fresh(worker, clock, times) -> None:
    worker.every("6h", name="sweep")(lambda: times.append(clock.now()))
    clock.advance("2 days")

    assert len(times) == 8
    assert not worker.schedules["sweep"].stale


def test_a_jump_is_time_in_which_nobody_worked(worker, clock, times) -> None:
    worker.every("1h", name="latest")(lambda: None)
    worker.every("1h", name="all", missed="all")(lambda: None)
    worker.drain()
    clock.jump("1 day")
    assert worker.drain() == 1 + 24


def test_a_snooze_and_a_sleep_are_over_in_time(worker, clock, times) -> None:
    @worker.handler("patient")
    def patient(ctx: Context) -> Snooze | None:
        times.append(clock.now())
        if ctx.attempt == 1:
            return Snooze(600)
        ctx.sleep("cool down", "3 days")
        times.append(clock.now())
        return None

    job = worker.send(None, task="patient")
    clock.advance("4 days")

    rest_s = 600 + 3 * 86_400
    assert times == after(BEGIN, 0, 600, rest_s, rest_s)
    assert job.state is State.COMPLETED


def test_an_event_that_does_not_come_is_out_of_time(worker, clock) -> None:
    @worker.handler("approval")
    def approval(ctx: Context) -> str:
        try:
            return ctx.wait_event("approved", timeout="2 days")
        except EventTimeout:
            return "nobody came"

    first, second = worker.send_many([None, None], task="approval")
    clock.advance("1 day")
    worker.send_event("approved", "fine")
    clock.advance("2 days")

    assert [first.result(), second.result()] == ["fine", "nobody came"]


def test_a_job_expires_and_a_deadline_ends(worker, clock, times) -> None:
    late = worker.send(None, task="note", expires=60)
    worker.pause(task="note")
    clock.advance(61)
    worker.resume(task="note")
    assert clock.advance(0) == 0
    assert late.state is State.DEAD
    assert times == []

    @worker.handler("never")
    def never() -> None:
        raise ConnectionError

    ended = worker.send(None, task="never", deadline=3600)
    clock.advance("1 day")
    assert ended.state is State.DEAD
    assert len(ended.errors) < 20


def test_a_rate_spreads_the_starts(worker, clock, times) -> None:
    worker.handler("slowly", limit=Limit(rate="6/m"))(lambda: times.append(clock.now()))
    worker.send_many([None] * 4, task="slowly")
    clock.advance("1m")

    assert [round((at - BEGIN).total_seconds()) for at in times] == [0, 10, 20, 30]


def test_a_key_waits_for_the_retry_that_holds_it(worker, clock, times) -> None:
    @worker.handler("keyed")
    def keyed(number: int, ctx: Context) -> None:
        if number == 1 and not ctx.failures:
            raise ConnectionError
        times.append(clock.now())

    worker.send(1, task="keyed", key="k")
    worker.send(2, task="keyed", key="k")
    clock.advance(10)

    assert times == after(BEGIN, 1, 1)


def test_a_key_lets_others_pass_and_the_retry_comes_back(worker, clock, times) -> None:
    @worker.handler("keyed")
    def keyed(number: int, ctx: Context) -> int:
        if number == 1 and not ctx.failures:
            raise ConnectionError
        times.append(clock.now())
        return number

    jobs = [worker.send(number, task="keyed", key="k", on_failure="skip") for number in (1, 2)]
    clock.advance(10)

    assert [job.result() for job in jobs] == [1, 2]
    assert times == after(BEGIN, 0, 1)


def test_a_job_that_is_not_due_yet_expires_too(worker, clock, times) -> None:
    job = worker.send(None, task="note", delay=3600, expires=60)
    clock.advance(61)

    assert job.state is State.DEAD


def test_uniqueness_within_a_time_is_over_in_time(worker, clock, times) -> None:
    def send():
        return worker.send(None, task="note", unique=Unique(within=3600))

    first = send()
    clock.advance(1800)
    assert send() == first
    clock.advance(1801)
    assert send() != first


def test_a_job_of_an_unknown_task_does_not_stop_the_time(worker, clock, times) -> None:
    worker.send(None, task="unknown")
    worker.send(None, task="note", delay=60)
    clock.advance(60)

    assert times == after(BEGIN, 60)


def test_a_handler_that_takes_its_time_moves_the_clock(worker, clock, times) -> None:
    worker.handlers["slow"] = lambda: clock.advance("10m") and None
    worker.send(None, task="slow")
    worker.send(None, task="note", delay=60)
    clock.advance(120)

    assert times == after(BEGIN, 600)
    assert clock.now() == BEGIN + timedelta(seconds=600)


def test_an_error_stops_the_time_where_it_is(tmp_path, clock) -> None:
    worker = Worker(tmp_path / "jobs.db", retry=Retry(backoff=Backoff(jitter=0)))

    @worker.handler("flaky")
    def flaky(ctx: Context) -> None:
        if ctx.failures < 2:
            raise ConnectionError

    with override(worker, clock=clock):
        job = worker.send(None, task="flaky", delay=60)
        for passed_s in (60, 61):
            with pytest.raises(ConnectionError):
                clock.advance("1h")
            assert clock.now() == BEGIN + timedelta(seconds=passed_s)
        clock.advance("1h")
        assert job.state is State.COMPLETED


def test_one_clock_for_several_stores(app: App, worker: Worker, clock: Clock, times) -> None:
    """Each job runs at its instant, whoever has it."""
    app.worker.handlers["note"] = lambda: times.append(clock.now())
    with override(app.worker, clock=clock):
        for delay in (3, 1):
            worker.send(None, task="note", delay=delay)
        app.worker.send(None, task="note", delay=2)
        clock.advance(5)
    assert times == after(BEGIN, 1, 2, 3)
    clock.advance(5)


def test_to_wait_for_a_job_does_not_move_the_clock(worker, clock, times) -> None:
    job = worker.send(None, task="note", delay=1)
    with pytest.raises(JobTimeout):
        job.wait(timeout=3600)

    assert clock.now() == BEGIN


def test_a_worker_that_is_started_is_moved_along(app: App) -> None:
    with override(app.worker) as clock, app.worker:
        app.worker.send(Order(1), delay=5)
        clock.advance(5)
        assert app.done[0] == Order(1)
