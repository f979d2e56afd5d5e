"""At most one such job: the first, or the latest; decided by the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from dutiful import ConfigError, DuplicateJob, State, Unique
from tests.worker.tools import finished


def test_the_second_send_returns_the_first_job(make, shared):
    worker = make(shared)

    first = worker.send({"id": 1}, task="t", unique=True)

    assert worker.send({"id": 1}, task="t", unique=True).id == first.id
    assert worker.send({"id": 2}, task="t", unique=True).id != first.id
    assert worker.send({"id": 1}, task="other", unique=True).id != first.id


def test_many_who_send_at_once_store_one(make, shared):
    workers = [make(shared) for _ in range(4)]
    for worker in workers:
        worker.counts()

    with ThreadPoolExecutor(8) as threads:
        sent = list(threads.map(lambda n: workers[n % 4].send(n // 8, task="t", unique=True).id, range(80)))

    assert len(set(sent)) == 10
    assert workers[0].counts().by_state[State.PENDING] == 10


def test_two_who_send_the_same_ones_in_another_order_both_get_them(make, shared):
    workers = [make(shared), make(shared)]
    for worker in workers:
        worker.counts()
    unique = Unique(by=str)

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(lambda: list(workers[0].send_many(range(200), task="t", unique=unique)))
        two = threads.submit(
            lambda: list(workers[1].send_many(reversed(range(200)), task="t", unique=unique))
        )

    assert [job.id for job in one.result(20)] == [job.id for job in reversed(two.result(20))]


def test_once_it_has_finished_there_may_be_another(started, shared):
    worker = started(shared, handlers={"t": lambda payload: None})
    first = worker.send(1, task="t", unique=True)
    finished(first)

    assert worker.send(1, task="t", unique=True).id != first.id


def test_a_transaction_of_the_handlers_own_ends_it_too(started, path):
    def handle(payload: object, ctx) -> None:
        with ctx.transaction():
            pass

    worker = started(path, handlers={"t": handle})
    first = worker.send(1, task="t", unique=True)
    finished(first)

    from tests.worker.tools import until

    assert until(lambda: worker.send(1, task="t", unique=True).id != first.id)


def test_while_it_waits_its_payload_is_replaced_and_a_running_one_is_let_be(started, shared, gate):
    worker = started(shared, handlers={"t": gate.hold}, concurrency=1)
    latest = Unique(by=lambda payload: payload["id"], on_conflict="replace")
    running = worker.send({"id": 1, "v": 1}, task="t", unique=latest)
    gate.entered.wait()
    waiting = worker.send({"id": 1, "v": 2}, task="t", unique=latest)

    again = worker.send({"id": 1, "v": 3}, task="t", unique=latest)
    gate.open()

    assert running.id != waiting.id == again.id
    finished(again)
    assert gate.entered.all == [{"id": 1, "v": 1}, {"id": 1, "v": 3}]


def test_a_debounce_runs_the_last_once(started, shared, seen):
    worker = started(shared, handlers={"t": seen.add})
    debounce = Unique(by=lambda payload: "same", on_conflict="reschedule")

    jobs = {worker.send(n, task="t", delay=0.5, unique=debounce).id for n in range(20)}

    assert len(jobs) == 1
    assert seen.wait(1) == [19]


def test_a_duplicate_can_be_an_error_that_names_the_job(make, shared):
    worker = make(shared)
    strict = Unique(on_conflict="raise")
    first = worker.send(1, task="t", unique=strict)

    with pytest.raises(DuplicateJob, match=str(first.id)):
        worker.send(1, task="t", unique=strict)


def test_one_that_was_never_to_run_stands_in_nobodys_way(make, shared):
    """It followed a cancelled job, and was cancelled as it was sent."""
    worker = make(shared)
    parent = worker.send(1, task="t")
    parent.cancel()

    born_cancelled = worker.send(2, task="t", after=parent, unique=True)

    assert finished(born_cancelled).state is State.CANCELLED
    assert worker.send(2, task="t", unique=True).id != born_cancelled.id


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: Unique(while_="always"),  # type: ignore[arg-type]
        lambda: Unique(on_conflict="ignore"),  # type: ignore[arg-type]
        lambda: Unique(within=0),
    ],
)
def test_what_is_no_rule_is_refused(make_it):
    with pytest.raises(ConfigError, match="Nothing was stored"):
        make_it()


def test_what_is_no_unique_is_refused(make):
    with pytest.raises(ConfigError, match="must be True or a Unique"):
        make().send(1, task="t", unique="yes")
