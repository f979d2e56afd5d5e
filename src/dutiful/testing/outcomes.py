"""What handlers raise, for the test to see: the store keeps only its text."""

from collections.abc import Callable, Sequence
from typing import Any

from dutiful.config import Config
from dutiful.core.retry import Retry
from dutiful.errors import JobFailed
from dutiful.events import Events
from dutiful.handler import Entry
from dutiful.job import Claim, Crashed, Discard, ErrorInfo, Failed, JobId, Result, State
from dutiful.runner.outcomes import Outcomes
from dutiful.store.committer import Committer


class Overheard(Outcomes):
    """
    Decides as ever, and tells of each failure.

    Args:
        heard: Called with an attempt that has failed, and what was raised; before that is written.
    """

    def __init__(
        self,
        committer: Committer,
        config: Config,
        events: Events,
        heard: Callable[[Claim, BaseException], None],
    ) -> None:
        super().__init__(committer, config, events)
        self._heard = heard
        self._raised: dict[JobId, BaseException] = {}

    def raised(self, claim: Claim, entry: Entry, error: BaseException) -> None:
        self._raised[claim.id] = error
        super().raised(claim, entry, error)

    def note(self, claims: Sequence[Claim], error: BaseException | None) -> None:
        """A handler has ended: remember what it raised until it is decided what that means."""
        for claim in claims:
            if error is None:
                self._raised.pop(claim.id, None)
            else:
                self._raised[claim.id] = error

    def raised_after_completion(self, claim: Claim, error: BaseException, *, is_secret: bool = False) -> None:
        super().raised_after_completion(claim, error, is_secret=is_secret)
        self._heard(claim, error)

    def end(
        self,
        claim: Claim,
        result: Result,
        retry: Retry | None = None,
        *,
        error: ErrorInfo | None = None,
        **more: Any,
    ) -> None:
        raised = self._raised.pop(claim.id, None)
        super().end(claim, result, retry, error=error, **more)
        failure = result.error if isinstance(result, Failed | Crashed) else None
        if isinstance(
            result, Discard
        ):  # a payload that cannot be read; else it is the handler's own decision
            failure = error
        if failure is not None:
            self._heard(claim, raised or _from_text(claim, failure))


def _from_text(claim: Claim, failure: ErrorInfo) -> JobFailed:
    """Return an error for what there is no exception of: a timeout, or one in a child process."""
    text = f"{failure.type}: {failure.message}\n{failure.traceback}".rstrip()
    return JobFailed(claim.id, State.PENDING, text)
