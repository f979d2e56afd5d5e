"""What a running handler can ask of its job."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar, overload

from dutiful.errors import LeaseLost
from dutiful.job import Claim, JobId

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Transaction(Protocol[T_co]):
    """A block in a handler's own transaction: `with`, or `async with` if that is asynchronous."""

    def __enter__(self) -> T_co: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...
    async def __aenter__(self) -> T_co: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...


class Context:
    """
    The job that a handler is running. A parameter named `ctx`, or annotated `Context`, gets it.

    Attributes:
        id: The job's id.
        attempt: 1 at the first claim; rises with every claim, never falls.
        failures: How many attempts have failed before this one.
        task: The stored name of what to do.
        queue: The queue that it came from.
    """

    __slots__ = ("_claim", "_open", "_signal", "is_completed")

    def __init__(self, claim: Claim, open_transaction: Callable[[Any], AbstractContextManager[Any]]) -> None:
        self._claim = claim
        self._open = open_transaction
        self._signal = threading.Event()
        self.is_completed = False

    @property
    def id(self) -> JobId:
        return self._claim.id

    @property
    def attempt(self) -> int:
        return self._claim.attempt

    @property
    def failures(self) -> int:
        return self._claim.failures

    @property
    def task(self) -> str:
        return self._claim.task

    @property
    def queue(self) -> str:
        return self._claim.queue

    @property
    def cancelled(self) -> bool:
        """
        Whether the handler should stop: the job was cancelled, ran out of time, or the worker ends.

        A thread cannot be stopped from outside, so a long handler looks here now and then.
        """
        return self._signal.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for up to `seconds`; return early, with True, when the handler should stop."""
        return self._signal.wait(seconds)

    def check(self) -> None:
        """
        Go on, or leave the handler if it should stop.

        Raises:
            LeaseLost: The handler should stop (see `cancelled`).
        """
        if self._signal.is_set():
            raise LeaseLost(self._claim.id)

    @overload
    def transaction(self) -> AbstractContextManager[Any]: ...
    @overload
    def transaction(self, own: T) -> Transaction[T]: ...
    def transaction(self, own: Any = None) -> Any:
        """
        Open a transaction on the store's database, in which the job's completion commits too.

        What the handler writes on the connection that it gives, and that the job is
        completed, become true together when the block ends, once; or, when the block
        raises, neither. On SQLite it holds the store's write lock: keep it short, and do
        other work before or after. What the handler returns afterwards is not kept as a result.

        Args:
            own: Your own connection or session to the same database, of any library that
                `send(transaction=…)` takes, with no transaction open; the block begins and
                ends one. `async with`, if it is an asynchronous one.

        Raises:
            LeaseLost: Another attempt owns the job by now; nothing was written.
            StoreBusy: The write lock was not free within `busy_s`.
            ConfigError: `own` cannot be used for it; nothing was written.

        Example:
            with ctx.transaction() as db:
                db.execute("UPDATE account SET paid = paid + ? WHERE id = ?", (job.amount, job.account))
        """
        return self._open(own)

    def stop_soon(self) -> None:
        """Ask the handler to stop; called by the worker."""
        self._signal.set()
