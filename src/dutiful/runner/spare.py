"""Numbers beyond those of the slots, under which more can be marked as running (see store/liveness.py)."""

import threading

from dutiful.store.liveness import SLOTS_MAX

STUCK_MIN = 64  # so many are kept for slots in place of stuck ones


class Spare:
    """
    The spare numbers of a worker: for slots in place of stuck ones, and for a batch's jobs but the first.

    Args:
        slots: The lower ones are the slots'.
    """

    def __init__(self, slots: int) -> None:
        self._changing = threading.Lock()
        self._numbers = list(range(SLOTS_MAX - 1, slots - 1, -1))

    def one(self) -> int | None:
        """Take one; None: thousands are in use."""
        with self._changing:
            return self._numbers.pop() if self._numbers else None

    def several(self, count: int) -> list[int]:
        """Take so many, or none, if there are not as many to spare."""
        with self._changing:
            if len(self._numbers) < count + STUCK_MIN:
                return []
            taken, self._numbers[:count] = self._numbers[:count], []
            return taken

    def give_back(self, numbers: list[int]) -> None:
        """They are free again."""
        with self._changing:
            self._numbers[:0] = numbers
