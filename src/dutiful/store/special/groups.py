"""
Groups: a job that waits for many others, its members, which may be stored in many steps.

    open    the waiting job is stored first, held by the gate "group": it waits for one thing, the closing
    join    members are stored, and in the same step it waits for so many more
    close   there are no more of them: it is held by "after" from here on, and waits for one thing less

So its count comes to 0 once, when all are there and all have finished, wherever a process dies. One whose
sender died is never closed; each step puts off its expiry, and when that comes it is dead (see start.py).
Its members are rows of {after} like all that a job follows, in the order of their ids.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from dutiful.job import JobId
from dutiful.store.contract import Draft, Sql
from dutiful.store.special import extra as extras
from dutiful.store.special import gates
from dutiful.store.special.release import cancel, pass_on, settle

# A sender stores a chunk at least every second, but may itself have to wait: for its payloads, or for room.
SILENCE_MS = 3_600_000

_IS_OPEN = (
    "id = ? AND state IN ('blocked', '-') AND held = 'group'"  # by primary key (see postgres_step.OWNED)
)


BEFORE_ALL = -1  # a place
BEFORE = -1_000_000_000  # the places of what it follows besides: they are no members

# Places in the row of a new job (see insert.py).
STATE, DUE_AT, DUE_FIXED, HELD, WAITS, EXPIRES_AT = 0, 4, 5, 9, 12, 15


def opened(row: list[Any], now: int) -> None:
    """Make the row of a new job that of one whose group is yet to come."""
    if row[STATE] == "cancelled":  # with what it follows besides
        return
    row[STATE], row[HELD], row[EXPIRES_AT] = "blocked", "group", now + SILENCE_MS
    row[WAITS] = 1 + (row[WAITS] or 0)


def takes(sql: Sql, job_id: JobId, count: int) -> bool:
    """Have a job wait for so many more members; return False if it takes no more."""
    return bool(
        sql.change(
            f"UPDATE {{job}} SET waits = waits + ?, expires_at = ? WHERE {_IS_OPEN}",
            count,
            sql.now + SILENCE_MS,
            job_id,
        )
    )


def join(sql: Sql, job_id: JobId, members: range, outcome: str | None) -> None:
    """Have a job follow its new members, all of which have ended at once with `outcome`, or will."""
    sql.change(
        "INSERT INTO {after} (parent_id, job_id, place, outcome)"
        " SELECT id, ?, id, ? FROM {job} WHERE id >= ? AND id < ?",
        job_id,
        outcome,
        members.start,
        members.stop,
    )


def close(turn: gates.Turn, job_id: JobId, draft: Draft, row: Sequence[object]) -> bool:
    """
    There are no more members: let the job go on when they have finished. Return False if it is no more.

    `row` is what it would be stored as now: from now on count its delay and its expiry.
    """
    sql, special = turn.sql, draft.special
    assert special is not None, "a group is special"
    if not sql.rows(f"SELECT 1 FROM {{job}} WHERE {_IS_OPEN} {{lock}}", job_id):
        return False
    members, failed = sql.rows(  # by index after_job, once for a group
        "SELECT count(*), count(CASE WHEN outcome IN ('dead', 'cancelled') THEN 1 END)"
        " FROM {after} WHERE job_id = ? AND place >= 0",
        job_id,
    )[0]
    extra = msgspec.structs.replace(extras.of(special, sql.now), follows=True, members=members)
    sql.change(
        "UPDATE {job} SET held = 'after', waits = waits - 1, due_at = ?, due_fixed = ?, expires_at = ?,"
        " extra = ? WHERE id = ?",
        row[DUE_AT],
        row[DUE_FIXED],
        row[EXPIRES_AT],
        extras.write(extra),
        job_id,
    )
    if failed and special.on_dead == "cancel":  # while it was sent; see release.py
        cancel(sql, [job_id])
        settle(turn, [job_id])
    else:
        pass_on(turn, [job_id])
    return True


def progress(look: Sql, job_id: JobId) -> tuple[int, int | None] | None:
    """
    Return how many members have ended, of how many (None: they are not all there yet); None: no such job.

    By primary key, if all are there: from one row.
    """
    rows = look.rows("SELECT waits, extra FROM {job} WHERE id = ?", job_id)
    if not rows:
        return None
    waits, text = rows[0]
    total = None if text is None else extras.read(text).members
    if total is not None and total >= 0:
        return max(0, total - waits), total
    stored = int(look.rows("SELECT count(*) FROM {after} WHERE job_id = ? AND place >= 0", job_id)[0][0])
    if total is None:  # no group's callback, but the same holds for whatever it was sent after
        return stored - (waits or 0), stored
    return max(0, stored + 1 - waits), None  # it waits for the closing, too


def members(look: Sql, job_id: JobId, after: int, limit: int, *, unfinished: bool) -> list[JobId]:
    """Return some of the members whose places, their ids, are behind `after`. By index after_job."""
    condition = "AND outcome IS NULL" if unfinished else ""
    rows = look.rows(
        f"SELECT parent_id FROM {{after}} WHERE job_id = ? AND place > ? {condition} ORDER BY place LIMIT ?",
        job_id,
        after,
        limit,
    )
    return [row[0] for row in rows]
