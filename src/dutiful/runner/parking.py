"""Jobs of tasks that this worker does not know: passed over, then out of the line, never lost."""

import time
from collections.abc import Collection

from dutiful.config import Config
from dutiful.events import Events, TasksParked
from dutiful.registry import Registry
from dutiful.store.contract import Store

PARK_AFTER_S = 1.0  # a job of a task unknown here is left to other workers for so long
PARKED_LOG_S = 60.0
UNPARK_S = 30.0  # others rarely park what we know
UNKNOWN_MAX = 1000  # task names; what is beyond is met and passed over each time


class Known:
    """The tasks that this worker can run, subclasses' names included."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __contains__(self, task: object) -> bool:
        return isinstance(task, str) and self._registry.entry(task) is not None


class Parking:
    """The unknown tasks that a worker met, and what becomes of their jobs."""

    def __init__(self, store: Store, registry: Registry, config: Config, events: Events) -> None:
        self._store = store
        self._registry = registry
        self._config = config
        self._events = events
        self.known = Known(registry)
        self._unknown: set[str] = set()
        self._parked: dict[str, int] = {}
        self._log_at = 0.0
        self._unpark_at = 0.0
        self._unparked: list[str] | None = []  # the tasks whose parked jobs were looked for

    def tasks(self) -> list[str] | None:
        """Return the tasks that this worker lists as its own; None: any."""
        return None if self._registry.fallback is not None else sorted(self._registry.tasks())

    def skip(self) -> set[str]:
        """Return the unknown tasks met lately that are still unknown."""
        if self._unknown:
            self._unknown = {task for task in self._unknown if task not in self.known}
        return self._unknown

    def meet(self, unknown: Collection[str]) -> None:
        """Note unknown tasks that a claim passed over."""
        if len(self._unknown) < UNKNOWN_MAX:
            self._unknown |= set(unknown)

    def tend(self) -> bool:
        """
        Clear the line of unknown tasks that nobody takes care of, and take back known ones.

        Returns whether there may be jobs now that can be taken: a handler came.
        """
        met = len(self._unknown)
        has_come = bool(self._unpark()) or len(self.skip()) < met
        if self.skip():
            config = self._config
            parked = self._store.park(self.skip(), config.queues, after_s=PARK_AFTER_S, park_s=config.park_s)
            if parked:
                self._note(parked)
        return has_come

    def _unpark(self) -> int:
        tasks = self.tasks()
        if tasks == self._unparked and time.monotonic() < self._unpark_at:
            return 0
        count = self._store.unpark(self.known)
        self._unparked, self._unpark_at = tasks, time.monotonic() + UNPARK_S
        return count

    def _note(self, parked: dict[str, int]) -> None:
        for task, count in parked.items():
            self._parked[task] = self._parked.get(task, 0) + count
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + PARKED_LOG_S
            counts, self._parked = self._parked, {}
            self._events.emit(TasksParked(self._config.name, counts, self._config.park_s))
