"""
Schedules as rows: declared by workers, fired by whoever comes first.

A firing and its job are one transaction, and the row's `next_at` decides who does it: whoever finds
it as it was read moves it on and inserts the job; all others change nothing. So there is exactly one
job for each firing, however many workers there are, and whatever happens to them.
"""

from collections.abc import Callable, Collection, Sequence

from msgspec import Struct

from dutiful.core.schedule import Decision
from dutiful.job import JobId
from dutiful.store.contract import Sql

STALE_MS = 3_600_000  # its workers say every few minutes that they declare it

_COLUMNS = (
    "name, spec, missed, task, queue, payload, priority, next_at, last_at, last_job, paused_at, seen_at"
)

_DECLARE = """
INSERT INTO {schedule} AS known (name, spec, missed, task, queue, payload, priority, next_at, seen_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE
   SET next_at = CASE WHEN known.spec = excluded.spec THEN known.next_at ELSE excluded.next_at END,
       spec = excluded.spec, missed = excluded.missed, task = excluded.task, queue = excluded.queue,
       payload = excluded.payload, priority = excluded.priority, seen_at = excluded.seen_at
"""
_INSERT = """
INSERT INTO {job} (id, state, queue, task, priority, due_at, due_fixed, attempt, failures, crashes,
                   created_at, payload)
VALUES (?, 'pending', ?, ?, ?, ?, ?, 0, 0, 0, ?, ?)
"""


class Declared(Struct, frozen=True):
    """A schedule as a worker declares it; without a queue it is that of the worker."""

    name: str
    spec: str
    missed: str
    task: str
    queue: str | None = None
    payload: str = "null"
    priority: int = 0


class Row(Struct, frozen=True):
    """A schedule as it is stored."""

    name: str
    spec: str
    missed: str
    task: str
    queue: str
    payload: str
    priority: int
    next_at: int
    last_at: int | None
    last_job: JobId | None
    paused_at: int | None
    seen_at: int


def declare(sql: Sql, declared: Declared, next_at: int, *, queue: str) -> None:
    """Write a schedule down. One that is there keeps its place, unless it fires at other times now."""
    sql.change(
        _DECLARE,
        declared.name,
        declared.spec,
        declared.missed,
        declared.task,
        queue,
        declared.payload,
        declared.priority,
        next_at,
        sql.now,
    )


def seen(sql: Sql, names: Collection[str]) -> None:
    """Say that these are still declared."""
    sql.change("UPDATE {schedule} SET seen_at = ? WHERE name IN {names}", sql.now, sorted(names))


def listed(look: Sql) -> list[Row]:
    """Return all schedules, by name."""
    return [Row(*row) for row in look.rows(f"SELECT {_COLUMNS} FROM {{schedule}} ORDER BY name")]


def named(look: Sql, name: str) -> Row | None:
    """Return one schedule."""
    rows = look.rows(f"SELECT {_COLUMNS} FROM {{schedule}} WHERE name = ?", name)
    return Row(*rows[0]) if rows else None


def next_at(look: Sql, names: Collection[str]) -> int | None:
    """Return when the first of these is to fire; None: none of them."""
    rows = look.rows(
        "SELECT min(next_at) FROM {schedule} WHERE name IN {names} AND paused_at IS NULL", sorted(names)
    )
    return None if rows[0][0] is None else int(rows[0][0])


def due(look: Sql, names: Collection[str]) -> list[Row]:
    """Return those of these that are to fire now."""
    rows = look.rows(
        f"SELECT {_COLUMNS} FROM {{schedule}}"
        " WHERE name IN {names} AND paused_at IS NULL AND next_at <= ? ORDER BY name",
        sorted(names),
        look.now,
    )
    return [Row(*row) for row in rows]


def fire(sql: Sql, row: Row, decide: Callable[[Row, int], Decision]) -> list[JobId]:
    """Insert the jobs of a schedule's firings up to now, unless somebody else has; return their ids."""
    firings, next_at = decide(row, sql.now)
    moved = sql.change(
        "UPDATE {schedule} SET next_at = ? WHERE name = ? AND next_at = ? AND paused_at IS NULL",
        next_at,
        row.name,
        row.next_at,
    )
    return _insert(sql, row, firings) if moved and firings else []


def run(sql: Sql, row: Row) -> JobId:
    """Insert a job of a schedule now; its next firing stays when it is."""
    return _insert(sql, row, [sql.now])[0]


def _insert(sql: Sql, row: Row, firings: Sequence[int]) -> list[JobId]:
    first = sql.new_ids(len(firings))
    ids = list(range(first, first + len(firings)))
    for job_id, at in zip(ids, firings, strict=True):
        values = (row.queue, row.task, row.priority, at, True, sql.now, row.payload)
        sql.change(_INSERT, job_id, *values)
    sql.change(
        "UPDATE {schedule} SET last_at = ?, last_job = ? WHERE name = ?", firings[-1], ids[-1], row.name
    )
    return ids


def pause(sql: Sql, name: str) -> bool:
    """Let it fire no more; return whether there is such a schedule."""
    return bool(
        sql.change("UPDATE {schedule} SET paused_at = coalesce(paused_at, ?) WHERE name = ?", sql.now, name)
    )


def resume(sql: Sql, name: str, next_at: int) -> bool:
    """Let it fire again, at `next_at` first; return whether there is such a schedule."""
    sql.change(
        "UPDATE {schedule} SET next_at = ? WHERE name = ? AND paused_at IS NOT NULL",
        next_at,
        name,
    )
    return bool(sql.change("UPDATE {schedule} SET paused_at = NULL WHERE name = ?", name))


def forget(sql: Sql, name: str) -> bool:
    """Remove it; return whether there was such a schedule. A worker that declares it brings it back."""
    return bool(sql.change("DELETE FROM {schedule} WHERE name = ?", name))
