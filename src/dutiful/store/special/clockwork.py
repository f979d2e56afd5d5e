"""What becomes due by itself: expiries, retries that had stepped aside, ends that nobody was told of."""

from collections.abc import Iterator

from msgspec import Struct

from dutiful.job import JobId
from dutiful.store.contract import Sql, Store
from dutiful.store.special import gates
from dutiful.store.special.release import ends, has_rest, settle_ends
from dutiful.store.special.start import expire

AT_ONCE = 500  # a few ms of the write lock
# A step writes its instants as of its begin, and is seen when it has committed: so much later, at most.
OVERLAP_MS = 20_000


class Found(Struct, frozen=True):
    """What a look has found to do; `now` is its instant, `next_s` in how many seconds there will be more."""

    now: int
    next_s: float | None
    late: list[JobId]
    ends: list[JobId]
    lanes: list[str]
    pools: list[str]


def is_quiet(look: Sql) -> bool:
    """Whether nothing is there that could ever become due: one question, as most often."""
    return not look.rows(
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM {job} WHERE state = 'blocked')"
        " OR EXISTS (SELECT 1 FROM {job} WHERE expires_at IS NOT NULL AND state IN ('pending', 'blocked'))"
        " OR EXISTS (SELECT 1 FROM {job} WHERE held = 'end')"
    )


def look(look: Sql, since: int) -> Found:
    """Look for what has become due after `since` (ms), the instant of the last look; each by its index."""
    if look.now < since:  # the clock was set back, and the instants in the store with it
        since = 0
    lanes, pools = _come_back(look, since - OVERLAP_MS)
    late, ended = _to_expire(look), ends(look)
    is_all = len(late) < AT_ONCE and len(ended) < AT_ONCE and not has_rest(look, ended)
    return Found(look.now, _next_s(look) if is_all else 0.0, late, ended, lanes, pools)


def _next_s(look: Sql) -> float | None:
    """Return when the next one that has stepped aside is due. By index job_blocked."""
    rows = look.rows(
        "SELECT due_at FROM {job} WHERE state = 'blocked' AND due_at > ? AND held IN ('key', 'pool')"
        " ORDER BY due_at LIMIT 1",
        look.now,
    )
    return (rows[0][0] - look.now) / 1000 if rows else None


def tend(store: Store, found: Found, worker: str) -> bool:
    """Do it, some at a time; return whether any job was let through: it may be due now, or soon."""
    moved = False
    if found.late or found.ends:
        with store.sql() as sql:
            turn = gates.Turn(sql)
            settle_ends(turn, found.ends)
            expire_waiting(turn, found.late, worker)
            moved = turn.finish() or turn.has_next
    for lanes, pools in _in_parts(found):
        with store.sql() as sql:
            turn = gates.Turn(sql)
            for lane in lanes:
                turn.look_at(lane, None)
            for pool in pools:
                turn.look_at(None, pool)
            moved = turn.finish() or turn.has_next or moved
    return moved


def _in_parts(found: Found) -> Iterator[tuple[list[str], list[str]]]:
    for at in range(0, max(len(found.lanes), len(found.pools)), AT_ONCE):
        yield found.lanes[at : at + AT_ONCE], found.pools[at : at + AT_ONCE]


def _to_expire(look: Sql) -> list[JobId]:
    """Return some of the waiting jobs that are too late. By index job_expires."""
    rows = look.rows(
        "SELECT id FROM {job} WHERE expires_at IS NOT NULL AND state IN ('pending', 'blocked')"
        " AND expires_at <= ? ORDER BY expires_at LIMIT ?",
        look.now,
        AT_ONCE,
    )
    return sorted(row[0] for row in rows)


def expire_waiting(turn: gates.Turn, late: list[JobId], worker: str) -> None:
    """End those of these jobs that still wait."""
    # Locked, so that one that is claimed right now is seen to have been.
    rows = turn.sql.rows(
        "SELECT id FROM {job} WHERE id IN {ids} AND state IN ('pending', 'blocked')"
        " AND expires_at <= ? ORDER BY id {lock}",
        late,
        turn.sql.now,
    )
    expire(turn, [row[0] for row in rows], worker)


def _come_back(look: Sql, since: int) -> tuple[list[str], list[str]]:
    """
    Return the keys and limits of blocked jobs that have become due after `since`. By index job_blocked.

    Those that were due when they were sent are let through by whoever goes before them.
    """
    rows = look.rows(
        "SELECT DISTINCT lane, pool FROM {job} WHERE state = 'blocked' AND held IN ('key', 'pool')"
        " AND due_at > created_at AND due_at > ? AND due_at <= ?",
        since,
        look.now,
    )
    return sorted({row[0] for row in rows} - {None}), sorted({row[1] for row in rows} - {None})
