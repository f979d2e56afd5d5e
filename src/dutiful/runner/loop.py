"""
The loop that fetches jobs: the only thread that waits for the store.

It sleeps until a job falls due, a handler asks for more, a doorbell rings, or, as the
backstop, the store has changed; then it looks, and takes what there is room for. Jobs that
this process sends itself need no loop: they come with the commit that stores them.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from dutiful.errors import StoreError
from dutiful.events import Events, WorkerFault

# How often to look whether another process has committed, where the kernel does not say so; and,
# where it does, how often to listen: own commits are heard too.
LOOK_S = 0.01
BACKSTOP_S = 0.25
# After trouble with the store.
RETRY_S = 0.25


class Loop:
    """
    Runs `step` again and again, as often as it says and whenever it is woken.

    Args:
        step: Does one step; returns the seconds until the next, at most.
        changed: Says whether the store was changed by others; asked every LOOK_S. None: never.
        doorbell: A descriptor that becomes readable when another process wakes us.
        rung: Called then; it quiets the doorbell.
        changes: A descriptor that becomes readable when `changed` may be true. None: it is asked
            every LOOK_S.
        trouble: Told of the store's errors.
    """

    def __init__(
        self,
        step: Callable[[], float],
        events: Events,
        worker: str,
        *,
        changed: Callable[[], bool] | None,
        doorbell: int | None,
        rung: Callable[[], None],
        changes: int | None,
        trouble: Callable[[StoreError], None],
    ) -> None:
        self._step = step
        self._events = events
        self._worker = worker
        self._changed = changed
        self._rung = rung
        self._trouble = trouble
        self._doorbell = doorbell
        self._woken = False
        self._sleeping = False
        self._is_ending = False
        self._inlet, self._outlet = os.pipe()
        os.set_blocking(self._inlet, False)
        os.set_blocking(self._outlet, False)
        self._changes = changes
        self._asked_at = 0.0
        self._poll = select.poll()
        self._poll.register(self._inlet, select.POLLIN)
        if doorbell is not None:
            self._poll.register(doorbell, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="dutiful-loop", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Have a step done now, or right after the one that is being done."""
        self._woken = True
        if self._sleeping:
            with contextlib.suppress(BlockingIOError, OSError):  # full: it wakes anyway
                os.write(self._outlet, b"1")

    def _run(self) -> None:
        while not self._is_ending:
            # Clear, then look: a wake that comes later ends the wait below.
            self._woken = False
            try:
                self._sleep(self._step())
            except StoreError as error:
                self._trouble(error)
                time.sleep(RETRY_S)
            except Exception as error:  # noqa: BLE001  # a bug in us must not end the fetching
                self._events.emit(WorkerFault(self._worker, "fetching jobs", repr(error)))
                time.sleep(RETRY_S)

    def _sleep(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        self._sleeping = True
        while not self._woken:
            rest_s = until - time.monotonic()
            if rest_s <= 0 or self._is_called(rest_s):
                break
            if self._changed is not None and self._changed():
                break
        self._sleeping = False

    def _is_called(self, rest_s: float) -> bool:
        """Wait until somebody calls, the store may have changed, or it is time to ask whether it has."""
        if self._changed is None:
            return self._is_rung(rest_s)
        # Just asked: our own commits touch the store too, and must not wake us each time.
        if self._changes is None or time.monotonic() < self._asked_at + LOOK_S:
            return self._is_rung(min(rest_s, LOOK_S))
        self._poll.register(self._changes, select.POLLIN)
        try:
            return self._is_rung(min(rest_s, BACKSTOP_S))
        finally:
            self._poll.unregister(self._changes)
            self._asked_at = time.monotonic()

    def _is_rung(self, limit_s: float) -> bool:
        descriptors = [fd for fd, _event in self._poll.poll(1000 * limit_s)]
        self._quiet(descriptors)
        return self._inlet in descriptors or self._doorbell in descriptors

    def _quiet(self, descriptors: list[int]) -> None:
        if self._inlet in descriptors:
            os.read(self._inlet, 4096)
        if self._doorbell in descriptors:
            self._rung()
        if self._changes in descriptors:
            os.read(self._changes, 65536)

    def end(self) -> None:
        """Stop, and give back everything."""
        self._is_ending = True
        self._woken = True
        os.write(self._outlet, b"1")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        os.close(self._inlet)
        os.close(self._outlet)
