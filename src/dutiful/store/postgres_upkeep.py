"""Writes of a PostgreSQL store that are off the hot path: edits, parking, pruning."""

from collections.abc import Collection, Sequence

import msgspec

from dutiful.job import JobId
from dutiful.store.contract import Edit
from dutiful.store.postgres_access import Connection
from dutiful.store.postgres_sql import PostgresSql
from dutiful.store.postgres_step import NOW, OWNED, due, numbers
from dutiful.store.special import gates
from dutiful.store.special.insert import admit_again
from dutiful.store.special.release import forget, has_followers, settle

# --- parking ------------------------------------------------------------------------------

_PARK_LOOK = 10_000  # so many at the head of the line are looked at: what is behind them is in nobody's way
_UNPARK_JOBS = 2000  # a few ms of locks
# Locked as they are found: what another worker is taking right now is not parked. (`= ANY (ARRAY (…))`, not
# `IN (…)`, which the planner may turn into a join; see postgres_step.)
PARK = f"""
WITH first AS MATERIALIZED (SELECT id, task, due_at FROM ({due(lock=False)}) AS j),
parked AS (
    UPDATE dutiful.job
       SET parked_at = coalesce(parked_at, due_at), due_at = {NOW} + %(park_ms)s
     WHERE id = ANY (ARRAY (
               SELECT id FROM dutiful.job
                WHERE id = ANY (ARRAY (SELECT id FROM first
                                        WHERE task = ANY (%(tasks)s) AND due_at <= {NOW} - %(after_ms)s))
                  AND state IN ('pending', '-')
                  FOR UPDATE SKIP LOCKED))
    RETURNING task
)
SELECT task, count(*) FROM parked GROUP BY task
"""


UNPARK = """
UPDATE dutiful.job
   SET due_at = parked_at, parked_at = NULL,
       state = CASE WHEN pool IS NULL THEN state ELSE 'blocked' END,     -- for a slot, as if it were new
       held = CASE WHEN pool IS NULL THEN held ELSE 'pool' END
 WHERE id = ANY (ARRAY (SELECT id FROM dutiful.job
                         WHERE parked_at IS NOT NULL AND state IN ('pending', '-') AND task = ANY (%s)
                         LIMIT %s FOR UPDATE SKIP LOCKED))
"""


def park(
    db: Connection, tasks: Collection[str], queues: Sequence[str], *, after_ms: int, park_ms: int
) -> dict[str, int]:
    """Put jobs of these tasks that have been due for `after_ms` out of the way; return how many of each."""
    counts: dict[str, int] = {}
    values = {"tasks": sorted(tasks), "after_ms": after_ms, "park_ms": park_ms, "limit": _PARK_LOOK}
    for queue in queues:
        for task, count in db.run(PARK, {"queue": queue, **values}).fetchall():
            counts[task] = counts.get(task, 0) + count
    return counts


def unpark(db: Connection, tasks: Sequence[str]) -> int:
    """
    Put some parked jobs of these tasks back at their old place in line; return how many, 0 when done.

    By index job_parked.
    """
    return db.run(UNPARK, (list(tasks), _UNPARK_JOBS)).rowcount


# --- edits ---------------------------------------------------------------------------------

# What a person asks for, by primary key; each says which states allow it.
_EDITS: dict[Edit, tuple[str, str]] = {
    "retry": (
        "state IN ('dead', 'cancelled', 'completed')",
        (
            f"UPDATE dutiful.job SET state = 'pending', owner = NULL, due_at = {NOW}, due_fixed = false,"
            " failures = 0, crashes = 0, finished_at = NULL, cancel_at = NULL, parked_at = NULL,"
            " result = NULL"
        ),
    ),
    "cancel": (
        "state IN ('pending', 'blocked')",
        f"UPDATE dutiful.job SET state = 'cancelled', finished_at = {NOW}, parked_at = NULL, held = NULL",
    ),
    "delete": ("state <> 'running'", "DELETE FROM dutiful.job"),
}
_FORGET_ERRORS = "DELETE FROM dutiful.error WHERE job_id = ANY (%s::bigint[])"


