"""
The parts of one step on a PostgreSQL connection, each one statement for any number of jobs.

Many values travel as one: numbers as an array made by hand, payloads as a JSON array of texts, other
texts in binary; psycopg's own text form of an array costs 20 times as much as JSON (6.4 against 0.3 µs
a payload, 2026-11). Every statement may be executed in a pipeline, its rows fetched later.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from dutiful.job import FINISHED, Ack, Claim, JobId
from dutiful.store.contract import Draft, Owner
from dutiful.store.postgres_access import Connection, Cursor

_encode = msgspec.json.Encoder().encode

# The server's clock, in ms; stable within a statement, so that an index can be searched by it.
NOW = "(extract(epoch from statement_timestamp()) * 1000)::bigint"
TRANSACTION = f"SELECT pg_current_xact_id()::text, {NOW}"

# --- acks -----------------------------------------------------------------------------

# A join with the acks would be natural, and a trap: while the table is small the planner reads all of it
# instead of looking up each id, and a plan that was made then is kept when a million jobs have come in.
# `id = ANY` leaves it the primary key alone. Where among the ids a row's own one is, a binary search tells:
# they are sorted. And `= 'running'` would offer it the index job_running, to read all of that.
OWNED = "state IN ('running', '-')"
_AT = "width_bucket(id, %(ids)s::bigint[])"
# An attempt that no longer owns its job is not among the rows that come back. Its number alone would not
# tell: after a failover that lost a claim, another worker's attempt has the same.
_MINE = "owner = ANY (%(owners)s::bigint[])"
_ENDED = (
    "WHERE id = ANY (%(ids)s::bigint[])"
    f" AND attempt = (%(attempts)s::integer[])[{_AT}] AND {OWNED} AND {_MINE}"
)
# `followed`, as it is when the row is ours at last: whoever waits for the job has written it.
_PAIRS = "RETURNING id, attempt, followed"
COMPLETE = {
    True: f"""
        UPDATE dutiful.job
           SET state = 'completed', owner = NULL, cancel_at = NULL, finished_at = {NOW} {_ENDED}
    """,
    False: f"DELETE FROM dutiful.job {_ENDED}",
}
# Earlier attempts may have left errors, which go with the job.
_FORGET_ERRORS = (
    "DELETE FROM dutiful.error WHERE job_id = ANY (%s::bigint[])"
    " AND (SELECT id FROM dutiful.job WHERE id = job_id) IS NULL"
)

# A job that was asked to stop is not tried again, however its attempt ended. An ack without a delay (-1)
# keeps the job's place in line.
ACK = f"""
UPDATE dutiful.job
   SET owner = NULL, cancel_at = NULL,
       (state, failures, crashes, due_at, due_fixed, finished_at, result) = (
       SELECT CASE WHEN new.is_given_up THEN 'cancelled' ELSE new.state END,
              (%(failures)s::integer[])[new.at], (%(crashes)s::integer[])[new.at],
              CASE WHEN new.delay_ms < 0 THEN due_at ELSE {NOW} + new.delay_ms END,
              due_fixed AND new.delay_ms < 0,
              CASE WHEN new.state <> 'pending' OR new.is_given_up THEN {NOW} END,
              (%(results)b::text[])[new.at]
         FROM (SELECT found.at, named.state, named.state = 'pending' AND cancel_at IS NOT NULL AS is_given_up,
                      (%(delays_ms)s::bigint[])[found.at] AS delay_ms
                 FROM (SELECT {_AT} AS at) AS found,
                      LATERAL (SELECT (%(states)b::text[])[found.at] AS state) AS named
               OFFSET 0) AS new)
 {_ENDED}
