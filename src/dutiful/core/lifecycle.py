"""
The life of a job: what may follow what, and who decides it.

A job waits (`pending`, with a `due_at`), is claimed (`running`: each claim raises its
`attempt`), and leaves `running` in one way only, by an `Ack`. `after` is the one place
where an attempt's result becomes that Ack: success, failure, snooze, shutdown and
crash all come through here. The store applies it only while `(id, attempt)` still
owns the job, so a late one changes nothing.

A failure is the handler's: it counts towards `max_attempts`. A crash is the death of
the process that ran it: it counts towards `max_crashes`, in a row, because it says
little about the one job among those that ran. A job with a crash is a suspect: it runs
with no other suspect in its process, and from the second crash on, with no other job.
"""

from typing import assert_never

from dutiful.core.retry import GIVE_UP, Retry
from dutiful.job import (
    Ack,
    Cancel,
    Claim,
    Completed,
    Crashed,
    Discard,
    ErrorInfo,
    Failed,
    Interrupted,
    Result,
    Snooze,
    State,
)

# From a state to the states that may follow. `replay` by a person is the way back.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.RUNNING, State.CANCELLED, State.DEAD}),
    State.BLOCKED: frozenset({State.PENDING, State.CANCELLED, State.DEAD}),
    State.RUNNING: frozenset({State.PENDING, State.BLOCKED, State.COMPLETED, State.DEAD, State.CANCELLED}),
    State.COMPLETED: frozenset({State.PENDING, State.BLOCKED}),
    State.DEAD: frozenset({State.PENDING, State.BLOCKED}),
    State.CANCELLED: frozenset({State.PENDING, State.BLOCKED}),
}

# With this many crashes a job runs alone in its process: the next crash is its own.
ALONE_FROM_CRASHES = 2


def after(claim: Claim, result: Result, retry: Retry, max_crashes: int, chance: float) -> Ack:
    """Decide what becomes of the job now that the attempt `claim` ended with `result`."""
    match result:
        case Completed(value):
            return _ack(claim, State.COMPLETED, result=value)
        case Snooze(seconds):
            return _ack(claim, State.PENDING, delay_s=max(0.0, seconds))
        case Interrupted():
            special = claim.extra is not None
            return Ack(claim.id, claim.attempt, State.PENDING, claim.failures, claim.crashes, special=special)
        case Cancel(reason):
            return _ack(claim, State.CANCELLED, error=_reason("Cancel", reason))
        case Discard(reason):
            return _ack(claim, State.DEAD, error=_reason("Discard", reason))
        case Crashed(error):
            return _after_crash(claim, error, max_crashes)
        case Failed():
            return _after_failure(claim, result, retry, chance)
        case _:
            assert_never(result)


def runs_alone(claim: Claim) -> bool:
    """Return whether no other job may run in the process beside this one."""
    return claim.crashes >= ALONE_FROM_CRASHES


def _after_failure(claim: Claim, result: Failed, retry: Retry, chance: float) -> Ack:
    failures = claim.failures + 1
    if failures >= retry.max_attempts or result.retry_after_s == GIVE_UP:
        return _ack(claim, State.DEAD, failures=failures, error=result.error)
    delay_s = result.retry_after_s
    if delay_s is None:
        delay_s = retry.backoff.delay_s(failures, chance)
    return _ack(claim, State.PENDING, failures=failures, delay_s=delay_s, error=result.error)


def _after_crash(claim: Claim, error: ErrorInfo, max_crashes: int) -> Ack:
    crashes = claim.crashes + 1
    state = State.DEAD if crashes >= max_crashes else State.PENDING
    special = claim.extra is not None
    return Ack(claim.id, claim.attempt, state, claim.failures, crashes, error=error, special=special)


def _ack(
    claim: Claim,
    state: State,
    *,
    failures: int | None = None,
    delay_s: float | None = None,
    result: str | None = None,
    error: ErrorInfo | None = None,
) -> Ack:
    # Crashes are counted in a row: an attempt that came to an end clears them.
    return Ack(
        id=claim.id,
        attempt=claim.attempt,
        state=state,
        failures=claim.failures if failures is None else failures,
        crashes=0,
        delay_s=delay_s,
        result=result,
        error=error,
        special=claim.extra is not None,
    )


def _reason(kind: str, reason: str) -> ErrorInfo | None:
    return ErrorInfo(kind, reason) if reason else None
