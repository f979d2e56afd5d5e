"""Queues and tasks that no worker takes jobs of, until they are resumed."""

from typing import Literal

from msgspec import Struct

from dutiful.store.contract import Sql


class Paused(Struct, frozen=True):
    """A queue or a task that is paused, and since when: milliseconds since 1970 UTC."""

    kind: Literal["queue", "task"]
    name: str
    at: int


def pause(sql: Sql, kind: Literal["queue", "task"], name: str) -> bool:
    """Pause a queue or a task; return whether it was not paused before."""
    return bool(
        sql.change(
            "INSERT INTO {pause} (kind, name, at) VALUES (?, ?, ?) ON CONFLICT (kind, name) DO NOTHING",
            kind,
            name,
            sql.now,
        )
    )


def resume(sql: Sql, kind: Literal["queue", "task"], name: str) -> bool:
    """Resume it; return whether it was paused."""
    return bool(sql.change("DELETE FROM {pause} WHERE kind = ? AND name = ?", kind, name))


def listed(look: Sql) -> list[Paused]:
    """Return all that is paused."""
    rows = look.rows("SELECT kind, name, at FROM {pause} ORDER BY kind, name")
    return [Paused(*row) for row in rows]
