"""
The plain values that everything else is written in: a job, an attempt, its result.

All are frozen. Instants are integers, milliseconds since 1970 UTC by the store's
clock; durations are seconds.
"""

from enum import StrEnum

from msgspec import Struct

JobId = int


class State(StrEnum):
    """
    Where a job stands. `pending` waits for its `due_at` alone; `blocked` waits for other jobs too.

    Blocked by those in `after`, by an earlier one of its key, or by a limit (see `Record.held`).
    """

    PENDING = "pending"
    BLOCKED = "blocked"
    RUNNING = "running"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


FINISHED = frozenset({State.COMPLETED, State.DEAD, State.CANCELLED})


class ErrorInfo(Struct, frozen=True):
    """One failed attempt, as text: exceptions are never rebuilt from the store."""

    type: str
    message: str
    traceback: str = ""


class AttemptError(Struct, frozen=True):
    """A failed attempt in a job's history."""

    attempt: int
    at: int
    worker: str
    type: str
    message: str
    traceback: str


class Claim(Struct, frozen=True, gc=False, array_like=True):
    """
    One attempt to run: a job as its worker holds it. `(id, attempt)` is the fence.

    Built by the hundred thousand a second: no garbage collector, and decoded from a JSON array.
    """

    id: JobId
    attempt: int
    failures: int
    crashes: int
    task: str
    queue: str
    payload: str | None  # None: the stored value is not text
    priority: int = 0
    due_at: int = 0
    extra: str | None = None  # what it asked for beyond that, as JSON (see special/extra.py); None: nothing


class Record(Struct, frozen=True):
    """A job as it is stored, all of it, for people and tools to look at."""

    id: JobId
    task: str
    queue: str
    state: State
    priority: int
    due_at: int
    attempt: int
    failures: int
    crashes: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    cancel_at: int | None
    worker: str | None
    payload: str | None
    result: str | None
    key: str | None = None
    held: str | None = None
    expires_at: int | None = None
    progress: str | None = None
    errors: tuple[AttemptError, ...] = ()
    version: int = 1  # of the payload's form (see dutiful.version)


class Progress(Struct, frozen=True):
    """
    How far a job has come, as its handler said last (`ctx.progress`).

    Args:
        done: So much is done.
        total: Of so much; None: not known.
        message: In words.
    """

    done: float
    total: float | None = None
    message: str = ""

    @property
    def share(self) -> float | None:
        """What part is done, from 0 to 1; None if the total is not known."""
        return None if not self.total else min(1.0, max(0.0, self.done / self.total))


class Step(Struct, frozen=True):
    """
    What a handler has done, slept, or waits for by `ctx.step`, `ctx.sleep` or `ctx.wait_event`.

    Args:
        name: As the handler names it.
        kind: "step", "sleep" or "event".
        at: When it was done, or will be over at the latest; milliseconds since 1970 UTC.
        is_done: Whether the next attempt passes it at once.
        event: The name of the event that is awaited, while it is.
    """

    name: str
    kind: str
    at: int
    is_done: bool
    event: str | None = None


# How an attempt can end. A handler may return Snooze, Cancel and Discard itself:
# returned, not raised, so that no `except Exception` swallows them.


class Completed(Struct, frozen=True):
    """The handler returned; `value` is its result as JSON, if it has one."""

    value: str | None = None


class Failed(Struct, frozen=True):
    """
    The handler raised, or ran out of time.

    `retry_after_s` is what the policy says of this error: None for the backoff,
    a number of seconds, or -1 to give up at once.
    """

    error: ErrorInfo
    retry_after_s: float | None = None


class Crashed(Struct, frozen=True):
    """The process that ran the attempt died."""

    error: ErrorInfo


class Snooze(Struct, frozen=True):
    """
    Return this from a handler to run the job again later. It is no failure.

    Args:
        seconds: From now; 0 or more.
    """

    seconds: float


class Cancel(Struct, frozen=True):
    """
    Return this from a handler to end the job as `cancelled`.

    Args:
        reason: Why, for whoever looks at the job.
    """

    reason: str = ""


class Discard(Struct, frozen=True):
    """
    Return this from a handler to make the job `dead` at once, without further attempts.

    Args:
        reason: Why, for whoever looks at the job.
    """

    reason: str = ""


class Interrupted(Struct, frozen=True):
    """Given back at shutdown, or never started: no failure, and due at once."""


Result = Completed | Failed | Crashed | Snooze | Cancel | Discard | Interrupted


class Ack(Struct, frozen=True):
    """
    What becomes of a job after an attempt: the one way out of `running`.

    `delay_s` is from the moment the store writes it; None keeps the job's place in line.
    """

    id: JobId
    attempt: int
    state: State
    failures: int
    crashes: int
    delay_s: float | None = None
    result: str | None = None
    error: ErrorInfo | None = None
    special: bool = False  # there is more to do than for a plain job's end (see store/special)
    progress: str | None = None  # how far the attempt came in the end, as JSON; None: as it is
    awaits: tuple[str, ...] = ()  # the waits that it sleeps for: if one is over by now, it is due at once
