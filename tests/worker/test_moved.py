"""What jobs can ask for, after all of them were moved to another store: it holds there as it did before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import dutiful
from dutiful import Backoff, Context, Handler, Limit, Progress, Retry, State, Worker
from tests.worker.tools import Seen, finished, result, until

LATER = Retry(max_attempts=4, backoff=Backoff(first_s=3600))
LONG_S = 3600.0
Start = Callable[..., Worker]


@pytest.fixture(params=["to postgres", "to a file"])
def places(request: pytest.FixtureRequest, path: Path, database_url: str) -> tuple[str, str]:
    """From where to where."""
    return (str(path), database_url) if request.param == "to postgres" else (database_url, str(path))


@pytest.fixture
def client(make: Start, places: tuple[str, str]) -> Worker:
    """A program that sends to the source."""
    return make(places[0])


@pytest.fixture
def moved(started: Start, places: tuple[str, str]) -> Start:
    """Move all, and start a worker where it is then."""

    def moved(**options: Any) -> Worker:
        dutiful.move(*places)
        return started(places[1], **options)

    return moved


def work(store: str, **options: Any) -> closing[Any]:
    """Have a worker run on a store in a block."""
    worker = Worker(store, **options)
    worker.start()
    return closing(_Closing(worker))


class _Closing:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def close(self) -> None:
        self.worker.stop(5)


def test_jobs_of_a_key_run_one_at_a_time_in_the_order_sent(client: Worker, moved: Start, seen: Seen) -> None:
    client.send_many(range(20), task="t", key="one")
    client.send("other", task="t", key="other")

    worker = moved(handlers={"t": seen.add}, concurrency=8)
    worker.send(20, task="t", key="one")

    ran = seen.wait(22)
    ran.remove("other")
    assert ran == list(range(21))


def test_a_job_that_is_there_is_not_sent_again(client: Worker, moved: Start, seen: Seen) -> None:
    job = client.send("report", task="t", unique=True, delay=LONG_S)
    other = client.send("other", task="t", unique=dutiful.Unique(within=LONG_S))

    worker = moved(handlers={"t": seen.add})

    assert worker.send("report", task="t", unique=True).id == job.id
    assert worker.send("report 2", task="t", unique=True).id > other.id
    finished(worker.job(other.id))
    assert worker.send("other", task="t", unique=dutiful.Unique(within=LONG_S)).id == other.id


def test_a_limit_is_kept(make: Start, moved: Start, places: tuple[str, str], seen: Seen) -> None:
    """That of how many at once, and how many in a time: what had begun before the move counts."""
    handlers = {
        "alone": Handler(seen.add, limit=Limit(concurrency=1)),
        "hourly": Handler(seen.add, limit=Limit(rate="1/h")),
    }
    with work(places[0], handlers=handlers):
        client = make(places[0], handlers=handlers)
        finished(client.send("first", task="hourly"))
    second = client.send("second", task="hourly")
    client.send_many(range(10), task="alone")

    worker = moved(handlers=handlers, concurrency=8)

    assert sorted(seen.wait(11)[1:]) == list(range(10))
    assert worker.job(second.id).refresh().attempt == 0


def test_a_job_runs_after_those_that_it_follows_with_their_results(
    make: Start, moved: Start, places: tuple[str, str]
) -> None:
    """One of them had completed before the move."""

    def add(payload: list[int], ctx: Context) -> int:
        return sum(payload) + sum(ctx.after)

    client = make(places[0])
    with work(places[0], handlers={"add": add}):
        done = client.send([1], task="add")
        late = client.send([2], task="add", delay=5)
        total = client.send([4], task="add", after=[done, late])
        finished(done)
    assert total.refresh().state is State.BLOCKED

    worker = moved(handlers={"add": add})

    assert worker.job(late.id).result(timeout=20) == 2
    assert worker.job(total.id).result(timeout=20) == 7


def test_a_job_that_follows_one_that_is_cancelled_is_cancelled(client: Worker, moved: Start) -> None:
    parent = client.send(1, task="t", delay=LONG_S)
    child = client.send(2, task="t", after=parent)

    worker = moved(handlers={"t": print})
    worker.cancel([parent.id])

    assert finished(worker.job(child.id)).state is State.CANCELLED


def pay(seen: Seen) -> Callable[[int, Context], Any]:
    def pay(amount: int, ctx: Context) -> Any:
        receipt = ctx.step("charge", lambda: seen.add(amount) or {"amount": amount})
        ctx.progress(1, 2, "charged")
        return [receipt, ctx.wait_event("approved:7", timeout=LONG_S)]

    return pay


def test_a_step_is_not_done_again_and_a_wait_goes_on(
    make: Start, moved: Start, places: tuple[str, str], seen: Seen
) -> None:
    client = make(places[0])
    with work(places[0], handlers={"pay": pay(seen)}):
        job = client.send(5, task="pay")
        until(lambda: (now := job.refresh()).state is State.PENDING and now.attempt)

    worker = moved(handlers={"pay": pay(seen)})
    job = worker.job(job.id)
    assert job.progress == Progress(1, 2, "charged")
    assert worker.send_event("approved:7", "yes").id == job.id

    assert result(job) == [{"amount": 5}, "yes"]
    assert seen.all == [5]


def test_a_sleep_ends_when_it_was_to_end(
    make: Start, moved: Start, places: tuple[str, str], seen: Seen
) -> None:
    def nap(span: float, ctx: Context) -> None:
        ctx.sleep("nap", span)
        seen.add(span)

    client = make(places[0])
    with work(places[0], handlers={"nap": nap}):
        short, long = (client.send(span, task="nap") for span in (3.0, LONG_S))
        until(
            lambda: all(
                (now := job.refresh()).state is State.PENDING and now.attempt for job in (short, long)
            )
        )

    worker = moved(handlers={"nap": nap})

    assert finished(worker.job(short.id)).state is State.COMPLETED
    assert worker.job(long.id).refresh().state is State.PENDING
    assert seen.all == [3.0]


def test_events_that_nobody_has_waited_for_are_there_in_their_order(client: Worker, moved: Start) -> None:
    for number in range(12):
        client.send_event("tick", number)

    def take(n: int, ctx: Context) -> Any:
        return [ctx.wait_event("tick", timeout=LONG_S, step=f"wait {number}") for number in range(12)]

    worker = moved(handlers={"take": take})

    assert result(worker.send(1, task="take")) == list(range(12))


def test_schedules_are_as_they_were(make: Start, moved: Start, places: tuple[str, str], seen: Seen) -> None:
    def declared(worker: Worker) -> Worker:
        worker.every("100ms", name="tick")(lambda: seen.add("tick"))
        worker.cron("0 3 * * *", tz="Europe/Berlin", name="nightly", payload=None, priority=3)(lambda: None)
        return worker

    before = declared(make(places[0]))
    before.start()
    before.schedules.pause("nightly")
    seen.wait(1)
    before.stop(5)
    known = {each.name: (each.paused, each.last_job) for each in make(places[0]).schedules}

    client = moved()
    there = {each.name: (each.paused, each.last_job) for each in client.schedules}
    client.stop()
    so_far = len(seen.all)
    after = declared(make(places[1]))
    after.start()

    seen.wait(so_far + 1)
    assert there == known
    assert after.schedules["nightly"].paused
    assert not after.schedules["tick"].paused


def test_what_is_paused_waits_until_it_is_resumed(client: Worker, moved: Start, seen: Seen) -> None:
    client.pause(queue="mail")
    client.pause(task="slow")
    client.send("mail", task="t", queue="mail")
    client.send("slow", task="slow")
    client.send("now", task="t")
    paused = client.paused()

    worker = moved(handlers={"t": seen.add, "slow": seen.add}, queues=("default", "mail"))

    assert worker.paused() == paused
    assert seen.wait(1) == ["now"]
    worker.resume(task="slow")
    assert seen.wait(2) == ["now", "slow"]
    worker.resume(queue="mail")
    assert seen.wait(3) == ["now", "slow", "mail"]


def test_what_is_too_late_is_dead_and_headers_travel(client: Worker, moved: Start) -> None:
    late = client.send(1, task="t", delay=2, expires=1)
    told = client.send(2, task="t", headers={"trace": "42"})

    worker = moved(handlers={"t": lambda n, ctx: dict(ctx.headers)})

    assert finished(worker.job(late.id)).state is State.DEAD
    assert worker.job(told.id).result(timeout=20) == {"trace": "42"}
