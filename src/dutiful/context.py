"""What a running handler can ask of its job."""

import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import msgspec

from dutiful.core.values import WHOLE_MAX, escaped, number
from dutiful.errors import ConfigError, LeaseLost
from dutiful.job import Claim, JobId, Progress
from dutiful.results import Results
from dutiful.sealing import Cover
from dutiful.steps import Steps
from dutiful.steps import in_thread as _in_thread
from dutiful.store.contract import Draft, Store
from dutiful.store.special import extra as extras
from dutiful.versions import task_of

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


_MESSAGE_CHARS_MAX = 200
_FINITE = sys.float_info.max


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


class Block:
    """`ctx.transaction()` on the store's own connection, which blocks: for `with`, and one at a time."""

    def __init__(self, ctx: "Context", block: AbstractContextManager[Any]) -> None:
        self._ctx = ctx
        self._block = block

    def __enter__(self) -> Any:
        check_not_inside(self._ctx)
        connection = self._block.__enter__()
        self._ctx.is_inside = True
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._ctx.is_inside = False
        return self._block.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        raise ConfigError(
            f"ctx.transaction() of job {self._ctx.id} gives a connection that blocks; nothing was written. "
            "Use `with`, or give an asynchronous connection of your own: async with ctx.transaction(own)."
        )

    async def __aexit__(self, *error: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """
    What a context needs of its worker.

    Args:
        draft: From a payload and the options of `send` to the job to store.
        open: From the handler's own connection, or None, to its transaction.
        step_bytes_max: The largest result of a step, in bytes of JSON.
        cover: How the job's values are stored.
    """

    store: Store
    draft: Callable[[object, Mapping[str, Any]], Draft]
    open: Callable[[Any], AbstractContextManager[Any]]
    step_bytes_max: int
    cover: Cover


class Context:
    """
    The job that a handler is running. A parameter named `ctx`, or annotated `Context`, gets it.

    Attributes:
        id: The job's id.
        attempt: 1 at the first claim; rises with every claim, never falls.
        failures: How many attempts have failed before this one.
        task: The name of what to do, without a version.
        queue: The queue that it came from.
    """

    __slots__ = (
        "_after",
        "_claim",
        "_desk",
        "_has_opened",
        "_progress",
        "_signal",
        "drafts",
        "is_completed",
        "is_inside",
        "used_steps",
    )

    def __init__(self, claim: Claim, desk: Desk) -> None:
        self._claim = claim
        self._desk = desk
        self._signal = threading.Event()
        self._after: Sequence[Any] | None = None
        self._progress: Progress | None = None  # what is not written yet
        self._has_opened = False
        self.is_completed = False
        self.is_inside = False  # of a transaction on the store's own connection
        self.drafts: list[Draft] = []
        self.used_steps: Steps | None = None

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
        return task_of(self._claim.task)

    @property
    def queue(self) -> str:
        return self._claim.queue

    @property
    def headers(self) -> Mapping[str, str]:
        """The texts that were sent with the job (`headers=`)."""
        return {} if self._claim.extra is None else extras.read(self._claim.extra).headers

    @property
    def after(self) -> Sequence[Any]:
        """
        The results of the jobs that this one was sent `after=`, in that order, as plain JSON values.

        None for one that returned nothing, did not complete, or had been deleted before. They are read
        a page at a time as you iterate, so that those of a large group need not fit into memory.
        """
        if self._after is None:
            follows = self._claim.extra is not None and extras.read(self._claim.extra).follows
            self._after = (
                Results(self._desk.store, self._claim.id, self._desk.cover.of(self.id)) if follows else ()
            )
        return self._after

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

    def _steps(self) -> Steps:
        if self.used_steps is None:
            desk = self._desk
            self.used_steps = Steps(
                desk.store, self._claim, desk.step_bytes_max, self._check_step, desk.cover.of(self.id)
            )
        return self.used_steps

    def _check_step(self) -> None:
        if self._has_opened:
            raise ConfigError(
                f"job {self._claim.id} has opened ctx.transaction(), which completes it; the step was not "
                "run. Run steps before that."
            )
        self.check()

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
        self.about_to_complete()
        check_not_inside(self)
        return self._desk.open(own) if own is not None else Block(self, self._desk.open(None))

    # --- steps ------------------------------------------------------------------------------------

    def step(self, name: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Call `fn` once for this job, whatever number of attempts it takes; return its result.

        The result is stored, as JSON, before this returns. A later attempt finds it and does not call `fn`.
        It is called again only if it raised, or if the process died before the result was stored. Each
        time the result is read back as `fn` is annotated, or else as plain JSON values.

        Args:
            name: Names the step in this job. Only this must be the same in each attempt.
            fn: Sync; for async ones there is `astep`.
            *args: What it is called with.
            **kwargs: That by name.

        Raises:
            LeaseLost: The handler should stop (see `cancelled`), or another attempt owns the job; nothing
                was stored.
            NotEncodable: The result cannot be stored. ConfigError: The name is another step's.
            StoreError: The result is not stored.
        """
        result: T = self._steps().run(name, fn, args, kwargs)
        return result

    @overload
    async def astep(
        self, name: str, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def astep(self, name: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def astep(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`step` for async handlers: awaits `fn` if it is async, and else calls it in a thread."""
        return await self._steps().arun(name, fn, args, kwargs)

    def sleep(self, name: str, span: float | timedelta | str) -> None:
        """
        Put the job to sleep, without a slot, thread or memory; go on behind this when it is over.

        The attempt ends here, and is no failure. When the time has come, on whatever worker, a new
        one runs the handler from its beginning, with all steps done, and passes this at once.

        Args:
            name: Names the sleep in this job, like a step.
            span: Seconds, a timedelta, or a text: "3 days", "1h 30m". Of the first time.

        Raises:
            LeaseLost, ConfigError, StoreError: As for `step`.
            BaseException: A private one, which ends the attempt: let it pass.
        """
        self._steps().sleep(name, span)

    async def asleep(self, name: str, span: float | timedelta | str) -> None:
        """`sleep`, without blocking the event loop."""
        await _in_thread(self._steps().sleep, name, span)

    def wait_event(
        self, event: str, timeout: float | timedelta | str | None = None, *, step: str | None = None
    ) -> Any:
        """
        Return the value of an event (`worker.send_event`), as plain JSON values; sleep until it comes.

        An event goes to one job: the first that asks, if it was sent before; else the oldest that waits.

        Args:
            event: The event's name, such as "approved:42".
            timeout: How long to wait, like the span of `sleep`, from the first time on; None: for ever.
            step: Names the wait in this job; needed if it waits for one event several times.

        Raises:
            EventTimeout: It did not come in time; nor does it in later attempts.
            LeaseLost, ConfigError, StoreError: As for `step`.
            BaseException: A private one, which ends the attempt: let it pass.
        """
        return self._steps().wait_event(event, timeout, step)

    async def await_event(
        self, event: str, timeout: float | timedelta | str | None = None, *, step: str | None = None
    ) -> Any:
        """`wait_event`, without blocking the event loop."""
        return await _in_thread(self._steps().wait_event, event, timeout, step)

    # --- progress, and sends --------------------------------------------------------------------------

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """
        Say how far the job has come: `job.progress`, and `dutiful job`, show it.

        Costs nothing: it is written twice a second at most, and what was said last in any case.

        Args:
            done: So much is done, in whatever unit.
            total: Of so much; None: not known.
            message: In words, up to 200 letters; what is longer is cut.

        Raises:
            ConfigError: A value is no number.
        """
        for name, value in (("done", done), ("total", 0 if total is None else total)):
            least, most = (-WHOLE_MAX, WHOLE_MAX) if isinstance(value, int) else (-_FINITE, _FINITE)
            unchanged = "No progress was written."
            number(f"progress: {name}", value, least, most, wanted="a number", unchanged=unchanged)
        self._progress = Progress(done, total, escaped(str(message)[:_MESSAGE_CHARS_MAX]))

    def send(self, payload: object, **options: Any) -> None:
        """
        Send a job that is stored together with this one's completion, or not at all.

        It is stored in the same commit, if the handler returns and this attempt still owns the job.
        If it raises, snoozes, sleeps, is cancelled or dies, nothing of it is stored. Until then it is
        held in memory, and has no id.

        Args:
            payload: As for `worker.send`.
            **options: Those of `worker.send`, but for `transaction` and `timeout`.

        Raises:
            UnknownTask, NotEncodable, ConfigError: As for `worker.send`; it will not be stored.
        """
        if self._has_opened:
            raise ConfigError(
                f"job {self._claim.id} is completed by its transaction, not by the worker; nothing was "
                "stored. Send inside of that transaction: worker.send(…, transaction=…)."
            )
        for name in ("transaction", "timeout"):
            if options.get(name) is not None:
                raise ConfigError(
                    f"ctx.send() has no {name}=, as it stores nothing by itself; nothing was stored. "
                    "Leave it out, or use worker.send()."
                )
        draft = self._desk.draft(payload, options)
        self.drafts.append(msgspec.structs.replace(draft, only_if=(self._claim.id, self._claim.attempt)))

    # --- for our own parts ------------------------------------------------------------------------------

    def about_to_complete(self) -> None:
        """
        A transaction is to complete the job.

        Raises:
            ConfigError: There are jobs that only the worker could store with its completion.
        """
        if self.drafts:
            raise ConfigError(
                f"job {self._claim.id} has used ctx.send(), whose jobs are stored when the worker completes "
                "it; no transaction was opened. Use worker.send(…, transaction=…) inside of it instead."
            )
        self._has_opened = True

    def take_progress(self) -> str | None:
        """Return what was said last, if it is not written yet, as JSON."""
        said, self._progress = self._progress, None
        if said is None:
            return None
        keyring = self._desk.cover.keyring
        if keyring is not None and said.message:  # the numbers alone say nothing
            message = keyring.seal(said.message, "progress", self._claim.id)
            said = msgspec.structs.replace(said, message=message)
        return msgspec.json.encode(said).decode()

    def stop_soon(self) -> None:
        """Ask the handler to stop; called by the worker."""
        self._signal.set()


def check_not_inside(ctx: Context) -> None:
    if ctx.is_inside:
        raise ConfigError(
            f"job {ctx.id} is inside of ctx.transaction() already; the inner one was not opened. "
            "Write on the connection that the outer one gave."
        )
