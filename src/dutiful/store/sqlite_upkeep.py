"""Writes of a SQLite store that are off the hot path: workers, edits, pruning, the clock, space."""

import sqlite3
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from dutiful.job import Claim, JobId
from dutiful.store import clock, sqlite_step
from dutiful.store.contract import Edit, Owner
from dutiful.store.special import gates
from dutiful.store.special.insert import admit_again
from dutiful.store.special.release import forget, has_followers, settle
from dutiful.store.sqlite_sql import SqliteSql

LEASE_MS = 60_000  # a worker whose lock file was removed counts as dead after this silence
_INCREMENTAL = 2  # PRAGMA auto_vacuum
_SHRINK_PAGES = 256  # about 1 MiB, a few ms a time
_SHRINK_FROM_PAGES = 1024  # a free list shorter than this will be used again soon


# --- workers ----------------------------------------------------------------------------


def add_worker(
    db: sqlite3.Connection,
    who: tuple[str, str, str, int, str, int, int],
    queues: Sequence[str],
    concurrency: int,
    tasks: Sequence[str] | None,
    owner: Owner | None = None,
) -> Owner:
    """
    Register an incarnation, again if `owner` is given.

    `who` is (name, host, boot, pid, token, started_at, seen_at).
    """
    cursor = db.execute(
        "INSERT INTO dutiful_worker"
        " (id, name, host, boot, pid, token, started_at, seen_at, queues, concurrency, tasks)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (owner, *who, " ".join(queues), concurrency, None if tasks is None else _text(tasks)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def remove_worker(db: sqlite3.Connection, owner: Owner) -> bool:
    """Take a worker out; return whether it was there: only one caller is told so."""
    return db.execute("DELETE FROM dutiful_worker WHERE id = ?", (owner,)).rowcount == 1


def running_of(db: sqlite3.Connection, owner: Owner) -> list[Claim]:
    """Return the jobs that a worker owns, without payloads. By index dutiful_job_running."""
    text = db.execute(
        "SELECT json_group_array(json_array(id, attempt, failures, crashes, task, queue, NULL, priority,"
        " due_at, extra))"
        " FROM dutiful_job WHERE state = 'running' AND owner = ?",
        (owner,),
    ).fetchone()[0]
    return msgspec.json.decode(text, type=list[Claim])


def give_back(db: sqlite3.Connection, owner: Owner, now: int) -> None:
    """Put all that a worker owns back in line, at nobody's fault; end what was asked to stop."""
    rows = db.execute(
        "SELECT id FROM dutiful_job WHERE state = 'running' AND owner = ? AND cancel_at IS NOT NULL", (owner,)
    ).fetchall()
    db.execute(
        "UPDATE dutiful_job"
        " SET state = CASE WHEN cancel_at IS NULL THEN 'pending' ELSE 'cancelled' END,"
        "     finished_at = CASE WHEN cancel_at IS NULL THEN NULL ELSE :now END,"
        "     owner = NULL, cancel_at = NULL"
        " WHERE state = 'running' AND owner = :owner",
        {"owner": owner, "now": now},
    )
    set_free(db, [row[0] for row in rows], now)


def set_free(db: sqlite3.Connection, ids: Collection[JobId], now: int) -> None:
    """Some attempts have ended outside of a step: see what that sets free."""
    if ids:
        turn = gates.Turn(SqliteSql(db, now))
        settle(turn, ids)
        turn.finish()


def beat(db: sqlite3.Connection, owner: Owner, tasks: Sequence[str] | None, now: int) -> bool:
    """Write that a worker lives, and which tasks it can run by now; return whether it is registered."""
    known = None if tasks is None else _text(tasks)
    sql = "UPDATE dutiful_worker SET seen_at = ?, tasks = ? WHERE id = ?"
    return db.execute(sql, (now, known, owner)).rowcount == 1


# --- parking ------------------------------------------------------------------------------

_PARK_LOOK = 10_000  # so many at the head of the line are looked at: what is behind them is in nobody's way
_UNPARK_JOBS = 2000  # a few ms of the write lock


def park(
    db: sqlite3.Connection,
    tasks: Collection[str],
    queues: Sequence[str],
    *,
    now: int,
    after_ms: int,
    park_ms: int,
) -> dict[str, int]:
    """Put jobs of these tasks that have been due for `after_ms` out of the way; return how many of each."""
    counts: dict[str, int] = {}
    ids: list[JobId] = []
    for queue in queues:
        for job_id, task, due_at in sqlite_step.first_due(db, queue, now=now, limit=_PARK_LOOK):
            if task in tasks and due_at <= now - after_ms:
                ids.append(job_id)
                counts[task] = counts.get(task, 0) + 1
    if ids:
        db.execute(
            "UPDATE dutiful_job SET parked_at = coalesce(parked_at, due_at), due_at = ?"
            " WHERE id IN (SELECT value FROM json_each(?))",
            (now + park_ms, _text(ids)),
        )
    return counts


def unpark(db: sqlite3.Connection, tasks: Sequence[str]) -> int:
    """
    Put some parked jobs of these tasks back at their old place in line; return how many, 0 when done.

    By index dutiful_job_parked.
    """
    return db.execute(
        "UPDATE dutiful_job SET due_at = parked_at, parked_at = NULL,"
        " state = CASE WHEN pool IS NULL THEN state ELSE 'blocked' END,"  # for a slot, as if it were new
        " held = CASE WHEN pool IS NULL THEN held ELSE 'pool' END WHERE id IN"
        " (SELECT id FROM dutiful_job WHERE parked_at IS NOT NULL AND state = 'pending'"
        "   AND task IN (SELECT value FROM json_each(?)) LIMIT ?)",
        (_text(tasks), _UNPARK_JOBS),
    ).rowcount


# --- edits ---------------------------------------------------------------------------------

_FORGET_ERRORS = "DELETE FROM dutiful_error WHERE job_id IN (SELECT value FROM json_each(?))"
# What a person asks for, by primary key; each says which states allow it.
_EDITS: dict[Edit, tuple[str, str]] = {
    "retry": (
        "state IN ('dead', 'cancelled', 'completed')",
        (
            "UPDATE dutiful_job SET state = 'pending', owner = NULL, due_at = :now, due_fixed = 0,"
            " failures = 0, crashes = 0, finished_at = NULL, cancel_at = NULL, parked_at = NULL,"
            " result = NULL"
        ),
    ),
    "cancel": (
        "state IN ('pending', 'blocked')",
        "UPDATE dutiful_job SET state = 'cancelled', finished_at = :now, parked_at = NULL, held = NULL",
    ),
    "delete": ("state <> 'running'", "DELETE FROM dutiful_job"),
}


def edit(db: sqlite3.Connection, ids: Sequence[JobId], what: Edit, now: int) -> list[JobId]:
    """Retry, cancel or delete; return the jobs for which it was done."""
    allowed, statement = _EDITS[what]
    done = _which(db, ids, allowed)
    values = {"ids": _text(done), "now": now}
    turn = gates.Turn(SqliteSql(db, now))
    if what == "delete":
        # First as if cancelled: whoever waits for them is to know.
        waiting = _which(db, done, "state IN ('pending', 'blocked')")
        db.execute(
            f"{_EDITS['cancel'][1]} WHERE id IN (SELECT value FROM json_each(:ids))",
            {**values, "ids": _text(waiting)},
        )
        settle(turn, done)
        forget(turn.sql, done)
        db.execute(_FORGET_ERRORS, (_text(done),))
    db.execute(f"{statement} WHERE id IN (SELECT value FROM json_each(:ids)) AND :now IS NOT NULL", values)
    if what == "delete":
        settle(turn, done)  # whoever waited in spite of a dead one waits no more
    if what == "retry":
        admit_again(turn, done)
    if what == "cancel":
        settle(turn, done)
        running = _which(db, ids, "state = 'running'")
        db.execute(
            "UPDATE dutiful_job SET cancel_at = ? WHERE id IN (SELECT value FROM json_each(?))",
            (now, _text(running)),
        )
        done += running
    turn.finish()
    return done


def _which(db: sqlite3.Connection, ids: Sequence[JobId], condition: str) -> list[JobId]:
    rows = db.execute(
        f"SELECT id FROM dutiful_job WHERE id IN (SELECT value FROM json_each(?)) AND {condition}",
        (_text(list(ids)),),
    ).fetchall()
    return [row[0] for row in rows]


# --- pruning and space ------------------------------------------------------------------------


def prune(db: sqlite3.Connection, before: tuple[int, JobId], limit: int, now: int) -> int:
    """
    Delete up to `limit` finished jobs, oldest first. By index dutiful_job_finished.

    Not those whose followers are still to be told: they are to have the results. Nor those that were
    cancelled, while others wait for them to be run again: one that is gone counts as completed.
    """
    ids = db.execute(
        "SELECT json_group_array(id) FROM (SELECT id FROM dutiful_job"
        " WHERE state IN ('completed', 'cancelled') AND (finished_at, id) <= (?, ?) AND held IS NULL"
        " AND NOT (state = 'cancelled' AND followed IS NOT NULL AND EXISTS"
        "   (SELECT 1 FROM dutiful_after WHERE parent_id = dutiful_job.id AND outcome IS NULL))"
        " ORDER BY finished_at, id LIMIT ?)",
        (*before, limit),
    ).fetchone()[0]
    text = ids.decode() if isinstance(ids, bytes) else ids
    db.execute(_FORGET_ERRORS, (text,))
    turn, gone = gates.Turn(SqliteSql(db, now)), msgspec.json.decode(text)
    forget(turn.sql, gone)
    count = db.execute(
        "DELETE FROM dutiful_job WHERE id IN (SELECT value FROM json_each(?))", (text,)
    ).rowcount
    if has_followers(turn.sql):
        settle(turn, gone)
        turn.finish()
    return count


def shrink(db: sqlite3.Connection) -> int:
    """Give a little of the free space back to the file system; return the pages given, 0 when done."""
    free = int(db.execute("PRAGMA freelist_count").fetchone()[0])
    if free < _SHRINK_FROM_PAGES or int(db.execute("PRAGMA auto_vacuum").fetchone()[0]) != _INCREMENTAL:
        return 0
    db.execute(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})").fetchall()
    return free - int(db.execute("PRAGMA freelist_count").fetchone()[0])


