"""SQLAlchemy's sessions and connections, Django's connections: whatever driver is behind them."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dutiful.errors import ConfigError
from dutiful.store.borrowed.connection import Asynchronous, Blocking, Borrowed, Rows, State, Steps
from dutiful.store.borrowed.drivers import Undone, numbered, sqlite_state

T = TypeVar("T")

_AUTOCOMMIT = "Its isolation level is AUTOCOMMIT; use an engine, or options, without it."


class Alchemy(Blocking):
    """
    A Session or Connection of SQLAlchemy.

    Statements go through SQLAlchemy and not to the driver behind it, which may begin its
    transaction only when SQLAlchemy first writes (asyncpg).
    """

    begin = _AUTOCOMMIT

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self._found: Any = None

    @property
    def _connection(self) -> Any:
        if self._found is None:
            is_connection = isinstance(self.given, sys.modules["sqlalchemy"].Connection)
            try:
                # A session's own begins its transaction here, if it has not yet.
                self._found = self.given if is_connection else self.given.connection()
            except self.errors() as error:
                raise self.unusable(error) from error
        return self._found

    def database(self) -> str:
        return str(self._connection.dialect.name)

    def state(self) -> State:
        try:
            pooled = self._connection.connection
        except self.errors() as error:  # it is closed
            raise self.unusable(error) from error
        if self.database() == "sqlite":
            return sqlite_state(pooled.driver_connection)
        if getattr(pooled.dbapi_connection, "autocommit", False):
            return "none"
        return "open" if self._connection.in_transaction() else "begins"

    def errors(self) -> tuple[type[BaseException], ...]:
        return (sys.modules["sqlalchemy.exc"].SQLAlchemyError,)

    def cause(self, error: BaseException) -> BaseException | None:
        original: BaseException | None = getattr(error, "orig", None)
        if original is not None and type(original).__module__.startswith("sqlalchemy."):
            return original.__cause__ or original  # its own, between it and an asynchronous driver
        return original

    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        connection = self._connection
        if connection.dialect.paramstyle == "numeric_dollar":
            sql = numbered(sql)
        result = connection.exec_driver_sql(sql, tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []

    def is_open(self) -> bool:
        return bool(self.given.in_transaction())

    def start(self) -> None:
        self._transaction = self.given.begin()

    def commit(self) -> None:
        self._transaction.commit()

    def roll_back(self) -> None:
        self.given.rollback()


class AsyncAlchemy(Asynchronous):
    """An AsyncSession or AsyncConnection of SQLAlchemy: the blocking one inside it, in its greenlet."""

    begin = _AUTOCOMMIT

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self._found: Alchemy | None = None

    def database(self) -> str:
        raise AssertionError("the blocking one inside is asked")

    def state(self) -> State:
        raise AssertionError("the blocking one inside is asked")

    async def _inside(self, act: Callable[[Alchemy], T]) -> T:
        """Do something with the blocking one inside."""

        def act_on(inside: Any) -> T:
            return act(self._alchemy(inside))

        try:
            done: T = await self.given.run_sync(act_on)
        except sys.modules["sqlalchemy.exc"].SQLAlchemyError as error:  # not started, or closed
            raise self.unusable(error) from error
        return done

    def _alchemy(self, inside: Any) -> Alchemy:
        if self._found is None or self._found.given is not inside:
            self._found = Alchemy(inside)
        return self._found

    async def arun(self, steps: Callable[[Borrowed], Steps[T]]) -> T:
        return await self._inside(lambda alchemy: alchemy.run(steps))

    async def ais_open(self) -> bool:
        return await self._inside(Alchemy.is_open)

    async def start(self) -> None:
        await self._inside(Alchemy.start)

    async def commit(self) -> None:
        await self._inside(Alchemy.commit)

    async def roll_back(self) -> None:
        await self._inside(Alchemy.roll_back)


class Django(Blocking):
    """A connection of Django, inside `atomic()`."""

    begin = "Write it inside `with transaction.atomic():`."

    def database(self) -> str:
        return str(self.given.vendor)

    def state(self) -> State:
        if self.given.in_atomic_block:
            return "failed" if self.given.needs_rollback else "open"
        return "none" if self.given.get_autocommit() else "begins"

    def errors(self) -> tuple[type[BaseException], ...]:
        return (sys.modules["django.db.utils"].Error,)

    def cause(self, error: BaseException) -> BaseException | None:
        return error.__cause__

    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        if self.database() == "sqlite":
            sql = sql.replace("%", "%%").replace("?", "%s")
        with self.given.cursor() as cursor:
            cursor.execute(sql, tuple(parameters))
            return [] if cursor.description is None else list(cursor.fetchall())

    def start(self) -> None:
        transaction = sys.modules["django.db.transaction"]
        self._atomic = transaction.atomic(using=self.given.alias, durable=True)
        self._atomic.__enter__()

    def commit(self) -> None:
        self._atomic.__exit__(None, None, None)

    def roll_back(self) -> None:
        if self.given.in_atomic_block:
            self._atomic.__exit__(Undone, Undone(), None)

    async def arun(self, steps: Callable[[Borrowed], Steps[T]]) -> T:  # noqa: ARG002  # it cannot
        raise ConfigError(
            "transaction= is a connection of Django, whose transactions are for sync code; nothing was "
            "stored. Call send() there: sync_to_async(a function with atomic() and send())."
        )
