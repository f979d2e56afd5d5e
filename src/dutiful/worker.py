"""The front door: `Worker`."""

import atexit
import dataclasses
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType, UnionType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from dutiful import config as settings
from dutiful.asking import Limit
from dutiful.config import Config, Keep
from dutiful.core.retry import Retry
from dutiful.core.schedule import Cron, Schedule
from dutiful.door import Door
from dutiful.errors import AlreadyStarted, ConfigError, DutifulError, StoreBusy, StoreError, WorkerStopped
from dutiful.events import Event, Events, JobsLost, checked_listener, kinds_of
from dutiful.handle import Job, Jobs, current_task, in_thread
from dutiful.handler import made_of
from dutiful.job import JobId, Record, State
from dutiful.payload import check_name, decode_plain, encode
from dutiful.registry import Registry
from dutiful.runner.runner import Runner
from dutiful.schedules import ScheduleOptions, Schedules, every
from dutiful.sending import CHUNK_JOBS, Drafting, Room, Sending, SendOptions
from dutiful.steps import check_event
from dutiful.stopping import Deadline, Stopping, is_inside_engine
from dutiful.store.committer import Committer
from dutiful.store.committer import Sending as Begun
from dutiful.store.contract import Counts, Draft, Edit, Query, Store, WorkerInfo
from dutiful.store.special import events, pauses
from dutiful.store.special.gates import Turn
from dutiful.store.special.pauses import Paused
from dutiful.store.sqlite import MEMORY, SqliteStore
from dutiful.task import Task

if TYPE_CHECKING:
    from dutiful.async_edge import AsyncEdge
    from dutiful.store.special.schedules import Declared

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=Event)

DEFAULT_STORE = "dutiful.db"
EDIT_JOBS = 1000  # of a plural edit, in one commit: a few ms


