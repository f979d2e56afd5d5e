"""
A batch that is being run: one call of a handler for several jobs, each with its own attempt and end.

    an error, or a list of outcomes → a Result for each job → (outcomes.py)
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from dutiful.errors import LeaseLost
from dutiful.job import Cancel, Claim, Discard, Interrupted, JobId, Result, Snooze
from dutiful.runner.attempt import Attempt
from dutiful.runner.failure import error_info, failed, timed_out
from dutiful.runner.spare import Spare
from dutiful.store.contract import Marks
from dutiful.store.liveness import MANY

if TYPE_CHECKING:
    from dutiful.batch_context import BatchContext
    from dutiful.context import Context
    from dutiful.handler import Entry
    from dutiful.runner.outcomes import Outcomes


class Batch(Attempt):
    """
    Several jobs of one task that run as one.

    Attributes:
        batch_ctx: What its handler was given, if it asked for it.
        lent: The numbers under which its jobs but the first are marked.
    """

    __slots__ = ("_called_off", "_claims", "batch_ctx", "lent")

    def __init__(self, claims: Sequence[Claim], entry: "Entry", slot: int) -> None:
        super().__init__(claims[0], entry, slot)
        self._claims = claims
        self._called_off: set[JobId] = set()
        self.batch_ctx: BatchContext | None = None
        self.lent: list[int] = []

    @property
    def claims(self) -> Sequence[Claim]:
        return self._claims

    @property
    def contexts(self) -> Sequence["Context"]:
        return () if self.batch_ctx is None else self.batch_ctx.jobs

    @property
    def is_completed(self) -> bool:
        """Whether its transaction has completed all of it."""
        return self.batch_ctx is not None and self.batch_ctx.is_completed

    @property
    def called_off(self) -> Collection[JobId]:
        """The jobs that were cancelled since it began."""
        return self._called_off

    def call_off(self, job_id: JobId) -> bool:
        self._called_off.add(job_id)
        for ctx in self.contexts:
            if ctx.id == job_id:
                ctx.stop_soon()
        return len(self._called_off) == len(self._claims)

    def ask_to_stop(self) -> None:
        self.was_asked_to_stop = True
        if self.batch_ctx is not None:
            self.batch_ctx.stop_soon()

    def has_completed(self) -> None:
        assert self.batch_ctx is not None, "as for one job"
        self.batch_ctx.is_completed = True


def mark(batch: Batch, marks: Marks, spare: Spare) -> None:
    """Mark all its jobs: a crash makes suspects of what was marked, and of nothing else."""
    others = batch.claims[1:]
    batch.lent = spare.several(len(others)) if others else []
    if others and not batch.lent:
        marks[batch.slot] = MANY
    for number, claim in zip(batch.lent, others, strict=False):
        marks[number] = claim.id


def unmark(batch: Batch, marks: Marks, spare: Spare) -> None:
    """Take the marks of all jobs but the first away."""
    for number in batch.lent:
        marks[number] = 0
    if batch.lent:
        spare.give_back(batch.lent)
        batch.lent = []


def end(batch: Batch, value: object, error: BaseException | None, outcomes: "Outcomes") -> None:
    """Have it written what became of each job, when the handler returned `value`, or raised `error`."""
    if batch.is_completed:  # its transaction has said so
        if error is not None:
            for claim in batch.claims:
                outcomes.raised_after_completion(claim, error, is_secret=batch.is_secret)
        return
    retry = outcomes.retry(batch.entry)
    contexts: Sequence[Context | None] = batch.contexts or [None] * len(batch.claims)
    came = results(batch, value, error, outcomes)
    for claim, ctx, result in zip(batch.claims, contexts, came, strict=True):
        outcomes.end(claim, result, retry, attempt=batch, ctx=ctx)


def results(batch: Batch, value: object, error: BaseException | None, outcomes: "Outcomes") -> list[Result]:
    """Return what its jobs came to, in order, when its handler returned `value`, or raised `error`."""
    retry = outcomes.retry(batch.entry)
    if batch.timed_out:
        return [timed_out(claim, batch.timeout_s, retry) for claim in batch.claims]
    if error is None:
        each = outcomes_of(len(batch.claims), value)
        if not isinstance(each, BaseException):
            return [
                failed(claim, one, retry)
                if isinstance(one, BaseException)
                else outcomes.of_value(claim, retry, one, is_secret=batch.is_secret)
                for claim, one in zip(batch.claims, each, strict=True)
            ]
        error = each
    elif batch.cancelled:
        return [Cancel("cancelled while it ran")] * len(batch.claims)
    elif isinstance(error, LeaseLost) and error.job_id in batch.called_off:
        # A cancelled job's own context has said so: the others are run again without it.
        cancelled = Cancel("cancelled while it ran")
        return [cancelled if claim.id in batch.called_off else Interrupted() for claim in batch.claims]
    elif batch.was_stopped or (batch.was_asked_to_stop and isinstance(error, LeaseLost)):
        return [Interrupted()] * len(batch.claims)
    info = error_info(error)  # once: the text is the same for all
    return [failed(claim, error, retry, info) for claim in batch.claims]


def outcomes_of(count: int, value: object) -> Sequence[object] | ValueError:
    """Return what a handler answered for each of so many jobs; or an error, if nobody can tell."""
    if value is None:
        return [None] * count
    if isinstance(value, Snooze | Cancel | Discard):
        return [value] * count
    if isinstance(value, list | tuple):
        given = cast("Sequence[Any]", value)
        if len(given) == count:
            return given
        said = f"{len(given)} outcomes"
    else:
        said = f"a {type(value).__name__}"
    return ValueError(
        f"the handler of a batch of {count} jobs returned {said}, so what became of each cannot be told, and "
        "all have failed; return None, or a list with one outcome for each payload, in the same order"
    )
