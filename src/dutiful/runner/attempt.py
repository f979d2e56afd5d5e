"""An attempt that is being run."""

from typing import TYPE_CHECKING

from dutiful.store.special import extra as extras

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
        "is_secret",
        "slot",
        "text",
        "timed_out",
        "timeout_s",
        "was_asked_to_stop",
        "was_stopped",
    )

    def __init__(self, claim: "Claim", entry: "Entry", slot: int) -> None:
        self.claim = claim
        self.entry = entry
        self.slot = slot
        self.text = ""  # the payload's JSON, as the handler here reads it
        self.is_secret = entry.secret  # what it carries is to be masked
        self.ctx: Context | None = None
        self.timeout_s = _timeout_s(claim, entry)
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


def _timeout_s(claim: "Claim", entry: "Entry") -> float | None:
    """Return the seconds that this attempt may take: its handler's, or what is left of the job's deadline."""
    left_s = None if claim.extra is None else extras.read(claim.extra).left_s
    if left_s is None or entry.timeout_s is None:
        return entry.timeout_s if left_s is None else left_s
    return min(left_s, entry.timeout_s)
