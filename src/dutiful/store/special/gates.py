"""
What a blocked job waits for, and who may go next.

    after   the jobs that it follows
    key     an earlier job of its key: they run one at a time, in the order sent
    pool    a limit: so many at once, so many a second

A job passes its gates in that order, and is `pending` behind the last. Who is behind a
gate is counted, never kept in a counter: so a crash cannot leak a slot. All of this
happens while the key's or the limit's name is held, so that two who let the next one
through at once are one after the other.
"""

from dutiful.core import ageing, rates
from dutiful.job import JobId
from dutiful.store.contract import Outcome, Special, Sql

_AT_ONCE = 1000
_AGE_MS = 300_000  # who has been due for so long has a share of a limit, whatever its priority
_UNFINISHED = "state IN ('pending', 'blocked', 'running')"  # as in the indexes job_lane and job_pool
# One that waits for a retry has stepped aside: it counts again when it is due.
_READY = "(failures = 0 OR due_at <= ?)"
_IN_POOL = (
    f"SELECT id FROM {{job}} WHERE pool = ? AND held = 'pool' AND {_UNFINISHED} AND due_at <= ? ORDER BY"
)
FIRST_IN_POOL = f"{_IN_POOL} priority DESC, id LIMIT ?"
OLDEST_IN_POOL = f"{_IN_POOL} id LIMIT ?"


def first_gate(lane: str | None, pool: str | None) -> str | None:
    """Return what a job waits for that follows no other job (any more)."""
    if lane is not None:
        return "key"
    return None if pool is None else "pool"


class Turn:
    """
    What one transaction does at the gates, all of it at its end: who has passed, who may go next.

    First everybody's own rows are written, then the names of the gates are held, all keys before all
    limits and each in an order that is the same for everybody, then the next ones are let through. So
    transactions wait for each other in a circle only where one changes a row by hand that another is
    letting through; the database sees that, and one of them does its step again.
    """

    def __init__(self, sql: Sql) -> None:
        self.sql = sql
        self._lanes: set[str] = set()
        self._pools: set[str] = set()
        self._limits: dict[str, Special] = {}
        self._moved = False
        self._next_at: int | None = None
        self.leaves_rest = False  # more than one step is to do follows from a job's end

    def look_at(self, lane: str | None, pool: str | None) -> None:
        """Somebody has come to these gates, or gone."""
        if lane is not None:
            self._lanes.add(lane)
        if pool is not None:
            self._pools.add(pool)

    def note_passed(self, due_at: int) -> None:
        """Somebody waits for his time alone from now on."""
        if due_at <= self.sql.now:
            self._moved = True
        elif self._next_at is None or due_at < self._next_at:
            self._next_at = due_at

    def declare(self, special: Special) -> None:
        """Write a limit down, as whoever sends last knows it."""
        if special.pool is not None:
            self._limits[special.pool] = special

    def finish(self) -> bool:
        """Let through whoever may pass now; return whether anybody did."""
        sql = self.sql
        if self._lanes:
            sql.hold(*(f"key {lane}" for lane in self._lanes))
        for lane in sorted(self._lanes):
            self.look_at(None, self._advance_lane(lane))
        if self._pools:
            sql.hold(*(f"pool {pool}" for pool in self._pools), rank=1)
        for pool in sorted(self._pools):
            if pool in self._limits:
                _declare(sql, self._limits[pool])
            while self._advance_pool(pool):
                pass
        moved, self._moved = self._moved, False
        self._lanes, self._pools, self._limits = set(), set(), {}
        return moved

    @property
    def has_next(self) -> bool:
        """Whether one was let through that is not due yet."""
        return self._next_at is not None

    def finish_into(self, outcome: Outcome) -> None:
        """Do so as a part of a step, and say there who is to look for them, and when."""
        if self.finish():
            outcome.left_pending = True
        outcome.left_ends = outcome.left_ends or self.leaves_rest
        if self._next_at is not None:
            delay_s = (self._next_at - self.sql.now) / 1000
            outcome.next_delay_s = min(delay_s, outcome.next_delay_s or delay_s)

    def _advance_lane(self, lane: str) -> str | None:
        """Let the next of a key through, if none is on its way; return the limit that he comes to, if any."""
        # By index job_lane: held NULL (pending or running) or pool is on its way.
        under_way = self.sql.rows(
            f"SELECT 1 FROM {{job}} WHERE lane = ? AND held IS NULL AND {_UNFINISHED}"
            " UNION ALL "
            f"SELECT 1 FROM {{job}} WHERE lane = ? AND held = 'pool' AND {_UNFINISHED}"
            " LIMIT 1",
            lane,
            lane,
        )
        if under_way:
            return None
        found = self.sql.rows(
            f"SELECT id, pool, due_at FROM {{job}} WHERE lane = ? AND held = 'key' AND {_UNFINISHED}"
            f" AND {_READY} ORDER BY id LIMIT 1",
            lane,
            self.sql.now,
        )
        if not found:
            return None
        job_id, pool, due_at = found[0]
        if pool is not None:
            self.sql.change("UPDATE {job} SET held = 'pool' WHERE id = ?", job_id)
            return str(pool)
        let_through(self.sql, [job_id])
        self.note_passed(due_at)
        return None

    def _advance_pool(self, pool: str) -> bool:
        """Let through as many as the limit allows; return whether there may be more."""
        sql = self.sql
        found = sql.rows("SELECT size, per_s, burst, next_at FROM {pool} WHERE name = ?", pool)
        size, per_s, burst, next_at = found[0] if found else (0, 0.0, 1, 0.0)
        room = min(_AT_ONCE, size - _in_pool(sql, pool, size)) if size else _AT_ONCE
        if room <= 0:
            return False
        ids = _next_in_pool(sql, pool, room)
        if not ids:
            return False
        let_through(sql, ids)
        due_ats = [sql.now]
        if per_s:
            due_ats, next_at = rates.starts(next_at, sql.now, len(ids), per_s=per_s, burst=burst)
            for job_id, due_at in zip(ids, due_ats, strict=True):
                if due_at > sql.now:
                    sql.change("UPDATE {job} SET due_at = ? WHERE id = ?", due_at, job_id)
            sql.change("UPDATE {pool} SET next_at = ? WHERE name = ?", next_at, pool)
        for due_at in due_ats:
            self.note_passed(due_at)
        return len(ids) == _AT_ONCE


