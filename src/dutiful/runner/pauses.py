"""
What is paused, as a worker knows it.

Read when somebody rings, and now and then: most of the time nothing is paused, and then this costs a
worker nothing but that look.
"""

import threading
from collections.abc import Callable, Iterable

from dutiful.job import Claim
from dutiful.store.contract import Sql
from dutiful.store.special import pauses
from dutiful.store.special.pauses import Paused
from dutiful.versions import task_of


class Pauses:
    """
    Knows which queues and tasks are paused.

    Args:
        changed: Called when that has changed.

    Attributes:
        queues: Those of this worker's queues that are open, in their order.
        tasks: The tasks that are paused.
        reading: Held by whoever reads until it has heeded that, so that the last to read has the last word.
    """

    def __init__(self, queues: tuple[str, ...], *, changed: Callable[[], None]) -> None:
        self._all_queues = queues
        self._changed = changed
        self.reading = threading.RLock()
        self.queues = queues
        self.tasks: frozenset[str] = frozenset()

    def listed(self, look: Sql) -> list[Paused]:
        """Return what is paused by now."""
        return pauses.listed(look)

    def heed(self, listed: list[Paused]) -> None:
        """Act on what was read."""
        if not listed and not self.is_any:
            return
        closed = {each.name for each in listed if each.kind == "queue"}
        queues = tuple(queue for queue in self._all_queues if queue not in closed)
        tasks = frozenset(each.name for each in listed if each.kind == "task")
        if (queues, tasks) != (self.queues, self.tasks):
            self.queues, self.tasks = queues, tasks
            self._changed()

    @property
    def is_any(self) -> bool:
        """Whether anything is paused that concerns us."""
        return bool(self.tasks) or self.queues != self._all_queues

    def held(self, claims: Iterable[Claim]) -> list[int]:
        """Return the ids of those claims that are paused."""
        open_queues = set(self.queues)
        return [
            claim.id
            for claim in claims
            if claim.queue not in open_queues or task_of(claim.task) in self.tasks
        ]
