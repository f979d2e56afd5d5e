"""A job as its sender sees it: `Job`, and the list that `send_many` returns."""

import bisect
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, overload

import msgspec

from dutiful.core.values import number
from dutiful.errors import JobFailed, JobNotFound, JobTimeout, WrongState
from dutiful.job import FINISHED, AttemptError, JobId, Progress, Record, State, Step
from dutiful.store.contract import Edit, Store
from dutiful.store.special import steps

T = TypeVar("T")

# Our own worker tells at once that a job has finished. Another process's is looked for: soon at first, as
# many jobs are short; and who still waits then has the store tell, if it can.
LOOK_S = 0.01
LOOKS = 3
LOOK_MAX_S = 0.25  # if it cannot
BACKSTOP_S = 5.0  # if it can: who listens for all looks more often than that


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call something that blocks without blocking the event loop."""
    import asyncio  # 20 ms, for those who use it

    return await asyncio.to_thread(function, *args, **kwargs)


def current_task() -> Any:
    """Return the asyncio task that is running."""
    import asyncio  # as above

    return asyncio.current_task()


class Desk(Protocol):
    """What a job's handle needs of its worker."""

    def opened(self) -> Store:
        """Return the store, open."""
        ...

    def watch(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Have `tell` called when this process's worker finishes the job."""
        ...

    def before_waiting(self, job_id: JobId) -> Callable[[], None] | None:
        """Return what is to be done before somebody waits for a job, if anything is."""
        ...

    def nudge(self) -> None:
        """Have this process's worker look for what was changed by hand."""
        ...

    def listen(self, job_id: JobId, tell: Callable[[], None]) -> bool:
        """Have `tell` called also when another process finishes the job; return whether that can be."""
        ...

    def unlisten(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Take that back."""
        ...

    def uncovered(self, text: str, *place: object) -> str:
        """Return the JSON text of what the store has at this place."""
        ...

    def shown(self, record: Record, *, reveal: bool = False) -> Record:
        """Return a job to show; `reveal` leaves its secrets in clear."""
        ...

    def decode_result(self, task: str, text: str) -> Any:
        """Return a result as the task's handler is annotated, if this process knows it."""
        ...

    def unwatch(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Take that back."""
        ...


class Job:
    """
    A stored job. Cheap: it is a number and a way to the store, which is asked when needed.

    Two are equal if they are the same job of the same worker.
    """

    __slots__ = ("_desk", "_record", "id")

    def __init__(self, desk: Desk, job_id: JobId) -> None:
        self._desk = desk
        self._record: Record | None = None
        self.id = job_id

    def __repr__(self) -> str:
        known = f" {self._record.task} {self._record.state}" if self._record else ""
        return f"<Job {self.id}{known}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (self.id, self._desk) == (other.id, other._desk)

    def __hash__(self) -> int:
        return hash(self.id)

    # --- looking -------------------------------------------------------------------------------

    def refresh(self, *, reveal: bool = False) -> Record:
        """
        Read the job from the store, all of it.

        What is secret is masked, and what is encrypted with a key that is not here cannot be read.

        Args:
            reveal: Show what is secret.

        Raises:
            JobNotFound: It was deleted, or finished and pruned.
        """
        return self._shown(self._stored(), reveal=reveal)

    def _stored(self) -> Record:
        found = self._desk.opened().get([self.id])
        if not found:
            raise JobNotFound(self.id)
        return found[0]

    def _shown(self, record: Record, *, reveal: bool = False) -> Record:
        shown = self._desk.shown(record, reveal=reveal)
        if not reveal:
            self._record = shown
        return shown

    @property
    def state(self) -> State:
        """Where it stands now, read from the store."""
        return self.refresh().state

    @property
    def task(self) -> str:
        """The stored name of what to do."""
        return (self._record or self.refresh()).task

    @property
    def queue(self) -> str:
        """The queue that it was sent to."""
        return (self._record or self.refresh()).queue

    @property
    def attempt(self) -> int:
        """How many times it has been claimed, read from the store."""
        return self.refresh().attempt

    @property
    def errors(self) -> tuple[AttemptError, ...]:
        """The failed attempts so far, oldest first, read from the store."""
        return self.refresh().errors

    @property
    def progress(self) -> Progress | None:
        """How far it has come (`ctx.progress`), read from the store; None: it has not said."""
        text = self.refresh().progress
        return None if text is None else msgspec.json.decode(text, type=Progress)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What its handler has done by `ctx.step` and the like, read from the store."""
        with self._desk.opened().sql_look() as look:
            return steps.listed(look, self.id)

    # --- waiting --------------------------------------------------------------------------------

    def wait(self, timeout: float | timedelta | None = None) -> Record:
        """
        Wait until the job has finished; return it.

        Args:
            timeout: Seconds, or a timedelta; None waits for ever.

        Raises:
            JobTimeout: It was not finished in time. It goes on.
            JobNotFound: It was pruned or deleted; with keep_completed=0 that is its end.
        """
        return self._shown(self._ended(timeout))

    def _ended(self, timeout: float | timedelta | None) -> Record:
        if (before := self._desk.before_waiting(self.id)) is not None:
            before()
        timeout_s = _seconds(timeout)
        bell = _Bell()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with _Watching(self._desk, self.id, bell.ring) as watching:
            while True:
                bell.hush()
                pause_s = watching.again()
                record = self._stored()
                if record.state in FINISHED:
                    return record
                rest_s = pause_s if until is None else min(pause_s, until - time.monotonic())
                if rest_s <= 0:
                    raise JobTimeout(self.id, timeout_s or 0.0)
                bell.wait(rest_s)

    def result(self, timeout: float | timedelta | None = None) -> Any:
        """
        Wait for the job, and return what its handler returned.

        As its handler here is annotated; as plain JSON values if it is not, if this process has no
        handler for the task, or if what is stored does not fit.

        Args:
            timeout: Seconds, or a timedelta; None waits for ever.

        Raises:
            JobFailed: It is dead or cancelled; the message has the last error.
            JobTimeout, JobNotFound: As for `wait`.
            KeyMissing: It is encrypted, and its key is not here.
        """
        return self._result_of(self._ended(timeout))

    def _result_of(self, record: Record) -> Any:
        if record.state is not State.COMPLETED:
            errors = self._shown(record).errors
            last = errors[-1] if errors else None
            text = (
                f"{last.type}: {last.message}\n{last.traceback}".rstrip() if last else "no error was recorded"
            )
            raise JobFailed(self.id, record.state, text)
        if record.result is None:
            return None
        return self._desk.decode_result(record.task, self._desk.uncovered(record.result, "result", record.id))

    async def await_(self, timeout: float | timedelta | None = None) -> Record:
        """`wait`, without blocking the event loop, or a thread while the job runs."""
        return self._shown(await self._aended(timeout))

    async def _aended(self, timeout: float | timedelta | None) -> Record:
        import asyncio  # as above

        if (before := self._desk.before_waiting(self.id)) is not None:
            await in_thread(before)
        timeout_s = _seconds(timeout)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(told.set)

        with _Watching(self._desk, self.id, tell) as watching:
            while True:
                told.clear()
                pause_s = watching.again()
                record = await in_thread(self._stored)
                if record.state in FINISHED:
                    return record
                rest_s = pause_s if until is None else min(pause_s, until - time.monotonic())
                if rest_s <= 0:
                    raise JobTimeout(self.id, timeout_s or 0.0)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(told.wait(), rest_s)

    async def aresult(self, timeout: float | timedelta | None = None) -> Any:
        """`result`, without blocking the event loop; so is `await job`."""
        return self._result_of(await self._aended(timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        return self.aresult().__await__()

    # --- changing ---------------------------------------------------------------------------------

    def cancel(self) -> None:
        """
        End the job: at once if it waits; if it runs, its worker stops it as its kind allows.

        Async handlers are cancelled, child processes killed; a handler in a thread can only
        be asked (`ctx.cancelled`), and if it completes all the same, the job is completed.

        Raises:
            WrongState: It has finished. JobNotFound: It is gone.
        """
        self._edit("cancel", (State.PENDING, State.BLOCKED, State.RUNNING))

    def retry(self) -> None:
        """
        Run a finished job again, now, with its failures forgotten and its errors kept.

        Raises:
            WrongState: It has not finished. JobNotFound: It is gone.
        """
        self._edit("retry", (State.DEAD, State.CANCELLED, State.COMPLETED))

    def delete(self) -> None:
        """
        Remove the job and its history.

        Raises:
            WrongState: It is running. JobNotFound: It is gone.
        """
        self._edit("delete", (State.PENDING, State.BLOCKED, State.COMPLETED, State.DEAD, State.CANCELLED))

    def _edit(self, edit: Edit, allowed: Sequence[State]) -> None:
        store = self._desk.opened()
        if store.edit([self.id], edit):
            store.ring()
            self._desk.nudge()
        else:
            raise WrongState(self.id, edit, self.refresh().state, allowed)

    async def acancel(self) -> None:
        """`cancel`, without blocking the event loop."""
        await in_thread(self.cancel)

    async def arefresh(self) -> Record:
        """`refresh`, without blocking the event loop."""
        return await in_thread(self.refresh)


class _Bell:
    """An Event of one lock, in C: an exception that a signal throws into its wait cannot tear it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """End the wait, or the next one."""
        with suppress(RuntimeError):  # it has been rung
            self._lock.release()

    def hush(self) -> None:
        """Forget that it was rung."""
        self._lock.acquire(blocking=False)

    def wait(self, seconds: float) -> None:
        """Wait until it is rung, for so long at most."""
        self._lock.acquire(timeout=seconds)


class _Watching:
    """Has somebody told of a job's end, while he waits for it, and says how long to wait for that."""

    def __init__(self, desk: Desk, job_id: JobId, tell: Callable[[], None]) -> None:
        self._desk = desk
        self._id = job_id
        self._tell = tell
        self._looks = 0
        self._is_told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_back()

    def again(self) -> float:
        """Ask anew, before a look, as who was told is not told again; return how long to wait after it."""
        self._take_back()
        self._desk.watch(self._id, self._tell)
        self._looks += 1
        if self._looks <= LOOKS:
            return LOOK_S * self._looks
        self._is_told = self._desk.listen(self._id, self._tell)
        return BACKSTOP_S if self._is_told else min(LOOK_MAX_S, LOOK_S * 2.0 ** (self._looks - LOOKS))

    def _take_back(self) -> None:
        self._desk.unwatch(self._id, self._tell)
        if self._is_told:
            self._desk.unlisten(self._id, self._tell)


def _seconds(timeout: float | timedelta | None) -> float | None:
    """Return how long to wait; what is below 0 is over at once."""
    if timeout is None:
        return None
    found = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    return number(
        "timeout", found, -math.inf, wanted="seconds, a timedelta, or None", unchanged="The job goes on."
    )


class Jobs(Sequence[Job]):
    """The jobs that were sent together, in that order. A million of them take no memory: they are ranges."""

    def __init__(self, desk: Desk, ranges: Sequence[range]) -> None:
        self._desk = desk
        self.ranges = [ids for ids in ranges if ids]
        self._ends: list[int] = []
        for ids in self.ranges:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(ids))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Job]:
        return (Job(self._desk, job_id) for ids in self.ranges for job_id in ids)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, at)
        start = self._ends[part - 1] if part else 0
        return Job(self._desk, self.ranges[part][at - start])

    @property
    def ids(self) -> list[JobId]:
        """The ids of all of them."""
        return [job_id for ids in self.ranges for job_id in ids]

    def __repr__(self) -> str:
        return f"<{len(self)} jobs>"
