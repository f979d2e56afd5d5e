"""A store for one test: it stays open over the stops of its worker, and ends when the test says so."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dutiful.errors import ConfigError
from dutiful.store.clock import Clock
from dutiful.store.contract import Draft
from dutiful.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from dutiful.store.borrowed.connection import Borrowed, Steps


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

    def insertion(self, drafts: Sequence[Draft]) -> "Callable[[Borrowed], Steps[list[range]]]":
        insert = super().insertion(drafts)

        def begin(borrowed: "Borrowed") -> "Steps[list[range]]":
            # In memory the only transactions are those of ctx.transaction().
            if self._access.in_memory and borrowed.given is not self._access.db:
                raise ConfigError(
                    f"transaction= ({borrowed.name}) leads to a database, and in this test the jobs are in "
                    "memory; nothing was stored. Have them where that leads: override(worker, store=…)."
                )
            return insert(borrowed)

        return begin

    def end(self) -> None:
        """Close it for good."""
        super().close()
