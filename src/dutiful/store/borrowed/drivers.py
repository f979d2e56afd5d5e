"""Connections of the database drivers themselves."""

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dutiful.store.borrowed.connection import AsyncDriver, Blocking, Borrowed, Rows, State


class Undone(Exception):
    """Tells a library's context manager to roll back."""


_LEGACY = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, Python 3.12


def sqlite_state(driver: Any) -> State:
    """Return in what state a connection of sqlite3, or of aiosqlite, is."""
    if driver.in_transaction:
        return "open"
    # In the old mode, with an isolation level, Python begins a transaction with our first write.
    # (aiosqlite does not show the mode of the connection inside it.)
    mode = getattr(getattr(driver, "_conn", driver), "autocommit", _LEGACY)
    return "begins" if driver.isolation_level is not None and mode == _LEGACY else "none"


class Sqlite3(Blocking):
    """A sqlite3.Connection."""

    begin = "Execute BEGIN first."

    def database(self) -> str:
        return "sqlite"

    def state(self) -> State:
        try:
            return sqlite_state(self.given)
        except self.errors() as error:  # it is closed
            raise self.unusable(error) from error

    def errors(self) -> tuple[type[BaseException], ...]:
        return (sys.modules["sqlite3"].Error,)

    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        cursor = self.given.cursor()
        cursor.row_factory = None  # rows as tuples, whatever its owner has set
        return list(cursor.execute(sql, parameters))

    def start(self) -> None:
        self.given.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.given.execute("COMMIT")

    def roll_back(self) -> None:
        if self.given.in_transaction:
            self.given.execute("ROLLBACK")


class Aiosqlite(AsyncDriver):
    """An aiosqlite.Connection."""

    begin = "Execute BEGIN first."

    def database(self) -> str:
        return "sqlite"

    def state(self) -> State:
        try:
            return sqlite_state(self.given)
        except ValueError as error:  # what it raises when it is closed
            raise self.unusable(error) from error

    def errors(self) -> tuple[type[BaseException], ...]:
        return (sys.modules["sqlite3"].Error,)

    async def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        async with self.given.execute(sql, parameters) as cursor:
            cursor.row_factory = None
            return list(await cursor.fetchall())

    async def start(self) -> None:
        await self.execute("BEGIN IMMEDIATE", ())

    async def commit(self) -> None:
        await self.execute("COMMIT", ())

    async def roll_back(self) -> None:
        if self.given.in_transaction:
            await self.execute("ROLLBACK", ())


def psycopg_state(borrowed: Borrowed, driver: Any) -> State:
    """Return in what state a connection of psycopg is."""
    if driver.closed:
        raise borrowed.unusable("it is closed")
    status = driver.info.transaction_status.name
    if status == "IDLE":
        return "none" if driver.autocommit else "begins"
    return "failed" if status == "INERROR" else "open"


class Psycopg(Blocking):
    """A psycopg.Connection."""

    begin = "Write it inside `with connection.transaction():`, or open it without autocommit."

    def database(self) -> str:
        return "postgresql"

    def state(self) -> State:
        return psycopg_state(self, self.given)

    def errors(self) -> tuple[type[BaseException], ...]:
        return (sys.modules["psycopg"].Error,)

    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        # Of this class, and with plain rows, whatever its owner has set for his own.
        with sys.modules["psycopg"].Cursor(self.given, row_factory=_plain) as cursor:
            cursor.execute(sql, parameters)
            return [] if cursor.description is None else list(cursor.fetchall())

    def start(self) -> None:
        self._transaction = self.given.transaction()
        self._transaction.__enter__()

    def commit(self) -> None:
        self._transaction.__exit__(None, None, None)

    def roll_back(self) -> None:
        self._transaction.__exit__(Undone, Undone(), None)


class AsyncPsycopg(AsyncDriver):
    """A psycopg.AsyncConnection."""

    begin = "Write it inside `async with connection.transaction():`, or open it without autocommit."

    def database(self) -> str:
        return "postgresql"

    def state(self) -> State:
        return psycopg_state(self, self.given)

    def errors(self) -> tuple[type[BaseException], ...]:
        return (sys.modules["psycopg"].Error,)

    async def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        async with sys.modules["psycopg"].AsyncCursor(self.given, row_factory=_plain) as cursor:
            await cursor.execute(sql, parameters)
            return [] if cursor.description is None else list(await cursor.fetchall())

    async def start(self) -> None:
        self._transaction = self.given.transaction()
        await self._transaction.__aenter__()

    async def commit(self) -> None:
        await self._transaction.__aexit__(None, None, None)

    async def roll_back(self) -> None:
        await self._transaction.__aexit__(Undone, Undone(), None)


class Asyncpg(AsyncDriver):
    """An asyncpg.Connection, from a pool or not."""

    begin = "Write it inside `async with connection.transaction():`."

    def database(self) -> str:
        return "postgresql"

    def state(self) -> State:
        try:
            is_closed = self.given.is_closed()
        except self.errors() as error:  # it was given back to its pool
            raise self.unusable(error) from error
        if is_closed:
            raise self.unusable("it is closed")
        return "open" if self.given.is_in_transaction() else "none"

    def errors(self) -> tuple[type[BaseException], ...]:
        library = sys.modules["asyncpg"]
        return (library.PostgresError, library.InterfaceError)

    async def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        return [tuple(row) for row in await self.given.fetch(numbered(sql), *parameters)]

    async def start(self) -> None:
        self._transaction = self.given.transaction()
        await self._transaction.start()

    async def commit(self) -> None:
        await self._transaction.commit()

    async def roll_back(self) -> None:
        await self._transaction.rollback()


@lru_cache
def numbered(sql: str) -> str:
    """Return a statement of ours with $1, $2, … for its %s."""
    parts = sql.split("%s")
    marks = [f"${n}" for n in range(1, len(parts))]
    text = "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True))
    return text.replace("%%", "%")


def _plain(_cursor: Any) -> type[tuple[Any, ...]]:
    return tuple
