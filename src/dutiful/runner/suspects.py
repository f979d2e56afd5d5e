"""One suspect at a time: a job that was running when its process died, so that the guilty one is found."""

import time

from dutiful.core.lifecycle import runs_alone
from dutiful.handler import Kind
from dutiful.job import Claim, JobId
from dutiful.registry import Registry

PATIENCE_S = 0.5  # how long a job that must run alone may hold up the others, at first
PATIENCE_MAX_S = 60.0


class Suspects:
    """The suspect that this worker holds, if any, and when it may take one."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._held: JobId | None = None
        self._from = 0.0  # monotonic: no other before
        self.patience_s = PATIENCE_S

    def room(self) -> int:
        """Return how many may be taken now: one or none."""
        return int(self._held is None and time.monotonic() >= self._from)

    def hold(self, claim: Claim) -> None:
        """Note the one that was taken."""
        self._held = claim.id

    def holds(self, claim: Claim) -> bool:
        """Whether that is the one."""
        return self._held == claim.id

    def let_go(self, claim: Claim) -> None:
        """It goes back without having run."""
        if self._held == claim.id:
            self._held = None

    def acquit(self) -> None:
        """It came to its end without a crash: the next one may come."""
        self._held = None
        self.patience_s = PATIENCE_S

    def put_off(self) -> None:
        """
        The one that must run alone waited too long behind others: leave it for a while.

        Each time it is waited for twice as long, and left alone twice as long as that: so the
        others lose a third of the time at most, and its turn comes.
        """
        self._from = time.monotonic() + 2 * self.patience_s
        self.patience_s = min(2 * self.patience_s, PATIENCE_MAX_S)

    def must_run_alone(self, claim: Claim) -> bool:
        """Whether nothing else may run beside it; in a child process it can harm no other."""
        entry = self._registry.entry(claim.task)
        return runs_alone(claim) and not (entry is not None and entry.kind is Kind.PROCESS)
