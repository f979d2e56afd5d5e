"""
What a worker and its child processes say to each other, and how an attempt in a child may end.

Question and answer take turns on one pipe. The worker asks with a `HandlerRef` that the child
has not seen, then with the pair of it and a `ChildJob` or a `ChildBatch`. The child answers the first
with None, a job with `Returned` or a signal, a batch with `Together`, and any with a `Failure`. All of
them pickle.
"""

import importlib
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from multiprocessing import reduction
from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

from dutiful.errors import ConfigError
from dutiful.handler import Entry, Handler
from dutiful.job import Cancel, Discard, ErrorInfo, JobId, Snooze
from dutiful.runner.failure import error_info

EXCEPTION_BYTES_MAX = 1024 * 1024  # of a pickled exception: some carry the data they failed on

Reason: TypeAlias = Literal["timeout", "cancel", "stop"]
Signal: TypeAlias = Snooze | Cancel | Discard


class HandlerRef(Struct, frozen=True):
    """
    How a child finds a handler: by name in its module, never by anything that is stored.

    Build it with `HandlerRef.to`. The rest is what an `Entry` is made of there. The type is
    pickled, which for a class means its name too, and also does for `list[int]` and unions.
    """

    module: str
    qualname: str
    task: str
    payload_type: bytes | None = None
    spread: bool = False
    batch: int | None = None

    @classmethod
    def to(
        cls,
        fn: Callable[..., Any],
        task: str,
        payload_type: Any = None,
        *,
        spread: bool = False,
        batch: int | None = None,
    ) -> "HandlerRef":
        """Refer to `fn`. Raises `ConfigError` if a child could not find its type."""
        try:
            pickled = None if payload_type is None else pickle.dumps(payload_type)
        except Exception as error:
            raise ConfigError(
                f"process=True: {payload_type!r}, the payload type of {fn!r}, cannot be imported in "
                f"another process ({error}). Define it at the top level of a module."
            ) from error
        return cls(fn.__module__, fn.__qualname__, task, pickled, spread, batch)

    def entry(self) -> Entry:
        """Import the handler and make it ready; in the child."""
        payload_type = pickle.loads(self.payload_type) if self.payload_type else None  # noqa: S301 - from the parent
        return Entry(self.task, Handler(self.resolve(), spread=self.spread, batch=self.batch), payload_type)

    def resolve(self) -> Callable[..., Any]:
        """Import the handler; in the child."""
        try:
            module: Any = importlib.import_module(self.module)
            found = reduce(getattr, self.qualname.split("."), module)
        except AttributeError as error:
            raise ConfigError(
                f"process=True: the child process finds no {self.qualname!r} in {self.module!r}. "
                'Define it at import, not under `if __name__ == "__main__"`.'
            ) from error
        # Only what @worker.task made is taken off, not what the user wrapped around the function.
        ours = type(found).__module__.partition(".")[0] == __name__.partition(".")[0]
        fn: Callable[..., Any] = getattr(found, "__wrapped__", found) if ours else found
        return fn


class ChildJob(Struct, frozen=True):
    """What a child has to know of an attempt."""

    id: JobId
    attempt: int
    task: str
    queue: str
    payload: str
    result_bytes_max: int = 1024 * 1024  # as Config has it
    headers: dict[str, str] = field(default_factory=dict[str, str])
    after: tuple[Any, ...] = ()


class ChildBatch(Struct, frozen=True):
    """A batch: one call for several jobs; `id` is that of the first."""

    id: JobId
    jobs: tuple[ChildJob, ...]


class Returned(Struct, frozen=True):
    """
    The handler returned; `value` is its result as JSON, if it has one.

    `unencodable` says why a result other than None could not be kept.
    """

    value: str | None
    unencodable: str | None = None


class Raised(Struct, frozen=True):
    """
    The handler raised; or no child could be started, or import it.

    `exception` is the handler's own if it can be pickled, and a RuntimeError with its type and
    message if not. `error` is taken from the original.
    """

    exception: BaseException
    error: ErrorInfo


class Died(Struct, frozen=True):
    """The child died by itself, or by someone else's hand, while it ran the job."""

    description: str


class Killed(Struct, frozen=True):
    """We killed the child; what it did for the job until then is done."""

    reason: Reason


class Failure(Struct, frozen=True):
    """A `Raised` on its way: its exception is unpickled by whoever may fail at it."""

    pickled: bytes | None
    error: ErrorInfo

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        info = error_info(error)
        try:
            pickled = pickle.dumps(error)
            same = type(pickle.loads(pickled)) is type(error)  # noqa: S301 - our own, a line ago
        except Exception:  # noqa: BLE001 - then it does not pickle: `info` has what there is to say
            return cls(None, info)
        return cls(pickled if same and len(pickled) <= EXCEPTION_BYTES_MAX else None, info)

    def raised(self) -> Raised:
        if self.pickled:
            # Fails where its class can only be imported in the child; the text is there all the same.
            with suppress(Exception):
                return Raised(pickle.loads(self.pickled), self.error)  # noqa: S301 - from our child
        return Raised(RuntimeError(f"{self.error.type}: {self.error.message}"), self.error)


class Together(Struct, frozen=True):
    """What the handler of a batch answered for each of its jobs, in order."""

    answers: "tuple[Returned | Signal | Failure, ...]"


Answer: TypeAlias = Returned | Signal | Together
Outcome: TypeAlias = Answer | Raised | Died | Killed


def received(answer: Answer | Failure) -> Answer | Raised:
    """Return an answer as its worker reads it."""
    return answer.raised() if isinstance(answer, Failure) else answer


class HeldFd:
    """A file descriptor that is inherited when this is pickled for a child."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Callable[..., "HeldFd"], tuple[Any]]:
        return _inherited, (reduction.DupFd(self.fd),)


def _inherited(duplicate: Any) -> HeldFd:
    return HeldFd(duplicate.detach())
