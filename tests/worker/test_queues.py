"""Which of several queues a worker takes jobs from: by priority, by weight, or strictly."""

from __future__ import annotations

from collections import Counter

import pytest

from dutiful import ConfigError, Strict
from tests.worker.tools import result


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@pytest.fixture
def filled(make, seen):
    """Make a worker with so many jobs waiting in each queue; what it runs, it notes by queue."""

    def filled(store, queues, each):
        def note(_n, ctx):
            seen.add(ctx.queue)

        worker = make(store, queues=queues, handlers={"t": note}, concurrency=1)
        for queue, count in each.items():
            worker.send_many(range(count), task="t", queue=queue)
        return worker

    return filled


def test_without_weights_all_queues_are_one_line(filled, store, seen):
    """Of one priority: in the order sent."""
    worker = filled(store, ["a", "b"], {"b": 5, "a": 5})

    with worker:
        assert seen.wait(10) == [*"bbbbbaaaaa"]


def test_by_weight_each_queue_has_its_share_of_the_starts(filled, store, seen):
    worker = filled(store, {"a": 6, "b": 3, "c": 1}, {"c": 400, "b": 400, "a": 400})

    with worker:
        order = seen.wait(1200)

    for start in range(0, 500, 100):  # while all of them have jobs
        had = Counter(order[start : start + 100])
        assert abs(had["a"] - 60) <= 2
        assert abs(had["b"] - 30) <= 2
        assert abs(had["c"] - 10) <= 2
    assert Counter(order) == {"a": 400, "b": 400, "c": 400}


def test_a_queue_without_jobs_leaves_its_share_to_the_others(filled, store, seen):
    worker = filled(store, {"a": 100, "b": 1}, {"b": 50})

    with worker:
        assert seen.wait(50) == ["b"] * 50


def test_strictly_the_first_queue_comes_first(filled, store, seen):
    worker = filled(store, Strict("a", "b", "c"), {"c": 50, "b": 50, "a": 50})

    with worker:
        assert seen.wait(150) == [*"a" * 50, *"b" * 50, *"c" * 50]


def test_what_comes_in_meanwhile_goes_before_what_is_not_taken_yet(started, store, gate, seen):
    """But for the little that the worker has taken ahead, as with priorities."""
    worker = started(store, queues=Strict("a", "b"), concurrency=1)

    @worker.handler("t")
    def handle(n, ctx):
        seen.add(ctx.queue)
        if n == 0:
            gate.hold(n)

    worker.send_many(range(100), task="t", queue="b")
    gate.entered.wait()
    worker.send_many(range(1, 101), task="t", queue="a")
    gate.open()

    order = seen.wait(200)
    ahead = order.index("a")
    assert ahead <= 10  # it had seen no job end, so it had no reason to take many
    assert order[ahead : ahead + 100] == ["a"] * 100


def test_a_paused_queue_has_no_turn(filled, store, seen):
    worker = filled(store, {"a": 9, "b": 1}, {"a": 20, "b": 20})
    worker.pause(queue="a")

    with worker:
        assert seen.wait(20) == ["b"] * 20
        worker.resume(queue="a")
        assert seen.wait(40)[20:] == ["a"] * 20


def test_what_it_sends_goes_to_the_first_queue(make, store):
    worker = make(store, queues={"b": 1, "a": 9}, handlers={"t": abs})

    with worker:
        job = worker.send(-1, task="t")
        assert (result(job), job.queue) == (1, "b")


@pytest.mark.parametrize("queues", [{"a": 0}, {"a": "x"}, {}, (), Strict(), {"no name": 1}, {"a": 1.5}])
def test_wrong_queues_are_refused(make, queues):
    with pytest.raises(ConfigError):
        make(queues=queues)


def test_a_queue_that_is_named_twice_counts_once(started, store, seen):
    worker = started(store, queues=["a", "a"], handlers={"t": seen.add})

    for job in worker.send_many(range(50), task="t"):
        result(job)

    assert sorted(seen.all) == list(range(50))
