"""
From what a handler did to what is written of it.

    a value, or an error → a Result → (core.lifecycle) an Ack → the committer, and an event

Nothing that a handler returns or raises gets past here.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from dutiful.config import Config
from dutiful.core.lifecycle import after
from dutiful.core.retry import Retry
from dutiful.errors import LeaseLost, NotEncodable, StoreError
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
    Failed,
    Interrupted,
    JobId,
    Record,
    Result,
    Snooze,
    State,
)
from dutiful.payload import encode_result
from dutiful.results import Results
from dutiful.runner.attempt import Attempt
from dutiful.runner.covers import covered, without_message
from dutiful.runner.failure import check_ran, checked, error_info, failed, timed_out
from dutiful.sealing import Cover
from dutiful.secret import MASK
from dutiful.steps import is_leave
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft
from dutiful.versions import task_of

if TYPE_CHECKING:
    from dutiful.context import Context

_PUT_BACK_AT_ONCE = 3  # attempts
_CAUGHT = (
    "the handler caught what ctx.sleep() or ctx.wait_event() raises to end the attempt, and went on; "
    "let BaseException pass, or raise it again"
)


def _noted(attempt: Attempt, ctx: "Context") -> tuple[str | None, tuple[str, ...], Sequence[Draft]] | None:
    """Return the progress, what it sleeps for, and the jobs that go with the attempt's end; None: nothing."""
    progress, steps = ctx.take_progress(), ctx.used_steps
    if progress is None and not ctx.drafts and steps is None:
        return None
    awaits = () if steps is None or attempt.timed_out else steps.awaited
    return progress, awaits, ctx.drafts


