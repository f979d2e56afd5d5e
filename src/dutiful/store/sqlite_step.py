"""
The parts of one step on a SQLite connection, each one statement for any number of jobs.

One statement, not one per row, for a reason: Python's sqlite3 gives up the interpreter
lock around each `sqlite3_step` and, when a handler computes, gets it back only after the
switch interval, 5 ms. A batch of 500 rows fetched or bound one by one would then take
seconds. So rows go in and out as one JSON text, built and read by msgspec: measured on
two cores, inserting 500 rows so costs 1.1 µs a row, executemany 2.3 µs and unboundedly
more beside a busy thread (2026-11).
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from dutiful.job import FINISHED, Ack, Claim, JobId
from dutiful.store.choosing import Found, age, choose, urgency
from dutiful.store.contract import Aged, Draft, Outcome, Take

_encode = msgspec.json.Encoder().encode
_claims = msgspec.json.Decoder(list[Claim]).decode


Executes = sqlite3.Connection | sqlite3.Cursor


class LateAck(Exception):
    """Internal: an ack did not apply, so the step is done again carefully, to learn which."""


class Followed(Exception):
    """Internal: some job waits for others, so what has completed has to be told to it."""


# --- acks -----------------------------------------------------------------------------


_RUNNING = "attempt = :attempt AND state = 'running'"
_DELETE = "DELETE FROM dutiful_job WHERE "
_COMPLETE = "UPDATE dutiful_job SET state = 'completed', owner = NULL, finished_at = :now WHERE "
# In a handler's own transaction, which is not to do more than that: what it sets free is seen to afterwards,
# by whoever comes first (see special/release.py).
COMPLETE_ONE = (
    "UPDATE dutiful_job SET state = 'completed', owner = NULL, finished_at = ?,"
    " held = CASE WHEN extra IS NOT NULL OR followed THEN 'end' END"
    " WHERE id = ? AND attempt = ? AND state = 'running'"
)
_RUN = f"id BETWEEN :low AND :high AND {_RUNNING}"
_SET = f"id IN (SELECT value FROM json_each(:ids)) AND {_RUNNING}"
_FORGET_ERRORS = "DELETE FROM dutiful_error WHERE job_id IN (SELECT value FROM json_each(?))"


# By primary key. An ack without a delay keeps the job's place in line.
def _field(at: int) -> str:
    return f"json_extract(value, '$[{at}]')"


# A job that was asked to stop is not tried again, however its attempt ended.
_GIVEN_UP = "(a.state = 'pending' AND dutiful_job.cancel_at IS NOT NULL)"
_ACK = f"""
UPDATE dutiful_job
   SET state = CASE WHEN {_GIVEN_UP} THEN 'cancelled' ELSE a.state END,
       owner = NULL, cancel_at = NULL, failures = a.failures, crashes = a.crashes,
       due_at = coalesce(:now + a.delay_ms, due_at),
       due_fixed = CASE WHEN a.delay_ms IS NULL THEN due_fixed ELSE 0 END,
       finished_at = CASE WHEN a.state = 'pending' AND NOT {_GIVEN_UP} THEN NULL ELSE :now END,
       result = a.result
  FROM (SELECT {_field(0)} AS id, {_field(1)} AS attempt, {_field(2)} AS state, {_field(3)} AS failures,
               {_field(4)} AS crashes, {_field(5)} AS delay_ms, {_field(6)} AS result
          FROM json_each(:acks)) AS a
 WHERE dutiful_job.id = a.id AND dutiful_job.attempt = a.attempt AND dutiful_job.state = 'running'
"""
_ERRORS = f"""
INSERT OR REPLACE INTO dutiful_error (job_id, attempt, at, worker, type, message, traceback)
SELECT {_field(0)}, {_field(1)}, :now, {_field(2)}, {_field(3)}, {_field(4)}, {_field(5)}
  FROM json_each(:errors)