# --- the clock ------------------------------------------------------------------------------------


def follow_clock(db: sqlite3.Connection, offset: int) -> int:
    """
    Agree with the store about the clock, moving due times when it was set; return the offset.

    The first to see a step writes it; the others find it written. After a boot there is
    nothing to compare with, so nothing moves.
    """
    boot = clock.boot_id()
    stored = _meta(db, "clock_boot"), _meta(db, "clock_offset")
    if stored[0] == boot and isinstance(stored[1], int):
        step = offset - stored[1]
        if abs(step) < clock.STEP_MS:
            return offset
        # Not what is fixed on the calendar, unless it is parked: that is a delay again. Running
        # jobs too, as they keep their place when they are given back. A full scan, once per step.
        db.execute(
            "UPDATE dutiful_job"
            " SET due_at = due_at + CASE WHEN due_fixed = 0 OR parked_at IS NOT NULL THEN :step ELSE 0 END,"
            "     parked_at = parked_at + CASE WHEN due_fixed = 0 THEN :step ELSE 0 END"
            " WHERE state IN ('pending', 'blocked', 'running')",
            {"step": step},
        )
        db.execute("UPDATE dutiful_worker SET seen_at = seen_at + ?", (step,))
    _set_meta(db, "clock_boot", boot)
    _set_meta(db, "clock_offset", offset)
    return offset


def keep_clock(db: sqlite3.Connection, offset: int) -> None:
    """Write down the small corrections of a running clock, so that they never add up to a step."""
    stored = _meta(db, "clock_offset")
    if isinstance(stored, int) and 0 < abs(offset - stored) < clock.STEP_MS:
        _set_meta(db, "clock_offset", offset)


def _meta(db: sqlite3.Connection, key: Literal["clock_boot", "clock_offset"]) -> object:
    value = db.execute("SELECT value FROM dutiful_meta WHERE key = ?", (key,)).fetchone()[0]
    return value.decode() if isinstance(value, bytes) else value


def _set_meta(db: sqlite3.Connection, key: str, value: object) -> None:
    db.execute("UPDATE dutiful_meta SET value = ? WHERE key = ?", (value, key))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