"""
# Of those attempts alone that the ack applied to.
_ACK_WITH_ERRORS = f"""
WITH acked AS ({ACK} {_PAIRS}),
noted AS (
    INSERT INTO dutiful.error (job_id, attempt, at, worker, type, message, traceback)
    SELECT id, attempt, {NOW}, %(worker)s,
           (%(types)b::text[])[at], (%(messages)b::text[])[at], (%(tracebacks)b::text[])[at]
      FROM (SELECT id, attempt, {_AT} AS at FROM acked OFFSET 0) AS failed
     WHERE (%(types)b::text[])[at] IS NOT NULL
        ON CONFLICT (job_id, attempt) DO UPDATE
       SET at = excluded.at, worker = excluded.worker, type = excluded.type,
           message = excluded.message, traceback = excluded.traceback
)
SELECT id, attempt, followed FROM acked
"""
# To find an element of an array of texts, those before it are walked over: so not too many at once.
_ACKS_AT_ONCE = 500


def complete(
    db: Connection, pairs: Sequence[tuple[JobId, int]], owners: Iterable[Owner], *, keep: bool
) -> Cursor:
    """Write that these attempts ended well and without a result; the rows are those it applied to."""
    pairs = sorted(pairs)  # in one order everywhere, so that nobody waits in a circle
    values = {
        "ids": numbers(pair[0] for pair in pairs),
        "attempts": numbers(pair[1] for pair in pairs),
        "owners": numbers(owners),
    }
    return db.run(f"{COMPLETE[keep]} {_PAIRS}", values)


# In a handler's own transaction, which is not to do more than that: what it sets free is seen to afterwards,
# by whoever comes first (see special/release.py).
COMPLETE_ALONE = (
    "UPDATE dutiful.job SET state = 'completed', owner = NULL, cancel_at = NULL,"
    f" finished_at = {NOW}, held = CASE WHEN extra IS NOT NULL OR followed THEN 'end' END"
    " WHERE id = %s::bigint AND attempt = %s::integer AND state = 'running'"
)


def complete_alone(db: Connection, pair: tuple[JobId, int]) -> bool:
    """Complete a job in its handler's transaction; return whether the attempt still owned it."""
    return db.run(COMPLETE_ALONE, pair).rowcount == 1


def forget_errors(db: Connection, pairs: Sequence[tuple[JobId, int]]) -> None:
    """Remove what is left of the jobs that a `complete` without `keep` has removed."""
    ids = [job_id for job_id, attempt in pairs if attempt > 1]
    if ids:
        db.run(_FORGET_ERRORS, (numbers(ids),))


def ack(db: Connection, acks: Sequence[Ack], owners: Sequence[Owner], *, worker: str) -> list[Cursor]:
    """Write what attempts came to, and the errors of those that failed; the rows: those it applied to."""
    acks = sorted(acks, key=_fence)
    return [
        _ack(db, acks[start : start + _ACKS_AT_ONCE], owners, worker=worker)
        for start in range(0, len(acks), _ACKS_AT_ONCE)
    ]


def _ack(db: Connection, acks: Sequence[Ack], owners: Sequence[Owner], *, worker: str) -> Cursor:
    values: dict[str, object] = {
        "ids": numbers(a.id for a in acks),
        "attempts": numbers(a.attempt for a in acks),
        "owners": numbers(owners),
        "states": [str(a.state) for a in acks],
        "failures": numbers(a.failures for a in acks),
        "crashes": numbers(a.crashes for a in acks),
        "delays_ms": numbers(-1 if a.delay_s is None else round(a.delay_s * 1000) for a in acks),
        "results": [a.result for a in acks],
    }
    if all(a.error is None for a in acks):
        return db.run(f"{ACK} {_PAIRS}", values)
    values |= {
        "worker": worker,
        "types": [None if a.error is None else a.error.type for a in acks],
        "messages": [None if a.error is None else a.error.message for a in acks],
        "tracebacks": [None if a.error is None else a.error.traceback for a in acks],
    }
    return db.run(_ACK_WITH_ERRORS, values)


def _fence(ack: Ack) -> tuple[JobId, int]:
    return ack.id, ack.attempt


def late(wanted: Iterable[tuple[JobId, int]], applied: Iterable[Sequence[int]]) -> list[tuple[JobId, int]]:
    """Return the attempts that were not applied; of one that was named twice, the second."""
    left = {(row[0], row[1]) for row in applied}
    late: list[tuple[JobId, int]] = []
    for pair in wanted:
        if pair in left:
            left.remove(pair)
        else:
            late.append(pair)
    return late


def freed(
    acks: Iterable[Ack], completed: Collection[tuple[JobId, int]], late: Collection[tuple[JobId, int]]
) -> int:
    """Return how many jobs these acks have finished, but for those that came too late."""
    finishing = [(ack.id, ack.attempt) for ack in acks if ack.state in FINISHED]
    return len(completed) + len(finishing) - sum(pair in late for pair in (*completed, *finishing) if late)


# --- taking -----------------------------------------------------------------------------

