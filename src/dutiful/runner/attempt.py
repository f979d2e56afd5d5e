"""An attempt that is being run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dutiful.context import Context
    from dutiful.handler import Entry
    from dutiful.job import Claim


class Attempt:
    """A job that runs right now, and what was asked of it meanwhile."""

    __slots__ = (
        "cancelled",
        "claim",
        "ctx",
        "deadline",
        "entry",
        "is_over",
        "slot",
        "timed_out",
        "was_asked_to_stop",
        "was_stopped",
    )

    def __init__(self, claim: "Claim", entry: "Entry", slot: int) -> None:
        self.claim = claim
        self.entry = entry
        self.slot = slot
        self.ctx: Context | None = None
        self.deadline: float | None = None  # monotonic: of a handler in a thread; then of its lease
        self.cancelled = False
        self.timed_out = False
        self.was_asked_to_stop = False
        self.was_stopped = False
        self.is_over = False

    def ask_to_stop(self) -> None:
        """Tell a handler that can be told."""
        self.was_asked_to_stop = True
        if self.ctx is not None:
            self.ctx.stop_soon()
