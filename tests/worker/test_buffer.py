"""The buffered worker: a bounded channel with one worker behind it, in memory and in a file."""

import pytest

from dutiful import BufferFull, State, WorkerStopped
from tests.worker.tools import WAIT_S, Seen, background, finished, until, within

TWO_SLOTS = {"buffer": 2, "concurrency": 1}


def test_send_waits_while_it_is_full(started, store, gate):
    worker = started(store, handlers={"t": gate.hold}, **TWO_SLOTS)
    worker.send(1, task="t")
    worker.send(2, task="t")

    third = background(worker.send, 3, task="t")

    with pytest.raises(BufferFull):
        worker.send(4, task="t", timeout=0.1)
    assert not third.done()
    gate.open()
    assert finished(third.result(WAIT_S)).state is State.COMPLETED
    assert gate.entered.all == [1, 2, 3]


@pytest.mark.parametrize("timeout", [0, 0.05, 0.3])
def test_send_gives_up_after_its_timeout_and_nothing_is_stored(started, store, gate, timeout):
    worker = started(store, handlers={"t": gate.hold}, **TWO_SLOTS)
    worker.send(1, task="t")
    worker.send(2, task="t")

    with pytest.raises(BufferFull, match="not stored") as caught:
        worker.send(3, task="t", timeout=timeout)

    assert (caught.value.buffer, caught.value.waited_s) == (2, timeout)
    assert len(worker.jobs()) == 2


def test_jobs_run_in_the_order_in_which_they_were_sent(started, store, seen):
    worker = started(store, handlers={"t": seen.add}, **TWO_SLOTS)

    for n in range(150):
        worker.send(n, task="t")

    assert seen.wait(150) == list(range(150))


def test_there_are_never_more_unfinished_jobs_than_slots(started, store):
    counts = Seen()
    worker = started(store, **TWO_SLOTS)

    @worker.handler("t")
    def count(n):
        by_state = worker.counts().by_state
        counts.add(by_state[State.PENDING] + by_state[State.RUNNING])

    senders = [background(lambda: [worker.send(n, task="t") for n in range(20)]) for _ in range(4)]
    for sender in senders:
        sender.result(WAIT_S)

    assert max(counts.wait(80)) <= 2


def test_a_worker_that_is_not_started_is_full_all_the_same(make, store):
    worker = make(store, **TWO_SLOTS)
    worker.send_many([1, 2], task="t")

    with pytest.raises(BufferFull):
        worker.send(3, task="t", timeout=0.05)


def test_send_many_waits_for_room_piece_by_piece(started, store, seen):
    worker = started(store, handlers={"t": seen.add}, **TWO_SLOTS)

    jobs = worker.send_many(range(60), task="t")

    assert len(jobs) == 60
    assert seen.wait(60) == list(range(60))


def test_send_many_says_how_many_found_room(make, store):
    worker = make(store, buffer=5)
    worker.send_many(range(2), task="t")

    with pytest.raises(BufferFull) as caught:
        worker.send_many(range(8), task="t", timeout=0.05)

    assert "3 jobs" in " ".join(caught.value.__notes__)
    assert len(worker.jobs()) == 5


def test_stop_finishes_what_was_accepted(started, store, gate, seen):
    worker = started(store, handlers={"hold": gate.hold, "t": seen.add}, buffer=50, concurrency=1)
    worker.send(0, task="hold")
    worker.send_many(range(40), task="t")

    stop = background(worker.stop, drain=True)
    gate.open()
    stop.result(WAIT_S)

    assert seen.all == list(range(40))


def test_in_memory_stop_finishes_what_was_accepted_without_being_told(started, gate, seen):
    worker = started(":memory:", handlers={"hold": gate.hold, "t": seen.add}, **TWO_SLOTS)
    worker.send(0, task="hold")
    worker.send(1, task="t")

    stop = background(worker.stop)
    gate.open()
    stop.result(WAIT_S)

    assert seen.all == [1]


def test_second_and_concurrent_stops_are_harmless(started, store, gate):
    worker = started(store, handlers={"t": gate.hold}, **TWO_SLOTS)
    worker.send(0, task="t")
    gate.entered.wait()

    stops = [background(worker.stop) for _ in range(6)]
    assert not any(stop.done() for stop in stops)
    gate.open()
    for stop in stops:
        stop.result(WAIT_S)
    within(WAIT_S, worker.stop)

    with pytest.raises(WorkerStopped):
        worker.send(1, task="t")


def test_those_who_wait_for_room_are_told_that_it_stopped(started, store, gate):
    worker = started(store, handlers={"t": gate.hold}, **TWO_SLOTS)
    worker.send_many([1, 2], task="t")
    gate.entered.wait()
    waiting = [background(worker.send, 3, task="t") for _ in range(3)]
    waiting.append(background(worker.send_many, [4, 5], task="t"))

    stop = background(worker.stop)

    for each in waiting:
        with pytest.raises(WorkerStopped, match="nothing was stored"):
            each.result(WAIT_S)
    gate.open()
    stop.result(WAIT_S)
    assert set(gate.entered.all) <= {1, 2}


def test_clients_on_one_file_share_the_bound(make, path):
    one, two = make(path, buffer=3), make(path, buffer=3)
    one.send_many([1, 2], task="t")
    two.send(3, task="t")

    for client in (one, two):
        with pytest.raises(BufferFull):
            client.send(4, task="t", timeout=0.05)
    one.job(1).cancel()

    two.send(4, task="t", timeout=WAIT_S)


def test_room_made_by_another_worker_is_seen(make, started, path, gate):
    client = make(path, buffer=1)
    client.send(1, task="t")
    waiting = background(client.send, 2, task="t")

    started(path, handlers={"t": gate.hold})
    gate.open()

    finished(waiting.result(WAIT_S))


def test_a_job_that_waits_for_a_retry_takes_room_until_it_is_cancelled(started, store):
    worker = started(store, handlers={"fail": lambda n: 1 / 0}, buffer=1)
    failing = worker.send(1, task="fail")
    until(lambda: failing.refresh().failures)
    with pytest.raises(BufferFull):
        worker.send(2, task="fail", timeout=0.05)

    failing.cancel()

    worker.send(2, task="fail", timeout=WAIT_S)
