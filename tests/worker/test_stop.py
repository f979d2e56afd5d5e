"""Stopping: from anywhere, at any time, any number of times."""

import threading
import time

import pytest

from dutiful import State, WorkerStopped
from tests.worker.tools import WAIT_S, Seen, background, finished, has_stopped, until, within


def test_running_handlers_come_to_their_end(make, path, gate):
    worker = make(path, handlers={"t": gate.hold})
    worker.start()
    job = worker.send(1, task="t")
    gate.entered.wait()

    stop = background(worker.stop)
    until(lambda: has_stopped(worker))
    assert not stop.done()
    gate.open()
    stop.result(WAIT_S)

    assert make(path).job(job.id).result(timeout=0) == 1


def test_what_waits_stays_stored(make, path, gate):
    worker = make(path, handlers={"t": gate.hold}, concurrency=2)
    worker.start()
    jobs = worker.send_many(range(50), task="t")
    gate.entered.wait(2)

    stop = background(worker.stop)
    until(lambda: has_stopped(worker))
    gate.open()
    stop.result(WAIT_S)

    states = [make(path).job(job.id).state for job in jobs]
    assert states[:2] == [State.COMPLETED] * 2
    assert states[2:] == [State.PENDING] * 48
    assert all(record.attempt <= 1 and not record.failures for record in make(path).jobs())


def test_drain_finishes_all_that_is_ready(make, path, gate, seen):
    worker = make(path, handlers={"hold": gate.hold, "t": seen.add}, concurrency=1)
    worker.start()
    worker.send(0, task="hold")
    worker.send_many(range(3000), task="t")
    later = worker.send(-1, task="t", delay=3600)

    stop = background(worker.stop, drain=True)
    gate.open()
    stop.result(WAIT_S)

    assert seen.all == list(range(3000))
    assert make(path).job(later.id).state is State.PENDING


def test_a_drain_ends_when_its_time_is_up(make, path, gate):
    worker = make(path, handlers={"t": lambda n: time.sleep(0.02)}, concurrency=1)
    worker.start()
    worker.send_many(range(2000), task="t")

    within(WAIT_S, worker.stop, 0.3, drain=True)

    assert make(path).counts().by_state[State.PENDING] > 1000


def test_a_thread_that_does_not_end_is_left_with_its_job(make, path, gate):
    worker = make(path, handlers={"t": gate.hold})
    worker.start()
    job = worker.send(1, task="t")
    gate.entered.wait()

    within(WAIT_S / 2, worker.stop, 0.1)

    client = make(path)
    assert client.job(job.id).state is State.RUNNING
    gate.open()
    assert finished(client.job(job.id)).result == "1"


def test_stop_returns_though_nothing_was_started_or_used(make, store):
    for worker in (make(store), make(store)):
        within(WAIT_S, worker.stop)
        within(WAIT_S, worker.stop, 1, drain=True)
        with pytest.raises(WorkerStopped):
            worker.send(1, task="t")


def test_a_slow_generator_in_send_many_does_not_hold_up_a_stop(make, store):
    worker = make(store, handlers={"t": lambda n: None})
    worker.start()
    going, ending = Seen(), threading.Event()

    def slowly():
        yield from range(1000)
        while True:
            going.add(1)
            ending.wait(0.005)
            yield 1

    sending = background(worker.send_many, slowly(), task="t")
    going.wait()
    within(WAIT_S, worker.stop)

    ending.set()
    with pytest.raises(WorkerStopped) as caught:
        sending.result(WAIT_S)
    assert "1000 jobs" in " ".join(caught.value.__notes__)


def test_a_generator_in_send_many_may_stop_the_worker_itself(make, store):
    worker = make(store, handlers={"t": lambda n: None})
    worker.start()

    def stopping():
        yield from range(10)
        worker.stop()
        yield 10

    with pytest.raises(WorkerStopped):
        within(WAIT_S, worker.send_many, stopping(), task="t")


def test_starts_and_stops_in_quick_succession(make, store):
    worker = make(store, handlers={"t": lambda n: None})

    def lives():
        for _ in range(50):
            worker.start()
            worker.send(0, task="t")
            worker.stop()

    within(2 * WAIT_S, lives)


def test_many_workers_are_made_used_and_stopped(make, store):
    def lives():
        for _ in range(50):
            worker = make(store, handlers={"t": lambda n: None})
            worker.start()
            worker.send(0, task="t")
            worker.stop()

    within(2 * WAIT_S, lives)


def test_starts_and_stops_from_many_threads_at_once(make, path):
    worker = make(path, handlers={"t": lambda n: None})
    odd = []

    def switch(n):
        for _ in range(30):
            try:
                worker.start() if n % 2 else worker.stop()
            except RuntimeError:  # AlreadyStarted
                pass
            except Exception as error:
                odd.append(error)

    done = [background(switch, n) for n in range(4)]
    for each in done:
        each.result(2 * WAIT_S)
    worker.stop()

    assert odd == []
    with worker:
        assert finished(worker.send(0, task="t")).state is State.COMPLETED


@pytest.mark.parametrize("where", ["wait", "result", "counts"])
def test_those_who_look_while_it_stops_get_an_answer_or_a_clear_error(make, store, gate, where):
    worker = make(store, handlers={"t": gate.hold})
    worker.start()
    job = worker.send(1, task="t")
    gate.entered.wait()
    look = {"wait": lambda: job.wait(5), "result": lambda: job.result(5), "counts": worker.counts}[where]
    looking = [background(look) for _ in range(5)]

    stop = background(worker.stop)
    gate.open()
    stop.result(WAIT_S)

    for each in looking:
        error = each.exception(WAIT_S)
        assert error is None or "closed" in str(error) or "stopped" in str(error), repr(error)
