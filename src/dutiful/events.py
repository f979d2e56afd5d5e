"""
One frozen event per fact. A log line is a subscriber; so is whatever a user adds.

No event carries a payload or a result: those may be private, and logs travel.
"""

import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from types import UnionType
from typing import Any, get_args

from msgspec import Struct

from dutiful.errors import ConfigError
from dutiful.job import JobId

log = logging.getLogger("dutiful")


class Event(Struct, frozen=True):
    """Something that happened."""


class WorkerStarted(Event, frozen=True):
    """A worker takes jobs."""

    worker: str
    store: str
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    concurrency: int


class WorkerStopped(Event, frozen=True):
    """A worker has stopped; `interrupted` jobs were given back unfinished."""

    worker: str
    interrupted: int
    still_running: int


class JobsLost(Event, frozen=True):
    """A store in memory was closed with jobs in it, which end with it."""

    worker: str
    count: int


class JobFailed(Event, frozen=True):
    """An attempt failed; the job is tried again after `retry_s` seconds."""

    worker: str
    job_id: JobId
    task: str
    attempt: int
    error: str
    retry_s: float


class JobDead(Event, frozen=True):
    """A job used up its attempts, or was given up; it is kept."""

    worker: str
    job_id: JobId
    task: str
    attempt: int
    error: str


class AckLate(Event, frozen=True):
    """An attempt ended after it had lost its job; what it came to was not recorded."""

    worker: str
    job_id: JobId
    attempt: int


class WorkerRescued(Event, frozen=True):
    """A worker had died; its jobs are back in line."""

    worker: str
    dead_worker: str
    dead_pid: int
    running: int
    waiting: int


class TasksParked(Event, frozen=True):
    """
    Jobs of tasks that nobody here handles were put back for later; `counts` by the stored name.

    "Order@2" needs a handler of version 2 of Order, "Order#a45b2514" the key of that id.
    """

    worker: str
    counts: dict[str, int]
    park_s: float


class HandlerStuck(Event, frozen=True):
    """A handler in a thread did not end in time; another slot was opened in its place."""

    worker: str
    job_id: JobId
    task: str
    timeout_s: float


class RaisedAfterCompletion(Event, frozen=True):
    """A handler raised after its `ctx.transaction()` had completed the job, which stays completed."""

    worker: str
    job_id: JobId
    task: str
    error: str


class ResultDropped(Event, frozen=True):
    """A job completed, but what its handler returned cannot be stored."""

    worker: str
    job_id: JobId
    task: str
    reason: str


class ConnectionLost(Event, frozen=True):
    """The connection that says that the worker lives is lost; the worker connects anew."""

    worker: str
    problem: str


class ConnectionBack(Event, frozen=True):
    """The worker is connected again; of the jobs that it had, others took over `lost` meanwhile."""

    worker: str
    incarnation: int
    lost: int


class LeaseOver(Event, frozen=True):
    """The store was out of reach for so long that others may take over; what runs is stopped."""

    worker: str
    running: int


class StorePolled(Event, frozen=True):
    """Behind a pooler nobody can wake the worker, or see it die: it looks, and is waited for."""

    worker: str
    store: str


class StoreTrouble(Event, frozen=True):
    """The store cannot be used right now; the worker goes on by itself when it can."""

    worker: str
    problem: str


class StoreRecovered(Event, frozen=True):
    """The store can be used again."""

    worker: str


class WorkerFault(Event, frozen=True):
    """A duty of the worker failed in a way that it should not; it is tried again."""

    worker: str
    duty: str
    problem: str


Listener = Callable[[Event], None]


class Events:
    """Tells listeners what happened. One that fails is logged, and changes nothing."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = [write_log]

    def add(self, listener: Listener) -> None:
        """Call `listener` with every event from now on, in the thread where it happens."""
        self._listeners = [*self._listeners, listener]

    def on(self, kinds: tuple[type[Event], ...], listener: Callable[[Any], object]) -> None:
        """Call `listener` with every event of these kinds from now on."""

        def chosen(event: Event) -> None:
            if isinstance(event, kinds):
                listener(event)

        self.add(chosen)

    def emit(self, event: Event) -> None:
        """Tell everybody."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a stranger's code must not end our threads
                with suppress(Exception):  # if it was the logging that failed, it fails again
                    log.exception("a listener failed on %s; the worker goes on", type(event).__name__)


def _is_event(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Event)


