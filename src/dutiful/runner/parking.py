"""Jobs that cannot run: of tasks unknown here, or paused. Passed over, then out of the line, never lost."""

import time
from collections.abc import Callable, Collection

from dutiful.config import Config
from dutiful.events import Events, TasksParked
from dutiful.registry import Registry
from dutiful.store.contract import Store

PARK_AFTER_S = 1.0  # a job of a task unknown here is left to other workers for so long
PARKED_LOG_S = 60.0
UNPARK_S = 30.0  # others rarely park what we know
PAUSED_S = 86_400.0  # then they are looked at again; `resume` takes them back long before
UNKNOWN_MAX = 1000  # task names; what is beyond is met and passed over each time


class Known:
    """The tasks that this worker can run, subclasses' names included."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __contains__(self, task: object) -> bool:
        return isinstance(task, str) and self._registry.entry(task) is not None


class _Open:
    """The tasks that are known here and not paused."""

    def __init__(self, known: Known, paused: Collection[str]) -> None:
        self._known = known
        self._paused = paused

    def __contains__(self, task: object) -> bool:
        return task not in self._paused and task in self._known


class Parking:
    """
    The unknown tasks that a worker met, the paused ones, and what becomes of their jobs.

    Args:
        paused: Returns the tasks that are paused.

    Attributes:
        is_more: Whether another `tend` may find more to put out of the line.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        config: Config,
        events: Events,
        *,
        paused: Callable[[], Collection[str]],
    ) -> None:
        self._store = store
        self._registry = registry
        self._config = config
        self._events = events
        self._paused = paused
        self.known = Known(registry)
        self.is_more = False
        self._unknown: set[str] = set()
        self._parked: dict[str, int] = {}
        self._log_at = 0.0
        self._unpark_at = 0.0
        self._unparked: object = None  # for which tasks parked jobs were looked for

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

    def passed_over(self) -> Collection[str]:
        """Return the tasks that are not to be taken."""
        paused = self._paused()
        return self.skip() | set(paused) if paused else self.skip()

    def tend(self) -> bool:
        """
        Clear the line of what cannot run: of paused tasks, and of unknown ones that nobody takes care of.

        Each claim would walk over it. Returns whether there may be jobs now that can be taken: a
        handler came.
        """
        met = len(self._unknown)
        has_come = bool(self._unpark()) or len(self.skip()) < met
        paused = self._paused()
        held = self._park(paused, after_s=0, park_s=PAUSED_S, listed=True) if paused else {}
        parked = self._park(self.skip(), after_s=PARK_AFTER_S, park_s=self._config.park_s)
        if parked:
            self._note(parked)
        self.is_more = bool(held or parked)
        return has_come

    def _park(
        self, tasks: Collection[str], *, after_s: float, park_s: float, listed: bool = False
    ) -> dict[str, int]:
        if not tasks:
            return {}
        return self._store.park(tasks, self._config.queues, after_s=after_s, park_s=park_s, listed=listed)

    def unpark(self) -> int:
        """Take back the jobs of tasks that are known here by now and not paused, at their old place."""
        return self._store.unpark(_Open(self.known, self._paused()))

    def _unpark(self) -> int:
        about = self.tasks(), frozenset(self._paused())
        if about == self._unparked and time.monotonic() < self._unpark_at:
            return 0
        count = self.unpark()
        self._unparked, self._unpark_at = about, time.monotonic() + UNPARK_S
        return count

    def _note(self, parked: dict[str, int]) -> None:
        for task, count in parked.items():
            self._parked[task] = self._parked.get(task, 0) + count
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + PARKED_LOG_S
            counts, self._parked = self._parked, {}
            self._events.emit(TasksParked(self._config.name, counts, self._config.park_s))