# Visits each priority once, most urgent first, and within it only what is due: index job_claim (or
# job_suspect) serves the walk, the range and the order. The rows are locked as they come, so none beyond
# the limit; those that another worker is just taking are stepped over.
LEVELS = """
WITH RECURSIVE level (p) AS (
    (SELECT priority FROM dutiful.job
      WHERE queue = %(queue)s AND state = 'pending' AND crashes {crashes} 0
      ORDER BY priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT priority FROM dutiful.job
             WHERE queue = %(queue)s AND state = 'pending' AND crashes {crashes} 0 AND priority < level.p
             ORDER BY priority DESC LIMIT 1)
      FROM level WHERE level.p IS NOT NULL
)
"""
_DUE = """
SELECT j.id, j.attempt + 1, j.failures, j.crashes, j.task, j.queue, j.payload, j.priority, j.due_at, j.extra
  FROM level CROSS JOIN LATERAL (
        SELECT * FROM dutiful.job
         WHERE queue = %(queue)s AND state = 'pending' AND crashes {crashes} 0
           AND priority = level.p AND due_at <= {now} {skip}
         ORDER BY due_at, id LIMIT %(limit)s {lock}) AS j
 LIMIT %(limit)s
"""
# Of one priority, those that have waited long: index job_claim serves the range and the order.
_AGED = """
SELECT id, attempt + 1, failures, crashes, task, queue, payload, priority, due_at, extra FROM dutiful.job
 WHERE queue = %(queue)s AND state = 'pending' AND crashes = 0
   AND priority = %(priority)s::integer AND due_at <= least(%(till)s::bigint, {now}) {skip}
 ORDER BY due_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
_SKIP = "AND task <> ALL (%(skip)b::text[])"
CLAIM = f"""
UPDATE dutiful.job
   SET state = 'running', owner = %s, attempt = attempt + 1, started_at = {NOW}, parked_at = NULL
 WHERE id = ANY (%s::bigint[])
"""


def due(*, suspects: bool = False, skip: bool = False, lock: bool = True) -> str:
    """Return the query for due jobs, or for due suspects."""
    words = {
        "crashes": ">" if suspects else "=",
        "skip": _SKIP if skip else "",
        "lock": "FOR UPDATE SKIP LOCKED" if lock else "",
        "now": NOW,
    }
    return (LEVELS + _DUE).format(**words)


DUE = {
    (suspects, skip): due(suspects=suspects, skip=skip)
    for suspects in (False, True)
    for skip in (False, True)
}


def select_due(
    db: Connection, queue: str, limit: int, skip: Collection[str], *, suspects: bool = False
) -> Cursor:
    """Lock up to `limit` due jobs of a queue, most urgent first; the rows are the claims to be."""
    values: dict[str, object] = {"queue": queue, "limit": limit}
    if skip:
        values["skip"] = sorted(skip)
    return db.run(DUE[suspects, bool(skip)], values)


AGED = {skip: _AGED.format(skip=_SKIP if skip else "", now=NOW) for skip in (False, True)}


def select_aged(
    db: Connection, queue: str, priority: int, till: int, limit: int, skip: Collection[str]
) -> Cursor:
    """Lock up to `limit` jobs of a queue and a priority that have been due since `till`."""
    values: dict[str, object] = {"queue": queue, "priority": priority, "till": till, "limit": limit}
    if skip:
        values["skip"] = sorted(skip)
    return db.run(AGED[bool(skip)], values)


def claims_in(cursor: Cursor) -> list[Claim]:
    """Fetch the claims that `select_due` has found."""
    return [Claim(*row) for row in cursor.fetchall()]


def claim(db: Connection, claims: Sequence[Claim], owner: int) -> None:
    """Take the jobs that are locked."""
    if claims:
        db.run(CLAIM, (owner, numbers(claim.id for claim in claims)))


# --- storing ------------------------------------------------------------------------------

# A draft's jobs; the first `handed` as claimed. The clock is read once, not for each row.
INSERT = f"""
INSERT INTO dutiful.job (id, state, owner, attempt, queue, task, priority, due_at, due_fixed, created_at,
                         started_at, payload)
SELECT %(first)s::bigint + at - 1,
       CASE WHEN at <= %(handed)s::bigint THEN 'running' ELSE 'pending' END,
       CASE WHEN at <= %(handed)s::bigint THEN %(owner)s::bigint END,
       CASE WHEN at <= %(handed)s::bigint THEN 1 ELSE 0 END,
       %(queue)s, %(task)s, %(priority)s::integer,
       coalesce(%(run_at)s::bigint, now + %(delay_ms)s::bigint), %(run_at)s::bigint IS NOT NULL, now,
       CASE WHEN at <= %(handed)s::bigint THEN now END,
       payload
  FROM (SELECT {NOW} AS now) AS clock,
       json_array_elements_text(%(payloads)s::json) WITH ORDINALITY AS new (payload, at)
"""
# A server that takes over may have heard of fewer ids than were given; its log has a new timeline. So the
# first who takes ids from it leaves more of them out than any standby is behind.
TAKE_IDS = """
  WITH now AS (
       INSERT INTO dutiful.meta AS known (key, value)
       VALUES ('timeline', left(pg_walfile_name(pg_current_wal_lsn()), 8))
           ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE known.value <> excluded.value
    RETURNING xmax <> 0 AS is_another)
UPDATE dutiful.meta
   SET value = (value::bigint + %s
                + CASE WHEN EXISTS (SELECT FROM now WHERE is_another) THEN 1000000 ELSE 0 END)::text
 WHERE key = 'next_id'