class Worker:
    """
    Stores payloads, and processes them in the background, whatever happens to the process.

    A worker that is never started is a client: it can send.

    Args:
        store: A path or `sqlite:///path` of a SQLite file, `":memory:"` (not durable), or a
            Store. Default: the environment variable DUTIFUL_STORE, or "dutiful.db".
        handlers: Payload type, or task name → the function that handles it (or a Handler).
        queues: The queues that it takes jobs from; what it sends goes to the first.
        concurrency: Handlers that run at once, of all kinds together. 1 keeps order.
        buffer: Bound on unfinished jobs: when it is reached, `send` waits. None: no bound.
        name: What it is called in logs and in a job's history.
        retry: The policy of handlers that have none of their own.
        durability: "full" (default), or "normal": a power cut may then lose the last jobs.
        keep_completed: How many completed jobs stay, and how long: a Keep, a count, or False.
        max_crashes: Deaths of the process in a row after which a running job is dead.
        grace_s: Seconds that `stop()` gives to running handlers by default.
        busy_s: Seconds to wait for the store's write lock.
        park_s: Seconds after which a job of an unknown task is looked at again.
        lease_s: Seconds after its timeout that a stuck thread keeps its job.
        payload_bytes_max: Largest payload, in bytes of JSON.
        result_bytes_max: Largest result, in bytes of JSON.
        create: False: never make a store; one that is not there, or holds no jobs of
            dutiful, is an error at the first use, and is not touched.

    Raises:
        ConfigError: An argument is wrong. The store is not touched until the first use.
    """

    def __init__(
        self,
        store: "str | os.PathLike[str] | Store | None" = None,
        *,
        handlers: Mapping[Any, Any] | None = None,
        queues: str | Sequence[str] = ("default",),
        concurrency: int = 8,
        buffer: int | None = None,
        name: str = "worker",
        retry: Retry | None = None,
        durability: Literal["full", "normal"] = "full",
        keep_completed: Keep | int | bool | None = None,
        max_crashes: int = 3,
        grace_s: float = 30.0,
        busy_s: float = 10.0,
        park_s: float = 60.0,
        lease_s: float = 60.0,
        payload_bytes_max: int = settings.MIB,
        result_bytes_max: int = settings.MIB,
        create: bool = True,
    ) -> None:
        self._config = Config(
            name=name,
            queues=settings.queues(queues),
            concurrency=concurrency,
            buffer=buffer,
            retry=retry or Retry(),
            durability=durability,
            keep_completed=settings.keep(keep_completed),
            max_crashes=max_crashes,
            grace_s=grace_s,
            busy_s=busy_s,
            park_s=park_s,
            lease_s=lease_s,
            payload_bytes_max=payload_bytes_max,
            result_bytes_max=result_bytes_max,
        )
        self._registry = Registry(handlers)
        self._events = Events()
        self._schedules: dict[str, Declared] = {}
        self._store = store_for(store, self._config, create=create)
        self._committer = Committer(
            self._store, buffer=buffer, keep_completed=self._config.keep_completed.count > 0
        )
        self._drafting = Drafting(self._registry, self._config)
        self._room = Room(self._committer, buffer)
        self._committer.room_made = self._room.made
        self._async: AsyncEdge | None = None
        self._door = Door(name)
        self._runner: Runner | None = None
        self._changing = threading.RLock()
        self._is_open = False
        self._asking = threading.RLock()
        self._opening = threading.RLock()  # inside the others: a sender may open while we stop
        self._deadline = Deadline(None)
        self._stopping: Stopping | None = None
        self._at_exit: weakref.finalize[..., Worker] | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._stopping else "started" if self._runner else "not started"
        return f"<Worker {self._config.name!r} on {self._store.label}, {state}>"

    @property
    def label(self) -> str:
        """What to call its store in messages: the file, or the URL without its password."""
        return self._store.label

    def configure(self, *, concurrency: int | None = None, queues: str | Sequence[str] | None = None) -> None:
        """
        Replace settings before the start, as `dutiful run --concurrency` does.

        Raises:
            ConfigError: A value is wrong. AlreadyStarted: It runs with the settings that it has.
        """
        with self._changing:
            if self._runner is not None:
                raise AlreadyStarted(self._config.name)
            self._config = dataclasses.replace(
                self._config,
                concurrency=self._config.concurrency if concurrency is None else concurrency,
                queues=self._config.queues if queues is None else settings.queues(queues),
            )
            self._drafting = Drafting(self._registry, self._config)

    @property
    def schedules(self) -> Schedules:
        """The schedules in the store: iterate over them, ask for one by name, or change one."""
        # Made when it is asked for: a worker that nobody holds on to any more is closed at once.
        return Schedules(self, self._registry, self._schedules)

    # --- handlers ------------------------------------------------------------------------------

    @property
    def handlers(self) -> Registry:
        """The handlers, as a mapping from payload type or task name: `worker.handlers["hello"] = print`."""
        return self._registry

    @overload
    def handler(self, fn: F, /) -> F: ...
    @overload
    def handler(
        self,
        task: str | None = None,
        /,
        *,
        aliases: Sequence[str] = (),
        retry: Retry | None = None,
        timeout: float | None = None,
        process: bool = False,
        queue: str | None = None,
        limit: Limit | None = None,
    ) -> Callable[[F], F]: ...
    def handler(self, fn: Any = None, /, **options: Any) -> Any:
        """
        Register a function as a handler: `@worker.handler`, `@worker.handler("name", retry=…)`.

        Without a name, the annotation of its parameter says which payload type it handles.
        The options are those of Handler. Returns the function itself.

        Raises:
            ConfigError: It does not say what it handles, or an option is wrong.
        """
        if callable(fn):
            self._registry.add(fn, **options)
            return fn

        def register(function: F) -> F:
            self._registry.add(function, task=fn, **options)
            return function

        return register

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R, Job]: ...
    @overload
    def task(
        self,
        name: str | None = None,
        /,
        *,
        aliases: Sequence[str] = (),
        retry: Retry | None = None,
        timeout: float | None = None,
        process: bool = False,
        queue: str | None = None,
        limit: Limit | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R, Job]]: ...
    def task(self, fn: Any = None, /, **options: Any) -> Any:
        """
        Make a function a task whose arguments are the payload: `add.send(1, 2)`.

        Named after the function unless a name is given. The options are those of Handler.

        Raises:
            ConfigError: Its arguments cannot be stored by name, or an option is wrong.
        """
        if callable(fn):
            return self._as_task(fn, None, options)

        def make(function: Callable[P, R]) -> Task[P, R, Job]:
            return self._as_task(function, fn, options)

        return make

    def _as_task(self, fn: Callable[P, R], name: str | None, options: dict[str, Any]) -> Task[P, R, Job]:
        chosen = name or str(getattr(fn, "__qualname__", "")).rpartition("<locals>.")[2]
        made: Task[P, R, Job] = Task(fn, name=chosen, sender=self)
        self._registry[chosen] = made_of(fn, spread=True, **options)
        return made

    def every(self, span: float | timedelta | str, **options: Unpack[ScheduleOptions]) -> Callable[[F], F]:
        """
        Have a function called again and again: `@worker.every("5m")`.

        Each firing is one job, however many workers declare it. It fires at the multiples of the
        span since 1970 UTC, while any worker runs that declares it.

        Args:
            span: Seconds, a timedelta, or a text such as "90s", "5m" or "1h 30m".
            options: See ScheduleOptions: name, missed, queue, payload, priority, retry, timeout, process.

        Raises:
            ConfigError: An option is wrong, or there is a schedule of this name.
        """
        return self._declaring(every(span), options)

    def cron(self, line: str, *, tz: str = "UTC", **options: Unpack[ScheduleOptions]) -> Callable[[F], F]:
        """
        Have a function called when a crontab would: `@worker.cron("0 3 * * mon-fri", tz="Europe/Berlin")`.

        Where clocks are put forward or back it does as Debian's cron does: see docs/periodic.md.

        Args:
            line: Five fields: minute, hour, day of the month, month, day of the week; or six, with
                the seconds first.
            tz: The time zone by whose clocks it is read, such as "Europe/Berlin".
            options: As of `every`.

        Raises:
            ConfigError: An option is wrong, or there is a schedule of this name.
        """
        return self._declaring(Cron(line, tz), options)

    def _declaring(self, when: Schedule, options: ScheduleOptions) -> Callable[[F], F]:
        def declare(fn: F) -> F:
            self.schedules.declare(fn, when, options, self._config.payload_bytes_max)
            if self._runner is not None:
                self._runner.declare()
            return fn

        return declare

    def process(self, callback: F) -> F:
        """
        Make `callback` the handler of every payload that has none of its own.

        It gets the payload decoded into the type it was sent as, if this process knows that
        type, and otherwise as plain values.
        """
        self._registry.process(callback)
        return callback

    # --- events ----------------------------------------------------------------------------------

    @overload
    def on(self, event: type[E], listener: Callable[[E], object], /) -> Callable[[E], object]: ...
    @overload
    def on(self, event: UnionType, listener: F, /) -> F: ...
    @overload
    def on(self, event: type[Event] | UnionType, /) -> Callable[[F], F]: ...
    def on(self, event: Any, listener: Any = None, /) -> Any:
        """
        Call a function with each event of a type, or of a union of types, that happens in this process.

        The types are those of `dutiful.events`; `Event` stands for all. Also a decorator:
        `@worker.on(JobDead | WorkerRescued)`. The function is called at once, in the thread where
        it happens, so it is to return soon. If it raises, that is logged, and changes nothing.
        Returns the function itself.

        Raises:
            ConfigError: That is no type of an event, or no plain function.
        """
        kinds = kinds_of(event)

        def register(function: F) -> F:
            checked_listener(function)
            self._events.on(kinds, function)
            return function

        return register if listener is None else register(listener)

    # --- sending ---------------------------------------------------------------------------------

    def send(self, payload: object, **options: Unpack[SendOptions]) -> Job:
        """
        Store a job. When this returns it is on disk, and will be run.

        Args:
            payload: A value of a registered type, or with `task` any JSON value.
            task: The task's name, or the payload type to find it by.
            queue: Default: the handler's, or the worker's first.
            delay: Seconds, or a timedelta, until it is due; 0 or more.
            run_at: The instant when it is due: a datetime with a time zone.
            priority: Higher runs first; default 0.
            key: Jobs of one key run one at a time, in the order sent; a text, or a function of the
                payload. A waiting retry holds its key, unless `on_failure="skip"`.
            unique: True, or a Unique: at most one such job.
            expires: Seconds, a timedelta, or an aware datetime: dead if not started by then.
            deadline: Seconds, or a timedelta, for all attempts together.
            after: A job, or several, that have to finish first; their results are `ctx.after`.
                `on_dead` says what happens if one does not complete: "cancel" this one
                (default), "run" it, or "wait" until it is run again by hand.
            headers: Texts by name that travel with the job: trace context and the like.
            transaction: Your own connection or session to the same database, in a transaction:
                the job exists if that commits. See docs/transactions.md for the libraries.
            timeout: With `buffer`, seconds to wait for room; None waits for ever.

        Raises:
            UnknownTask: No handler for this payload. NotEncodable: It cannot be stored.
            ConfigError: An option is wrong. BufferFull: No room in time.
            WorkerStopped: After `stop()`. StoreError: The store cannot do it.
            In all of these nothing was stored.
        """
        return self._send(payload, options, exempt=self._is_handler_here())

    def _send(
        self, payload: object, options: SendOptions, *, exempt: bool, gone: threading.Event | None = None
    ) -> Job:
        how = Sending(self._registry, self._config, options)
        stored: list[range] = []
        me = self._door.enter(exempt=exempt)
        try:
            self._send_chunk([self._drafting.one(payload, how)], how, stored, exempt=exempt, gone=gone)
        finally:
            self._door.leave(me)
        return Job(self, stored[0][0])

    def _draft(self, payload: object, options: Mapping[str, Any]) -> Draft:
        """Return the job that a handler sends with its own completion (`ctx.send`)."""
        how = Sending(self._registry, self._config, cast("SendOptions", dict(options)))
        draft = self._drafting.one(payload, how)
        unique = None if draft.special is None else draft.special.unique
        if unique is not None and unique.on_conflict == "raise":
            raise ConfigError(
                "ctx.send() cannot raise DuplicateJob, as it stores nothing yet; nothing was stored. Use "
                'Unique(on_conflict="return"), or worker.send().'
            )
        return draft

    def send_event(self, name: str, payload: object = None) -> Job | None:
        """
        Send an event: to the oldest job that waits for it (`ctx.wait_event`), or to the first that will.

        When this returns it is on disk. A job that waits is due at once.

        Args:
            name: The event's name: any text, such as "approved:42".
            payload: Any JSON value.

        Returns:
            The job that it went to; None: it is kept until one asks for it.

        Raises:
            NotEncodable: It cannot be stored. ConfigError: The name is wrong.
            StoreError: The store cannot do it. In all of these nothing was stored.
        """
        check_event(name)
        text = encode(payload, f"event {name}", self._config.payload_bytes_max)
        store = self.opened()
        self._check_not_in_transaction()
        with store.sql() as sql:
            job_id = events.send(sql, name, text)
            gates = None if job_id is None else events.gates_of(sql, job_id)
        if job_id is None:
            return None
        if gates:  # in a transaction of its own: whoever holds a gate may wait for the job's row
            with store.sql() as sql:
                turn = Turn(sql)
                turn.look_at(*gates)
                turn.finish()
        store.ring()
        self.nudge()
        return Job(self, job_id)

    async def asend_event(self, name: str, payload: object = None) -> Job | None:
        """`send_event`, without blocking the event loop."""
        return await in_thread(self.send_event, name, payload)

    def send_many(self, payloads: Iterable[object], **options: Unpack[SendOptions]) -> Jobs:
        """
        Store many jobs, a thousand per commit: the fast way. The options are those of `send`.

        Raises:
            As `send`. Chunks before the one at fault stay stored: `error.stored` jobs.
        """
        return self._send_many(payloads, options, exempt=self._is_handler_here())

    def _send_many(self, payloads: Iterable[object], options: SendOptions, *, exempt: bool) -> Jobs:
        how = Sending(self._registry, self._config, options)
        ranges: list[range] = []
        chunks = self._drafting.chunks(payloads, how, self._chunk_jobs())
        try:
            if how.transaction is None and self._config.buffer is None:
                self._send_ahead(chunks, ranges, exempt=exempt)
            else:
                self._send_in_turn(chunks, how, ranges, exempt=exempt)
        except DutifulError as error:
            error.stored = sum(map(len, ranges))
            if error.stored:
                error.add_note(f"{error.stored} jobs of this send_many are stored; the rest is not.")
            raise
        return Jobs(self, ranges)

    def _send_in_turn(
        self, chunks: Iterable[list[Draft]], how: Sending, ranges: list[range], *, exempt: bool
    ) -> None:
        for drafts in chunks:
            # Inside the door for each chunk only: payloads may be slow to come.
            me = self._door.enter(exempt=exempt)
            try:
                self._send_chunk(drafts, how, ranges, exempt=exempt)
            finally:
                self._door.leave(me)

    def _send_ahead(self, chunks: Iterable[list[Draft]], ranges: list[range], *, exempt: bool) -> None:
        """Read and encode the next chunk while the last one is written."""
        begun: deque[Begun] = deque()
        try:
            for drafts in chunks:
                begun.append(self._begin(drafts, begun[-1] if begun else None, exempt=exempt))
                if len(begun) > 1:
                    self._finish(begun.popleft(), ranges)
        finally:
            while begun:
                self._finish(begun.popleft(), ranges)

    def _begin(self, drafts: list[Draft], follows: Begun | None, *, exempt: bool) -> Begun:
        self.opened()
        self._check_not_in_transaction()
        me = self._door.enter(exempt=exempt)
        try:
            begun = self._committer.begin(drafts, exempt=exempt, follows=follows)
            self._door.stay(begun)
        finally:
            self._door.leave(me)
        return begun

    def _finish(self, begun: Begun, ranges: list[range]) -> None:
        try:
            ranges += self._committer.finish(begun)
        finally:
            self._door.leave(begun)

    def _send_chunk(
        self,
        drafts: list[Draft],
        how: Sending,
        ranges: list[range],
        *,
        exempt: bool,
        gone: threading.Event | None = None,
    ) -> None:
        store = self._opened_beside(how.transaction)
        if how.transaction is None:
            self._check_not_in_transaction()
        if how.transaction is not None:
            ranges += store.insert_in(how.transaction, drafts)
        else:
            self._room.store(
                drafts, how.timeout, ranges, exempt=exempt, check=lambda: self._still_wanted(gone)
            )

    def _opened_beside(self, transaction: object) -> Store:
        """Open the store while its user may have a transaction open, perhaps on the same file."""
        try:
            return self.opened()
        except StoreBusy as error:
            if transaction is not None:
                error.add_note(
                    "It may be your own transaction that holds it: a store is opened, and made, at its first "
                    "use. Use the worker once before you begin: start it, or call worker.counts()."
                )
            raise

    def _check_not_in_transaction(self) -> None:
        if self._store.is_in_transaction_here():
            raise ConfigError(
                "this is inside ctx.transaction(), which holds the write lock; nothing was stored. "
                "Send with transaction=…, or after the block."
            )

    def _still_wanted(self, gone: threading.Event | None) -> None:
        """Between two looks for room: leave if the worker stops, or the waiting coroutine was cancelled."""
        self._door.check()
        if gone is not None and gone.is_set():
            raise WorkerStopped(self._config.name)  # nobody sees it: who waited is gone

    async def asend(self, payload: object, **options: Unpack[SendOptions]) -> Job:
        """
        `send`, without blocking the event loop; same promise, same errors. Many at once share commits.

        With `transaction`, an asynchronous connection is awaited; a blocking one blocks, as ever.
        """
        exempt = self._is_handler_here()
        if options.get("transaction") is not None:
            return Job(self, (await self._asend_in([payload], options, exempt=exempt))[0][0])
        if self._config.buffer is not None:  # it may have to wait for room
            return await self._in_thread(lambda gone: self._send(payload, options, exempt=exempt, gone=gone))
        how = Sending(self._registry, self._config, options)
        me = self._door.enter(current_task(), exempt=exempt)
        try:
            if not self._is_open:
                await in_thread(self.opened)
            self._check_not_in_transaction()
            return Job(self, (await self._edge().store([self._drafting.one(payload, how)]))[0][0])
        finally:
            self._door.leave(me)

    async def asend_many(
        self, payloads: "Iterable[object] | AsyncIterable[object]", **options: Unpack[SendOptions]
    ) -> Jobs:
        """`send_many`, without blocking the event loop; payloads may come asynchronously."""
        exempt = self._is_handler_here()
        ranges: list[range] = []
        async for chunk in _in_chunks(payloads, self._chunk_jobs()):
            try:
                if options.get("transaction") is not None:
                    ranges += await self._asend_in(chunk, options, exempt=exempt)
                else:
                    ranges += (await in_thread(self._send_many, chunk, options, exempt=exempt)).ranges
            except DutifulError as error:
                error.stored += sum(map(len, ranges))
                raise
        return Jobs(self, ranges)

    async def _asend_in(
        self, payloads: Iterable[object], options: SendOptions, *, exempt: bool
    ) -> list[range]:
        """Send in the caller's own transaction."""
        from dutiful.async_edge import insert_in

        how = Sending(self._registry, self._config, options)
        ranges: list[range] = []
        for drafts in self._drafting.chunks(payloads, how, CHUNK_JOBS):
            me = self._door.enter(current_task(), exempt=exempt)
            try:
                if not self._is_open:
                    await in_thread(self._opened_beside, how.transaction)
                ranges += await insert_in(self._store, how.transaction, drafts)
            finally:
                self._door.leave(me)
        return ranges

    async def _in_thread(self, send: "Callable[[threading.Event], R]") -> R:
        """Send in a thread; if the coroutine is cancelled meanwhile, have the thread give up too."""
        gone = threading.Event()
        try:
            return await in_thread(send, gone)
        finally:
            gone.set()

    def _edge(self) -> "AsyncEdge":
        if self._async is None:
            from dutiful.async_edge import AsyncEdge  # asyncio takes 20 ms, for those who use it

            self._async = AsyncEdge(self._committer)
        return self._async

    def _chunk_jobs(self) -> int:
        buffer = self._config.buffer
        return CHUNK_JOBS if buffer is None else min(CHUNK_JOBS, buffer)

    def _is_handler_here(self) -> bool:
        return self._runner is not None and self._runner.runs_here()

    # --- starting and stopping ------------------------------------------------------------------------

    def start(self) -> None:
        """
        Take jobs from now on: what is unfinished in the store, then what is sent.

        Raises:
            AlreadyStarted: It runs, or a handler of its last run has not ended yet.
            StoreError: The store cannot be used; nothing was started.
        """
        self._door.check_process()
        if _is_spawned_child_importing():
            raise ConfigError(
                "a child process for process=True handlers imports your main module, and that starts a "
                'worker; nothing was started here. Put the start under: if __name__ == "__main__":'
            )
        with self._changing:
            if self._runner is not None:
                raise AlreadyStarted(self._config.name)
            self._start()

    def _start(self) -> None:
        with self._asking:
            stopped, self._stopping = self._stopping, None
        try:
            self.opened()
            runner = Runner(
                self._store,
                self._committer,
                self._registry,
                self._config,
                self._events,
                self._draft,
                self._schedules,
            )
            runner.start()
        except BaseException:
            self._stopping = stopped
            raise
        self._runner = runner
        self._door.open()
        # Holds on to the worker while it runs, even if nobody else does.
        atexit.register(self._stop_at_exit)

    def stop(self, timeout: float | None = None, *, drain: bool | None = None) -> None:
        """
        Take nothing more, let running handlers end, and close. What is unfinished stays stored.

        May be called from anywhere, any number of times. From inside a handler, a send or a
        signal handler that interrupted one, it returns at once and stops in the background.

        Args:
            timeout: Seconds for running handlers (with `drain`: for all); then async ones
                and child processes are stopped, and threads left to themselves. Default:
                `grace_s`; with `drain`, no limit.
            drain: Finish all that is ready first. Default: only for ":memory:", where it
                would be lost. What waits for its time, or for a retry, is not ready: in
                memory it ends with the worker, and is logged.
        """
        self._door.check_process()
        must_not_wait = self._must_not_wait()
        with self._asking:
            if self._stopping is None:
                drain = self._is_in_memory() if drain is None else drain
                limit = timeout if drain or timeout is not None else self._config.grace_s
                deadline = self._deadline = Deadline(limit)
                self._stopping = Stopping(lambda: self._stop(deadline, drain=bool(drain)))
                self._stopping.begin()
            else:
                self._deadline.shorten(timeout)
            stopping = self._stopping
        if not must_not_wait:
            stopping.wait()
            with self._changing:
                if self._runner is None:  # a job's handle may have opened the store again
                    self._close()

    def _stop_at_exit(self) -> None:
        if not self._door.is_forked:
            self.stop(self._config.grace_s)

    def _must_not_wait(self) -> bool:
        """Whether this thread stands in the way of what it would wait for."""
        return self._is_handler_here() or self._door.waits_for_loop_here() or is_inside_engine()

    def _stop(self, deadline: Deadline, *, drain: bool) -> None:
        with self._changing:
            self._door.close(self._room.made, deadline)
            runner = self._runner
            if runner is None:
                self._close()
                return
            if drain:
                try:
                    runner.drain(deadline)
                except StoreError as error:  # what is stored stays stored
                    runner.trouble(error)
                deadline.shorten(None if deadline.at is not None else self._config.grace_s)
            is_over = runner.stop(deadline)
            atexit.unregister(self._stop_at_exit)
            if is_over:
                self._over()
            else:
                runner.when_over(self._over)  # until then it counts as started

    def _over(self) -> None:
        with self._changing:
            self._runner = None
            self._close()

    def _is_in_memory(self) -> bool:
        return isinstance(self._store, SqliteStore) and self._store.in_memory

    def _close(self) -> None:
        self._committer.close(WorkerStopped(self._config.name))
        with self._opening:
            if self._is_open:
                if self._is_in_memory():
                    lost = self._store.unfinished()
                    if lost:
                        self._events.emit(JobsLost(self._config.name, lost))
                self._is_open = False
                self._store.close()
                self._door.use_anywhere()
        if self._at_exit is not None:
            self._at_exit.detach()
            self._at_exit = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await in_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(self.stop)

    # --- looking ------------------------------------------------------------------------------------------

    def job(self, job_id: JobId) -> Job:
        """Return the job with this id; asks the store only when it is used."""
        return Job(self, job_id)

    def jobs(
        self,
        *,
        state: State | str | Sequence[State | str] = (),
        task: str | None = None,
        queue: str | None = None,
        before: JobId | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Return stored jobs, newest first, at most `limit`; `before` an id is the next page."""
        states = [state] if isinstance(state, str) else state
        try:
            wanted = tuple(map(State, states))
        except ValueError as error:
            raise ConfigError(f"{error}; there are {', '.join(State)}.") from error
        return self.opened().find(Query(wanted, task, queue, before, limit))

    def counts(self) -> Counts:
        """Count the jobs in the store by state."""
        return self.opened().counts()

    def workers(self) -> list[WorkerInfo]:
        """Return the workers that take jobs from this store, in all processes."""
        return self.opened().workers()

    def retry(self, job_ids: Sequence[JobId]) -> list[JobId]:
        """
        Run finished jobs again, now, with their failures forgotten and their errors kept.

        Returns the ids for which it was done: those of dead, cancelled and completed jobs.
        """
        return self._edit(job_ids, "retry")

    def cancel(self, job_ids: Sequence[JobId]) -> list[JobId]:
        """
        End jobs: pending ones at once, running ones as their kind allows (see `Job.cancel`).

        Returns the ids for which it was done, or asked for.
        """
        return self._edit(job_ids, "cancel")

    def delete(self, job_ids: Sequence[JobId]) -> list[JobId]:
        """Remove jobs and their history; return the ids for which it was done: all but running ones."""
        return self._edit(job_ids, "delete")

    def _edit(self, job_ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        store = self.opened()
        done: list[JobId] = []
        for start in range(0, len(job_ids), EDIT_JOBS):  # in parts, so that no send waits long
            done += store.edit(job_ids[start : start + EDIT_JOBS], edit)
        if done:  # run again, or out of another's way
            store.ring()
            self.nudge()
        return done

    # --- pausing ------------------------------------------------------------------------------------

    def pause(self, *, queue: str | None = None, task: str | None = None) -> None:
        """
        Have no worker begin a job of this queue, or of this task, until it is resumed.

        Holds for all workers of the store, at once and after a restart. What runs already goes on;
        jobs can be sent, and wait. Repeating is harmless.

        Raises:
            ConfigError: Not one of the two was given, or it is no name. StoreError: Nothing was paused.
        """
        kind, name = _queue_or_task("pause", queue, task)
        with self.opened().sql() as sql:
            pauses.pause(sql, kind, name)
        self.reread()

    def resume(self, *, queue: str | None = None, task: str | None = None) -> bool:
        """
        Let jobs of this queue, or of this task, be taken again; return whether it was paused.

        Raises:
            ConfigError: Not one of the two was given, or it is no name. StoreError: Nothing was resumed.
        """
        kind, name = _queue_or_task("resume", queue, task)
        with self.opened().sql() as sql:
            was_paused = pauses.resume(sql, kind, name)
        self.reread()
        return was_paused

    def paused(self) -> list[Paused]:
        """Return the queues and tasks that are paused."""
        with self.opened().sql_look() as look:
            return pauses.listed(look)

    # --- for our own parts --------------------------------------------------------------------------

    def opened(self) -> Store:
        """Return the store, opened if need be."""
        self._door.check_process()
        if not self._is_open:
            with self._opening:
                if not self._is_open:
                    if self._is_in_memory() and self._stopping is not None and self._stopping.is_over:
                        raise WorkerStopped(self._config.name)  # and its memory is gone
                    self._store.open()
                    self._is_open = True
                    self._door.use_here()
                    self._at_exit = weakref.finalize(self, _close_at_exit, self._committer, self._store)
        return self._store

    def watch(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Have `tell` called when this worker finishes the job."""
        self._committer.watched.setdefault(job_id, []).append(tell)

    def decode_result(self, task: str, text: str) -> Any:
        """Return a result as the task's handler is annotated, if this process knows it."""
        entry = self._registry.entry(task)
        return decode_plain(text) if entry is None else entry.result(text)

    def reread(self) -> None:
        """Have all workers see what was paused or resumed."""
        if self._runner is not None:
            self._runner.reread()
        self._store.ring()

    def nudge(self) -> None:
        """Have this process's worker look for what was changed by hand."""
        if self._runner is not None:
            self._runner.nudge()

    def unwatch(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Take that back."""
        waiting = self._committer.watched.get(job_id, [])
        if tell in waiting:
            waiting.remove(tell)
        if not waiting:
            self._committer.watched.pop(job_id, None)


def _queue_or_task(action: str, queue: str | None, task: str | None) -> tuple[Literal["queue", "task"], str]:
    if queue is not None and task is None:
        return "queue", check_name(queue, "queue")
    if task is not None and queue is None:
        return "task", check_name(task, "task")
    raise ConfigError(f"{action}() takes either queue= or task=; nothing was changed. Give one of them.")


def _is_spawned_child_importing() -> bool:
    # Not imported for this question alone: a spawned child has it.
    spawning = sys.modules.get("multiprocessing.process")
    return spawning is not None and getattr(spawning.current_process(), "_inheriting", False)


def _close_at_exit(committer: Committer, store: Store) -> None:
    committer.close()
    store.close()


def store_for(store: "str | os.PathLike[str] | Store | None", config: Config, *, create: bool) -> Store:
    if isinstance(store, Store):
        return store
    url = os.fspath(os.environ.get("DUTIFUL_STORE", DEFAULT_STORE) if store is None else store)
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and separator and not rest.startswith("/"):
        raise ConfigError(
            f"the store {url!r} has no path; write sqlite:///relative.db or sqlite:////absolute.db."
        )
    if separator and scheme in ("postgresql", "postgres"):
        from dutiful.store.postgres import PostgresStore  # psycopg, if it is there

        return PostgresStore(
            url, durability=config.durability, busy_s=config.busy_s, worker=config.name, create=create
        )
    if separator and scheme != "sqlite":
        raise ConfigError(
            f"{scheme}:// is no store that this version knows; use a path, sqlite:///path, ':memory:' or "
            "postgresql://…"
        )
    path = rest[1:] if rest else url
    if not path:
        raise ConfigError(f"the store {url!r} names no file; give a path, or ':memory:'.")
    return SqliteStore(
        MEMORY if path == MEMORY else path,
        durability=config.durability,
        busy_s=config.busy_s,
        worker=config.name,
        create=create,
    )


async def _in_chunks(
    payloads: "Iterable[object] | AsyncIterable[object]", size: int
) -> AsyncGenerator[list[object]]:
    source = payloads if isinstance(payloads, AsyncIterable) else _asynchronous(payloads)
    chunk: list[object] = []
    async for payload in source:
        chunk.append(payload)
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _asynchronous(payloads: Iterable[object]) -> AsyncGenerator[object]:
    for payload in payloads:
        yield payload
