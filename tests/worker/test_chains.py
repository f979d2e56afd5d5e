"""Chains: jobs one after the other, each with the result of the one before."""

from __future__ import annotations

import asyncio

import pytest

from dutiful import BufferFull, Chain, ConfigError, Discard, Group, GroupJob, Link, State, WrongState
from tests.worker.tools import finished, result, until


def add(n: int, ctx) -> int:
    return n + (ctx.after[0] if ctx.after else 0)


def test_each_link_has_the_result_of_the_one_before(started, shared):
    worker = started(shared, handlers={"add": add})

    chain = Chain(1, 2, 3, task="add").send(worker)

    assert result(chain) == 6
    assert [result(link) for link in chain.links] == [1, 3, 6]


def test_links_have_options_of_their_own(started, shared, seen):
    worker = started(shared, handlers={"a": seen.add, "b": seen.add}, queues=["default", "slow"])

    chain = Chain("first", Link("second", task="b", queue="slow", priority=3), "third", task="a").send(worker)

    assert seen.wait(3) == ["first", "second", "third"]
    records = [finished(link) for link in chain.links]
    assert [(r.task, r.queue, r.priority) for r in records] == [
        ("a", "default", 0),
        ("b", "slow", 3),
        ("a", "default", 0),
    ]


def test_functions_with_arguments_are_links(started, shared):
    worker = started(shared)

    @worker.task
    def plus(x: int, y: int, ctx) -> int:
        return x + y + (ctx.after[0] if ctx.after else 0)

    assert result(Chain(plus.link(1, 2), plus.link(3, y=4)).send(worker)) == 10


def test_a_chain_goes_on_after_a_group(started, shared):
    worker = started(
        shared,
        handlers={
            "add": add,
            "sum": lambda payload, ctx: sum(ctx.after),
            "report": lambda payload, ctx: [payload, *ctx.after],
        },
    )

    chain = Chain(
        Link(10, task="add"),
        Group([1, 2, 3], task="add", then=Link(None, task="sum")),
        Link("total", task="report"),
    ).send(worker)

    assert result(chain) == ["total", 36]  # each member added the 10 to its own
    group = chain.links[1]
    assert isinstance(group, GroupJob)
    assert group.progress.done == 3


@pytest.mark.parametrize("count", [0, 2])
def test_it_may_begin_with_a_group_after_another_job(started, shared, seen, count):
    worker = started(shared, handlers={"t": seen.add})
    first = worker.send("first", task="t", delay=0.1)

    Chain(
        Group(range(count), task="t", then=Link("then", task="t")), Link("last", task="t"), after=first
    ).send(worker)

    ran = seen.wait(count + 3)
    assert (ran[0], sorted(ran[1:-2]), ran[-2:]) == ("first", list(range(count)), ["then", "last"])


def test_an_empty_group_in_the_middle_waits_for_its_turn(started, shared, gate):
    worker = started(
        shared, handlers={"hold": gate.hold, "then": lambda payload, ctx: list(ctx.after)}, concurrency=2
    )

    chain = Chain(Link(1, task="hold"), Group([], task="hold", then=Link(2, task="then"))).send(worker)

    gate.entered.wait(1)
    assert chain.state is State.BLOCKED
    gate.open()
    assert result(chain) == []  # the one before is no member
    assert chain.links[0].state is State.COMPLETED


def test_chains_in_chains_are_one(started, shared):
    worker = started(shared, handlers={"add": add})

    chain = Chain(1, Chain(2, 3), 4, task="add").send(worker)

    assert [result(link) for link in chain.links] == [1, 3, 6, 10]


def test_all_of_it_is_cancelled_when_a_link_is_dead(started, shared):
    worker = started(
        shared, handlers={"die": lambda payload: Discard("no"), "t": lambda payload, ctx: list(ctx.after)}
    )

    chain = Chain(Link(1, task="die"), 2, 3, task="t").send(worker)
    kept = Chain(Link(1, task="die"), Link(2, task="t", on_dead="run")).send(worker)

    assert finished(chain).state is State.CANCELLED
    assert finished(chain.links[1]).state is State.CANCELLED
    assert result(kept) == [None]


def test_cancelling_a_chain_ends_all_that_waits(make, shared):
    worker = make(shared)
    group = Group([1, 2], task="t", then=Link(0, task="t", on_dead="run"))
    chain = Chain(1, group, Link(2, on_dead="run"), task="t").send(worker)

    chain.cancel()

    assert worker.counts().by_state[State.CANCELLED] == len(worker.jobs()) == 5
    with pytest.raises(WrongState):
        chain.cancel()


def test_a_coroutine_sends_a_chain(started, shared):
    worker = started(shared, handlers={"add": add})

    async def send() -> int:
        return await (await Chain(1, 2, task="add").asend(worker))

    assert asyncio.run(send()) == 3


def test_a_chain_is_stored_whole_or_not_at_all(make, shared):
    worker = make(shared, buffer=3)
    worker.send("other", task="t")

    with pytest.raises(BufferFull):
        Chain(1, 2, 3, task="t", timeout=0).send(worker)
    assert len(worker.jobs()) == 1
    Chain(1, 2, task="t", timeout=0).send(worker)
    until(lambda: len(worker.jobs()) == 3)


@pytest.mark.parametrize(
    ("make_chain", "says"),
    [
        (lambda: Chain(task="t"), "without links"),
        (lambda: Chain(1, task="t", unique=True), "unique="),
        (lambda: Chain(Link(1, unique=True), task="t"), "unique="),
        (lambda: Chain(1, task="t", transaction=object()), "transaction="),
        (lambda: Chain(*range(10_001), task="t"), "10001 jobs"),
        (lambda: Chain(Group(iter(int, 1), task="t", then=Link(0, task="t"))), "10000"),
        (lambda: Chain(Group([1], task="t", then=Link(0, task="t"), after=1), after=2), "both a Chain"),
        (lambda: Chain(Link(1, tsak="t")), "task"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_stored(make, make_chain, says):
    worker = make()
    with pytest.raises(ConfigError, match=says):
        make_chain().send(worker)
    assert not worker.jobs()