"""


def complete(db: sqlite3.Connection, pairs: Sequence[tuple[JobId, int]], *, keep: bool, now: int) -> None:
    """Write that these attempts ended well and without a result. Runs of ids go by range: half the cost."""
    attempts = {attempt for _id, attempt in pairs}
    for attempt in attempts:
        ids = [job_id for job_id, its in pairs if its == attempt]
        ids.sort()
        runs = _runs(ids)
        end = _COMPLETE if keep else _DELETE
        values = {"attempt": attempt, "now": now}
        if len(runs) * 4 <= len(ids) or len(ids) == 1:
            changed = sum(
                db.execute(end + _RUN, {**values, "low": low, "high": high}).rowcount for low, high in runs
            )
        else:
            changed = db.execute(end + _SET, {**values, "ids": _text(ids)}).rowcount
        if changed != len(ids):
            raise LateAck
        if not keep and attempt > 1:
            db.execute(_FORGET_ERRORS, (_text(ids),))


def ack(db: sqlite3.Connection, acks: Sequence[Ack], *, now: int, worker: str) -> None:
    """Write what these attempts came to, and the errors of those that failed."""
    rows = [
        (
            a.id,
            a.attempt,
            a.state,
            a.failures,
            a.crashes,
            None if a.delay_s is None else round(a.delay_s * 1000),
            a.result,
        )
        for a in acks
    ]
    if db.execute(_ACK, {"acks": _text(rows), "now": now}).rowcount != len(rows):
        raise LateAck
    errors = [
        (a.id, a.attempt, worker, a.error.type, a.error.message, a.error.traceback)
        for a in acks
        if a.error is not None
    ]
    if errors:
        db.execute(_ERRORS, {"errors": _text(errors), "now": now})


def acks_one_by_one(
    db: sqlite3.Connection,
    acks: Sequence[Ack],
    completed: Sequence[tuple[JobId, int]],
    *,
    keep: bool,
    now: int,
    worker: str,
) -> list[tuple[JobId, int]]:
    """Do the same singly, and return the ones that came too late."""
    late: list[tuple[JobId, int]] = []
    for one in acks:
        try:
            ack(db, [one], now=now, worker=worker)
        except LateAck:
            late.append((one.id, one.attempt))
    for pair in completed:
        try:
            complete(db, [pair], keep=keep, now=now)
        except LateAck:
            late.append(pair)
    return late


# --- taking -----------------------------------------------------------------------------

# Visits each priority once, most urgent first, and within it only what is due: index
# dutiful_job_claim (or …_suspect) serves both the walk and the range. CROSS JOIN keeps
# SQLite from turning the loops around.
_DUE = """
SELECT id, attempt, failures, crashes, task, queue, payload, priority, due_at, extra FROM (
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
    SELECT j.* FROM level CROSS JOIN dutiful_job AS j
     WHERE j.queue = :queue AND j.state = 'pending' AND j.crashes {crashes} 0
       AND j.priority = level.p AND j.due_at <= :now {skip}
     LIMIT {limit})
"""
_ROW = """
SELECT json_group_array(json_array(id, attempt + 1, failures, crashes, task, queue,
                                   CASE typeof(payload) WHEN 'text' THEN payload END,
                                   priority, due_at, extra))
"""
_SKIP = "AND j.task NOT IN (SELECT value FROM json_each(:skip))"
_CLAIM = """
UPDATE dutiful_job
   SET state = 'running', owner = :owner, attempt = attempt + 1, started_at = :now, parked_at = NULL
 WHERE id IN (SELECT value FROM json_each(:ids))
"""


def select_due(*, suspects: bool, skip: bool) -> str:
    """Return the query for due jobs; the short forms for what is most often so."""
    without = _SKIP if skip else ""
    others = _DUE.format(crashes="=", limit=":limit", skip=without)
    if not suspects:
        return f"{_ROW} FROM ({others})"
    first = _DUE.format(crashes=">", limit=":suspects", skip=without)
    return f"{_ROW} FROM (SELECT * FROM ({first}) UNION ALL SELECT * FROM ({others}))"


# Of one priority, those that have waited long: index dutiful_job_claim serves the range and the order.
_AGED = """
SELECT id, attempt, failures, crashes, task, queue, payload, priority, due_at, extra FROM dutiful_job AS j
 WHERE queue = :queue AND state = 'pending' AND crashes = 0
   AND priority = :priority AND due_at <= min(:till, :now) {skip}
 ORDER BY due_at LIMIT :limit
