"""
The duties of a worker that can wait: each is a function, done when its time has come.

    every 0.5 s   rescue, cancellations, pruning, giving back what waits too long
    every 10 s    the heartbeat
    every 30 s    disk space
    when due      the timeouts of handlers in threads, schedules, and what is called for
"""

import threading
import time
from collections.abc import Callable

from dutiful.errors import StoreError
from dutiful.events import Events, WorkerFault

TICK_S = 0.5


class Duty:
    """
    Something to do again and again.

    `every_s` may be infinite, for what is done when it is called for.
    """

    __slots__ = ("called_at", "due_at", "every_s", "name", "run")

    def __init__(self, name: str, every_s: float, run: Callable[[], None]) -> None:
        self.name = name
        self.every_s = every_s
        self.run = run
        self.due_at = 0.0
        self.called_at = float("inf")

    @property
    def next_at(self) -> float:
        """When it is to be done (monotonic seconds)."""
        return min(self.due_at, self.called_at)

    def begin(self) -> None:
        """It is done now: calls that come later have it done once more."""
        self.called_at = float("inf")


class Upkeep:
    """
    A thread that does duties when they are due.

    Args:
        trouble: Told of the store's errors.
        recovered: Told after a round without any.
        timeouts: Deals with handlers out of time; returns when the next one will be.
    """

    def __init__(
        self,
        duties: list[Duty],
        events: Events,
        worker: str,
        *,
        trouble: Callable[[StoreError], None],
        recovered: Callable[[], None],
        timeouts: Callable[[], float | None],
    ) -> None:
        self._trouble = trouble
        self._duties = duties
        self._events = events
        self._worker = worker
        self._timeouts = timeouts
        self._recovered = recovered
        self._next_at = 0.0
        self._wake = threading.Event()
        self._is_ending = False
        self._is_hurried = False
        self._thread = threading.Thread(target=self._run, name="dutiful-upkeep", daemon=True)

    def start(self) -> None:
        """Begin. The first tick comes after TICK_S: a starting worker has just done the same."""
        now = time.monotonic()
        for duty in self._duties:
            duty.due_at = now + duty.every_s
        self._thread.start()

    def look_by(self, at: float) -> None:
        """Have the timeouts looked at by this time (monotonic seconds)."""
        if at < self._next_at:
            self._wake.set()

    def call(self, duty: Duty, at: float) -> None:
        """Have a duty done at this time (monotonic seconds), if not before."""
        if at < duty.called_at:
            duty.called_at = at
            self.look_by(at)

    def hurry(self) -> None:
        """Have the duties that come each tick done now."""
        self._is_hurried = True
        self._wake.set()

    def _run(self) -> None:
        while True:
            # Clear, then look: a stop or an earlier timeout that comes later ends the wait below.
            self._wake.clear()
            if self._is_ending:
                return
            due = self._due()
            for duty in due:
                duty.begin()
            went_well = [self._guarded(duty.name, duty.run) for duty in due]
            for duty in due:
                duty.due_at = time.monotonic() + duty.every_s
            if due and all(went_well):
                self._recovered()
            self._next_at = float("inf")  # so that what begins from here on wakes us
            self._guarded("looking at timeouts", self._look_at_timeouts)
            self._wake.wait(min(TICK_S, max(0.0, self._next_at - time.monotonic())))

    def _due(self) -> list[Duty]:
        is_hurried, self._is_hurried = self._is_hurried, False
        now = time.monotonic()
        return [
            duty for duty in self._duties if duty.next_at <= now or (is_hurried and duty.every_s <= TICK_S)
        ]

    def _look_at_timeouts(self) -> None:
        at = self._timeouts()
        nexts = [duty.next_at for duty in self._duties]
        self._next_at = min(nexts if at is None else [*nexts, at])

    def _guarded(self, name: str, function: Callable[[], None]) -> bool:
        """Do it; return whether it went well."""
        try:
            function()
        except StoreError as error:
            self._trouble(error)
            return False
        except Exception as error:  # noqa: BLE001  # one duty must not end the others
            self._events.emit(WorkerFault(self._worker, name, repr(error)))
            return False
        return True

    def end(self) -> None:
        """Stop."""
        self._is_ending = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
