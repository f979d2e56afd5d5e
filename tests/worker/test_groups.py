"""Groups: many jobs, and one that runs once when all of them have completed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from dutiful import (
    BufferFull,
    Chain,
    ConfigError,
    Discard,
    Group,
    GroupGone,
    Keep,
    Limit,
    Link,
    NotEncodable,
    State,
    WrongState,
)
from dutiful.front import flows
from tests.worker.tools import background, finished, result, until


@dataclass
class Square:
    n: int


@dataclass
class Total:
    name: str


def square(job: Square) -> int:
    return job.n**2


def total(job: Total, ctx) -> list[object]:
    return [job.name, len(ctx.after), sum(ctx.after)]


HANDLERS = {Square: square, Total: total}


@pytest.mark.parametrize("count", [0, 1, 5, 1000, 2500])
def test_the_callback_runs_with_the_results_of_all_members(started, shared, count):
    worker = started(shared, handlers=HANDLERS)

    group = Group((Square(n) for n in range(count)), then=Total("squares")).send(worker)

    assert result(group) == ["squares", count, sum(n * n for n in range(count))]
    assert group.progress.done == group.progress.total == count
    assert [job.task for job in group.members][:1] == ["Square"] * min(count, 1)


def test_results_come_in_the_order_sent_though_members_end_in_any(started, shared):
    def reverse(n: int) -> int:
        time.sleep((20 - n) / 1000)  # later ones are faster
        return n

    worker = started(
        shared, handlers={"n": reverse, "all": lambda payload, ctx: list(ctx.after)}, concurrency=8
    )

    group = Group(range(20), task="n", then=Link(None, task="all")).send(worker)

    assert result(group) == list(range(20))


def test_results_that_are_pruned_meanwhile_are_there(started, shared):
    worker = started(shared, handlers=HANDLERS, keep_completed=Keep(count=1), concurrency=2)

    def slowly() -> Iterator[Square]:
        yield from map(Square, range(1500))
        until(lambda: worker.counts().by_state[State.COMPLETED] <= 1 and worker.counts().due == 0)
        yield Square(0)

    group = Group(slowly(), then=Link(Total("kept"), delay=1)).send(worker)

    assert result(group) == ["kept", 1501, sum(n * n for n in range(1500))]


def test_many_results_are_read_a_page_at_a_time(started, shared):
    def look(payload: object, ctx) -> object:
        after = ctx.after
        return [after[0], after[-1], after[1200], after[20:23], len(after), next(iter(after))]

    worker = started(shared, handlers={"n": lambda n: n, "look": look})

    group = Group(range(2100), task="n", then=Link(0, task="look")).send(worker)

    assert result(group) == [0, 2099, 1200, [20, 21, 22], 2100, 0]


def test_members_run_while_others_are_still_to_come_and_the_callback_does_not(started, shared, seen):
    """A slow generator: what has come within a second or a thousand is stored."""
    worker = started(shared, handlers={"n": seen.add, "then": seen.add})
    shown = []

    def slowly() -> Iterator[int]:
        yield from range(1000)
        seen.wait(1000)
        (callback,) = worker.jobs(state="blocked")
        shown.append((callback.held, worker.group(callback.id).progress))
        yield 1000

    group = Group(slowly(), task="n", then=Link("then", task="then")).send(worker)

    assert seen.wait(1002)[-1] == "then"
    ((held, progress),) = shown
    assert (held, progress.total) == ("group", None)
    assert progress.done <= 1000
    finished(group)


def test_what_comes_slowly_is_stored_after_a_second(started, shared, seen, monkeypatch):
    monkeypatch.setattr(flows, "CHUNK_S", 0.0)
    worker = started(shared, handlers={"n": seen.add})

    def one_by_one() -> Iterator[int]:
        for n in range(5):
            yield n
            seen.wait(n + 1)  # it has run before the next one is given

    Group(one_by_one(), task="n", then=Link("then", task="n")).send(worker)

    assert seen.wait(6) == [0, 1, 2, 3, 4, "then"]


@pytest.mark.parametrize(
    ("on_dead", "state"),
    [("cancel", State.CANCELLED), ("run", State.COMPLETED), ("wait", State.BLOCKED)],
)
def test_what_becomes_of_the_callback_when_a_member_is_dead(started, shared, on_dead, state):
    def handle(n: int) -> object:
        return Discard("no") if n == 1 else n

    worker = started(shared, handlers={"n": handle, "then": lambda payload, ctx: list(ctx.after)})

    group = Group(range(3), task="n", then=Link(None, task="then", on_dead=on_dead)).send(worker)

    until(lambda: worker.counts().by_state[State.DEAD] == 1)
    until(lambda: group.state is state and group.progress.done == (2 if on_dead == "wait" else 3))
    if on_dead == "run":
        assert result(group) == [0, None, 2]
    if on_dead == "wait":
        list(group.members)[1].retry()  # it dies again
        until(lambda: worker.counts().by_state[State.DEAD] == 1)
        assert group.state is State.BLOCKED


def test_members_may_have_keys_limits_and_predecessors(started, shared, seen):
    worker = started(shared, handlers={"first": seen.add, "then": seen.add, "all": seen.add})
    worker.handler("n", limit=Limit(concurrency=2))(seen.add)
    first = worker.send("first", task="first", delay=0.1)

    Group(range(50), task="n", key=lambda n: f"k{n % 3}", after=first, then=Link("then", task="then")).send(
        worker
    )

    ran = seen.wait(52)
    assert (ran[0], ran[-1], sorted(ran[1:-1])) == ("first", "then", list(range(50)))
    for rest in range(3):
        its = [n for n in ran[1:-1] if n % 3 == rest]
        assert its == sorted(its)


def test_members_of_several_types(started, shared):
    worker = started(shared, handlers=HANDLERS | {"all": lambda payload, ctx: list(ctx.after)})

    group = Group([Square(2), Total("none"), Square(3)], then=Link(0, task="all")).send(worker)

    assert result(group) == [4, ["none", 0, 0], 9]


def test_cancelling_a_group_ends_all_that_waits(make, shared):
    worker = make(shared)
    group = Group(range(2500), task="n", then=Link("then", task="then", on_dead="run")).send(worker)

    group.cancel()

    assert worker.counts().by_state[State.CANCELLED] == len(worker.jobs(limit=3000)) == 2501
    assert group.progress.done == 2500
    with pytest.raises(WrongState):
        group.cancel()


def test_cancelling_one_whose_members_run_has_them_stopped(started, shared, gate):
    worker = started(shared, handlers={"n": gate.hold, "then": gate.hold}, concurrency=2)
    group = Group(range(4), task="n", then=Link("then", task="then")).send(worker)
    gate.entered.wait(2)

    group.cancel()
    gate.open()

    until(lambda: not _unfinished(worker))
    assert group.state is State.CANCELLED
    assert "then" not in gate.entered.all


def _unfinished(worker) -> int:
    by_state = worker.counts().by_state
    return sum(by_state.get(state, 0) for state in (State.PENDING, State.BLOCKED, State.RUNNING))


def test_one_that_is_cancelled_while_it_is_sent_takes_no_more(make, shared):
    worker, other = make(shared), make(shared)

    def payloads() -> Iterator[int]:
        yield from range(1500)
        (callback,) = other.jobs(state="blocked")
        other.group(callback.id).cancel()
        yield from range(5000)

    with pytest.raises(GroupGone, match="cancelled") as raised:
        Group(payloads(), task="n", then=Link("then", task="then")).send(worker)

    assert other.job(raised.value.job_id).state is State.CANCELLED
    assert raised.value.stored in (0, 1000)  # the first chunk may be under way
    assert not other.jobs(state="blocked")


@pytest.mark.parametrize("wrong", [object(), "raise"])
def test_an_error_in_the_middle_says_what_is_stored_and_ends_the_callback(started, shared, seen, wrong):
    worker = started(shared, handlers={"n": seen.add, "then": seen.add})

    def payloads() -> Iterator[object]:
        yield from range(2300)
        if wrong == "raise":
            raise KeyError("mine")
        yield wrong

    with pytest.raises((NotEncodable, KeyError)) as raised:
        Group(payloads(), task="n", then=Link("then", task="then")).send(worker)

    assert "2000 members of this group are stored" in raised.value.__notes__[-1]
    if wrong != "raise":
        assert raised.value.stored == 2000
    assert sorted(seen.wait(2000)) == list(range(2000))
    until(lambda: not _unfinished(worker))
    assert worker.counts().by_state[State.CANCELLED] == 1
    assert "then" not in seen.all


def test_an_error_in_a_small_group_stores_nothing(make, shared):
    worker = make(shared)

    with pytest.raises(NotEncodable):
        Group([1, object()], task="n", then=Link("then", task="then")).send(worker)

    assert not worker.jobs()


def test_with_a_buffer_members_wait_for_room(started, shared, seen):
    worker = started(shared, handlers={"n": seen.add, "then": seen.add}, buffer=4)

    group = Group(range(100), task="n", then=Link("then", task="then"), timeout=20).send(worker)

    assert seen.wait(101)[-1] == "then"
    finished(group)


def test_with_a_buffer_a_small_group_is_stored_whole_or_not_at_all(make, shared):
    worker = make(shared, buffer=4)
    worker.send("other", task="n")

    with pytest.raises(BufferFull):
        Group(range(3), task="n", then=Link("then", task="then"), timeout=0).send(worker)
    assert len(worker.jobs()) == 1
    Group(range(2), task="n", then=Link("then", task="then"), timeout=0).send(worker)
    assert len(worker.jobs()) == 4


@pytest.mark.parametrize("count", [3, 2500])
def test_async_payloads_are_sent_without_blocking_the_loop(started, shared, count):
    worker = started(shared, handlers=HANDLERS)

    async def payloads() -> AsyncIterator[Square]:
        for n in range(count):
            yield Square(n)

    async def send() -> object:
        group = await Group(payloads(), then=Total("async")).asend(worker)
        return await group

    assert asyncio.run(send()) == ["async", count, sum(n * n for n in range(count))]


def test_a_coroutine_that_is_cancelled_leaves_no_callback_that_waits(make, shared):
    worker = make(shared)

    async def send() -> None:
        has_stored = asyncio.Event()

        async def payloads() -> AsyncIterator[int]:
            for n in range(1500):
                yield n
            has_stored.set()  # the first thousand
            await asyncio.Event().wait()

        sending = asyncio.create_task(
            Group(payloads(), task="n", then=Link("then", task="then")).asend(worker)
        )
        await has_stored.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    asyncio.run(send())

    assert not worker.jobs(state="blocked")
    assert worker.counts().by_state[State.CANCELLED] == 1


def test_a_handler_may_send_a_group(started, shared, seen):
    worker = started(shared, handlers={"n": seen.add}, concurrency=1, buffer=3)

    @worker.handler("fan")
    def fan(count: int) -> None:
        Group(range(count), task="n", then=Link("then", task="n")).send(worker)

    worker.send(50, task="fan")

    assert seen.wait(51)[-1] == "then"


def test_groups_in_memory(started, seen):
    worker = started(":memory:", handlers=HANDLERS)

    assert result(Group(map(Square, range(3)), then=Total("m")).send(worker)) == ["m", 3, 5]


def test_members_completed_in_their_own_transactions_count(started, shared, seen):
    worker = started(shared, handlers={"then": seen.add}, concurrency=4)

    @worker.handler("own")
    def own(n: int, ctx) -> None:
        with ctx.transaction():
            pass

    Group(range(30), task="own", then=Link("then", task="then")).send(worker)

    assert seen.wait(1) == ["then"]


@pytest.mark.parametrize(
    ("make_group", "says"),
    [
        (lambda: Group([1], then=Link(1, task="n", after=1), task="n"), "callback of a Group has after="),
        (lambda: Group([1], then=Link(1, task="n", unique=True), task="n"), "unique="),
        (lambda: Group([1], then=Link(1, task="n"), task="n", unique=True), "unique="),
        (lambda: Group([1], then=Link(1, task="n"), task="n", transaction=object()), "transaction="),
        (lambda: Group([1], then=Link(1, task="n"), task="n", dealy=3), "delay"),
        (lambda: Group([Chain(1, 2)], then=Link(1, task="n"), task="n"), "is a Chain"),
        (lambda: Group([1], then=Chain(1, 2), task="n"), "then= is a Chain"),
        (lambda: Group(7, then=Link(1, task="n"), task="n"), "cannot iterate"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_stored(make, make_group, says):
    worker = make()
    with pytest.raises(ConfigError, match=says):
        make_group().send(worker)
    assert not worker.jobs()


def test_a_buffer_of_one_has_no_room_for_a_group(make):
    with pytest.raises(ConfigError, match="buffer=1"):
        Group([1], then=Link(1, task="n"), task="n").send(make(buffer=1))


def test_two_senders_and_two_workers_at_once(started, shared, seen):
    workers = [started(shared, handlers={"n": lambda n: n, "then": _sum(seen)}) for _ in range(2)]

    sends = [
        background(lambda w: Group(range(1500), task="n", then=Link("x", task="then")).send(w), worker)
        for worker in workers
    ]

    for sent in sends:
        finished(sent.result(20))
    assert seen.wait(2) == [sum(range(1500))] * 2


def _sum(seen):
    def then(payload: object, ctx) -> None:
        seen.add(sum(ctx.after))

    return then


def test_the_closing_and_the_last_members_end_at_once(started, shared, seen, monkeypatch):
    """In steps of one member each, while workers finish them: whoever is last lets the callback go, once."""
    monkeypatch.setattr(flows, "CHUNK_S", 0.0)
    started(shared, handlers={"n": lambda n: n, "then": seen.add}, concurrency=2)
    sender = started(shared, handlers={"n": lambda n: n, "then": seen.add}, concurrency=2)

    groups = [Group(range(2), task="n", then=Link(at, task="then")).send(sender) for at in range(60)]

    records = [finished(group) for group in groups]
    assert sorted(seen.all) == list(range(60))
    assert {(record.state, record.attempt) for record in records} == {(State.COMPLETED, 1)}
