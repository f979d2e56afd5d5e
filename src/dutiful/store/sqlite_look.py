"""Reading a SQLite store: jobs, counts, workers. Nothing here writes, or waits for a writer."""

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from dutiful.config import Keep
from dutiful.job import AttemptError, Claim, JobId, Record, State
from dutiful.store.contract import Counts, Owner, Query, WorkerInfo

_ID_MAX = 2**63 - 1

_COLUMNS = """
job.id, job.task, job.queue, job.state, job.priority, job.due_at, job.attempt, job.failures, job.crashes,
job.created_at, job.started_at, job.finished_at, job.cancel_at, worker.name, job.payload, job.result,
job.lane, job.held, job.expires_at, job.progress
"""
_FROM = "FROM dutiful_job AS job LEFT JOIN dutiful_worker AS worker ON worker.id = job.owner"


def get(db: sqlite3.Connection, ids: Sequence[JobId]) -> list[Record]:
    """Return the jobs that exist among `ids`, in that order. By primary key."""
    wanted = msgspec.json.encode(list(ids)).decode()
    jobs = {
        row[0]: row
        for row in db.execute(
            f"SELECT {_COLUMNS} {_FROM} WHERE job.id IN (SELECT value FROM json_each(?))", (wanted,)
        ).fetchall()
    }
    errors: dict[JobId, list[AttemptError]] = {}
    for row in db.execute(
        "SELECT job_id, attempt, at, worker, type, message, traceback FROM dutiful_error"
        " WHERE job_id IN (SELECT value FROM json_each(?)) ORDER BY job_id, attempt",
        (wanted,),
    ).fetchall():
        errors.setdefault(row[0], []).append(AttemptError(row[1], row[2], *map(_str, row[3:])))
    return [_record(jobs[job_id], tuple(errors.get(job_id, ()))) for job_id in ids if job_id in jobs]


def find(db: sqlite3.Connection, query: Query) -> list[Record]:
    """Return the newest jobs that fit, by primary key from the top."""
    where = ["1"]
    values: list[str] = []
    if query.states:
        where.append(f"job.state IN ({', '.join('?' * len(query.states))})")
        values += [str(state) for state in query.states]
    if query.task is not None:  # in all versions, with all keys: see dutiful.versions
        where.append(f"(job.task = ? OR substr(job.task, 1, {len(query.task) + 1}) IN (?, ?))")
        values += [query.task, f"{query.task}@", f"{query.task}#"]
    if query.queue is not None:
        where.append("job.queue = ?")
        values.append(query.queue)
    if query.before is not None:
        where.append("job.id < ?")
        values.append(str(query.before))
    sql = f"SELECT {_COLUMNS} {_FROM} WHERE {' AND '.join(where)} ORDER BY job.id DESC LIMIT ?"
    return [_record(row) for row in db.execute(sql, (*values, str(query.limit))).fetchall()]


def _record(row: Sequence[Any], errors: tuple[AttemptError, ...] = ()) -> Record:
    # The columns are in the order of the fields.
    fields = [_str(value) if isinstance(value, bytes) else value for value in row]
    fields[3] = State(fields[3])
    values: Any = [*fields, errors]
    return Record(*values)


