"""
A connection of the user's own, for statements of ours inside the user's transaction.

    borrow.py       which library's it is
    drivers.py      sqlite3, aiosqlite, psycopg, asyncpg
    frameworks.py   SQLAlchemy, Django

None of these libraries is imported here: whoever has such a connection has imported its
library. Stores say what they want as `Steps`, a generator that yields statements and is
given the rows, so that the same words run on a blocking connection and on an asynchronous
one. What a connection cannot do is found out before the first statement. A transaction is
begun and ended here only for `ctx.transaction(own)`, see completing.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from dutiful.errors import ConfigError

T = TypeVar("T")

# SQL and its parameters, in the words of the database's usual driver: "?" on SQLite, "%s" on Postgres.
Statement = tuple[str, Sequence[Any]]
Rows = list[tuple[Any, ...]]
Steps = Generator[Statement, Rows, T]
State = Literal[
    "open",  # a transaction is open
    "begins",  # the library begins one with the next statement
    "none",  # what is written would be committed at once
    "failed",  # it can only be rolled back
]


class Borrowed(ABC):
    """
    A user's connection.

    Attributes:
        given: What the user gave.
        begin: How to begin a transaction with this library, for messages.
    """

    begin: ClassVar[str]

    def __init__(self, given: Any) -> None:
        self.given = given
        self.name = named(given)

    @abstractmethod
    def database(self) -> str:
        """Return what kind of database it leads to: "sqlite", "postgresql", or one that we do not know."""

    @abstractmethod
    def state(self) -> State:
        """
        Raises:
            ConfigError: It is closed.
        """

    def is_open(self) -> bool:
        """Whether a transaction is open, which its owner is to end."""
        return self.state() in ("open", "failed")

    @abstractmethod
    def run(self, steps: Callable[["Borrowed"], Steps[T]]) -> T:
        """
        Run the statements, and return what the generator returns.

        A driver's error is raised in the generator, where its statement stands.

        Raises:
            ConfigError: The connection is asynchronous, or cannot be used.
        """

    @abstractmethod
    async def arun(self, steps: Callable[["Borrowed"], Steps[T]]) -> T:
        """`run`, for coroutines. A blocking connection blocks, as it does for its owner."""

    def check(self, database: Literal["sqlite", "postgresql"], label: str) -> None:
        """
        Find out whether it can be written on.

        Raises:
            ConfigError: It leads to another kind of database than that of `label`, or is in no transaction.
        """
        found = self.database()
        if found != database:
            raise ConfigError(
                f"transaction= is {self.name} to {found}, and this worker keeps its jobs in {label}; "
                "nothing was stored. Give a connection to the same database."
            )
        state = self.state()
        if state == "none":
            raise ConfigError(
                f"transaction= ({self.name}) has no open transaction; nothing was stored. {self.begin}"
            )
        if state == "failed":
            raise ConfigError(
                f"the transaction of transaction= ({self.name}) has failed; nothing was stored. Roll it "
                "back, and begin again."
            )

    def unusable(self, error: BaseException | str) -> ConfigError:
        """Return the error that says that the library does not let us write."""
        return ConfigError(f"transaction= ({self.name}) cannot be used: {error}; nothing was stored.")

    def ended(self) -> ConfigError:
        """Return the error that says that a handler has ended the block's transaction by hand."""
        return ConfigError(
            f"the transaction of {self.name} was ended inside ctx.transaction(); leave that to the block, so "
            "that the job's completion commits with your writes."
        )


class Blocking(Borrowed):
    """One whose calls block."""

    @abstractmethod
    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """Run one statement."""

    @abstractmethod
    def start(self) -> None:
        """Begin a transaction; none is open."""

    @abstractmethod
    def commit(self) -> None:
        """Commit what `start` began."""

    @abstractmethod
    def roll_back(self) -> None:
        """Undo it."""

    def errors(self) -> tuple[type[BaseException], ...]:
        """Return what its library raises."""
        return ()

    def cause(self, error: BaseException) -> BaseException | None:
        """Return the driver's error behind one of `errors`; None: the library itself refused."""
        return error

    def run(self, steps: Callable[[Borrowed], Steps[T]]) -> T:
        running = steps(self)
        errors = self.errors()
        try:
            statement = next(running)
            while True:
                try:
                    rows = self.execute(*statement)
                except errors as error:
                    statement = running.throw(self.cause(error) or self.unusable(error))
                else:
                    statement = running.send(rows)
        except StopIteration as end:
            value: T = end.value
            return value

    async def arun(self, steps: Callable[[Borrowed], Steps[T]]) -> T:
        # In this thread, not in another: it is the connection's own as far as its owner is concerned.
        return self.run(steps)


class Asynchronous(Borrowed):
    """One whose calls are awaited."""

    def run(self, steps: Callable[[Borrowed], Steps[T]]) -> T:  # noqa: ARG002  # it cannot
        raise ConfigError(
            f"transaction= is {self.name}, which is asynchronous; nothing was stored. Use asend() or "
            "asend_many(): await worker.asend(…, transaction=…)."
        )

    @abstractmethod
    async def start(self) -> None:
        """Begin a transaction; none is open."""

    @abstractmethod
    async def commit(self) -> None:
        """Commit what `start` began."""

    @abstractmethod
    async def roll_back(self) -> None:
        """Undo it."""

    async def ais_open(self) -> bool:
        """`is_open`, where that has to be awaited."""
        return self.is_open()


class AsyncDriver(Asynchronous):
    """One whose statements are awaited one by one."""

    @abstractmethod
    async def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """Run one statement."""

    def errors(self) -> tuple[type[BaseException], ...]:
        """Return what its library raises."""
        return ()

    async def arun(self, steps: Callable[[Borrowed], Steps[T]]) -> T:
        running = steps(self)
        errors = self.errors()
        try:
            statement = next(running)
            while True:
                try:
                    rows = await self.execute(*statement)
                except errors as error:
                    statement = running.throw(error)
                else:
                    statement = running.send(rows)
        except StopIteration as end:
            value: T = end.value
            return value


def named(given: object) -> str:
    """Return what to call a user's object in a message: "a psycopg Connection"."""
    kind = type(given)
    library = kind.__module__.partition(".")[0]
    name = kind.__qualname__ if library == "builtins" else f"{library} {kind.__qualname__}"
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"
