"""
The user's side of a transactional send: one lender for each library, all used alike.

A lender opens a connection of its library to a database, and begins, writes and ends
transactions there as the library's users do. What it gives to `send(transaction=…)` is
`given`. Asynchronous ones run on an event loop of their own; `send` is then `asend`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dutiful import Context, Job, Jobs, Worker

WAIT_S = 20


class Lender(ABC):
    """A user's connection to the database at `url`: a file, or postgresql://…"""

    given: Any

    def __init__(self, url: str) -> None:
        self.url = str(url)

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def autocommit(self) -> None:
        """From now on, what is not begun commits at once."""

    @abstractmethod
    def execute(self, sql: str) -> None: ...

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def write_in(self, ctx: Context, sql: str, error: BaseException | None = None) -> None:
        """Write in `ctx.transaction(given)`, and raise `error` at the block's end."""
        with ctx.transaction(self.given) as given:
            assert given is self.given
            self.execute(sql)
            if error is not None:
                raise error

    def send(self, worker: Worker, payload: object, **options: Any) -> Job:
        return worker.send(payload, transaction=self.given, **options)

    def send_many(self, worker: Worker, payloads: Any, **options: Any) -> Jobs:
        return worker.send_many(payloads, transaction=self.given, **options)


class AsyncLender(Lender):
    """One whose library is asynchronous."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._loop = asyncio.Runner()

    def run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine)

    @abstractmethod
    async def _execute(self, sql: str) -> None: ...

    def execute(self, sql: str) -> None:
        self.run(self._execute(sql))

    def write_in(self, ctx: Context, sql: str, error: BaseException | None = None) -> None:
        async def write() -> None:
            async with ctx.transaction(self.given) as given:
                assert given is self.given
                await self._execute(sql)
                if error is not None:
                    raise error

        self.run(write())

    def close(self) -> None:
        self.run(self._close())
        self._loop.close()

    @abstractmethod
    async def _close(self) -> None: ...

    def send(self, worker: Worker, payload: object, **options: Any) -> Job:
        return self.run(worker.asend(payload, transaction=self.given, **options))

    def send_many(self, worker: Worker, payloads: Any, **options: Any) -> Jobs:
        return self.run(worker.asend_many(payloads, transaction=self.given, **options))


# --- drivers -------------------------------------------------------------------------------------


class Sqlite3(Lender):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.given = sqlite3.connect(self.url, timeout=WAIT_S)

    def autocommit(self) -> None:
        self.given.isolation_level = None

    def begin(self) -> None:
        self.given.execute("BEGIN IMMEDIATE")

    def execute(self, sql: str) -> None:
        self.given.execute(sql)

    def commit(self) -> None:
        self.given.commit()

    def rollback(self) -> None:
        self.given.rollback()

    def close(self) -> None:
        self.given.close()


class Aiosqlite(AsyncLender):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.given = self.run(self._connect())

    async def _connect(self) -> Any:
        import aiosqlite

        return await aiosqlite.connect(self.url, timeout=WAIT_S)

    def autocommit(self) -> None:
        self.run(self.given._execute(setattr, self.given._conn, "isolation_level", None))

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    async def _execute(self, sql: str) -> None:
        await self.given.execute(sql)

    def commit(self) -> None:
        self.run(self.given.commit())

    def rollback(self) -> None:
        self.run(self.given.rollback())

    async def _close(self) -> None:
        await self.given.close()


class Psycopg(Lender):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        import psycopg

        self.given = psycopg.connect(self.url)

    def autocommit(self) -> None:
        self.given.autocommit = True

    def begin(self) -> None:
        pass  # it begins with the first statement

    def execute(self, sql: str) -> None:
        self.given.execute(sql)

    def commit(self) -> None:
        self.given.commit()

    def rollback(self) -> None:
        self.given.rollback()

    def close(self) -> None:
        self.given.close()


class AsyncPsycopg(AsyncLender):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.given = self.run(self._connect())

    async def _connect(self) -> Any:
        import psycopg

        return await psycopg.AsyncConnection.connect(self.url)

    def autocommit(self) -> None:
        self.run(self.given.set_autocommit(True))

    def begin(self) -> None:
        pass

    async def _execute(self, sql: str) -> None:
        await self.given.execute(sql)

    def commit(self) -> None:
        self.run(self.given.commit())

    def rollback(self) -> None:
        self.run(self.given.rollback())

    async def _close(self) -> None:
        await self.given.close()


class Asyncpg(AsyncLender):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._transaction: Any = None
        self.given = self.run(self._connect())

    async def _connect(self) -> Any:
        import asyncpg

        return await asyncpg.connect(self.url)

    def autocommit(self) -> None:
        pass  # it is

    def begin(self) -> None:
        self._transaction = self.given.transaction()
        self.run(self._transaction.start())

    async def _execute(self, sql: str) -> None:
        await self.given.execute(sql)

    def commit(self) -> None:
        self.run(self._transaction.commit())

    def rollback(self) -> None:
        self.run(self._transaction.rollback())

    async def _close(self) -> None:
        await self.given.close()


class AsyncpgPool(Asyncpg):
    """A connection of a pool: a stand-in that passes all on."""

    async def _connect(self) -> Any:
        import asyncpg

        self._pool = await asyncpg.create_pool(self.url, min_size=1, max_size=1)
        return await self._pool.acquire()

    async def _close(self) -> None:
        await self._pool.release(self.given)
        await self._pool.close()


# --- SQLAlchemy ----------------------------------------------------------------------------------


def alchemy_url(url: str, driver: str) -> str:
    """Return a file's path or a postgresql:// URL as SQLAlchemy writes it."""
    if "://" in url:
        return url.replace("postgresql://", f"postgresql+{driver}://", 1)
    return f"sqlite+{driver}:///{url}"


