"""At which priorities jobs wait, and since when: what ageing has to know."""

from collections.abc import Collection

from dutiful.core.ageing import Level
from dutiful.store.contract import Sql

LEVELS_MAX = 100  # of a look; each is two steps in the index job_claim
_TOP = 2**31 - 1

# As the claim goes: from one priority to the next, and in each to the first job alone.
_LEVELS = """
WITH RECURSIVE level (p, place) AS (
    SELECT (SELECT priority FROM {{job}}
             WHERE queue = ? AND state = 'pending' AND crashes = 0 AND priority <= ?
             ORDER BY priority DESC LIMIT 1), 1
    UNION ALL
    SELECT (SELECT priority FROM {{job}}
             WHERE queue = ? AND state = 'pending' AND crashes = 0 AND priority < level.p
             ORDER BY priority DESC LIMIT 1), place + 1
      FROM level WHERE level.p IS NOT NULL AND place < ?
)
SELECT p, (SELECT due_at FROM {{job}}
            WHERE queue = ? AND state = 'pending' AND crashes = 0 AND priority = level.p {skip}
            ORDER BY due_at LIMIT 1)
  FROM level WHERE p IS NOT NULL
"""
_SKIP = "AND task NOT IN {names}"


def statement(*, skip: bool) -> str:
    """Return the query for the highest priorities of a queue."""
    return _LEVELS.format(skip=_SKIP if skip else "")


def levels(
    look: Sql, queue: str, skip: Collection[str] = (), *, below: int | None = None
) -> tuple[list[Level], int | None]:
    """
    Return the highest priorities of a queue, and when the first job of each is due.

    At most LEVELS_MAX of them, from `below` down; the second value is where to go on, if there may be more.
    Jobs of the tasks in `skip` do not count.
    """
    top = _TOP if below is None else below - 1
    names = [sorted(skip)] if skip else []
    rows = look.rows(statement(skip=bool(skip)), queue, top, queue, LEVELS_MAX, queue, *names)
    found = [Level(queue, priority, due_at) for priority, due_at in rows if due_at is not None]
    return found, min(row[0] for row in rows) if len(rows) == LEVELS_MAX else None
