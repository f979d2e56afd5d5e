"""`ctx.transaction(own)`: the job's completion commits with its handler's own transaction."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import TracebackType
from typing import Any, Protocol

from dutiful.crashpoint import crashpoint
from dutiful.errors import ConfigError
from dutiful.store.borrowed.aside import aside
from dutiful.store.borrowed.borrow import borrow
from dutiful.store.borrowed.connection import Asynchronous, Blocking, Borrowed, Steps


class Completion(Protocol):
    """How a store has one attempt completed in its user's transaction."""

    def acquire(self) -> Callable[[], None]:
        """
        Wait for the turn to write, if the store's writers take turns; return how to give it back.

        Raises:
            StoreBusy: It did not come in time.
        """
        ...

    def inside(self) -> AbstractContextManager[None]:
        """Give what the caller is in while the transaction is open; see Store.is_in_transaction_here."""
        ...

    def first(self, borrowed: Borrowed) -> Steps[None]:
        """
        At the transaction's begin: see that it leads here, and that the attempt owns its job.

        Raises:
            ConfigError: Another database. LeaseLost: Another attempt.
        """
        ...

    def last(self, borrowed: Borrowed) -> Steps[None]:
        """
        Before its commit: complete the job.

        Raises:
            LeaseLost: Another attempt owns it.
        """
        ...


class OwnTransaction:
    """
    A transaction on a handler's own connection: `with` or, for asynchronous libraries, `async with`.

    At the end of the block it is committed, with the job's completion; when the block raises, it is
    rolled back.

    Args:
        own: The connection or session; it has no open transaction.
        completion: The store's part.
        done: Called after the commit.
    """

    def __init__(self, own: Any, completion: Completion, done: Callable[[], None]) -> None:
        self._own = own
        self._borrowed = borrow(own)
        self._completion = completion
        self._done = done
        self._blocking: AbstractContextManager[Any] | None = None
        self._awaited: AbstractAsyncContextManager[Any] | None = None

    def __enter__(self) -> Any:
        if not isinstance(self._borrowed, Blocking):
            raise ConfigError(self._wrong("asynchronous", "async with"))
        self._blocking = self._block(self._borrowed)
        return self._blocking.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._blocking is not None, "entered"
        return self._blocking.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        if not isinstance(self._borrowed, Asynchronous):
            raise ConfigError(self._wrong("not asynchronous", "with"))
        self._awaited = self._ablock(self._borrowed)
        return await self._awaited.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._awaited is not None, "entered"
        return await self._awaited.__aexit__(kind, error, trace)

    def _wrong(self, what: str, word: str) -> str:
        return f"{self._borrowed.name} is {what}; nothing was written. Write: {word} ctx.transaction(…)."

    @contextmanager
    def _block(self, borrowed: Blocking) -> Generator[Any]:
        self._refuse(is_open=borrowed.is_open())
        release = self._completion.acquire()
        try:
            with self._completion.inside():
                borrowed.start()
                try:
                    borrowed.run(self._completion.first)
                    yield self._own
                    borrowed.run(self._completion.last)
                    crashpoint("transaction.before_commit")
                except BaseException:
                    borrowed.roll_back()
                    raise
                borrowed.commit()
        finally:
            release()
        crashpoint("transaction.after_commit")
        self._done()

    @asynccontextmanager
    async def _ablock(self, borrowed: Asynchronous) -> AsyncGenerator[Any]:
        self._refuse(is_open=await borrowed.ais_open())
        release = await aside(self._completion.acquire, _give_back)
        try:
            with self._completion.inside():
                await borrowed.start()
                try:
                    await borrowed.arun(self._completion.first)
                    yield self._own
                    await borrowed.arun(self._completion.last)
                    crashpoint("transaction.before_commit")
                except BaseException:
                    await borrowed.roll_back()
                    raise
                await borrowed.commit()
        finally:
            release()
        crashpoint("transaction.after_commit")
        self._done()

    def _refuse(self, *, is_open: bool) -> None:
        if is_open:
            raise ConfigError(
                f"ctx.transaction() was given {self._borrowed.name} with an open transaction, which it must "
                "not commit; nothing was written. End that first, or read inside the block."
            )


def _give_back(release: Callable[[], None]) -> None:
    release()