"""


def select_aged(*, skip: bool) -> str:
    """Return the query for old jobs."""
    return f"{_ROW} FROM ({_AGED.format(skip=_SKIP if skip else '')})"


_SELECT_DUE = {
    (suspects, skip): select_due(suspects=suspects, skip=skip)
    for suspects in (False, True)
    for skip in (False, True)
}


def take(db: sqlite3.Connection, wish: Take, outcome: Outcome, *, now: int) -> None:
    """Claim what is due, most urgent first, and leave what nobody here knows to others."""
    skip = set(wish.skip)
    suspects = wish.suspects
    while True:
        limit = wish.limit - len(outcome.claims)
        if wish.turns is None and wish.aged is None:
            due, is_all = _due(db, wish.queues, limit, suspects, skip, now)
        else:
            due, is_all = _due_in_turn(db, wish, limit, suspects, skip, now, outcome)
        known = due if wish.known is None else [claim for claim in due if claim.task in wish.known]
        if known:
            ids = _text([claim.id for claim in known])
            db.execute(_CLAIM, {"ids": ids, "owner": wish.owner, "now": now})
            outcome.claims += known
            suspects -= sum(claim.crashes > 0 for claim in known)
        unknown = {claim.task for claim in due} - {claim.task for claim in known}
        skip |= unknown
        outcome.unknown |= unknown
        outcome.drained = is_all
        if is_all or len(outcome.claims) >= wish.limit:
            return


def _due(
    db: sqlite3.Connection, queues: Sequence[str], limit: int, suspects: int, skip: set[str], now: int
) -> tuple[list[Claim], bool]:
    """Return up to `limit` due jobs, and whether that is all there are."""
    sql = _SELECT_DUE[bool(suspects), bool(skip)]
    values: dict[str, object] = {"now": now, "limit": limit}
    if suspects:
        values["suspects"] = suspects
    if skip:
        values["skip"] = _text(sorted(skip))
    found: list[Claim] = []
    is_all = True
    for queue in queues:
        here = _read(db.execute(sql, {**values, "queue": queue}).fetchone()[0])
        is_all = is_all and len(here) < limit
        found += here
    if len(queues) > 1:
        found.sort(key=urgency)
    chosen = _limited(found, limit, suspects)
    return chosen, is_all and len(chosen) == len(found)


def _due_in_turn(
    db: sqlite3.Connection,
    wish: Take,
    limit: int,
    suspects: int,
    skip: set[str],
    now: int,
    outcome: Outcome,
) -> tuple[list[Claim], bool]:
    """Return up to `limit` due jobs by the queues' turns, and by age; and whether that is all there are."""
    turns = wish.turns if outcome.turns is None else outcome.turns
    aged = 0 if wish.aged is None else min(limit, wish.aged.limit - outcome.aged)
    found: dict[str, Found] = {}
    is_all = True
    for queue in wish.queues if turns is None else [each for each in turns.strides if each in wish.queues]:
        here, is_all_here = _due(db, (queue,), limit, suspects, skip, now)
        found[queue] = Found(
            [claim for claim in here if claim.crashes],
            _aged(db, queue, wish.aged, aged, skip, now),
            [claim for claim in here if not claim.crashes],
        )
        is_all = is_all and is_all_here
        if turns is not None and turns.is_strict and len(here) == limit:
            is_all = False  # nothing of the next ones can be taken
            break
    chosen = choose(found, turns, limit=limit, suspects=suspects, aged=aged)
    outcome.turns = chosen.turns
    outcome.aged += chosen.aged
    return chosen.claims, is_all and chosen.is_all


def _aged(
    db: sqlite3.Connection, queue: str, aged: Aged | None, limit: int, skip: set[str], now: int
) -> list[Claim]:
    found: list[Claim] = []
    if aged is None or limit <= 0:
        return found
    values: dict[str, object] = {"queue": queue, "till": aged.till, "now": now, "limit": limit}
    if skip:
        values["skip"] = _text(sorted(skip))
    for its_queue, priority in aged.levels:
        if its_queue == queue:
            row = db.execute(select_aged(skip=bool(skip)), {**values, "priority": priority}).fetchone()
            found += _read(row[0])
    return sorted(found, key=age)[:limit]


def _limited(found: list[Claim], limit: int, suspects: int) -> list[Claim]:
    """Cut the list to the limits: each queue was asked for as many as all together may be."""
    if suspects and any(claim.crashes for claim in found):
        chosen = [claim for claim in found if claim.crashes][:suspects]
        found = chosen + [claim for claim in found if not claim.crashes]
    return found[:limit]


def _read(text: bytes) -> list[Claim]:
    try:
        return _claims(text)
    except (UnicodeDecodeError, msgspec.DecodeError):
        # Some stored text is no UTF-8; find which job, and let that one be undecodable.
        rows = json.loads(text.decode("utf-8", "surrogateescape"))
        return [msgspec.convert([None if _broken(value) else value for value in row], Claim) for row in rows]


def _broken(value: object) -> bool:
    return isinstance(value, str) and any("\udc80" <= char <= "\udcff" for char in value)


def first_due(db: sqlite3.Connection, queue: str, *, now: int, limit: int) -> list[tuple[JobId, str, int]]:
    """Return (id, task, due_at) of the jobs that are first in line: what a claim has to pass."""
    sql = _DUE.format(crashes="=", limit=":limit", skip="")
    values = {"queue": queue, "now": now, "limit": limit}
    row = db.execute(f"SELECT json_group_array(json_array(id, task, due_at)) FROM ({sql})", values).fetchone()
    return msgspec.json.decode(row[0], type=list[tuple[JobId, str, int]])