def kinds_of(wanted: Any) -> tuple[type[Event], ...]:
    """
    Return the kinds of events that a type, or a union of types, stands for.

    Raises:
        ConfigError: It is something else.
    """
    kinds: tuple[Any, ...] = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    for kind in kinds:
        if not _is_event(kind):
            name = str(getattr(kind, "__name__", kind))
            ours = f"dutiful.events.{name}" if name in globals() else "one of dutiful.events, such as JobDead"
            raise ConfigError(f"worker.on() got {kind!r}, which is no event; nobody listens. Use {ours}.")
    return kinds


def checked_listener(listener: object) -> None:
    """
    Raises:
        ConfigError: It cannot be called, or only awaited.
    """
    if not callable(listener) or inspect.iscoroutinefunction(listener):
        raise ConfigError(
            f"worker.on() was given {listener!r} to call, which is no plain function; nobody listens. Events "
            "come in the worker's own threads: use a function that returns soon, without async."
        )


def _needed(stored: str) -> str:
    name, mark, key_id = stored.rpartition("#")
    return f"{name} with key {key_id}" if mark else stored


def write_log(event: Event) -> None:
    """Write an event as a log line."""
    match event:
        case JobFailed():
            log.warning(
                "job %d (%s) failed in attempt %d, again in %.1f s: %s",
                event.job_id,
                event.task,
                event.attempt,
                event.retry_s,
                event.error,
            )
        case JobDead():
            log.error(
                "job %d (%s) is dead after attempt %d: %s",
                event.job_id,
                event.task,
                event.attempt,
                event.error,
            )
        case AckLate():
            log.warning(
                "job %d: attempt %d ended after it had lost the job; its outcome was not recorded",
                event.job_id,
                event.attempt,
            )
        case WorkerRescued():
            log.warning(
                "worker %s (pid %d) died; back in line: %d jobs it ran, %d it held",
                event.dead_worker,
                event.dead_pid,
                event.running,
                event.waiting,
            )
        case TasksParked():
            log.warning(
                "no handler here for %s; put back, looked at again in %.0f s",
                ", ".join(f"{_needed(task)} ({count} jobs)" for task, count in sorted(event.counts.items())),
                event.park_s,
            )
        case HandlerStuck():
            log.error(
                "job %d (%s) is still running after its timeout of %.1f s, and a thread cannot be stopped; "
                "another slot was opened. Check ctx.cancelled in the handler, or use process=True",
                event.job_id,
                event.task,
                event.timeout_s,
            )
        case RaisedAfterCompletion():
            log.warning(
                "job %d (%s) was completed in its transaction; its handler raised afterwards: %s",
                event.job_id,
                event.task,
                event.error,
            )
        case ResultDropped():
            log.warning(
                "job %d (%s) completed, but its result was not kept: %s",
                event.job_id,
                event.task,
                event.reason,
            )
        case WorkerStarted():
            log.info(
                "worker %s started on %s: %d tasks, queues %s, concurrency %d",
                event.worker,
                event.store,
                len(event.tasks),
                ", ".join(event.queues),
                event.concurrency,
            )
        case WorkerStopped():
            log.info(
                "worker %s stopped; %d jobs given back, %d handlers still running",
                event.worker,
                event.interrupted,
                event.still_running,
            )
        case JobsLost():
            log.warning(
                "worker %s: the store in memory ends with %d unfinished jobs", event.worker, event.count
            )
        case ConnectionLost():
            log.warning("worker %s lost its connection, and connects anew: %s", event.worker, event.problem)
        case ConnectionBack():
            log.warning(
                "worker %s is connected again (incarnation %d); %d of its jobs were taken over by others",
                event.worker,
                event.incarnation,
                event.lost,
            )
        case LeaseOver():
            log.error(
                "worker %s cannot reach the store, and others may take over: it stops its %d running jobs",
                event.worker,
                event.running,
            )
        case StorePolled():
            log.warning(
                "worker %s reaches %s through a pooler: it looks for jobs instead of being woken, and should "
                "it die, others wait for its lease to end. Connect to the server itself to avoid both",
                event.worker,
                event.store,
            )
        case StoreTrouble():
            log.error("worker %s pauses: %s", event.worker, event.problem)
        case StoreRecovered():
            log.info("worker %s goes on: the store can be used again", event.worker)
        case WorkerFault():
            log.error("worker %s: %s failed, tried again: %s", event.worker, event.duty, event.problem)
        case _:
            log.info("%s", event)
