"""Reading a PostgreSQL store: jobs and counts. Nothing here writes, or waits for a writer."""

from collections.abc import Collection, Sequence
from typing import Any

from dutiful.config import Keep
from dutiful.job import AttemptError, Claim, JobId, Record, State
from dutiful.store.contract import Counts, Query
from dutiful.store.postgres_access import Connection
from dutiful.store.postgres_step import LEVELS, NOW, OWNED, numbers

_ID_MAX = 2**63 - 1

_COLUMNS = """
job.id, job.task, job.queue, job.state, job.priority, job.due_at, job.attempt, job.failures, job.crashes,
job.created_at, job.started_at, job.finished_at, job.cancel_at, worker.name, job.payload, job.result,
job.lane, job.held, job.expires_at, job.progress
"""
_FROM = "FROM dutiful.job LEFT JOIN dutiful.worker ON worker.id = job.owner"


def get(db: Connection, ids: Sequence[JobId]) -> list[Record]:
    """Return the jobs that exist among `ids`, in that order. By primary key."""
    wanted = (numbers(ids),)
    sql = f"SELECT {_COLUMNS} {_FROM} WHERE job.id = ANY (%s::bigint[])"
    jobs = {row[0]: row for row in db.run(sql, wanted).fetchall()}
    errors: dict[JobId, list[AttemptError]] = {}
    for job_id, *error in db.run(
        "SELECT job_id, attempt, at, worker, type, message, traceback FROM dutiful.error"
        " WHERE job_id = ANY (%s::bigint[]) ORDER BY job_id, attempt",
        wanted,
    ).fetchall():
        errors.setdefault(job_id, []).append(AttemptError(*error))
    return [_record(jobs[job_id], tuple(errors.get(job_id, ()))) for job_id in ids if job_id in jobs]


def find(db: Connection, query: Query) -> list[Record]:
    """Return the newest jobs that fit, by primary key from the top."""
    where = ["true"]
    values: list[object] = []
    if query.states:
        where.append("job.state = ANY (%s)")
        values.append([str(state) for state in query.states])
    if query.task is not None:  # in all versions, with all keys: see dutiful.versions
        where.append(f"(job.task = %s OR substr(job.task, 1, {len(query.task) + 1}) IN (%s, %s))")
        values += [query.task, f"{query.task}@", f"{query.task}#"]
    if query.queue is not None:
        where.append("job.queue = %s")
        values.append(query.queue)
    if query.before is not None:
        where.append("job.id < %s")
        values.append(query.before)
    sql = f"SELECT {_COLUMNS} {_FROM} WHERE {' AND '.join(where)} ORDER BY job.id DESC LIMIT %s"
    return [_record(row) for row in db.run(sql, (*values, query.limit)).fetchall()]


def _record(row: Sequence[Any], errors: tuple[AttemptError, ...] = ()) -> Record:
    # The columns are in the order of the fields.
    values: Any = [*row, errors]
    values[3] = State(values[3])
    return Record(*values)


# Each state by the partial index that holds just its rows, so that a count reads no job.
COUNTS = f"""
WITH clock AS (SELECT {NOW} AS now)
SELECT (SELECT count(*) FROM dutiful.job WHERE state = 'pending' AND crashes = 0)
     + (SELECT count(*) FROM dutiful.job WHERE state = 'pending' AND crashes > 0),
       (SELECT count(*) FROM dutiful.job WHERE state = 'running'),
       (SELECT count(*) FROM dutiful.job
         WHERE state IN ('completed', 'cancelled') AND state = 'completed'),
       (SELECT count(*) FROM dutiful.job WHERE state = 'dead'),
       (SELECT count(*) FROM dutiful.job
         WHERE state IN ('completed', 'cancelled') AND state = 'cancelled'),
       (SELECT count(*) FROM dutiful.job WHERE state = 'pending' AND crashes = 0 AND due_at <= now)
     + (SELECT count(*) FROM dutiful.job WHERE state = 'pending' AND crashes > 0 AND due_at <= now),
       (SELECT count(*) FROM dutiful.job WHERE parked_at IS NOT NULL),
       (SELECT count(*) FROM dutiful.job WHERE state = 'blocked'),
       (SELECT now - min(due_at) FROM (
            SELECT min(due_at) AS due_at FROM dutiful.job WHERE state = 'pending' AND crashes = 0
            UNION ALL
            SELECT min(due_at) FROM dutiful.job WHERE state = 'pending' AND crashes > 0) AS soonest
         WHERE due_at <= now)
  FROM clock
"""
_STATES = (State.PENDING, State.RUNNING, State.COMPLETED, State.DEAD, State.CANCELLED)