# --- storing ------------------------------------------------------------------------------

_COLUMNS = (
    "(id, state, owner, attempt, queue, task, priority, due_at, due_fixed, created_at, started_at, payload)"
)
_INSERT_ONE = f"INSERT INTO dutiful_job {_COLUMNS} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RESERVE = (
    "UPDATE dutiful_meta SET value = ? + max(value, coalesce((SELECT max(id) + 1 FROM dutiful_job), 1))"
    " WHERE key = 'next_id'"
)
RESERVED = "SELECT value FROM dutiful_meta WHERE key = 'next_id'"
_INSERT_MANY = f"""
INSERT INTO dutiful_job {_COLUMNS}
SELECT ? + key, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, value FROM json_each(?)
"""


def insert(db: Executes, first: JobId, draft: Draft, now: int, owner: int | None = None) -> None:
    """Store a draft's jobs with the ids from `first` on; with `owner`, as claimed by it."""
    db.execute(*inserting(first, draft, now, owner))


def inserting(first: JobId, draft: Draft, now: int, owner: int | None = None) -> tuple[str, tuple[Any, ...]]:
    """Return the statement for that, and its arguments."""
    due_at = _due_at(draft, now)
    values = (
        first,
        "pending" if owner is None else "running",  # a StrEnum would cost the driver 1 µs
        owner,
        0 if owner is None else 1,
        draft.queue,
        draft.task,
        draft.priority,
        due_at,
        int(draft.run_at is not None),
        now,
        None if owner is None else now,
    )
    if len(draft.payloads) == 1:
        return _INSERT_ONE, (*values, draft.payloads[0])
    return _INSERT_MANY, (*values, _text(draft.payloads))


# --- all in one ------------------------------------------------------------------------------

# The most frequent step, as one statement in autocommit mode: what has completed goes, what is
# new comes, the first `handed` of it as claimed. A step of BEGIN, two statements and COMMIT
# would ask four times for the interpreter lock; each time a handler may keep it for the rest of
# its burst, while the disk waits, and then the handler waits for the disk. As one statement
# the two overlap: about 1.5 times the jobs a second, measured once on two noisy cores (2026-11).
_FUSED_ARGUMENTS = (
    "ids",
    "completed",
    "attempt",
    "now",
    "first",
    "handed",
    "owner",
    "queue",
    "task",
    "priority",
    "due_at",
    "due_fixed",
    "payloads",
)
_FUSED_INSERT = """
    INSERT INTO dutiful_job (id, state, owner, attempt, queue, task, priority, due_at, due_fixed, created_at,
                             started_at, payload)
    SELECT new.first + key,
           CASE WHEN key < new.handed THEN 'running' ELSE 'pending' END,
           CASE WHEN key < new.handed THEN new.owner END,
           key < new.handed,
           new.queue, new.task, new.priority, new.due_at, new.due_fixed, new.now,
           CASE WHEN key < new.handed THEN new.now END,
           value
      FROM json_each(new.payloads);
"""
_FUSED_IDS = {
    # A run of ids by its ends: a fifth cheaper for the whole step than the set.
    True: "id BETWEEN json_extract(new.ids, '$[0]') AND json_extract(new.ids, '$[1]')",
    False: "id IN (SELECT value FROM json_each(new.ids))",
}
_FUSED_ENDS = {
    False: "DELETE FROM dutiful_job",
    True: "UPDATE dutiful_job SET state = 'completed', owner = NULL, finished_at = new.now",
}
_FUSED_SQL = {
    (keep, is_run): f"INSERT INTO dutiful_fused_{int(keep)}{int(is_run)}"
    f" VALUES ({', '.join('?' * len(_FUSED_ARGUMENTS))})"
    for keep in (False, True)
    for is_run in (False, True)
}


