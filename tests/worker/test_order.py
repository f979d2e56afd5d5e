"""In what order jobs run: priority, then time, then id."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.worker.tools import WAIT_S, Seen


def test_a_restart_runs_what_is_left_by_priority_then_time_then_id(make, started, path, seen):
    client, chance = make(path), random.Random(5)
    past = datetime.now(UTC) - timedelta(hours=1)
    sent = []
    for n in range(400):
        priority, minutes = chance.choice([-5, 0, 0, 3]), chance.randrange(4)
        client.send(n, task="t", priority=priority, run_at=past + timedelta(minutes=minutes))
        sent.append((-priority, minutes, n))

    started(path, handlers={"t": seen.add}, concurrency=1)

    assert seen.wait(400) == [n for _priority, _minutes, n in sorted(sent)]


def test_all_queues_of_a_worker_are_one_line(make, started, path, seen):
    client, chance = make(path), random.Random(6)
    sent = []
    for n in range(100):
        priority, queue = chance.choice([0, 1]), chance.choice(["a", "b"])
        client.send(n, task="t", priority=priority, queue=queue, run_at=datetime(2020, 1, 1, tzinfo=UTC))
        sent.append((-priority, n))

    started(path, handlers={"t": seen.add}, concurrency=1, queues=("b", "a"))

    assert seen.wait(100) == [n for _priority, n in sorted(sent)]


@pytest.mark.parametrize("many", [False, True])
def test_with_one_slot_jobs_run_in_the_order_in_which_they_were_sent(started, store, seen, many):
    worker = started(store, handlers={"t": seen.add}, concurrency=1)

    if many:
        worker.send_many(range(3000), task="t")
    else:
        for n in range(300):
            worker.send(n, task="t")

    count = 3000 if many else 300
    assert seen.wait(count) == list(range(count))


def test_a_higher_priority_overtakes_what_waits(started, store, gate, seen):
    worker = started(store, handlers={"hold": gate.hold, "t": seen.add}, concurrency=1)
    worker.send(0, task="hold")
    gate.entered.wait()
    worker.send_many(range(50), task="t")

    worker.send("first", task="t", priority=1)
    worker.send("last", task="t", priority=-1)
    gate.open()

    assert seen.wait(52) == ["first", *range(50), "last"]


def test_interrupted_jobs_keep_their_place(make, path, gate, seen):
    worker = make(path, handlers={"hold": gate.hold, "t": seen.add}, concurrency=1)
    worker.start()
    worker.send_many(range(200), task="t")
    worker.send(0, task="hold")
    worker.send_many(range(200, 400), task="t")
    gate.entered.wait()
    gate.open()
    worker.stop(timeout=WAIT_S)

    worker.start()

    assert seen.wait(400) == list(range(400))


def test_a_long_job_does_not_hold_back_what_waits_behind_it_in_memory(make, started, path, gate, seen):
    """It was taken ahead while the pace was high; another worker gets it within about a second."""
    one = make(path, handlers={"hold": gate.hold, "t": Seen().add}, concurrency=1, name="one")
    one.start()
    jobs = one.send_many(range(500), task="t")
    one.send(0, task="hold")
    rest = one.send_many(range(5), task="t")
    gate.entered.wait()

    started(path, handlers={"t": seen.add}, name="two")

    seen.wait(5)
    assert [job.wait(WAIT_S).state for job in (*jobs[-2:], *rest)] == ["completed"] * 7
