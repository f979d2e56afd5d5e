"""
Middleware: what runs around each run of a handler.

One form serves all kinds of handlers: a generator function that yields once. What stands before the
`yield` comes before the handler, what stands behind it comes after; the handler's exception is raised
at the `yield`. It has no colour: around an async handler the two halves run on the event loop, in the
handler's own task, and around one in a child process in the worker's.
"""

import contextvars
import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct

from dutiful.errors import ConfigError
from dutiful.job import Claim, JobId
from dutiful.store.special import extra as extras

Passed: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class CallJob(Struct, frozen=True):
    """
    A job of a call.

    Attributes:
        id: The job's id.
        attempt: 1 at the first claim; rises with every claim.
        failures: How many attempts have failed before this one.
        headers: The texts that were sent with it.
    """

    id: JobId
    attempt: int
    failures: int
    headers: Mapping[str, str]


class Call:
    """
    One run of a handler, as middleware sees it: of one job or, for a handler of batches, of several.

    Attributes:
        task: The stored name of what to do.
        queue: The queue that its first job came from.
        args, kwargs: What the handler is called with, but for its Context.
    """

    __slots__ = ("_claims", "_jobs", "args", "kwargs", "queue", "task")

    def __init__(self, claims: Sequence[Claim], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._claims = claims
        self._jobs: tuple[CallJob, ...] | None = None
        self.task = claims[0].task
        self.queue = claims[0].queue
        self.args = args
        self.kwargs = kwargs

    @property
    def jobs(self) -> tuple[CallJob, ...]:
        """Its jobs, in the order of their payloads: one, unless it is a batch."""
        if self._jobs is None:
            self._jobs = tuple(map(_job, self._claims))
        return self._jobs

    @property
    def id(self) -> JobId:
        """The id of its job; of a batch, of the first."""
        return self._claims[0].id

    @property
    def attempt(self) -> int:
        """The attempt of its job; of a batch, of the first."""
        return self._claims[0].attempt

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of its job; of a batch, of the first."""
        return self.jobs[0].headers

    @property
    def payload(self) -> Any:
        """The payload, decoded; of a batch, the list; or all arguments by name, if there are several."""
        values = [*self.args, *self.kwargs.values()]
        return values[0] if len(values) == 1 else self.kwargs

    def __repr__(self) -> str:
        return f"<Call of {self.task!r}, job {', '.join(str(claim.id) for claim in self._claims)}>"


def _job(claim: Claim) -> CallJob:
    headers = {} if claim.extra is None else extras.read(claim.extra).headers
    return CallJob(claim.id, claim.attempt, claim.failures, headers)


# An Iterator is what most people write, and a type checker takes for a generator function's annotation.
Middleware: TypeAlias = Callable[[Call], Generator[None, Any, Any]] | Callable[[Call], Iterator[None]]


def checked_middleware(function: Any) -> Any:
    """
    Return it.

    Raises:
        ConfigError: It is no generator function.
    """
    if inspect.isgeneratorfunction(function):
        return function
    raise ConfigError(
        f"middleware is a plain generator function that yields once (def timed(call): …; yield; …), not "
        f"{function!r}; nothing was registered. Around async handlers too it is `def`, without "
        "@contextmanager."
    )


class _Nothing:
    """Said nothing: the handler is to run."""


NOTHING: Final = _Nothing()


class Around:
    """
    Middleware around handlers, the first outermost.

    Args:
        middleware: At least one.
    """

    def __init__(self, middleware: Sequence[Any]) -> None:
        self._all = tuple(middleware)

    def sync(
        self, claims: Sequence[Claim], fn: Callable[..., Any], ctx_name: str | None
    ) -> Callable[..., Any]:
        """Return `fn` with all of it around it, for these jobs."""

        def around(*args: Any, **kwargs: Any) -> Any:
            call = _call(claims, args, kwargs, ctx_name)
            # A thread serves many jobs: what this one sets in contextvars is not for the next.
            return contextvars.copy_context().run(self._run, 0, call, lambda: fn(*args, **kwargs))

        return around

    def asynchronous(
        self, claims: Sequence[Claim], fn: Callable[..., Awaitable[Any]], ctx_name: str | None
    ) -> Callable[..., Awaitable[Any]]:
        """Return `fn`, which is awaited, with all of it around it, for these jobs."""

        async def around(*args: Any, **kwargs: Any) -> Any:
            call = _call(claims, args, kwargs, ctx_name)
            return await self._arun(0, call, lambda: fn(*args, **kwargs))

        return around

    def _run(self, at: int, call: Call, fn: Callable[[], Any]) -> Any:
        if at == len(self._all):
            return fn()
        generator = self._all[at](call)
        skipped = _begun(generator, call)
        if skipped is not NOTHING:
            return skipped
        try:
            value = self._run(at + 1, call, fn)
        except BaseException as error:  # noqa: BLE001  # it is raised at the yield
            return _thrown(generator, error)
        return _ended(generator, value)

    async def _arun(self, at: int, call: Call, fn: Callable[[], Awaitable[Any]]) -> Any:
        if at == len(self._all):
            return await fn()
        generator = self._all[at](call)
        skipped = _begun(generator, call)
        if skipped is not NOTHING:
            return skipped
        try:
            value = await self._arun(at + 1, call, fn)
        except BaseException as error:  # noqa: BLE001  # as above
            return _thrown(generator, error)
        return _ended(generator, value)


def _call(
    claims: Sequence[Claim], args: tuple[Any, ...], kwargs: Mapping[str, Any], ctx_name: str | None
) -> Call:
    return Call(claims, args, {name: value for name, value in kwargs.items() if name != ctx_name})


def _begun(generator: Generator[None, Any, Any], call: Call) -> Any:
    """Run it up to its yield; return what it returned instead, or NOTHING."""
    try:
        next(generator)
    except StopIteration as stop:
        if stop.value is None:
            raise RuntimeError(
                f"the middleware {_name(generator)} ended without a yield, so the handler of {call!r} was "
                "not called; yield once, or return what is to become of the job, such as Snooze(60)"
            ) from None
        return stop.value
    return NOTHING


def _ended(generator: Generator[None, Any, Any], value: Any) -> Any:
    """Let it end; return its outcome, if it has one, or else the handler's."""
    try:
        generator.send(value)
    except StopIteration as stop:
        return value if stop.value is None else stop.value
    raise _second(generator)


def _thrown(generator: Generator[None, Any, Any], error: BaseException) -> Any:
    """Raise the handler's exception in it; return its outcome, if it stops it."""
    try:
        generator.throw(error)
    except StopIteration as stop:
        if stop is error:
            raise
        return stop.value
    except RuntimeError as raised:
        # What Python makes of a StopIteration that goes through a generator.
        if isinstance(error, StopIteration) and raised.__cause__ is error:
            raise error from None
        raise
    raise _second(generator)


def _second(generator: Generator[None, Any, Any]) -> RuntimeError:
    generator.close()
    return RuntimeError(f"the middleware {_name(generator)} yielded a second time; yield once")


def _name(generator: Generator[None, Any, Any]) -> str:
    return f"{getattr(generator, '__qualname__', generator)}()"
