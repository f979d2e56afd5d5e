"""
From what a handler did to what is written of it.

    a value, or an error → a Result → (core.lifecycle) an Ack → the committer, and an event

Nothing that a handler returns or raises gets past here.
"""

import random

from dutiful.config import Config
from dutiful.core.lifecycle import after
from dutiful.core.retry import Retry
from dutiful.errors import LeaseLost, NotEncodable
from dutiful.events import (
    AckLate,
    Events,
    JobDead,
    JobFailed,
    RaisedAfterCompletion,
    ResultDropped,
    WorkerFault,
)
from dutiful.handler import Entry
from dutiful.job import (
    Ack,
    Cancel,
    Claim,
    Completed,
    Discard,
    ErrorInfo,
    Interrupted,
    JobId,
    Result,
    Snooze,
    State,
)
from dutiful.payload import encode_result
from dutiful.runner.attempt import Attempt
from dutiful.runner.failure import checked, error_info, failed, timed_out
from dutiful.store.committer import Committer


class Outcomes:
    """Decides what becomes of jobs whose attempts have ended, and has it written."""

    def __init__(self, committer: Committer, config: Config, events: Events) -> None:
        self._committer = committer
        self._config = config
        self._events = events
        self._worker = config.name

    def retry(self, entry: Entry) -> Retry:
        """Return the policy of a handler."""
        return self._config.retry if entry.retry is None else entry.retry

    def end(
        self, claim: Claim, result: Result, retry: Retry | None = None, *, error: ErrorInfo | None = None
    ) -> None:
        """Have the outcome of an attempt written; `error` is its text, if it is another than the result's."""
        if isinstance(result, Completed) and result.value is None:
            self._committer.complete(claim.id, claim.attempt)
            return
        chance = random.random()  # noqa: S311  # jitter, no secret
        ack = after(claim, result, retry or self._config.retry, self._config.max_crashes, chance)
        if error is not None:
            ack = Ack(ack.id, ack.attempt, ack.state, ack.failures, ack.crashes, ack.delay_s, None, error)
        self._committer.ack(ack)
        self._tell(claim, ack)

    def _tell(self, claim: Claim, ack: Ack) -> None:
        if ack.error is None:
            return
        said = f"{ack.error.type}: {ack.error.message}"
        if ack.state is State.DEAD:
            self._events.emit(JobDead(self._worker, claim.id, claim.task, claim.attempt, said))
        elif ack.state is State.PENDING:
            delay_s = ack.delay_s or 0.0
            self._events.emit(JobFailed(self._worker, claim.id, claim.task, claim.attempt, said, delay_s))

    def returned(self, claim: Claim, entry: Entry, value: object) -> None:
        """A handler returned."""
        self.end(claim, self.of_value(claim, self.retry(entry), value), self.retry(entry))

    def raised(self, claim: Claim, entry: Entry, error: BaseException) -> None:
        """A handler raised."""
        self.end(claim, failed(claim, error, self.retry(entry)), self.retry(entry))

    def of_value(self, claim: Claim, retry: Retry, value: object) -> Result:
        """Return the result of an attempt whose handler returned `value`."""
        try:
            if isinstance(value, Snooze | Cancel | Discard):
                return checked(value)
            return Completed(encode_result(value, self._config.result_bytes_max))
        except NotEncodable as error:
            self.dropped(claim, error.reason)
            return Completed()
        except Exception as error:  # noqa: BLE001  # a value with a mind of its own
            return failed(claim, error, retry)

    def of_attempt(self, attempt: Attempt, value: object, error: BaseException | None) -> Result:
        """Return the result of an attempt that may have been asked to stop, or ran out of time."""
        claim, entry = attempt.claim, attempt.entry
        if attempt.timed_out:
            return timed_out(claim, entry.timeout_s, self.retry(entry))
        if error is None:
            return self.of_value(claim, self.retry(entry), value)
        if attempt.cancelled:
            return Cancel("cancelled while it ran")
        if attempt.was_stopped or (attempt.was_asked_to_stop and isinstance(error, LeaseLost)):
            return Interrupted()
        return failed(claim, error, self.retry(entry))

    def dropped(self, claim: Claim, reason: str) -> None:
        """A result cannot be kept."""
        self._events.emit(ResultDropped(self._worker, claim.id, claim.task, reason))

    def raised_after_completion(self, claim: Claim, error: BaseException) -> None:
        """A handler raised after its transaction had completed the job."""
        info = error_info(error)
        text = f"{info.type}: {info.message}"
        self._events.emit(RaisedAfterCompletion(self._worker, claim.id, claim.task, text))

    def fault(self, claim: Claim, error: BaseException) -> None:
        """Something of ours raised while it ran a job: the job fails, the thread serves on."""
        self._events.emit(WorkerFault(self._worker, f"running job {claim.id}", repr(error)))
        self.end(claim, failed(claim, error, self._config.retry))

    def tell_late(self, late: list[tuple[JobId, int]]) -> None:
        """Say which outcomes came too late to count."""
        for job_id, attempt in late:
            self._events.emit(AckLate(self._worker, job_id, attempt))