def prepare_fused(db: sqlite3.Connection) -> None:
    """Give this connection the views and triggers that `fused` writes through; they are temporary."""
    columns = ", ".join(f"NULL AS {name}" for name in _FUSED_ARGUMENTS)
    for keep, is_run in _FUSED_SQL:
        name = f"{int(keep)}{int(is_run)}"
        db.execute(f"CREATE TEMP VIEW dutiful_fused_{name} AS SELECT {columns} WHERE 0")
        db.execute(
            f"CREATE TEMP TRIGGER dutiful_fuse_{name} INSTEAD OF INSERT ON dutiful_fused_{name} BEGIN"
            f" {_FUSED_ENDS[keep]} WHERE {_FUSED_IDS[is_run]}"
            " AND attempt = new.attempt AND state = 'running';"
            f" SELECT RAISE(ROLLBACK, 'late') WHERE changes() <> new.completed;"
            " SELECT RAISE(ROLLBACK, 'followed') WHERE new.completed"
            " AND EXISTS (SELECT 1 FROM dutiful_after WHERE outcome IS NULL);"
            f" {_FUSED_INSERT} END"
        )


def fused(
    db: sqlite3.Connection,
    completed: Sequence[tuple[JobId, int]],
    draft: Draft | None,
    *,
    keep: bool,
    now: int,
    first: JobId = 0,
    handed: int = 0,
    owner: int | None = None,
) -> None:
    """
    Do a whole step, and commit it: `completed`, all of one attempt number, and one draft.

    Raises:
        LateAck: Some attempt no longer owned its job; nothing was changed.
        Followed: Some job waits for others; nothing was changed.
    """
    ids = sorted(job_id for job_id, _attempt in completed)
    is_run = bool(ids) and ids[-1] - ids[0] == len(ids) - 1
    named = (ids[0], ids[-1]) if is_run else ids
    head = (_text(named), len(ids), completed[0][1] if completed else 0, now)
    if draft is None:
        tail: tuple[object, ...] = (0, 0, None, "", "", 0, 0, 0, "[]")
    else:
        due_at = _due_at(draft, now)
        tail = (
            first,
            handed,
            owner,
            draft.queue,
            draft.task,
            draft.priority,
            due_at,
            int(draft.run_at is not None),
            _text(draft.payloads),
        )
    try:
        db.execute(_FUSED_SQL[keep, is_run], (*head, *tail))
    except sqlite3.IntegrityError as error:
        if error.args == ("late",):
            raise LateAck from None
        if error.args == ("followed",):
            raise Followed from None
        raise


def _due_at(draft: Draft, now: int) -> int:
    if draft.run_at is not None:
        return draft.run_at
    return now if draft.delay_s is None else now + round(draft.delay_s * 1000)


def claims_of(first: JobId, draft: Draft, now: int) -> list[Claim]:
    """Return the claims of a draft's jobs that were stored as claimed."""
    task, queue, priority = draft.task, draft.queue, draft.priority
    return [
        Claim(job_id, 1, 0, 0, task, queue, payload, priority, now)
        for job_id, payload in enumerate(draft.payloads, first)
    ]


def reserve_ids(db: Executes, count: int) -> JobId:
    """Take `count` ids; return the first. They are given for good once the transaction commits."""
    db.execute(*reserving(count))
    return int(db.execute(RESERVED).fetchone()[0]) - count


def reserving(count: int) -> tuple[str, tuple[int]]:
    """Return the statement that takes `count` ids; RESERVED then gives the one after the last."""
    return _RESERVE, (count,)


def count_unfinished(db: sqlite3.Connection) -> int:
    """Count the jobs that have not finished; by the partial indexes claim, suspect, blocked and running."""
    return int(
        db.execute(
            "SELECT (SELECT count(*) FROM dutiful_job WHERE state = 'pending' AND crashes = 0)"
            "     + (SELECT count(*) FROM dutiful_job WHERE state = 'blocked')"
            "     + (SELECT count(*) FROM dutiful_job WHERE state = 'pending' AND crashes > 0)"
            "     + (SELECT count(*) FROM dutiful_job WHERE state = 'running')"
        ).fetchone()[0]
    )


def freed(
    acks: Iterable[Ack], completed: Collection[tuple[JobId, int]], *, late: Collection[tuple[JobId, int]]
) -> int:
    """Return how many jobs these acks have finished, but for those that came too late."""
    finishing = [(ack.id, ack.attempt) for ack in acks if ack.state in FINISHED]
    return len(completed) + len(finishing) - sum(pair in late for pair in (*completed, *finishing) if late)


def _runs(ids: Sequence[JobId]) -> list[tuple[JobId, JobId]]:
    """Split sorted ids into runs without a gap: (first, last)."""
    if ids[-1] - ids[0] == len(ids) - 1:
        return [(ids[0], ids[-1])]
    runs: list[tuple[JobId, JobId]] = []
    low = high = ids[0]
    for job_id in ids[1:]:
        if job_id != high + 1:
            runs.append((low, high))
            low = job_id
        high = job_id
    runs.append((low, high))
    return runs


def _text(value: object) -> str:
    return _encode(value).decode()
