"""Parked jobs and limits: who cannot run is to take no slot from those who can."""

from collections.abc import Collection

from dutiful.store.contract import Sql
from dutiful.store.special.gates import Turn


def limits_of(sql: Sql, tasks: Collection[str]) -> list[str]:
    """Return the limits that parked jobs of these tasks have. By index job_parked, if there is any limit."""
    if not tasks or not sql.rows("SELECT 1 FROM {pool} LIMIT 1"):
        return []
    rows = sql.rows(
        "SELECT DISTINCT pool FROM {job}"
        " WHERE parked_at IS NOT NULL AND pool IS NOT NULL AND task IN {names}",
        sorted(tasks),
    )
    return [row[0] for row in rows]


def look_at(sql: Sql, limits: Collection[str]) -> None:
    """Jobs of these limits were parked, which set slots free, or came back, and wait for one."""
    if limits:
        turn = Turn(sql)
        for limit in limits:
            turn.look_at(None, limit)
        turn.finish()