RETURNING value::bigint
"""
# Whatever the durability: a crash that forgot it would give ids again that we still have at hand. Those of
# jobs that are stored right behind it are not waited for: it is on disk before them, in one log.
_RESERVE = {
    at_hand: f"{TAKE_IDS}, set_config('synchronous_commit', '{'on' if at_hand else 'off'}', true)"
    for at_hand in (True, False)
}


def insert(db: Connection, first: JobId, draft: Draft, handed: int = 0, owner: int | None = None) -> None:
    """Store a draft's jobs with the ids from `first` on, the first `handed` of them as claimed by `owner`."""
    db.run(INSERT, insert_values(first, draft, handed, owner))


def insert_values(first: JobId, draft: Draft, handed: int = 0, owner: int | None = None) -> dict[str, object]:
    """Return the values for INSERT."""
    return {
        "first": first,
        "handed": handed,
        "owner": owner,
        "queue": draft.queue,
        "task": draft.task,
        "priority": draft.priority,
        "run_at": draft.run_at,
        "delay_ms": round((draft.delay_s or 0) * 1000),
        "payloads": _encode(draft.payloads).decode(),
    }


def take_ids_within(db: Connection, count: int) -> JobId:
    """Take `count` ids in the transaction that uses them; return the first."""
    return int(db.one(TAKE_IDS, (count,))[0]) - count


def reserve_ids(db: Connection, count: int, *, at_hand: bool) -> JobId:
    """Take `count` ids for good, in a transaction of their own; return the first. `at_hand`: for later."""
    return int(db.one(_RESERVE[at_hand], (count,))[0]) - count


def claims_of(first: JobId, draft: Draft, handed: int, now: int) -> list[Claim]:
    """Return the claims of a draft's jobs that were stored as claimed."""
    task, queue, priority = draft.task, draft.queue, draft.priority
    return [
        Claim(job_id, 1, 0, 0, task, queue, payload, priority, now)
        for job_id, payload in enumerate(draft.payloads[:handed], first)
    ]


# --- all in one ------------------------------------------------------------------------------


def fused(*, completes: bool, keep: bool, inserts: bool) -> str:
    """
    Return the most frequent step as one statement: what has completed goes, what is new comes.

    Each statement less is 50 µs of a sender's time, on either side (2026-11). Its row: the transaction,
    the time, and, if not all attempts still owned their jobs, those that did, as JSON.
    """
    parts: list[str] = []
    applied = "NULL"
    if completes:
        parts.append(f"ended AS ({COMPLETE[keep]} {_PAIRS})")
        applied = (
            "(SELECT CASE WHEN count(*) < %(wanted)s::bigint OR bool_or(followed)"
            " THEN coalesce(json_agg(json_build_array(id, attempt, followed)), '[]') END FROM ended)"
        )
    if inserts:
        parts.append(f"new AS ({INSERT})")
    return f"WITH {', '.join(parts)} SELECT pg_current_xact_id(), {NOW}, {applied}"


# By (completes, keep, inserts); a step of neither is none.
FUSED = {
    (completes, keep, inserts): fused(completes=completes, keep=keep, inserts=inserts)
    for completes in (False, True)
    for keep in (False, True)
    for inserts in (False, True)
    if completes or inserts
}


def fused_values(pairs: Sequence[tuple[JobId, int]], owners: Iterable[Owner]) -> dict[str, object]:
    """Return the values of the completions in a fused step."""
    pairs = sorted(pairs)
    return {
        "ids": numbers(pair[0] for pair in pairs),
        "attempts": numbers(pair[1] for pair in pairs),
        "owners": numbers(owners),
        "wanted": len(pairs),
    }


# By the partial indexes claim, suspect and running.
UNFINISHED = """
SELECT (SELECT count(*) FROM dutiful.job WHERE state = 'pending' AND crashes = 0)
     + (SELECT count(*) FROM dutiful.job WHERE state = 'pending' AND crashes > 0)
     + (SELECT count(*) FROM dutiful.job WHERE state = 'running')
     + (SELECT count(*) FROM dutiful.job WHERE state = 'blocked')
"""


def count_unfinished(db: Connection) -> int:
    """Count pending and running jobs."""
    return int(db.one(UNFINISHED)[0])


# One step at a time counts the unfinished jobs and adds to them, of all that have a bound.
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('dutiful buffer ' || %s, 0))"


def count_alone(db: Connection, schema_name: str) -> Cursor:
    """Count pending and running jobs, and keep others from counting until this transaction ends."""
    db.run(_ALONE, (schema_name,))
    return db.run(UNFINISHED)


def numbers(values: Iterable[int]) -> str:
    """Return an array of numbers, as PostgreSQL reads it."""
    return f"{{{','.join(map(str, values))}}}"