def _declare(sql: Sql, special: Special) -> None:
    values = (special.pool_size, special.per_s, special.burst)
    found = sql.rows("SELECT size, per_s, burst FROM {pool} WHERE name = ?", special.pool)
    if not found:
        sql.change(
            "INSERT INTO {pool} (name, size, per_s, burst, next_at) VALUES (?, ?, ?, ?, 0)",
            special.pool,
            *values,
        )
    elif found[0] != values:
        sql.change("UPDATE {pool} SET size = ?, per_s = ?, burst = ? WHERE name = ?", *values, special.pool)


def _next_in_pool(sql: Sql, pool: str, room: int) -> list[JobId]:
    """Return who is next, most urgent first, but for the share of those that wait for long."""
    old: list[JobId] = []
    share = ageing.share(room, sql.now)
    if share:  # by index job_pool_age
        old = [row[0] for row in sql.rows(OLDEST_IN_POOL, pool, sql.now - _AGE_MS, share)]
    # By index job_pool; what is not due takes no slot.
    urgent = [row[0] for row in sql.rows(FIRST_IN_POOL, pool, sql.now, room)]
    return [*old, *(job_id for job_id in urgent if job_id not in old)][:room]


def _in_pool(sql: Sql, pool: str, at_most: int) -> int:
    return int(
        sql.rows(
            "SELECT count(*) FROM (SELECT 1 FROM {job} WHERE pool = ? AND held IS NULL AND parked_at IS NULL"
            " AND state IN ('pending', 'blocked', 'running') LIMIT ?) AS within",
            pool,
            at_most,
        )[0][0]
    )


def let_through(sql: Sql, ids: list[JobId]) -> None:
    """These wait for their time alone from now on."""
    sql.change("UPDATE {job} SET state = 'pending', held = NULL WHERE id IN {ids}", ids)
