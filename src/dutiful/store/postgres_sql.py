"""The store's SQL for what is off the hot path (contract.Sql), on a PostgreSQL connection."""

import re
import zlib
from functools import lru_cache
from typing import Any

from dutiful.job import JobId
from dutiful.store.postgres_access import Connection
from dutiful.store.postgres_step import NOW, TAKE_IDS, numbers

# Names share locks, so that no transaction, however many names it holds, can use up the server's table of
# locks. In the order of their numbers.
_HOLD = "SELECT pg_advisory_xact_lock(%s::integer, number) FROM unnest(%s::integer[]) AS number"
_LOCKS = 1024
# Not a sub-select, which the planner may turn into a join (see postgres_step).
_IDS = {"IN {ids}": "= ANY (%s::bigint[])", "NOT IN {ids}": "<> ALL (%s::bigint[])"}
_NAMES = "(SELECT unnest(%s::text[]))"
_TEXTS = (
    "(SELECT ord - 1 AS at, text AS value"
    " FROM json_array_elements_text(%s::json) WITH ORDINALITY AS listed (text, ord))"
)


class PostgresSql:
    """Statements in an open transaction, or, for reading, outside of one."""

    def __init__(self, db: Connection, now: int | None = None) -> None:
        self._db = db
        self._now = now

    @property
    def now(self) -> int:
        if self._now is None:  # a trip to the server, for those who ask
            self._now = int(self._db.one(f"SELECT {NOW}")[0])
        return self._now

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._db.run(_ours(statement), [_plain(value) for value in values]).fetchall()

    def change(self, statement: str, *values: object) -> int:
        return self._db.run(_ours(statement), [_plain(value) for value in values]).rowcount

    def hold(self, *names: str, rank: int = 0) -> None:
        ours = zlib.crc32(f"dutiful names {self._db.schema}".encode()) >> 1
        locks = sorted({zlib.crc32(name.encode()) % _LOCKS + rank * _LOCKS for name in names})
        self._db.run(_HOLD, (ours, locks))

    def new_ids(self, count: int) -> JobId:
        # Whoever needs a block meanwhile waits until we commit: this is for what is rare.
        return int(self._db.one(TAKE_IDS, (count,))[0]) - count


@lru_cache(maxsize=512)
def _ours(statement: str) -> str:
    def named(found: "re.Match[str]") -> str:
        word = found[1]
        if word == "?":
            return "%s"
        lists = {**_IDS, "{names}": _NAMES, "{texts}": _TEXTS, "{lock}": "FOR UPDATE"}
        return lists.get(word) or f"dutiful.{word[1:-1]}"

    return re.sub(r"(\?|(?:(?:NOT )?IN )?\{ids\}|\{\w+\})", named, statement)


def _plain(value: Any) -> object:
    if isinstance(value, list):
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        return numbers(items) if all(isinstance(each, int) for each in items) else items
    # A StrEnum is a str that the driver does not know.
    return str(value) if isinstance(value, str) else value