class Outcomes:
    """Decides what becomes of jobs whose attempts have ended, and has it written."""

    def __init__(self, committer: Committer, config: Config, events: Events) -> None:
        self._committer = committer
        self._config = config
        self._events = events
        self._worker = config.name
        self._keyring = config.keyring

    def retry(self, entry: Entry) -> Retry:
        """Return the policy of a handler."""
        return self._config.retry if entry.retry is None else entry.retry

    def end(
        self,
        claim: Claim,
        result: Result,
        retry: Retry | None = None,
        *,
        error: ErrorInfo | None = None,
        attempt: Attempt | None = None,
        is_secret: bool = False,
        ctx: "Context | None" = None,
    ) -> None:
        """
        Have the outcome of an attempt written.

        Args:
            claim: The attempt.
            result: What it came to.
            retry: The policy of its handler; default the worker's.
            error: Its text, if it is another than the result's.
            attempt: What it ran as, if it has come to its end: what its context noted is written too.
            is_secret: Mask what it came to; or as the attempt says.
            ctx: That context, if it is not the attempt's.
        """
        ctx = ctx or (None if attempt is None else attempt.ctx)
        noted = None if attempt is None or ctx is None else _noted(attempt, ctx)
        if isinstance(result, Completed) and result.value is None and claim.extra is None and noted is None:
            self._committer.complete(claim.id, claim.attempt)
            return
        chance = random.random()  # noqa: S311  # jitter, no secret
        ack = after(claim, result, retry or self._config.retry, self._config.max_crashes, chance)
        if error is not None:
            ack = msgspec.structs.replace(ack, result=None, error=error)
        is_secret = is_secret or (attempt is not None and attempt.is_secret)
        if is_secret and (error is not None or isinstance(result, Failed)):
            ack = without_message(ack)
        drafts: Sequence[Draft] = ()
        if noted is not None:
            progress, awaits, drafts = noted
            ack = msgspec.structs.replace(ack, special=True, progress=progress, awaits=awaits)
        stored = ack
        if self._keyring is not None or is_secret:
            stored = covered(ack, self.cover(is_secret=is_secret))
        self._committer.ack(stored, drafts if ack.state is State.COMPLETED else ())
        self._tell(claim, ack)

    def put_back(self, claim: Claim) -> None:
        """
        Leave a job to other workers, due at once; it is no failure.

        Later, if that was of no use: when it needs two keys, and no worker has both.
        """
        ack = after(claim, Interrupted(), self._config.retry, self._config.max_crashes, 0.0)
        delay_s = self._config.park_s if claim.attempt > _PUT_BACK_AT_ONCE else None
        # Special: it may have noted steps before.
        self._committer.ack(msgspec.structs.replace(ack, special=True, delay_s=delay_s))

    def cover(self, *, is_secret: bool) -> Cover:
        """Return how to store what an attempt came to."""
        return Cover(self._keyring, is_secret=is_secret)

    def _tell(self, claim: Claim, ack: Ack) -> None:
        if ack.error is None:
            return
        said = f"{ack.error.type}: {ack.error.message}"
        if ack.state is State.DEAD:
            self._events.emit(JobDead(self._worker, claim.id, task_of(claim.task), claim.attempt, said))
        elif ack.state is State.PENDING:
            task, delay_s = task_of(claim.task), ack.delay_s or 0.0
            self._events.emit(JobFailed(self._worker, claim.id, task, claim.attempt, said, delay_s))

    def returned(self, claim: Claim, entry: Entry, value: object) -> None:
        """A handler returned."""
        self.end(
            claim, self.of_value(claim, self.retry(entry), value, is_secret=entry.secret), self.retry(entry)
        )

    def raised(self, claim: Claim, entry: Entry, error: BaseException) -> None:
        """A handler raised."""
        self.end(claim, failed(claim, error, self.retry(entry)), self.retry(entry))

    def of_value(self, claim: Claim, retry: Retry, value: object, *, is_secret: bool) -> Result:
        """Return the result of an attempt whose handler returned `value`."""
        try:
            check_ran(value)
            if isinstance(value, Snooze | Cancel | Discard):
                return checked(value)
            if isinstance(value, Results):  # of `ctx.after`, handed on
                value = list(value)
            return Completed(encode_result(value, self._config.result_bytes_max))
        except NotEncodable as error:
            self.dropped(claim, error.reason, is_secret=is_secret)
            return Completed()
        except Exception as error:  # noqa: BLE001  # a value with a mind of its own
            return failed(claim, error, retry)

    def of_attempt(self, attempt: Attempt, value: object, error: BaseException | None) -> Result:
        """Return the result of an attempt that may have been asked to stop, or ran out of time."""
        claim, entry = attempt.claim, attempt.entry
        if attempt.timed_out:
            return timed_out(claim, attempt.timeout_s, self.retry(entry))
        steps = None if attempt.ctx is None else attempt.ctx.used_steps
        if steps is not None and steps.left is not None:
            if error is None:
                return failed(claim, RuntimeError(_CAUGHT), self.retry(entry))
            if is_leave(error) and not attempt.cancelled:
                return Snooze(steps.left.seconds)
        if error is None:
            return self.of_value(claim, self.retry(entry), value, is_secret=attempt.is_secret)
        if attempt.cancelled:
            return Cancel("cancelled while it ran")
        if attempt.was_stopped or (attempt.was_asked_to_stop and isinstance(error, LeaseLost)):
            return Interrupted()
        return failed(claim, error, self.retry(entry))

    def dropped(self, claim: Claim, reason: str, *, is_secret: bool) -> None:
        """A result cannot be kept. Where in it the trouble is may say what is in it."""
        reason = MASK if is_secret else reason
        self._events.emit(ResultDropped(self._worker, claim.id, task_of(claim.task), reason))

    def raised_after_completion(self, claim: Claim, error: BaseException, *, is_secret: bool = False) -> None:
        """A handler raised after its transaction had completed the job."""
        info = error_info(error)
        text = f"{info.type}: {MASK if is_secret else info.message}"
        self._events.emit(RaisedAfterCompletion(self._worker, claim.id, task_of(claim.task), text))

    def fault(self, claim: Claim, error: BaseException) -> None:
        """Something of ours raised while it ran a job: the job fails, the thread serves on."""
        self._events.emit(WorkerFault(self._worker, f"running job {claim.id}", repr(error)))
        self.end(claim, failed(claim, error, self._config.retry))

    def unstored(self, record: Record, error: Exception, entry: Entry | None, store: str) -> Ack:
        """Return the failure of an attempt whose outcome the store cannot take; `decide` is not asked."""
        claim = Claim(
            record.id,
            record.attempt,
            record.failures,
            record.crashes,
            record.task,
            record.queue,
            record.payload,
            extra="{}",  # whatever it asked for: what follows from its end is looked at
        )
        problem = (
            f"what the attempt came to, with the jobs of its ctx.send(), cannot be stored: {error!r}; none "
            "of it is, and the attempt has failed. Mend what the handler sends."
        )
        retry = self._config.retry if entry is None else self.retry(entry)
        chance = random.random()  # noqa: S311  # jitter, no secret
        said = Failed(error_info(StoreError(store, problem)))
        ack = after(claim, said, retry, self._config.max_crashes, chance)
        self._tell(claim, ack)
        return ack

    def tell_late(self, late: list[tuple[JobId, int]]) -> None:
        """Say which outcomes came too late to count."""
        for job_id, attempt in late:
            self._events.emit(AckLate(self._worker, job_id, attempt))
