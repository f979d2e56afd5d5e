"""
Events: one sends, one waits, in any order.

Whoever sends or waits holds the event's name, so that none is lost between them. An event that
nobody waits for is kept, and the first who asks takes it; of several who wait, the oldest job does.
"""

from dutiful.job import Claim, JobId
from dutiful.store.contract import Sql
from dutiful.store.special.steps import Noted, note, owns, wake

_RANK = 3  # held before anything else, and by nobody who holds a gate


def hold(sql: Sql, event: str) -> None:
    """Wait until nobody else sends this event or asks for it."""
    sql.hold(f"event {event}", rank=_RANK)


def ask(sql: Sql, claim: Claim, name: str, event: str, timeout_ms: int) -> Noted | None:
    """
    Return what a wait has come to, or is: then its `event` is not None.

    The first time it is noted. None: the attempt does not own the job any more; nothing was changed.
    """
    hold(sql, event)
    if not owns(sql, claim):
        return None
    found = sql.rows(
        "SELECT kind, at, event, value FROM {step} WHERE job_id = ? AND name = ?", claim.id, name
    )
    wait = Noted(*found[0]) if found else Noted("event", sql.now + timeout_ms, event)
    if wait.event is None:
        return wait
    value = _taken(sql, event)
    if value is not None:
        wait = Noted("event", sql.now, None, value)
    elif wait.at <= sql.now:
        wait = Noted("event", wait.at)
    elif found:
        return wait
    note(sql, claim.id, name, wait)
    return wait


def _taken(sql: Sql, event: str) -> str | None:
    """Take the oldest event of a name. By index event_name."""
    kept = sql.rows("SELECT id, value FROM {event} WHERE name = ? ORDER BY id LIMIT 1", event)
    if not kept:
        return None
    sql.change("DELETE FROM {event} WHERE id = ?", kept[0][0])
    return str(kept[0][1])


def send(sql: Sql, event: str, value: str) -> JobId | None:
    """Give an event to the oldest job that waits for it, which is due then; or keep it. Return the job."""
    hold(sql, event)
    # By index step_event: a job that was ended while it waited leaves its wait open, and gets nothing.
    waits = sql.rows(
        "SELECT step.job_id, step.name FROM {step} AS step JOIN {job} AS job ON job.id = step.job_id"
        " WHERE step.event = ? AND job.state IN ('pending', 'blocked', 'running') ORDER BY step.job_id",
        event,
    )
    for job_id, name in waits:
        # An attempt that ends meanwhile sees the value, or we see that it has ended (see note_ends).
        if _is_unfinished(sql, job_id):
            note(sql, job_id, name, Noted("event", sql.now, None, value))
            wake(sql, [job_id])
            return int(job_id)
    sql.change("INSERT INTO {event} (name, at, value) VALUES (?, ?, ?)", event, sql.now, value)
    return None


def _is_unfinished(sql: Sql, job_id: JobId) -> bool:
    return bool(
        sql.rows(
            "SELECT 1 FROM {job} WHERE id = ? AND state IN ('pending', 'blocked', 'running') {lock}", job_id
        )
    )


def gates_of(sql: Sql, job_id: JobId) -> tuple[str | None, str | None] | None:
    """Return the key and the limit of a job that stands behind one of them; None: it does not."""
    rows = sql.rows("SELECT lane, pool FROM {job} WHERE id = ? AND state = 'blocked'", job_id)
    return (rows[0][0], rows[0][1]) if rows else None
