"""
Crashes that were none.

Who cannot see a worker's process takes it for dead when its connection has gone, and counts a crash for
each job that it had. It may live all the same, and be back a moment later. Then it says so, and what was
counted is taken back: it is deaths of processes that make a job dead.
"""

from collections.abc import Collection

from dutiful.job import JobId
from dutiful.store.contract import Store

_TYPE, _MESSAGE = "WorkerCutOff", "its worker had lost its connection, and others took over; it had not died"


def acquit(store: Store, attempts: Collection[tuple[JobId, int]]) -> None:
    """
    Take back the crashes that were counted for these attempts, (id, attempt), whose process lives.

    Safe to repeat. A job that is finished by now stays so.
    """
    by_attempt: dict[int, list[JobId]] = {}
    for job_id, attempt in sorted(attempts):
        by_attempt.setdefault(attempt, []).append(job_id)
    with store.sql() as sql:
        # First, and in one order, as everybody who changes jobs.
        sql.rows("SELECT id FROM {job} WHERE id IN {ids} ORDER BY id {lock}", sorted(set(dict(attempts))))
        for attempt, ids in by_attempt.items():
            blamed = sql.rows(
                "UPDATE {error} SET type = ?, message = ?"
                " WHERE job_id IN {ids} AND attempt = ? AND type = 'WorkerDied' RETURNING job_id",
                _TYPE,
                _MESSAGE,
                ids,
                attempt,
            )
            sql.change(
                "UPDATE {job} SET crashes = crashes - 1 WHERE id IN {ids} AND crashes > 0",
                [row[0] for row in blamed],
            )
