"""What a job's end sets free: its key, its slot, its unique key, and the jobs that follow it."""

from collections import Counter
from collections.abc import Collection, Sequence

from dutiful.job import FINISHED, JobId, State
from dutiful.store.contract import Sql
from dutiful.store.special import extra as extras
from dutiful.store.special import gates

# Not `= 'blocked'`: that would offer the index job_blocked, to read all of it (see postgres_step.OWNED).
_WAITS = "state IN ('blocked', '-') AND held IN ('after', 'group')"

FOLLOWERS_AT_ONCE = 2000  # some tens of ms of the write lock
_NO_LIMIT = 2**62
# By index after_open.
_OPEN = "SELECT parent_id, job_id FROM {after} WHERE parent_id IN {ids} AND outcome IS NULL LIMIT ?"


def has_followers(sql: Sql) -> bool:
    """Whether any job waits for another. By index after_open; one step, whatever the answer."""
    return bool(sql.rows("SELECT 1 FROM {after} WHERE outcome IS NULL LIMIT 1"))


def settle(turn: gates.Turn, ids: Collection[JobId], *, followed: bool = True) -> None:
    """
    Some attempts have ended, or jobs have gone: see what became of them, and what that sets free.

    What was written is looked at, not what was meant: one that was asked to stop is cancelled, however
    its attempt ended. Whoever may go on then does so when the turn is finished.

    Args:
        turn: It takes part in.
        ids: Plain jobs among them cost little.
        followed: False: none of them is followed (see `has_followers`).
    """
    sql = turn.sql
    todo = list(ids)
    while todo:  # cancelling one that followed may cancel those that follow it
        rows = sql.rows(
            "SELECT id, state, lane, pool, unique_key FROM {job} WHERE id IN {ids} AND extra IS NOT NULL",
            todo,
        )
        waiting = {row[0] for row in rows if row[1] not in FINISHED}
        ended = [row for row in rows if row[1] in FINISHED]
        for row in ended:
            turn.look_at(row[2], row[3])
        if any(row[4] is not None for row in ended):
            sql.change(
                "UPDATE {job} SET unique_key = NULL"
                " WHERE id IN {ids} AND unique_key IS NOT NULL AND unique_till IS NULL",
                sorted(row[0] for row in ended),
            )
        _step_aside(turn, sorted(waiting))
        gone = [job_id for job_id in todo if job_id not in waiting]
        todo = _tell_followers(turn, gone) if followed else []


def ends(look: Sql) -> list[JobId]:
    """Return some of the jobs that were completed in a handler's own transaction. By index job_end."""
    return [row[0] for row in look.rows("SELECT id FROM {job} WHERE held = 'end' ORDER BY id LIMIT 500")]


def settle_ends(turn: gates.Turn, ids: Collection[JobId]) -> None:
    """Settle such jobs; another who waits for their rows finds that it is done."""
    if ids:
        turn.sql.change("UPDATE {job} SET held = NULL WHERE id IN {ids} AND held = 'end'", sorted(ids))
        settle(turn, ids)  # which may leave a rest


def _tell_followers(turn: gates.Turn, parents: Sequence[JobId]) -> list[JobId]:
    """
    Send on who follows no open job any more; return who was cancelled with a parent.

    A statement for all of a kind, never one for each: a job may follow a hundred thousand, and as many it.
    """
    sql = turn.sql
    open_rows = sql.rows(_OPEN, list(parents), FOLLOWERS_AT_ONCE + 1)
    if not open_rows:
        return []
    are_all = len(open_rows) <= FOLLOWERS_AT_ONCE
    outcomes = _outcomes(sql, sorted({row[0] for row in open_rows}) if are_all else sorted(parents))
    failed = sorted(parent for parent, outcome in outcomes.items() if outcome != State.COMPLETED)
    if failed and not are_all:
        open_rows = sql.rows(_OPEN, failed, _NO_LIMIT)
    waiting, cancelled = _heedful(sql, sorted({row[1] for row in open_rows if row[0] in set(failed)}))
    told: Counter[JobId] = Counter()
    for outcome in sorted(set(outcomes.values())):
        its = sorted(parent for parent, state in outcomes.items() if state == outcome)
        if outcome == State.COMPLETED and not are_all:
            told.update(_note_some(turn, its))
        else:
            told.update(_note(sql, its, outcome, [] if outcome == State.COMPLETED else waiting))
    _count_down(sql, told)
    if cancelled:
        cancel(sql, cancelled)
    pass_on(turn, sorted(told))
    return cancelled


def _outcomes(sql: Sql, parents: list[JobId]) -> dict[JobId, State]:
    """Return what became of those that have ended. One that is gone had completed."""
    found = {row[0]: row[1] for row in sql.rows("SELECT id, state FROM {job} WHERE id IN {ids}", parents)}
    states = {parent: State(found.get(parent, State.COMPLETED)) for parent in parents}
    return {parent: state for parent, state in states.items() if state in FINISHED}


