"""Many threads send, stop, and handlers send themselves, in random order: none lost, none stuck."""

import os
import random
import threading
import time

import pytest

from dutiful import State, WorkerStopped
from tests.worker.tools import WAIT_S, Seen, until

ROUNDS = int(os.environ.get("DUTIFUL_TEST_ROUNDS", "8"))
SENDERS = 4


class Storm:
    """One worker's life: senders, handlers that send, and stops, all at once."""

    def __init__(self, worker, chance: random.Random) -> None:
        self.worker = worker
        self.chance = chance
        self.accepted, self.ran = Seen(), Seen()
        self.odd: list[BaseException] = []

    def handle(self, name: str) -> None:
        """A handler: now and then it sends another job."""
        if self.chance.random() < 0.2 and name.count("+") < 3:
            self.send(name + "+")
        self.ran.add(name)

    async def ahandle(self, name: str) -> None:
        """The same, as a coroutine."""
        if self.chance.random() < 0.2 and name.count("+") < 3:
            try:
                await self.worker.asend(name + "+", task="a")
                self.accepted.add(name + "+")
            except WorkerStopped:
                pass
            except BaseException as error:
                self.odd.append(error)
        self.ran.add(name)

    def send(self, name: str) -> bool:
        """Send; note what came of it."""
        try:
            if self.chance.random() < 0.2:
                self.worker.send_many([name], task=self.chance.choice("ta"))
            else:
                self.worker.send(name, task=self.chance.choice("ta"))
        except WorkerStopped:
            return False
        except BaseException as error:
            self.odd.append(error)
            return False
        self.accepted.add(name)
        return True

    def sender(self, number: int) -> None:
        """Send until it is stopped."""
        n = 0
        while self.send(f"{number}.{n}"):
            n += 1

    def stop(self, after_s: float, drain: bool | None) -> None:
        """Stop after a while."""
        time.sleep(after_s)
        try:
            self.worker.stop(drain=drain)
        except BaseException as error:
            self.odd.append(error)

    def run(self, drain: bool | None) -> None:
        """Do all of it; fail if anything hangs."""
        threads = [threading.Thread(target=self.sender, args=(n,), daemon=True) for n in range(SENDERS)]
        after_s = self.chance.random() * 0.03
        threads += [
            threading.Thread(target=self.stop, args=(after_s + n * 0.001, drain), daemon=True)
            for n in range(self.chance.randint(1, 3))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "something hangs"
        assert self.odd == []


@pytest.fixture
def storm(make, randomly_seed):
    def storm(*args, **options):
        made = make(*args, **options)
        it = Storm(made, random.Random(randomly_seed))
        made.handlers.update({"t": it.handle, "a": it.ahandle})
        return it

    return storm


@pytest.fixture(params=range(ROUNDS))
def randomly_seed(request) -> int:
    """Another one in each run; it is in the test's name for those who look for it."""
    return random.SystemRandom().randrange(2**32)


@pytest.mark.parametrize(("buffer", "concurrency"), [(2, 1), (1, 3), (None, 2)])
def test_in_memory_what_was_accepted_has_run_once_when_stop_returns(storm, buffer, concurrency):
    it = storm(":memory:", buffer=buffer, concurrency=concurrency)
    it.worker.start()

    it.run(drain=None)

    assert sorted(it.ran.all) == sorted(it.accepted.all)


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize(("buffer", "concurrency"), [(2, 1), (None, 4)])
def test_in_a_file_what_was_accepted_runs_once_now_or_later(storm, path, buffer, concurrency, drain):
    it = storm(path, buffer=buffer, concurrency=concurrency)
    it.worker.start()

    it.run(drain=drain)

    if drain:
        assert sorted(it.ran.all) == sorted(it.accepted.all)
    it.worker.start()
    until(lambda: not unfinished(it.worker))
    it.worker.stop(drain=True)
    assert sorted(it.ran.all) == sorted(it.accepted.all)


def test_a_worker_that_is_stopped_before_it_was_started_accepts_no_more(storm, path):
    it = storm(path, buffer=None)

    it.run(drain=None)

    assert it.ran.all == []
    it.worker.start()
    it.ran.wait(len(it.accepted.all))
    it.worker.stop(drain=True)
    assert sorted(it.ran.all) == sorted(it.accepted.all)


def unfinished(worker) -> int:
    by_state = worker.counts().by_state
    return by_state[State.PENDING] + by_state[State.RUNNING]
