"""What a job's end sets free: its key, its slot, its unique key, and the jobs that follow it."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from dutiful.job import FINISHED, JobId
from dutiful.store.contract import Sql
from dutiful.store.special import extra as extras
from dutiful.store.special import gates


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
        settle(turn, ids)


def _pass_on(sql: Sql, job_id: JobId, held: str | None) -> None:
    if held is None:
        gates.let_through(sql, [job_id])
    else:
        sql.change("UPDATE {job} SET held = ? WHERE id = ?", held, job_id)


def _tell_followers(turn: gates.Turn, parents: Sequence[JobId]) -> list[JobId]:
    """Send on who follows no open job any more; return who was cancelled with a parent."""
    sql = turn.sql
    open_rows = sql.rows(
        "SELECT parent_id, job_id FROM {after} WHERE parent_id IN {ids} AND outcome IS NULL", list(parents)
    )
    if not open_rows:
        return []
    known = {
        row[0]: (row[1], row[2])
        for row in sql.rows(
            "SELECT id, state, result FROM {job} WHERE id IN {ids}", sorted({row[0] for row in open_rows})
        )
    }
    children = {
        row[0]: row
        for row in sql.rows(
            "SELECT id, extra, lane, pool, due_at FROM {job}"
            " WHERE id IN {ids} AND state = 'blocked' AND held = 'after' ORDER BY id {lock}",
            sorted({row[1] for row in open_rows}),
        )
    }
    told: Counter[JobId] = Counter()
    cancelled: set[JobId] = set()
    for parent, job_id in open_rows:
        outcome, result = known.get(parent, ("completed", None))
        if outcome not in FINISHED:
            continue
        if job_id in children and outcome != "completed":
            on_dead = extras.read(children[job_id][1]).on_dead
            if on_dead == "wait":
                continue  # it may yet be run again, by hand
            if on_dead == "cancel":
                cancelled.add(job_id)
        _note(sql, parent, job_id, outcome, result)
        told[job_id] += 1
    if cancelled:
        _cancel(sql, sorted(cancelled))
    for job_id, count in sorted(told.items()):
        if job_id in children and job_id not in cancelled and _counted_down(sql, job_id, count) <= 0:
            lane, pool, due_at = children[job_id][2:]
            _pass_on(sql, job_id, gates.first_gate(lane, pool))
            turn.look_at(lane, pool if lane is None else None)
            if lane is None and pool is None:
                turn.note_passed(due_at)
    return sorted(cancelled)


def _note(sql: Sql, parent: JobId, job_id: JobId, outcome: Any, result: Any) -> None:
    sql.change(
        "UPDATE {after} SET outcome = ?, result = ? WHERE parent_id = ? AND job_id = ?",
        outcome,
        result,
        parent,
        job_id,
    )


def _counted_down(sql: Sql, job_id: JobId, count: int) -> int:
    sql.change("UPDATE {job} SET waits = waits - ? WHERE id = ?", count, job_id)
    return int(sql.rows("SELECT waits FROM {job} WHERE id = ?", job_id)[0][0])


def _cancel(sql: Sql, ids: Sequence[JobId]) -> None:
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
