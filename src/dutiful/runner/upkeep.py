"""
The duties of a worker that can wait: each is a function, done when its time has come.

    every 0.5 s   rescue, cancellations, pruning, giving back what waits too long
    every 10 s    the heartbeat
    every 30 s    disk space
    when due      the timeouts of handlers in threads
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from dutiful.errors import StoreError
from dutiful.events import Events, WorkerFault

TICK_S = 0.5


class Duty:
    """Something to do again and again."""

    __slots__ = ("due_at", "every_s", "name", "run")

    def __init__(self, name: str, every_s: float, run: Callable[[], None]) -> None:
        self.name = name
        self.every_s = every_s
        self.run = run
        self.due_at = 0.0


class Upkeep:
    """A thread that does duties when they are due, and calls back at given times."""

    def __init__(
        self, duties: list[Duty], events: Events, worker: str, *, trouble: Callable[[StoreError], None]
    ) -> None:
        self._trouble = trouble
        self._duties = duties
        self._events = events
        self._worker = worker
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="dutiful-upkeep", daemon=True)

    def start(self) -> None:
        """Begin. The first tick comes after TICK_S: a starting worker has just done the same."""
        now = time.monotonic()
        for duty in self._duties:
            duty.due_at = now + duty.every_s
        self._thread.start()

    def call_in(self, seconds: float, function: Callable[[], None]) -> None:
        """Call `function` in this thread after `seconds`."""
        with self._mutex:
            at = time.monotonic() + seconds
            first = not self._timers or at < self._timers[0][0]
            heapq.heappush(self._timers, (at, next(self._order), function))
        if first:
            self._wake.set()

    def _run(self) -> None:
        while True:
            # Clear, then look: a stop or a timer that comes later ends the wait below.
            self._wake.clear()
            if self._is_ending:
                return
            self._do_timers()
            for duty in self._duties:
                if duty.due_at <= time.monotonic():
                    self._guarded(duty.name, duty.run)
                    duty.due_at = time.monotonic() + duty.every_s
            self._wake.wait(self._pause_s())

    def _do_timers(self) -> None:
        while True:
            with self._mutex:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                _at, _order, function = heapq.heappop(self._timers)
            self._guarded("a timeout", function)

    def _pause_s(self) -> float:
        nexts = [duty.due_at for duty in self._duties]
        with self._mutex:
            nexts += [self._timers[0][0]] if self._timers else []
        return max(0.0, min(nexts, default=time.monotonic() + TICK_S) - time.monotonic())

    def _guarded(self, name: str, function: Callable[[], None]) -> None:
        try:
            function()
        except StoreError as error:
            self._trouble(error)
        except Exception as error:  # noqa: BLE001  # one duty must not end the others
            self._events.emit(WorkerFault(self._worker, name, repr(error)))

    def end(self) -> None:
        """Stop."""
        self._is_ending = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
