"""A store for one test: it stays open over the stops of its worker, and ends when the test says so."""

from dutiful.store.clock import Clock
from dutiful.store.sqlite import SqliteStore


class Scratch(SqliteStore):
    """
    Jobs in memory, or in a SQLite file, for one test.

    To its worker it looks like one that outlives it: `stop()` leaves the jobs where they are.
    """

    def __init__(self, path: str, clock: Clock, worker: str) -> None:
        # What it holds is not to outlive a power cut.
        super().__init__(path, durability="normal", worker=worker, clock=clock)

    @property
    def in_memory(self) -> bool:
        return False

    def close(self) -> None:
        """Stay open: the test looks at what is in it."""

    def end(self) -> None:
        """Close it for good."""
        super().close()
