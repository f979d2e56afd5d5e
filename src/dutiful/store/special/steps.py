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

from dutiful.job import Ack, Claim, JobId, State, Step
from dutiful.store.contract import Sql

_NOTHING_ELSE = "{}"  # an `extra` that asks for nothing
_AT_ONCE = 64  # jobs whose progress one statement writes: far from SQLite's bound on its values


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


def listed(look: Sql, job_id: JobId) -> tuple[Step, ...]:
    """Return all that a job has noted, for people to look at: what is done in its order, then what is not."""
    found = noted(look, job_id)
    if not found:
        return ()
    now = look.now
    steps = [Step(name, each.kind, each.at, _is_done(each, now), each.event) for name, each in found.items()]
    return tuple(sorted(steps, key=lambda step: (not step.is_done, step.at, step.name)))


def _is_done(noted: Noted, now: int) -> bool:
    if noted.kind == "step":
        return True
    return noted.event is None if noted.kind == "event" else noted.at <= now


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


def write_progress(sql: Sql, said: Sequence[tuple[Claim, str]]) -> None:
    """Write how far attempts have come, each if it still owns its job."""
    new = {claim.id: (claim.attempt, text) for claim, text in said}
    # In one order everywhere, so that nobody waits in a circle; and by few statements, for what has ended
    # meanwhile waits for these rows.
    rows = sql.rows(
        "SELECT id, attempt FROM {job} WHERE id IN {ids} AND state = 'running' ORDER BY id {lock}",
        sorted(new),
    )
    owned = [(job_id, new[job_id][1]) for job_id, attempt in rows if attempt == new[job_id][0]]
    for start in range(0, len(owned), _AT_ONCE):
        some = owned[start : start + _AT_ONCE]
        # Filled up to a power of two, so that there are few texts of this statement to prepare.
        filled = [*some, *[some[0]] * ((1 << (len(some) - 1).bit_length()) - len(some))]
        sql.change(
            f"UPDATE {{job}} SET progress = CASE id {'WHEN ? THEN ? ' * len(filled)}END WHERE id IN {{ids}}",
            *(value for pair in filled for value in pair),
            [job_id for job_id, _text in some],
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