def _str(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# Each state by the partial index that holds just its rows, so that a count reads no job.
_COUNTS = """
SELECT (SELECT count(*) FROM dutiful_job WHERE state = 'pending' AND crashes = 0)
     + (SELECT count(*) FROM dutiful_job WHERE state = 'pending' AND crashes > 0),
       (SELECT count(*) FROM dutiful_job WHERE state = 'running'),
       (SELECT count(*) FROM dutiful_job INDEXED BY dutiful_job_finished
         WHERE state IN ('completed', 'cancelled') AND state = 'completed'),
       (SELECT count(*) FROM dutiful_job WHERE state = 'dead'),
       (SELECT count(*) FROM dutiful_job INDEXED BY dutiful_job_finished
         WHERE state IN ('completed', 'cancelled') AND state = 'cancelled'),
       (SELECT count(*) FROM dutiful_job WHERE state = 'pending' AND crashes = 0 AND due_at <= :now)
     + (SELECT count(*) FROM dutiful_job WHERE state = 'pending' AND crashes > 0 AND due_at <= :now),
       (SELECT count(*) FROM dutiful_job WHERE parked_at IS NOT NULL),
       (SELECT count(*) FROM dutiful_job WHERE state = 'blocked'),
       (SELECT min(due_at) FROM (
            SELECT min(due_at) AS due_at FROM dutiful_job WHERE state = 'pending' AND crashes = 0
            UNION ALL
            SELECT min(due_at) FROM dutiful_job WHERE state = 'pending' AND crashes > 0)
         WHERE due_at <= :now)
"""


def counts(db: sqlite3.Connection, now: int) -> Counts:
    """Count the jobs by state."""
    row = db.execute(_COUNTS, {"now": now}).fetchone()
    by_state: dict[State, int] = dict(
        zip((State.PENDING, State.RUNNING, State.COMPLETED, State.DEAD, State.CANCELLED), row, strict=False)
    )
    by_state[State.BLOCKED] = row[7]
    oldest_s = None if row[8] is None else (now - row[8]) / 1000
    return Counts(by_state, row[5], row[6], oldest_s)


# The soonest of each priority, each one step in the index; then the soonest of those.
_NEXT_DUE = """
WITH RECURSIVE level (p) AS (
    SELECT (SELECT priority FROM dutiful_job
             WHERE queue = :queue AND state = 'pending' AND crashes {crashes} 0
             ORDER BY priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT priority FROM dutiful_job
             WHERE queue = :queue AND state = 'pending' AND crashes {crashes} 0 AND priority < level.p
             ORDER BY priority DESC LIMIT 1)
      FROM level WHERE level.p IS NOT NULL
)
SELECT min((SELECT due_at FROM dutiful_job
             WHERE queue = :queue AND state = 'pending' AND crashes {crashes} 0 AND priority = level.p {skip}
             ORDER BY due_at LIMIT 1)) FROM level
"""
SKIPPED = "AND task NOT IN (SELECT value FROM json_each(:skip))"


def next_due(db: sqlite3.Connection, queues: Sequence[str], skip: Collection[str]) -> int | None:
    """Return when the next pending job of these queues is due, but for the tasks in `skip`."""
    found: list[int] = []
    without = SKIPPED if skip else ""
    values = {"skip": msgspec.json.encode(sorted(skip)).decode()} if skip else {}
    for queue in queues:
        for crashes in ("=", ">"):
            sql = _NEXT_DUE.format(crashes=crashes, skip=without)
            due_at = db.execute(sql, {"queue": queue, **values}).fetchone()[0]
            if due_at is not None:
                found.append(due_at)
    return min(found, default=None)


def owns(db: sqlite3.Connection, claim: Claim) -> bool:
    """Return whether this attempt still owns its job."""
    row = db.execute(
        "SELECT 1 FROM dutiful_job WHERE id = ? AND attempt = ? AND state = 'running'",
        (claim.id, claim.attempt),
    ).fetchone()
    return row is not None


def held(db: sqlite3.Connection, owner: Owner) -> set[tuple[JobId, int]]:
    """Return the running attempts of a worker. By index dutiful_job_running."""
    sql = "SELECT id, attempt FROM dutiful_job WHERE state = 'running' AND owner = ?"
    return set(db.execute(sql, (owner,)).fetchall())


def parked_tasks(db: sqlite3.Connection) -> list[str]:
    """Return the tasks that have parked jobs. By index dutiful_job_parked, a step for each."""
    rows = db.execute(
        "WITH RECURSIVE parked (task) AS ("
        "  SELECT min(task) FROM dutiful_job WHERE parked_at IS NOT NULL"
        "  UNION ALL"
        "  SELECT (SELECT min(task) FROM dutiful_job WHERE parked_at IS NOT NULL AND task > parked.task)"
        "    FROM parked WHERE parked.task IS NOT NULL)"
        " SELECT task FROM parked WHERE task IS NOT NULL"
    ).fetchall()
    return [_str(row[0]) for row in rows]


def tasks_taken_care_of(db: sqlite3.Connection, queues: Sequence[str]) -> set[str] | None:
    """Return the tasks that some worker of these queues lists; None if one takes any task."""
    found: set[str] = set()
    for tasks, its_queues in db.execute("SELECT tasks, queues FROM dutiful_worker").fetchall():
        if not set(queues) & set(_str(its_queues).split()):
            continue
        if tasks is None:
            return None
        found.update(msgspec.json.decode(tasks, type=list[str]))
    return found


def cancelled(db: sqlite3.Connection, owner: Owner) -> list[JobId]:
    """Return the running jobs of a worker that were asked to stop. By index dutiful_job_cancel."""
    rows = db.execute(
        "SELECT id FROM dutiful_job WHERE owner = ? AND cancel_at IS NOT NULL AND state = 'running'", (owner,)
    ).fetchall()
    return [row[0] for row in rows]


def orphan_owners(db: sqlite3.Connection) -> list[Owner]:
    """Return owners of running jobs that are not registered. By index dutiful_job_running."""
    rows = db.execute(
        "SELECT DISTINCT owner FROM dutiful_job"
        " WHERE state = 'running' AND owner NOT IN (SELECT id FROM dutiful_worker)"
    ).fetchall()
    return [row[0] for row in rows]


def prune_before(db: sqlite3.Connection, keep: Keep, now: int) -> tuple[int, JobId] | None:
    """
    Return the last finished job that is to go, as (finished_at, id), or None if none is.

    By index dutiful_job_finished: the age is one step, the count a walk over `keep.count`.
    """
    by_age = (now - round(keep.age_s * 1000), _ID_MAX)
    row = db.execute(
        "SELECT finished_at, id FROM dutiful_job WHERE state IN ('completed', 'cancelled')"
        " ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET ?",
        (keep.count,),
    ).fetchone()
    before = by_age if row is None else max(by_age, (row[0], row[1]))
    oldest = db.execute(
        "SELECT finished_at, id FROM dutiful_job WHERE state IN ('completed', 'cancelled')"
        " ORDER BY finished_at, id LIMIT 1"
    ).fetchone()
    return None if oldest is None or (oldest[0], oldest[1]) > before else before


def workers(db: sqlite3.Connection) -> list[tuple[WorkerInfo, str]]:
    """Return the registered workers, each with the run of the machine that it belongs to."""
    rows = db.execute(
        "SELECT id, name, host, pid, token, started_at, seen_at, queues, concurrency, boot"
        " FROM dutiful_worker"
    ).fetchall()
    return [(_worker_info(row[:9]), _str(row[9])) for row in rows]


def _worker_info(row: Sequence[Any]) -> WorkerInfo:
    owner, name, host, pid, token, started_at, seen_at, queues, concurrency = row
    queue_names = tuple(_str(queues).split())
    return WorkerInfo(
        owner, _str(name), _str(host), pid, _str(token), started_at, seen_at, queue_names, concurrency
    )
