"""What a running handler of batches can ask: of its batch, and of each job in it."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from dutiful.context import Block, Context, Desk, Transaction, check_not_inside
from dutiful.errors import ConfigError, LeaseLost
from dutiful.job import Claim

T = TypeVar("T")


class JobInBatch(Context):
    """
    One job of a batch, as `Context` is: its id, attempt, headers, `send`, `progress`, `step` and so on.

    It cannot sleep, or be completed, apart from the others: for that its outcome is there.
    """

    __slots__ = ()

    def sleep(self, name: str, span: float | timedelta | str) -> NoReturn:  # noqa: ARG002  # as Context has it
        """Raise `ConfigError`: the others go on."""
        self._refuse("sleep()", "return Snooze(seconds) as its outcome")

    async def asleep(self, name: str, span: float | timedelta | str) -> NoReturn:
        """Raise `ConfigError`: the others go on."""
        self.sleep(name, span)

    def wait_event(
        self,
        event: str,  # noqa: ARG002  # as Context has it
        timeout: float | timedelta | str | None = None,  # noqa: ARG002
        *,
        step: str | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """Raise `ConfigError`: the others go on."""
        self._refuse("wait_event()", "wait for it in a handler of single jobs")

    async def await_event(
        self, event: str, timeout: float | timedelta | str | None = None, *, step: str | None = None
    ) -> NoReturn:
        """Raise `ConfigError`: the others go on."""
        self.wait_event(event, timeout, step=step)

    def transaction(self, own: Any = None) -> NoReturn:  # noqa: ARG002  # as Context has it
        """Raise `ConfigError`: all jobs of a batch are completed together."""
        self._refuse("transaction()", "use that of the batch, ctx.transaction(), which completes all of it")

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise ConfigError(
            f"{what} of job {self.id} ({self.task}) is not available in a batch; nothing was written. "
            f"Instead, {instead}."
        )


class BatchContext:
    """
    The batch that a handler is running. Its parameter named `ctx` gets it.

    Attributes:
        jobs: One JobInBatch for each payload, in the same order: id, attempt, headers and so on.
        task: The stored name of what to do.
    """

    __slots__ = ("_desk", "_signal", "is_completed", "jobs")

    def __init__(self, claims: Sequence[Claim], desk: Desk) -> None:
        self._desk = desk
        self._signal = threading.Event()
        self.jobs: tuple[JobInBatch, ...] = tuple(JobInBatch(claim, desk) for claim in claims)
        self.is_completed = False

    if not TYPE_CHECKING:  # a type checker knows what there is

        def __getattr__(self, name: str) -> NoReturn:
            hint = f"; each job has its own: ctx.jobs[n].{name}" if hasattr(JobInBatch, name) else ""
            raise AttributeError(f"a batch has no {name!r}{hint}")

    @property
    def task(self) -> str:
        return self.jobs[0].task

    @property
    def cancelled(self) -> bool:
        """
        Whether the handler should stop: all its jobs were cancelled, time is up, or the worker ends.

        `ctx.jobs[n].cancelled` says it of one job: what the handler answers for that one holds, but it
        is not tried again.
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
            raise LeaseLost(self.jobs[0].id)

    @overload
    def transaction(self) -> AbstractContextManager[Any]: ...
    @overload
    def transaction(self, own: T) -> Transaction[T]: ...
    def transaction(self, own: Any = None) -> Any:
        """
        Open a transaction in which the completion of all jobs of the batch commits too.

        As `Context.transaction`, for all of them: what the handler writes and that they are completed
        become true together when the block ends; or, when it raises, neither. What the handler answers
        afterwards is not kept.

        Args:
            own: Your own connection or session, as there.

        Raises:
            LeaseLost: Another attempt owns one of the jobs by now; nothing was written.
            StoreBusy, ConfigError: As there.
        """
        for job in self.jobs:
            job.about_to_complete()
        first = self.jobs[0]  # by its id messages name the batch
        check_not_inside(first)
        return self._desk.open(own) if own is not None else Block(first, self._desk.open(None))

    def stop_soon(self) -> None:
        """Ask the handler to stop; called by the worker."""
        self._signal.set()
        for job in self.jobs:
            job.stop_soon()
