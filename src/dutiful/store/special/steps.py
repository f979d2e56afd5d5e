"""
What a job has done so far, as its later attempts see it: steps, sleeps and waits for events.

    step   value: what it returned
    sleep  at: when it is over
    event  at: when the wait is over; event: its name while it is awaited; value: what came, or
           NULL if nothing had come by then

A job that has any of these is special from then on (`extra` is not NULL), so that they go with it.
Whoever writes one proves, in the same transaction, that the attempt still owns the job.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from dutiful.job import Ack, Claim, JobId, State
from dutiful.store.contract import Sql

_NOTHING_ELSE = "{}"  # an `extra` that asks for nothing


class Noted(Struct, frozen=True):
    """One of them, as it is stored; `at` is in ms by the store's clock."""

    kind: str
    at: int
    event: str | None = None
    value: str | None = None


def owns(sql: Sql, claim: Claim) -> bool:
    """Return whether the attempt still owns its job, which stays so until the transaction ends."""
    return bool(
        sql.rows(
            "SELECT 1 FROM {job} WHERE id = ? AND attempt = ? AND state = 'running' {lock}",
            claim.id,
            claim.attempt,
        )
    )


def noted(look: Sql, job_id: JobId) -> dict[str, Noted]:
    """Return all that a job has noted, by name. By primary key."""
    rows = look.rows("SELECT name, kind, at, event, value FROM {step} WHERE job_id = ?", job_id)
    return {name: Noted(*rest) for name, *rest in rows}


def note(sql: Sql, job_id: JobId, name: str, new: Noted) -> None:
    """Write one down, in place of an earlier one of that name."""
    sql.change(
        "INSERT INTO {step} (job_id, name, kind, at, event, value) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (job_id, name) DO UPDATE"
        " SET kind = excluded.kind, at = excluded.at, event = excluded.event, value = excluded.value",
        job_id,
        name,
        new.kind,
        new.at,
        new.event,
        new.value,
    )
    sql.change("UPDATE {job} SET extra = ? WHERE id = ? AND extra IS NULL", _NOTHING_ELSE, job_id)


def need_key(sql: Sql, claim: Claim, name: str) -> None:
    """Store a job under a name that says which key it needs, if the attempt still owns it."""
    sql.change(
        "UPDATE {job} SET task = ? WHERE id = ? AND attempt = ? AND state = 'running'",
        name,
        claim.id,
        claim.attempt,
    )


def write_progress(sql: Sql, claim: Claim, text: str) -> None:
    """Write how far an attempt has come, if it still owns its job."""
    sql.change(
        "UPDATE {job} SET progress = ? WHERE id = ? AND attempt = ? AND state = 'running'",
        text,
        claim.id,
        claim.attempt,
    )


def note_ends(sql: Sql, acks: Sequence[Ack]) -> bool:
    """
    Attempts have ended: write how far they came, and see whether what they sleep for is there already.

    Return whether any is due at once for that.
    """
    for ack in acks:
        if ack.progress is not None:
            sql.change("UPDATE {job} SET progress = ? WHERE id = ?", ack.progress, ack.id)
    # Whoever sends an event holds the job's row; so either he sees that the job waits, or we see the event.
    awake = [ack.id for ack in acks if ack.awaits and ack.state is State.PENDING and _has_come(sql, ack)]
    if awake:
        wake(sql, awake)
    return bool(awake)


def _has_come(sql: Sql, ack: Ack) -> bool:
    return bool(
        sql.rows(
            "SELECT 1 FROM {step} WHERE job_id = ? AND name IN {names} AND event IS NULL LIMIT 1",
            ack.id,
            list(ack.awaits),
        )
    )


def wake(sql: Sql, ids: Iterable[JobId]) -> None:
    """Have jobs that wait for their time due now."""
    sql.change(
        "UPDATE {job} SET due_at = ?, due_fixed = false"
        " WHERE id IN {ids} AND state IN ('pending', 'blocked')",
        sql.now,
        list(ids),
    )
