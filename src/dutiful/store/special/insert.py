"""New special jobs, and special jobs that are run again by hand."""

from collections.abc import Sequence
from typing import Any

import msgspec

from dutiful.job import FINISHED, JobId, State
from dutiful.store.contract import Draft, Outcome, Special, Sql, Unique
from dutiful.store.special import extra as extras
from dutiful.store.special import gates, groups

_FOREVER = 2**62  # ms: a unique key that stands in the way until its job is deleted

_INSERT = """
INSERT INTO {job} (id, state, queue, task, priority, due_at, due_fixed, attempt, failures, crashes,
                   created_at, finished_at, extra, held, lane, pool, waits, unique_key, unique_till,
                   expires_at, followed, payload)
"""
_VALUES = "VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_ONE = f"{_INSERT} {_VALUES}"
# Those that differ in their payload alone.
_INSERT_MANY = f"""
{_INSERT} SELECT ? + at, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, value
  FROM {{texts}} AS new
"""

_DUE_AT = 4  # its place in a row without its id


def insert_all(turn: gates.Turn, drafts: Sequence[Draft], outcome: Outcome) -> bool:
    """
    Store the special ones of a step's drafts, with the ids in `outcome.stored`.

    Those with a unique key in the order of the keys: two steps that have several of them in common
    would wait for each other in a circle. Returns whether somebody is to look for them.
    """
    special = [(at, draft) for at, draft in enumerate(drafts) if draft.special is not None]
    special.sort(key=_unique_key)
    for at, draft in special:
        if draft.payloads:
            outcome.stored[at], is_found = insert(turn, outcome.stored[at].start, _placed(draft, at, outcome))
        else:
            is_found = not _closed(turn, draft, at, outcome)
        if is_found:
            outcome.found.add(at)
    # Jobs to follow were locked for a moment, and others could not see them.
    return any(_special(draft).after for _at, draft in special)


def _placed(draft: Draft, at: int, outcome: Outcome) -> Draft:
    """Return a draft with the ids of those that it names by their places in the step."""
    special = _special(draft)
    if special.member_of >= 0 and all(parent > 0 for parent in special.after):
        return draft
    after = tuple(_named(parent, at, outcome) for parent in special.after)
    named = msgspec.structs.replace(special, after=after, member_of=_named(special.member_of, at, outcome))
    return msgspec.structs.replace(draft, special=named)


def _named(job: JobId, at: int, outcome: Outcome) -> JobId:
    return outcome.stored[at + job].start if job < 0 else job


def _closed(turn: gates.Turn, draft: Draft, at: int, outcome: Outcome) -> bool:
    """Close the group that a draft without payloads is for; return False if it is no more."""
    special = _special(draft)
    if not special.closes or (special.closes < 0 and not outcome.stored[at + special.closes]):
        return True  # it is a draft that found no room
    row = _row(turn.sql, draft, msgspec.structs.replace(special, gathers=False), {})
    turn.declare(special)
    is_closed = groups.close(turn, _named(special.closes, at, outcome), draft, row)
    return is_closed or special.closes < 0  # it may have been cancelled at once, with what it follows


def _unique_key(placed: tuple[int, Draft]) -> str:
    unique = _special(placed[1]).unique
    return "" if unique is None else unique.key


def _special(draft: Draft) -> Special:
    assert draft.special is not None, "plain jobs go the short way"
    return draft.special


def insert(turn: gates.Turn, first: JobId, draft: Draft) -> tuple[range, bool]:
    """
    Store a draft's jobs, with the ids from `first` on; they go on when the turn is finished.

    Returns the ids, and whether they are not stored: they are those of a job that was there already
    (Unique), or their group takes no more.
    """
    sql, special = turn.sql, _special(draft)
    outcomes = _outcomes(sql, special)
    ids = range(first, first + len(draft.payloads))
    row = _row(sql, draft, special, outcomes)
    ended = "cancelled" if row[groups.STATE] == "cancelled" else None
    if special.member_of and not groups.takes(sql, special.member_of, 0 if ended else len(ids)):
        return ids, True
    if special.unique is not None:
        assert len(draft.payloads) == 1, "a unique draft holds one payload"
        found = _insert_unique(sql, first, row, draft, special.unique)
        if found is not None:
            turn.note_passed(row[_DUE_AT])  # it may have been moved
            return range(found, found + 1), True
    elif len(ids) > 1:
        sql.change(_INSERT_MANY, first, *row, msgspec.json.encode(draft.payloads).decode())
    else:
        sql.change(_INSERT_ONE, first, *row, draft.payloads[0])
    if special.after:
        _follow(sql, ids, special.after, outcomes, groups.BEFORE if special.gathers else 0)
    if special.member_of:
        groups.join(sql, special.member_of, ids, ended)
    if row[0] == "pending":
        turn.note_passed(row[_DUE_AT])
    turn.declare(special)
    turn.look_at(special.key, special.pool)
    return ids, False


