"""Which library a user's connection is from."""

import sys
from collections.abc import Callable
from typing import Any

from dutiful.errors import ConfigError
from dutiful.store.borrowed.connection import Borrowed, named
from dutiful.store.borrowed.drivers import Aiosqlite, Asyncpg, AsyncPsycopg, Psycopg, Sqlite3
from dutiful.store.borrowed.frameworks import Alchemy, AsyncAlchemy, Django

# Where a class can be looked up if its library is there, and what borrows its objects.
_LENDERS: tuple[tuple[str, str, Callable[[Any], Borrowed]], ...] = (
    ("sqlite3", "Connection", Sqlite3),
    ("psycopg", "Connection", Psycopg),
    ("psycopg", "AsyncConnection", AsyncPsycopg),
    ("asyncpg", "Connection", Asyncpg),
    ("sqlalchemy.orm", "Session", Alchemy),
    ("sqlalchemy", "Connection", Alchemy),
    ("sqlalchemy.ext.asyncio", "AsyncSession", AsyncAlchemy),
    ("sqlalchemy.ext.asyncio", "AsyncConnection", AsyncAlchemy),
    # The session of this thread, or of this task.
    ("sqlalchemy.orm", "scoped_session", lambda scoped: Alchemy(scoped())),
    ("sqlalchemy.ext.asyncio", "async_scoped_session", lambda scoped: AsyncAlchemy(scoped())),
    ("django.db.backends.base.base", "BaseDatabaseWrapper", Django),
    ("django.utils.connection", "ConnectionProxy", Django),  # django.db.connection
    ("aiosqlite", "Connection", Aiosqlite),
)


def borrow(given: Any) -> Borrowed:
    """
    Return a user's connection as one that a store's steps can run on.

    Raises:
        ConfigError: It is nothing that we know.
    """
    for module, name, lender in _LENDERS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(given, kind):
            return lender(given)
    raise ConfigError(
        f"transaction= is {named(given)}; nothing was stored. It takes your own connection in its "
        "transaction: of sqlite3, psycopg or asyncpg, a session or connection of SQLAlchemy, or Django's."
    )