def _heedful(sql: Sql, children: list[JobId]) -> tuple[list[JobId], list[JobId]]:
    """Return who waits in spite of a parent that did not complete, and who is cancelled for that."""
    if not children:
        return [], []
    rows = sql.rows(
        f"SELECT id, held, extra FROM {{job}} WHERE id IN {{ids}} AND {_WAITS} ORDER BY id {{lock}}", children
    )
    wishes = [(job_id, held, extras.read(text).on_dead) for job_id, held, text in rows]
    return (
        [job_id for job_id, _held, on_dead in wishes if on_dead == "wait"],
        # Not while its group is sent: its sender would find it gone. It is looked at when that is closed.
        [job_id for job_id, held, on_dead in wishes if on_dead == "cancel" and held == "after"],
    )


def _note(sql: Sql, parents: list[JobId], outcome: State, but: list[JobId]) -> list[JobId]:
    """Write a parent's end, and its result, for those that wait for it; return whom it was told."""
    return [
        row[0]
        for row in sql.rows(  # by index after_open; in {job} there is no parent_id
            "UPDATE {after} SET outcome = ?, result = (SELECT result FROM {job} WHERE id = parent_id)"
            " WHERE parent_id IN {ids} AND outcome IS NULL AND job_id NOT IN {ids} RETURNING job_id",
            outcome,
            parents,
            but,
        )
    ]


def _note_some(turn: gates.Turn, parents: list[JobId]) -> list[JobId]:
    """
    Write that these have completed for some of the many that wait for them; return whom it was told.

    The rest is left for later steps (`settle_ends`), so that nobody waits long for this one.
    """
    sql = turn.sql
    told = [
        row[0]
        for row in sql.rows(
            "UPDATE {after} SET outcome = 'completed',"
            " result = (SELECT result FROM {job} WHERE id = parent_id)"
            f" WHERE (parent_id, job_id) IN ({_OPEN}) RETURNING job_id",
            parents,
            FOLLOWERS_AT_ONCE,
        )
    ]
    turn.leaves_rest = bool(
        sql.change(
            "UPDATE {job} SET held = 'end' WHERE id IN {ids}"
            " AND EXISTS (SELECT 1 FROM {after} WHERE parent_id = id AND outcome IS NULL)",
            parents,
        )
    )
    there = {row[0] for row in sql.rows("SELECT id FROM {job} WHERE id IN {ids}", parents)}
    gone = [parent for parent in parents if parent not in there]  # nothing is left of them to come back to
    return told + _note(sql, gone, State.COMPLETED, [])


def has_rest(look: Sql, ends: list[JobId]) -> bool:
    """Whether one step is not enough to settle these."""
    return bool(ends) and len(look.rows(_OPEN, ends, FOLLOWERS_AT_ONCE + 1)) > FOLLOWERS_AT_ONCE


def _count_down(sql: Sql, told: Counter[JobId]) -> None:
    """Each waits for so many fewer: an update of each, however many of its parents have ended at once."""
    if len(told) > 1:  # in one order everywhere, so that nobody waits in a circle
        sql.rows("SELECT id FROM {job} WHERE id IN {ids} ORDER BY id {lock}", sorted(told))
    for count in sorted(set(told.values())):
        ids = sorted(job_id for job_id, its in told.items() if its == count)
        sql.change("UPDATE {job} SET waits = waits - ? WHERE id IN {ids}", count, ids)


def pass_on(turn: gates.Turn, ids: Sequence[JobId]) -> None:
    """Send those of these on that wait for no other job any more: to their next gate, if they have one."""
    sql = turn.sql
    rows = sql.rows(
        "SELECT id, lane, pool, due_at FROM {job} WHERE id IN {ids} AND state IN ('blocked', '-')"
        " AND held = 'after' AND waits <= 0 ORDER BY id {lock}",
        list(ids),
    )
    passed: dict[str | None, list[JobId]] = {}
    for job_id, lane, pool, due_at in rows:
        passed.setdefault(gates.first_gate(lane, pool), []).append(job_id)
        turn.look_at(lane, pool if lane is None else None)
        if lane is None and pool is None:
            turn.note_passed(due_at)
    for held, its in passed.items():
        if held is None:
            gates.let_through(sql, its)
        else:
            sql.change("UPDATE {job} SET held = ? WHERE id IN {ids}", held, its)


def cancel(sql: Sql, ids: Sequence[JobId]) -> None:
    """End jobs that wait."""
    sql.change(
        "UPDATE {job} SET state = 'cancelled', finished_at = ?, held = NULL WHERE id IN {ids}",
        sql.now,
        list(ids),
    )


def _step_aside(turn: gates.Turn, ids: Sequence[JobId]) -> None:
    """Some special jobs wait for a retry: those that hold a slot, or whose key goes on, let others pass."""
    sql = turn.sql
    if not ids:
        return
    rows = sql.rows(
        "SELECT id, extra, lane, pool FROM {job} WHERE id IN {ids} AND state = 'pending' AND due_at > ?",
        list(ids),
        sql.now,
    )
    for job_id, text, lane, pool in rows:
        skips = lane is not None and extras.read(text).key_skips
        if skips or pool is not None:
            held = "key" if skips else "pool"
            sql.change("UPDATE {job} SET state = 'blocked', held = ? WHERE id = ?", held, job_id)
            turn.look_at(lane if skips else None, pool)


def forget(sql: Sql, ids: Collection[JobId]) -> None:
    """Some jobs are deleted: remove what was kept beside them."""
    sql.change("DELETE FROM {after} WHERE job_id IN {ids}", list(ids))
    sql.change("DELETE FROM {step} WHERE job_id IN {ids}", list(ids))
