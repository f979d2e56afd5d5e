"""How a worker's run ends: the running handlers, their outcomes, and its row in the store."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dutiful.errors import StoreBusy, StoreCorrupt, StoreError, StoreReplaced
from dutiful.events import Events, WorkerFault
from dutiful.runner.attempts import Attempts
from dutiful.runner.slots import Slots
from dutiful.stopping import Deadline
from dutiful.store.committer import Committer
from dutiful.store.contract import Owner, Store

UNWIND_S = 1.0  # for interrupted coroutines and children to come to their end


class Leaving:
    """The last steps of a run; `became_free` is to be called whenever a slot becomes free."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        attempts: Attempts,
        slots: Slots,
        events: Events,
        worker: str,
    ) -> None:
        self._store = store
        self._committer = committer
        self._attempts = attempts
        self._slots = slots
        self._events = events
        self._worker = worker
        self._owner: Owner = 0
        self._idle = threading.Condition()

    def start(self, owner: Owner) -> None:
        """Take note of who will leave."""
        self._owner = owner

    def became_free(self) -> None:
        """Wake whoever waits for the handlers."""
        with self._idle:
            self._idle.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until a slot becomes free, for so long at most."""
        with self._idle:
            self._idle.wait(seconds)

    def end_running(self, deadline: Deadline) -> int:
        """Let running handlers end until the deadline, then stop those that can be: return how many."""
        self._attempts.ask_all_to_stop()
        self._wait_for_running(deadline)
        interrupted = self._slots.running
        unwinding = Deadline(UNWIND_S)
        while self._slots.running and unwinding.rest_s(1.0) > 0:
            self._attempts.interrupt_all()  # again: what was only beginning could not be told
            self._wait_for_running(Deadline(0.1))
        return interrupted

    def _wait_for_running(self, deadline: Deadline) -> None:
        while self._slots.running:
            rest_s = deadline.rest_s(at_most=0.02)
            if rest_s <= 0:
                return
            self.wait(rest_s)

    def flush(self, deadline: Deadline) -> None:
        """Write what attempts came to; a store in trouble gets until the time is up, and 1 s at least."""
        least = Deadline(1.0)
        while self._committer.between_steps(self._committer.has_outcomes):
            try:
                self._committer.step()
            except StoreError as error:
                is_hopeless = isinstance(error, StoreCorrupt | StoreReplaced)
                if is_hopeless or (deadline.rest_s(1.0) <= 0 and least.rest_s(1.0) <= 0):
                    duty = "writing the last outcomes (their jobs run again)"
                    self._events.emit(WorkerFault(self._worker, duty, str(error)))
                    return
                time.sleep(0.05)

    def leave(self, deadline: Deadline) -> None:
        """Give up the place among the store's workers; if that fails, the next worker finds it."""
        self._attempts.end_all()
        self._committer.taker = None
        self._committer.watcher = None
        while True:
            try:
                self._store.leave(self._owner)
            except StoreBusy as error:
                if deadline.rest_s(1.0) <= 0:
                    self._not_left(error)
                    return
            except StoreError as error:
                self._not_left(error)
                return
            else:
                return

    def _not_left(self, error: StoreError) -> None:
        """What it leaves behind is rescued by the next worker."""
        self._events.emit(WorkerFault(self._worker, "leaving the store", str(error)))

    def when_over(self, then: Callable[[], None]) -> None:
        """After a stop that left threads in handlers: leave when the last of them has ended."""

        def wait() -> None:
            while self._slots.running:
                time.sleep(0.05)
            self.flush(Deadline(0))
            self.leave(Deadline(0))
            then()

        with suppress(RuntimeError):  # "can't create new thread": the process ends, and others take over
            threading.Thread(target=wait, name="dutiful-last", daemon=True).start()