class Alchemy(Lender):
    """`what` is "session", "connection" or "scoped"."""

    def __init__(self, url: str, driver: str, what: str) -> None:
        super().__init__(url)
        self._what = what
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session, scoped_session, sessionmaker

        self._engine = create_engine(alchemy_url(self.url, driver))
        made = {
            "session": lambda: Session(self._engine),
            "connection": self._engine.connect,
            "scoped": lambda: scoped_session(sessionmaker(self._engine)),
        }
        self.given = made[what]()

    def autocommit(self) -> None:
        self._engine.update_execution_options(isolation_level="AUTOCOMMIT")
        if self._what == "connection":
            self.given.execution_options(isolation_level="AUTOCOMMIT")

    def begin(self) -> None:
        self.given.begin()

    def execute(self, sql: str) -> None:
        from sqlalchemy import text

        self.given.execute(text(sql))

    def commit(self) -> None:
        self.given.commit()

    def rollback(self) -> None:
        self.given.rollback()

    def close(self) -> None:
        self.given.close()
        self._engine.dispose()


class AsyncAlchemy(AsyncLender):
    """`what` is "session" or "connection"."""

    def __init__(self, url: str, driver: str, what: str) -> None:
        super().__init__(url)
        self._what = what
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

        self._engine = create_async_engine(alchemy_url(self.url, driver))
        self.given = AsyncSession(self._engine) if what == "session" else self._engine.connect()
        if what == "connection":
            self.run(self.given.start())

    def autocommit(self) -> None:
        self._engine.update_execution_options(isolation_level="AUTOCOMMIT")
        if self._what == "connection":
            self.run(self.given.execution_options(isolation_level="AUTOCOMMIT"))

    def begin(self) -> None:
        async def begin() -> None:
            await self.given.begin()

        self.run(begin())

    async def _execute(self, sql: str) -> None:
        from sqlalchemy import text

        await self.given.execute(text(sql))

    def commit(self) -> None:
        self.run(self.given.commit())

    def rollback(self) -> None:
        self.run(self.given.rollback())

    async def _close(self) -> None:
        await self.given.close()
        await self._engine.dispose()


