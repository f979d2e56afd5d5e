"""An attempt that is being run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dutiful.store.special import extra as extras

if TYPE_CHECKING:
    from dutiful.context import Context
    from dutiful.handler import Entry
    from dutiful.job import Claim, JobId


class Attempt:
    """A job that runs right now, and what was asked of it meanwhile."""

    __slots__ = (
        "cancelled",
        "claim",
        "ctx",
        "deadline",
        "entry",
        "fn",
        "is_over",
        "slot",
        "timed_out",
        "timeout_s",
        "was_asked_to_stop",
        "was_stopped",
    )

    def __init__(self, claim: "Claim", entry: "Entry", slot: int) -> None:
        self.claim = claim
        self.entry = entry
        self.fn: Callable[..., Any] = entry.fn  # with the middleware around it, if there is any
        self.slot = slot
        self.ctx: Context | None = None
        self.timeout_s = _timeout_s(claim, entry)
        self.deadline: float | None = None  # monotonic: of a handler in a thread; then of its lease
        self.cancelled = False
        self.timed_out = False
        self.was_asked_to_stop = False
        self.was_stopped = False
        self.is_over = False

    @property
    def claims(self) -> Sequence["Claim"]:
        """What it runs: one job, or those of a batch."""
        return (self.claim,)

    @property
    def contexts(self) -> Sequence["Context"]:
        """The contexts of its jobs, in that order; none, if its handler has not asked for any."""
        return () if self.ctx is None else (self.ctx,)

    def call_off(self, job_id: "JobId") -> bool:  # noqa: ARG002  # it has one
        """Note that a job was cancelled; return whether there is nothing left to run for."""
        return True

    def ask_to_stop(self) -> None:
        """Tell a handler that can be told."""
        self.was_asked_to_stop = True
        if self.ctx is not None:
            self.ctx.stop_soon()

    def has_completed(self) -> None:
        """Its transaction has completed what it runs."""
        assert self.ctx is not None, "only a context opens transactions"
        self.ctx.is_completed = True


def _timeout_s(claim: "Claim", entry: "Entry") -> float | None:
    """Return the seconds that this attempt may take: its handler's, or what is left of the job's deadline."""
    left_s = None if claim.extra is None else extras.read(claim.extra).left_s
    if left_s is None or entry.timeout_s is None:
        return entry.timeout_s if left_s is None else left_s
    return min(left_s, entry.timeout_s)
