"""Jobs that follow others: they run once, when all of those have completed."""

from __future__ import annotations

import pytest

from dutiful import Cancel, ConfigError, Retry, State
from tests.worker.tools import finished, result, until


def test_it_runs_after_all_of_them_with_their_results(started, shared, seen):
    def add(payload: list[int], ctx) -> int:
        return sum(payload) + sum(ctx.after)

    worker = started(shared, handlers={"add": add})
    parents = worker.send_many([[1, 2], [3, 4]], task="add")

    total = worker.send([10], task="add", after=parents)

    assert result(total) == 20


def test_a_diamond_runs_in_order(started, shared, seen):
    worker = started(shared, handlers={"t": seen.add})

    top = worker.send("top", task="t")
    left, right = (worker.send(name, task="t", after=top) for name in ("left", "right"))
    worker.send("bottom", task="t", after=[left, right])

    ran = seen.wait(4)
    assert (ran[0], ran[3], set(ran[1:3])) == ("top", "bottom", {"left", "right"})


def test_many_follow_one_and_one_follows_many(started, shared, seen):
    worker = started(shared, handlers={"t": seen.add})

    first = worker.send("first", task="t")
    middle = worker.send_many(range(300), task="t", after=first)
    worker.send("last", task="t", after=middle)

    ran = seen.wait(302)
    assert (ran[0], ran[-1]) == ("first", "last")
    assert sorted(ran[1:-1]) == list(range(300))


def test_it_may_be_sent_after_all_has_finished(started, shared, seen):
    worker = started(shared, handlers={"t": seen.add})
    parent = worker.send("parent", task="t")
    finished(parent)

    worker.send("child", task="t", after=parent)

    assert seen.wait(2) == ["parent", "child"]


def test_a_parent_that_is_gone_counts_as_completed(started, make, shared, seen):
    worker = started(shared, handlers={"t": seen.add}, keep_completed=0)
    parent = worker.send("parent", task="t")
    seen.wait(1)
    until(lambda: not worker.jobs())

    worker.send("child", task="t", after=parent)

    assert seen.wait(2) == ["parent", "child"]


@pytest.mark.parametrize(
    ("on_dead", "state"),
    [("cancel", State.CANCELLED), ("run", State.COMPLETED), ("wait", State.BLOCKED)],
)
@pytest.mark.parametrize("before", [True, False])
def test_what_becomes_of_it_when_one_is_dead(started, shared, gate, on_dead, state, before):
    """Whether it was sent before or after the other died."""

    def die(payload: object) -> None:
        gate.hold(payload)
        raise ValueError

    worker = started(shared, handlers={"die": die, "t": lambda payload: None}, retry=Retry(max_attempts=1))
    parent = worker.send(1, task="die")
    if not before:
        gate.open()
        finished(parent)
    child = worker.send(2, task="t", after=parent, on_dead=on_dead)
    gate.open()
    finished(parent)

    until(lambda: child.refresh().state is state)


def test_one_that_waited_for_a_dead_one_runs_when_that_is_deleted(started, shared, seen):
    worker = started(shared, handlers={"die": lambda payload: Cancel(), "t": seen.add})
    parent = worker.send(1, task="die")
    finished(parent)
    child = worker.send("child", task="t", after=parent, on_dead="wait")
    assert child.refresh().state is State.BLOCKED

    parent.delete()

    assert seen.wait(1) == ["child"]


def test_one_that_was_completed_in_its_transaction_is_followed(started, path, seen):
    def handle(payload: object, ctx) -> None:
        with ctx.transaction():
            pass

    worker = started(path, handlers={"first": handle, "t": seen.add})
    parent = worker.send(1, task="first", delay=0.05)
    worker.send("child", task="t", after=parent)

    assert seen.wait(1) == ["child"]


def test_a_blocked_one_can_be_cancelled_and_those_after_it_are_too(make, shared):
    worker = make(shared)
    parent = worker.send(1, task="t")
    child = worker.send(2, task="t", after=parent)
    grandchild = worker.send(3, task="t", after=child)

    child.cancel()

    assert finished(grandchild).state is State.CANCELLED
    assert parent.refresh().state is State.PENDING


def test_what_is_no_job_is_refused(make):
    with pytest.raises(ConfigError, match="takes jobs, or their ids"):
        make().send(1, task="t", after="yesterday")
    with pytest.raises(ConfigError, match="on_dead"):
        make().send(1, task="t", after=1, on_dead="cry")