ASK_TO_STOP = f"UPDATE dutiful.job SET cancel_at = {NOW} WHERE id = ANY (%s::bigint[]) AND {OWNED}"


def edit(db: Connection, ids: Sequence[JobId], what: Edit) -> list[JobId]:
    """Retry, cancel or delete; return the jobs for which it was done."""
    # In one order everywhere, so that nobody waits in a circle. From here on their states stay as they are.
    db.run("SELECT FROM dutiful.job WHERE id = ANY (%s::bigint[]) ORDER BY id FOR UPDATE", (numbers(ids),))
    turn = gates.Turn(PostgresSql(db))
    if what == "delete":
        # First as if cancelled: whoever waits for them is to know.
        waiting, cancel = _EDITS["cancel"]
        settle(turn, _do(db, f"{cancel} WHERE id = ANY (%s::bigint[]) AND {waiting}", ids))
    done = _do(db, edit_sql(what), ids)
    if what == "delete":
        db.run(_FORGET_ERRORS, (numbers(done),))
        forget(turn.sql, done)
        settle(turn, done)  # whoever waited in spite of a dead one waits no more
    if what == "retry":
        admit_again(turn, done)
    if what == "cancel":
        settle(turn, done)
        done += _do(db, ASK_TO_STOP, ids)
    turn.finish()
    return done


def set_free(db: Connection, ids: Sequence[JobId]) -> None:
    """Some attempts have ended outside of a step: see what that sets free."""
    if ids:
        turn = gates.Turn(PostgresSql(db))
        settle(turn, ids)
        turn.finish()


def edit_sql(what: Edit) -> str:
    """Return the statement of an edit."""
    allowed, sql = _EDITS[what]
    return f"{sql} WHERE id = ANY (%s::bigint[]) AND {allowed}"


def _do(db: Connection, sql: str, ids: Sequence[JobId]) -> list[JobId]:
    return [row[0] for row in db.run(f"{sql} RETURNING id", (numbers(ids),)).fetchall()]


# --- pruning ----------------------------------------------------------------------------------

PRUNE = """
WITH gone AS (
    DELETE FROM dutiful.job WHERE id = ANY (ARRAY (
        SELECT id FROM dutiful.job
         WHERE state IN ('completed', 'cancelled') AND (finished_at, id) <= (%s::bigint, %s::bigint)
           AND held IS NULL  -- or its followers are still to be told, and to have its result
           AND NOT (state = 'cancelled' AND followed  -- or they wait for it to be run again
                    -- (not EXISTS, for which the planner may read all that is open)
                    AND (SELECT 1 FROM dutiful.after WHERE parent_id = job.id AND outcome IS NULL
                          LIMIT 1) IS NOT NULL)
         ORDER BY finished_at, id LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING id
), forgotten AS (
    DELETE FROM dutiful.error WHERE job_id = ANY (ARRAY (SELECT id FROM gone))
), steps AS (
    DELETE FROM dutiful.step WHERE job_id = ANY (ARRAY (SELECT id FROM gone))
), followed AS (
    DELETE FROM dutiful.after WHERE job_id = ANY (ARRAY (SELECT id FROM gone))
)
SELECT coalesce(json_agg(id), '[]')::text FROM gone
"""


def prune(db: Connection, before: tuple[int, JobId], limit: int) -> int:
    """Delete up to `limit` finished jobs, oldest first. By index job_finished; others prune elsewhere."""
    gone = msgspec.json.decode(db.one(PRUNE, (*before, limit))[0], type=list[JobId])
    sql = PostgresSql(db)
    if has_followers(sql):
        turn = gates.Turn(sql)
        settle(turn, gone)
        turn.finish()
    return len(gone)
