"""The front door's part for registering: handlers, tasks, schedules and listeners."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from dutiful.asking import Limit
from dutiful.core.retry import Retry
from dutiful.core.schedule import Cron, Schedule
from dutiful.errors import AlreadyStarted, ConfigError
from dutiful.events import Event, checked_listener, kinds_of
from dutiful.front.flows import Flows
from dutiful.front.looking import Looking
from dutiful.front.replacing import Replaceable
from dutiful.handle import Job
from dutiful.handler import made_of
from dutiful.middleware import Middleware, checked_middleware
from dutiful.registry import Registry
from dutiful.schedules import ScheduleOptions, Schedules, every
from dutiful.sealing import Cover
from dutiful.task import Task

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=Middleware)
H = TypeVar("H", bound=Callable[[], Mapping[str, str]])


class Registering(Replaceable, Flows, Looking):
    """What tells a worker how to handle its jobs, and when to send some by itself."""

    @property
    def schedules(self) -> Schedules:
        """The schedules in the store: iterate over them, ask for one by name, or change one."""
        # Made when it is asked for: a worker that nobody holds on to any more is closed at once.
        return Schedules(self, self._registry, self._schedules)

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
        timeout: float | timedelta | None = None,
        process: bool = False,
        queue: str | None = None,
        limit: Limit | None = None,
        version: int | None = None,
        secret: bool = False,
        batch: int | None = None,
        wait: float | None = None,
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

        if fn is not None and "task" in options:
            raise ConfigError(
                f"handler({fn!r}, task={options['task']!r}) names the task twice; nothing was registered. "
                "Give it once."
            )

        def register(function: F) -> F:
            self._registry.add(function, **({} if fn is None else {"task": fn}), **options)
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
        timeout: float | timedelta | None = None,
        process: bool = False,
        queue: str | None = None,
        limit: Limit | None = None,
        version: int | None = None,
        secret: bool = False,
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

    def upgrade(self, of: type | str, /, *, from_version: int) -> Callable[[F], F]:
        """
        Register an upgrade: `@worker.upgrade(Order, from_version=1)`.

        The function gets the old payload as plain JSON values, and returns the next version's. Several
        are chained. If one raises, the job is dead at once, and kept. Returns the function itself.

        Args:
            of: The payload type, which states its version with `@dutiful.version(2)`; or the name of a
                task, whose version is that of its handler.
            from_version: The version of what it gets.

        Raises:
            ConfigError: It is no such function, there is one, or no newer version is stated.
        """

        def register(function: F) -> F:
            self._registry.upgrade(of, from_version, function)
            return function

        return register

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
            cover = Cover(self._config.keyring)
            self.schedules.declare(fn, when, options, self._config.payload_bytes_max, cover)
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

    def middleware(self, fn: M) -> M:
        """
        Have a generator function run around each handler: `@worker.middleware`.

        It is given a Call and yields once. What stands before the `yield` comes before the handler; the
        handler's result is what the `yield` gives, its exception is raised there. What was registered first
        is outermost. Returns the function itself. See docs/middleware.md.

        Raises:
            ConfigError: It is no generator function. AlreadyStarted: The worker runs without it.
        """
        checked_middleware(fn)
        if self._runner is not None:
            raise AlreadyStarted(self._config.name)
        self._middleware.append(fn)
        return fn

    def outgoing_headers(self, fn: H) -> H:
        """
        Have a function called at each send: what it returns are headers of the jobs.

        Called where `send` is, so it sees the sender's contextvars; `headers=` wins over it. If it raises,
        nothing is stored. Sends with `transaction=` cannot have headers, and do without. Returns the
        function itself, so it is a decorator too.

        Raises:
            ConfigError: It is no plain function.
        """
        if not callable(fn) or inspect.iscoroutinefunction(fn):
            raise ConfigError(
                f"outgoing_headers() was given {fn!r}; nothing was registered. Give a plain function, "
                "without async, that returns texts by name."
            )
        self._outgoing.append(fn)
        return fn

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