def counts(db: Connection) -> Counts:
    """Count the jobs by state."""
    *by_state, due, parked, blocked, oldest_ms = db.one(COUNTS)
    oldest_s = None if oldest_ms is None else oldest_ms / 1000
    states = dict(zip(_STATES, by_state, strict=True)) | {State.BLOCKED: blocked}
    return Counts(states, due, parked, oldest_s)


# The soonest of each priority, each one step in the index; then the soonest of those.
_NEXT_DUE = f"""
{LEVELS}
SELECT min(due_at) - {NOW} FROM level CROSS JOIN LATERAL (
       SELECT due_at FROM dutiful.job
        WHERE queue = %(queue)s AND state = 'pending' AND crashes {{crashes}} 0
          AND priority = level.p {{skip}}
        ORDER BY due_at, id LIMIT 1) AS soonest
"""
_SKIP = "AND task <> ALL (%(skip)s)"


def next_due(*, suspects: bool, skip: bool) -> str:
    """Return the query for when the next job, or the next suspect, is due."""
    return _NEXT_DUE.format(crashes=">" if suspects else "=", skip=_SKIP if skip else "")


def next_due_s(db: Connection, queues: Sequence[str], skip: Collection[str]) -> float | None:
    """Return the seconds until the next pending job of these queues is due, but for the tasks in `skip`."""
    values = {"skip": sorted(skip)} if skip else {}
    with db.pipeline():
        answers = [
            db.run(next_due(suspects=suspects, skip=bool(skip)), {"queue": queue, **values})
            for queue in queues
            for suspects in (False, True)
        ]
    found = [row[0] for answer in answers for row in answer.fetchall() if row[0] is not None]
    return max(0.0, min(found) / 1000) if found else None


# The tasks that have parked jobs, by index job_parked, a step for each.
_PARKED = """
WITH RECURSIVE parked (task) AS (
    SELECT (SELECT min(task) FROM dutiful.job WHERE parked_at IS NOT NULL)
    UNION ALL
    SELECT (SELECT min(task) FROM dutiful.job WHERE parked_at IS NOT NULL AND task > parked.task)
      FROM parked WHERE parked.task IS NOT NULL)
SELECT task FROM parked WHERE task IS NOT NULL
"""


def parked_tasks(db: Connection) -> list[str]:
    """Return the tasks that have parked jobs."""
    return [row[0] for row in db.run(_PARKED).fetchall()]


def tasks_taken_care_of(db: Connection, queues: Sequence[str]) -> set[str] | None:
    """Return the tasks that some worker of these queues lists; None if one takes any task."""
    found: set[str] = set()
    for (tasks,) in db.run("SELECT tasks FROM dutiful.worker WHERE queues && %s", (list(queues),)).fetchall():
        if tasks is None:
            return None
        found.update(tasks)
    return found


def prune_before(db: Connection, keep: Keep) -> tuple[int, JobId] | None:
    """
    Return the last finished job that is to go, as (finished_at, id), or None if none is.

    By index job_finished: the age is one step, the count a walk over `keep.count`.
    """
    finished = "FROM dutiful.job WHERE state IN ('completed', 'cancelled') ORDER BY"
    with db.pipeline():
        oldest = db.run(
            f"SELECT finished_at, id, {NOW} - %s::bigint {finished} finished_at, id LIMIT 1",
            (round(keep.age_s * 1000),),
        )
        beyond = db.run(
            f"SELECT finished_at, id {finished} finished_at DESC, id DESC LIMIT 1 OFFSET %s", (keep.count,)
        )
    row = oldest.fetchone()
    if row is None:
        return None
    finished_at, job_id, by_age = row
    before = max((by_age, _ID_MAX), beyond.fetchone() or (0, 0))
    return None if (finished_at, job_id) > before else (before[0], before[1])


def begin_of_attempt(db: Connection, claim: Claim) -> str | None:
    """Return the number of this transaction if the attempt owns its job; else None."""
    row = db.run(
        f"SELECT pg_current_xact_id()::text FROM dutiful.job WHERE id = %s AND attempt = %s AND {OWNED}",
        (claim.id, claim.attempt),
    ).fetchone()
    return None if row is None else str(row[0])