def _row(
    sql: Sql, draft: Draft, special: Special, outcomes: dict[JobId, tuple[str | None, str | None]]
) -> list[Any]:
    """Return the values of a new row between its id and its payload."""
    now = sql.now
    waits = sum(outcome is None for outcome, _result in outcomes.values())
    failed = any(outcome not in (None, State.COMPLETED) for outcome, _result in outcomes.values())
    held = "after" if waits else gates.first_gate(special.key, special.pool)
    state = "pending" if held is None else "blocked"
    if failed and special.on_dead == "cancel":
        state, held = "cancelled", None  # before it began, so that it stands in nobody's way
    due_at = draft.run_at
    if due_at is None:
        due_at = now if draft.delay_s is None else now + round(draft.delay_s * 1000)
    extra = extras.of(special, now)
    unique = None if state == "cancelled" else special.unique
    expires_at = special.expires_at
    if special.expires_s is not None:
        expires_at = now + round(special.expires_s * 1000)
    if extra.deadline_at is not None:
        expires_at = extra.deadline_at if expires_at is None else min(expires_at, extra.deadline_at)
    row = [
        state,
        draft.queue,
        draft.task,
        draft.priority,
        due_at,
        draft.run_at is not None,
        now,
        now if state == "cancelled" else None,
        None if _asks_nothing(special) else extras.write(extra),
        held,
        special.key,
        special.pool,
        waits if special.after else None,
        None if unique is None else unique.key,
        None if unique is None else _till(unique, now),
        expires_at,
        True if special.member_of else None,
    ]
    if special.gathers:
        groups.opened(row, now)
    return row


def _asks_nothing(special: Special) -> bool:
    """Whether the job itself is a plain one."""
    return msgspec.structs.replace(special, member_of=0) == Special()


def _till(unique: Unique, now: int) -> int | None:
    """Return until when a unique key stands; None: until the job has finished."""
    if unique.within_s is not None:
        return now + round(unique.within_s * 1000)
    return _FOREVER if FINISHED & set(unique.states) else None


# --- unique -------------------------------------------------------------------------------------


def _insert_unique(sql: Sql, job_id: JobId, row: list[Any], draft: Draft, unique: Unique) -> JobId | None:
    """Insert, or return the job that stands in the way. The unique index decides, not a look before."""
    statement = f"{_INSERT_ONE} ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING"
    while not sql.change(statement, job_id, *row, draft.payloads[0]):
        found = sql.rows(
            "SELECT id, unique_till FROM {job} WHERE unique_key = ? {lock}",
            unique.key,
        )
        if not found:  # it went away just now
            continue
        other, till = found[0]
        if till is not None and till <= sql.now:
            sql.change("UPDATE {job} SET unique_key = NULL WHERE id = ?", other)
            continue
        _meet(sql, other, row, draft, unique)
        return int(other)
    return None


def _meet(sql: Sql, other: JobId, row: list[Any], draft: Draft, unique: Unique) -> None:
    """Do to the job that is there what was asked for, if it still waits."""
    if unique.on_conflict == "replace":
        sql.change(
            "UPDATE {job} SET payload = ?, task = ? WHERE id = ? AND state IN ('pending', 'blocked')",
            draft.payloads[0],
            draft.task,  # with the version and the key that this payload has
            other,
        )
    elif unique.on_conflict == "reschedule":
        sql.change(
            "UPDATE {job} SET payload = ?, task = ?, due_at = ?, due_fixed = ?, parked_at = NULL"
            " WHERE id = ? AND state IN ('pending', 'blocked')",
            draft.payloads[0],
            draft.task,
            row[_DUE_AT],
            row[_DUE_AT + 1],
            other,
        )


# --- after ---------------------------------------------------------------------------------------


def _outcomes(sql: Sql, special: Special) -> dict[JobId, tuple[str | None, str | None]]:
    """
    Return of each parent its outcome and result; None for one that is still waited for.

    A parent that is gone had completed: dead jobs stay until they are deleted by hand.
    """
    parents = sorted(special.after)
    if not parents:
        return {}
    # An attempt that ends meanwhile sees it, or we see that it has ended.
    sql.rows("SELECT id FROM {job} WHERE id IN {ids} ORDER BY id {lock}", parents)
    sql.change("UPDATE {job} SET followed = true WHERE id IN {ids} AND followed IS NULL", parents)
    ends = {State.COMPLETED} if special.on_dead == "wait" else FINISHED
    found = {
        row[0]: (row[1] if row[1] in ends else None, row[2])
        for row in sql.rows("SELECT id, state, result FROM {job} WHERE id IN {ids}", parents)
    }
    return {parent: found.get(parent, ("completed", None)) for parent in special.after}


def _follow(
    sql: Sql,
    ids: range,
    parents: Sequence[JobId],
    outcomes: dict[JobId, tuple[str | None, str | None]],
    first_place: int,
) -> None:
    for place, parent in enumerate(parents, first_place):
        sql.change(
            "INSERT INTO {after} (parent_id, job_id, place, outcome, result)"
            " SELECT ?, id, ?, ?, ? FROM {job} WHERE id >= ? AND id < ?"
            " ON CONFLICT (parent_id, job_id) DO NOTHING",
            parent,
            place,
            *outcomes[parent],
            ids.start,
            ids.stop,
        )


# --- again ---------------------------------------------------------------------------------------


def admit_again(turn: gates.Turn, ids: Sequence[JobId]) -> None:
    """Send the special ones of jobs that were just put back in line by hand through their gates."""
    sql = turn.sql
    rows = sql.rows(
        "SELECT id, extra, lane, pool FROM {job} WHERE id IN {ids} AND extra IS NOT NULL ORDER BY id",
        list(ids),
    )
    for job_id, text, lane, pool in rows:
        extra = msgspec.structs.replace(extras.read(text), deadline_at=None)  # that was for the first time
        held = gates.first_gate(lane, pool)
        sql.change(
            "UPDATE {job} SET extra = ?, expires_at = NULL, held = ?, state = ? WHERE id = ?",
            extras.write(extra),
            held,
            "pending" if held is None else "blocked",
            job_id,
        )
        turn.look_at(lane, pool)
        if held is None:
            turn.note_passed(sql.now)
