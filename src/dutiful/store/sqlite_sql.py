"""The store's SQL for what is off the hot path (contract.Sql), on a SQLite connection."""

import re
import sqlite3
from functools import lru_cache
from typing import Any

import msgspec

from dutiful.job import JobId
from dutiful.store.sqlite_step import reserve_ids

_LIST = "(SELECT value FROM json_each(?))"
_TEXTS = "(SELECT key AS at, value FROM json_each(?))"


class SqliteSql:
    """
    Statements in an open transaction, or, for reading, outside of one.

    The write lock is held for all of it, so that no row and no name need be locked.
    """

    def __init__(self, db: sqlite3.Connection, now: int) -> None:
        self._db = db
        self.now = now

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        found = self._db.execute(_ours(statement), _bound(values)).fetchall()
        return [tuple(_str(value) for value in row) for row in found]

    def change(self, statement: str, *values: object) -> int:
        return self._db.execute(_ours(statement), _bound(values)).rowcount

    def hold(self, *names: str, rank: int = 0) -> None:
        """Nobody else is writing."""

    def new_ids(self, count: int) -> JobId:
        return reserve_ids(self._db, count)


@lru_cache(maxsize=512)
def _ours(statement: str) -> str:
    def named(found: "re.Match[str]") -> str:
        name = found[1]
        if name in ("ids", "names"):
            return _LIST
        if name == "texts":
            return _TEXTS
        return "" if name == "lock" else f"dutiful_{name}"

    return re.sub(r"\{(\w+)\}", named, statement)


def _bound(values: tuple[object, ...]) -> list[Any]:
    return [
        msgspec.json.encode(value).decode() if isinstance(value, list) else _plain(value) for value in values
    ]


def _plain(value: object) -> object:
    # A StrEnum is a str that the driver does not know.
    return str(value) if isinstance(value, str) else value


def _str(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
