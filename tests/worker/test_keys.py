"""Jobs of one key run one at a time, in the order sent; other keys go on."""

from __future__ import annotations

import threading

import pytest

from dutiful import Backoff, ConfigError, Retry, Snooze, State
from tests.worker.tools import Seen, finished, has_failed_once, script, until

QUICK = Retry(max_attempts=3, backoff=Backoff(first_s=0.02))


class Inside:
    """Which jobs of which key run, and whether two of one key ever did at once."""

    def __init__(self) -> None:
        self.ran = Seen()
        self.overlaps: list[str] = []
        self._running: set[str] = set()
        self._changing = threading.Lock()

    def handle(self, payload: list) -> None:
        key, n = payload
        with self._changing:
            if key in self._running:
                self.overlaps.append(key)
            self._running.add(key)
        threading.Event().wait(0.001)
        with self._changing:
            self._running.discard(key)
        self.ran.add((key, n))

    def order_of(self, key: str) -> list[int]:
        return [n for its, n in self.ran.all if its == key]


@pytest.mark.parametrize("many", [True, False])
def test_each_key_is_worked_off_in_the_order_sent(started, shared, many):
    inside = Inside()
    worker = started(shared, handlers={"t": inside.handle}, concurrency=8)
    payloads = [[f"k{n % 5}", n] for n in range(100)]

    if many:
        worker.send_many(payloads, task="t", key=lambda payload: payload[0])
    else:
        for payload in payloads:
            worker.send(payload, task="t", key=payload[0])

    inside.ran.wait(100)
    assert inside.overlaps == []
    for n in range(5):
        assert inside.order_of(f"k{n}") == list(range(n, 100, 5))


def test_two_workers_keep_the_order_between_them(started, make, shared):
    inside = Inside()
    make(shared).send_many([["k", n] for n in range(40)], task="t", key="k")

    for _ in range(2):
        started(shared, handlers={"t": inside.handle}, concurrency=4)

    inside.ran.wait(40)
    assert inside.overlaps == []
    assert inside.order_of("k") == list(range(40))


def test_a_retry_comes_before_the_next_of_its_key(started, shared, seen):
    fail = has_failed_once()

    def handle(n: int) -> None:
        seen.add(n)
        if n == 0:
            fail()

    worker = started(shared, handlers={"t": handle}, retry=QUICK)
    worker.send_many(range(3), task="t", key="k")

    assert seen.wait(4) == [0, 0, 1, 2]


def test_with_skip_the_next_of_its_key_does_not_wait_for_the_retry(started, shared, seen):
    fail = has_failed_once()
    slow = Retry(max_attempts=3, backoff=Backoff(first_s=0.3))

    def handle(n: int) -> None:
        if n == 0:
            fail()
        seen.add(n)

    worker = started(shared, handlers={"t": handle}, retry=slow)
    worker.send_many(range(3), task="t", key="k", on_failure="skip")

    assert seen.wait(3) == [1, 2, 0]


def test_a_dead_job_lets_the_next_of_its_key_go(started, shared, seen):
    def handle(n: int) -> None:
        if n == 0:
            raise ValueError
        seen.add(n)

    worker = started(shared, handlers={"t": handle}, retry=Retry(max_attempts=1))
    first, _ = worker.send_many(range(2), task="t", key="k")

    assert seen.wait(1) == [1]
    assert finished(first).state is State.DEAD


def test_a_snoozing_job_holds_its_key(started, shared, seen):
    def handle(n: int):
        seen.add(n)
        return Snooze(0.05) if n == 0 and seen.all.count(0) == 1 else None

    started(shared, handlers={"t": handle}).send_many(range(2), task="t", key="k")

    assert seen.wait(3) == [0, 0, 1]


@pytest.mark.parametrize("waiting", [True, False])
def test_a_cancelled_job_lets_the_next_of_its_key_go(started, shared, gate, seen, waiting):
    """Whether it waited, or ran and was asked to stop."""

    def handle(n: int, ctx) -> None:
        seen.add(n)
        if n == 0:
            until(lambda: ctx.cancelled)
            ctx.check()

    worker = started(shared, handlers={"t": handle})
    first, second, _third = worker.send_many(range(3), task="t", key="k")
    seen.wait(1)

    if waiting:
        second.cancel()
    first.cancel()

    assert seen.wait(2 if waiting else 3) == ([0, 2] if waiting else [0, 1, 2])
    assert finished(first).state is State.CANCELLED


def test_a_job_completed_in_its_transaction_lets_the_next_of_its_key_go(started, path, seen):
    def handle(n: int, ctx) -> None:
        with ctx.transaction():
            seen.add(n)

    started(path, handlers={"t": handle}).send_many(range(5), task="t", key="k")

    assert seen.wait(5) == list(range(5))


def test_a_job_that_kills_its_worker_again_and_again_lets_the_next_of_its_key_go(
    started, shared, tmp_path, seen
):
    """Its last rescue makes it dead: nobody acks it."""
    source = """
        worker = Worker(sys.argv[1], max_crashes=1)

        @worker.handler("t")
        def handle(n):
            os.kill(os.getpid(), signal.SIGKILL)

        worker.send_many(range(2), task="t", key="k")
        worker.start()
        time.sleep(60)
    """
    with script(tmp_path, source, shared) as victim:
        victim.wait(20)

    worker = started(shared, handlers={"t": seen.add}, max_crashes=1)

    assert seen.wait(1) == [1]
    assert worker.counts().by_state[State.DEAD] == 1


def test_what_cannot_be_a_key_is_refused(make):
    worker = make()

    for key in ("", 5, "x" * 201):
        with pytest.raises(ConfigError, match="Nothing was stored"):
            worker.send(1, task="t", key=key)
    assert worker.counts().by_state[State.BLOCKED] == 0
