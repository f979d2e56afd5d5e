"""When the store cannot be used: told once, until all is well again."""

from collections.abc import Callable

from dutiful.errors import StoreError
from dutiful.events import Events, StoreRecovered, StoreTrouble


class Troubles:
    """
    Where a worker cannot use its store at the moment.

    Args:
        over: Called when all is well again.
    """

    def __init__(self, events: Events, worker: str, *, over: Callable[[], None]) -> None:
        self._events = events
        self._worker = worker
        self._over = over
        self._where: set[str] = set()

    def note(self, where: str, error: StoreError) -> None:
        """A step failed there; it is tried again."""
        if not self._where:
            self._events.emit(StoreTrouble(self._worker, str(error)))
        self._where.add(where)

    def clear(self, where: str) -> None:
        """A step succeeded there."""
        if where in self._where:
            self._where.discard(where)
            if not self._where:
                self._events.emit(StoreRecovered(self._worker))
                self._over()
