"""
Encrypting anew what is stored: with a new first key, or for the first time.

A hundred rows a transaction, from the first to the last of each table; whoever stores something
meanwhile does so with his own first key. Repeating goes on with what is left.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, field

from dutiful.crashpoint import crashpoint
from dutiful.errors import KeyMissing, NotDecryptable
from dutiful.job import Progress
from dutiful.sealing import PREFIX, Keyring, opened
from dutiful.store.contract import Sql, Store
from dutiful.versions import KEY_MARK, parted, sealed_name

ROWS = 100  # a transaction: a few ms


class Rekeyed(Struct):
    """
    What `worker.rekey()` did.

    Attributes:
        done: So many values are encrypted with the first key now, and were not before.
        left: How many rows could not be read, by the id of the key that they want. They stay as they are.
    """

    done: int = 0
    left: dict[str, int] = field(default_factory=dict[str, int])


Place = Callable[[dict[str, Any], str], tuple[object, ...]]


class _Table(Struct):
    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    place: Place
    also: tuple[str, ...] = ()  # read for the place


def _of_job(row: dict[str, Any], column: str) -> tuple[object, ...]:
    return (column, parted(row["task"])[0]) if column == "payload" else (column, row["id"])


def _of_schedule(row: dict[str, Any], column: str) -> tuple[object, ...]:
    return column, parted(row["task"])[0]


def _of_step(row: dict[str, Any], _column: str) -> tuple[object, ...]:
    return ("event",) if row["kind"] == "event" else ("step", row["job_id"], row["name"])


_TABLES = (
    _Table("job", ("id",), ("payload", "result", "progress"), _of_job, ("task",)),
    _Table("error", ("job_id", "attempt"), ("message", "traceback"), lambda row, c: (c, *_key(row))),
    _Table("step", ("job_id", "name"), ("value",), _of_step, ("kind",)),
    _Table("event", ("id",), ("value",), lambda _row, _column: ("event",)),
    _Table("after", ("parent_id", "job_id"), ("result",), lambda row, _column: ("result", row["parent_id"])),
    _Table("schedule", ("name",), ("payload",), _of_schedule, ("task",)),
)


def _key(row: dict[str, Any]) -> tuple[object, ...]:
    return row["job_id"], row["attempt"]


def reseal(store: Store, keyring: Keyring) -> Rekeyed:
    """Encrypt with the first key whatever is not, as far as it can be read."""
    left: Counter[str] = Counter()
    done = sum(_reseal(store, keyring, table, left) for table in _TABLES)
    return Rekeyed(done, dict(left))


def _reseal(store: Store, keyring: Keyring, table: _Table, left: Counter[str]) -> int:
    names = (*table.keys, *table.also, *table.values)
    keys, marks = ", ".join(table.keys), ", ".join("?" * len(table.keys))
    stale = " OR ".join(_STALE[column == "progress"].format(column) for column in table.values)
    patterns = [pattern for column in table.values for pattern in _patterns(keyring, column)]
    if "task" in table.also:
        stale += " OR (task LIKE ? AND task NOT LIKE ?)"
        patterns += [f"%{KEY_MARK}%", f"%{KEY_MARK}{keyring.key_id}"]
    done = 0
    last: tuple[Any, ...] = ()
    while True:
        beyond = f"({keys}) > ({marks}) AND" if last else ""
        with store.sql() as sql:
            found = sql.rows(
                f"SELECT {', '.join(names)} FROM {{{table.name}}} WHERE {beyond} ({stale})"
                f" ORDER BY {keys} LIMIT {ROWS} {{lock}}",
                *last,
                *patterns,
            )
            for values in found:
                row = dict(zip(names, values, strict=True))
                done += _write(sql, table, row, _fresh(keyring, table, row, left))
        crashpoint("rekey.between")
        if len(found) < ROWS:
            return done
        last = found[-1][: len(table.keys)]


_STALE = {
    False: "({0} IS NOT NULL AND {0} NOT LIKE ?)",
    True: "({0} IS NOT NULL AND {0} NOT LIKE ? AND {0} NOT LIKE ?)",
}


def _patterns(keyring: Keyring, column: str) -> list[str]:
    """Return what values look like that need nothing. Of progress only the message is encrypted."""
    sealed = f"{PREFIX}1:{keyring.key_id}:%"
    return [f'%"message":"{sealed}', '%"message":""%'] if column == "progress" else [sealed]


def _write(sql: Sql, table: _Table, row: dict[str, Any], fresh: dict[str, str]) -> int:
    if fresh:
        sets = ", ".join(f"{column} = ?" for column in fresh)
        where = " AND ".join(f"{column} = ?" for column in table.keys)
        keys = [row[column] for column in table.keys]
        sql.change(f"UPDATE {{{table.name}}} SET {sets} WHERE {where}", *fresh.values(), *keys)
    return len(fresh.keys() & set(table.values))


def _fresh(keyring: Keyring, table: _Table, row: dict[str, Any], left: Counter[str]) -> dict[str, str]:
    """Return the values of a row that can be encrypted anew."""
    fresh: dict[str, str] = {}
    for column in table.values:
        text = row[column]
        if text is None or keyring.is_current(text):
            continue
        reseal = _sealed_progress if column == "progress" else _sealed
        try:
            fresh[column] = reseal(keyring, text, table.place(row, column))
        except (KeyMissing, NotDecryptable) as error:
            left[error.key_id] += 1
            return {}
    if "task" in table.also:  # which says what key is needed
        fresh["task"] = sealed_name(parted(row["task"])[0], keyring.key_id)
    return {column: text for column, text in fresh.items() if text != row[column]}


def _sealed(keyring: Keyring, text: str, place: tuple[object, ...]) -> str:
    return keyring.seal(opened(keyring, text, *place), *place)


def _sealed_progress(keyring: Keyring, text: str, place: tuple[object, ...]) -> str:
    said = msgspec.json.decode(text, type=Progress)
    if not said.message or keyring.is_current(said.message):
        return text
    message = _sealed(keyring, said.message, place)
    return msgspec.json.encode(msgspec.structs.replace(said, message=message)).decode()
