"""An attempt that is being run."""

from dutiful.context import Context
from dutiful.job import Claim
from dutiful.registry import Entry


class Attempt:
    """A job that runs right now."""

    __slots__ = ("cancelled", "claim", "ctx", "entry", "is_over", "slot", "timed_out", "was_stopped")

    def __init__(self, claim: Claim, entry: Entry, slot: int) -> None:
        self.claim = claim
        self.entry = entry
        self.slot = slot
        self.ctx: Context | None = None
        self.cancelled = False
        self.timed_out = False
        self.was_stopped = False
        self.is_over = False

    def ask_to_stop(self) -> None:
        """Tell a handler that can be told."""
        if self.ctx is not None:
            self.ctx.stop_soon()