# --- Django --------------------------------------------------------------------------------------


class Django(Lender):
    """`django.db.connection`, in atomic(); a second one at the same time is `connections["other"]`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import django
        from django.conf import settings
        from django.db import connection, connections

        if not settings.configured:
            settings.configure(DATABASES={})
            django.setup()
        self._alias = "other" if hasattr(connections._connections, "default") else "default"
        known = {**connections.settings, self._alias: self._settings()}
        connections.settings = connections.configure_settings(known)
        self.given = connection if self._alias == "default" else connections["other"]

    def _settings(self) -> dict[str, Any]:
        if "://" not in self.url:
            return {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": self.url,
                "OPTIONS": {"timeout": WAIT_S, "transaction_mode": "IMMEDIATE"},
            }
        from psycopg.conninfo import conninfo_to_dict

        found = conninfo_to_dict(self.url)
        names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
        return {
            "ENGINE": "django.db.backends.postgresql",
            **{django: str(found[libpq]) for libpq, django in names.items() if libpq in found},
        }

    def autocommit(self) -> None:
        pass  # it is

    def begin(self) -> None:
        from django.db import transaction

        self._atomic = transaction.atomic(using=self._alias)
        self._atomic.__enter__()

    def execute(self, sql: str) -> None:
        with self.given.cursor() as cursor:
            cursor.execute(sql)

    def commit(self) -> None:
        self._atomic.__exit__(None, None, None)

    def rollback(self) -> None:
        from django.db import transaction

        transaction.set_rollback(True, using=self._alias)
        self._atomic.__exit__(None, None, None)

    def close(self) -> None:
        from django.db import connections

        self.given.close()
        del connections[self._alias]


ON_SQLITE: dict[str, Callable[[str], Lender]] = {
    "sqlite3": Sqlite3,
    "aiosqlite": Aiosqlite,
    "SQLAlchemy Session": lambda url: Alchemy(url, "pysqlite", "session"),
    "SQLAlchemy Connection": lambda url: Alchemy(url, "pysqlite", "connection"),
    "SQLAlchemy scoped_session": lambda url: Alchemy(url, "pysqlite", "scoped"),
    "SQLAlchemy AsyncSession": lambda url: AsyncAlchemy(url, "aiosqlite", "session"),
    "SQLAlchemy AsyncConnection": lambda url: AsyncAlchemy(url, "aiosqlite", "connection"),
    "Django": Django,
}
ON_POSTGRES: dict[str, Callable[[str], Lender]] = {
    "psycopg": Psycopg,
    "psycopg async": AsyncPsycopg,
    "asyncpg": Asyncpg,
    "asyncpg pool": AsyncpgPool,
    "SQLAlchemy Session": lambda url: Alchemy(url, "psycopg", "session"),
    "SQLAlchemy Connection": lambda url: Alchemy(url, "psycopg", "connection"),
    "SQLAlchemy AsyncSession psycopg": lambda url: AsyncAlchemy(url, "psycopg", "session"),
    "SQLAlchemy AsyncConnection psycopg": lambda url: AsyncAlchemy(url, "psycopg", "connection"),
    "SQLAlchemy AsyncSession asyncpg": lambda url: AsyncAlchemy(url, "asyncpg", "session"),
    "SQLAlchemy AsyncConnection asyncpg": lambda url: AsyncAlchemy(url, "asyncpg", "connection"),
    "Django": Django,
}
ASYNCHRONOUS = {"aiosqlite", "asyncpg", "asyncpg pool", "psycopg async"} | {
    name for name in {*ON_SQLITE, *ON_POSTGRES} if "Async" in name
}
COMES_BACK = {"Django", "SQLAlchemy Session", "SQLAlchemy scoped_session"} | {
    name for name in ASYNCHRONOUS if "AsyncSession" in name
}  # may be used again after it was closed
