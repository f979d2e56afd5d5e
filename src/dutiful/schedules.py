"""The schedules of a store, and those that a worker declares: `worker.schedules`."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol, TypedDict

import msgspec
from msgspec import Struct

from dutiful.core import schedule
from dutiful.core.durations import seconds_of
from dutiful.core.retry import Retry
from dutiful.errors import ConfigError, NotDecodable
from dutiful.handle import Job
from dutiful.handler import Entry, Handler, made_of
from dutiful.job import JobId
from dutiful.payload import check_name, encode
from dutiful.registry import Registry
from dutiful.sealing import Cover
from dutiful.sending import checked_priority
from dutiful.store.contract import Sql, Store
from dutiful.store.special import schedules as rows
from dutiful.store.special.schedules import STALE_MS, Declared, Row


class Schedule(Struct, frozen=True):
    """
    A schedule as it is stored. Instants are milliseconds since 1970 UTC, by the store's clock.

    Attributes:
        name: Its name, which is also the task of its jobs.
        spec: When it fires: "every 300" (seconds), or "cron 0 3 * * * Europe/Berlin".
        missed: What becomes of firings that were missed: latest, all or skip.
        queue: Where its jobs go.
        next_at: When it fires next; while it is paused, when it would have.
        last_at: The instant that its last job was for.
        last_job: The id of that job.
        paused: Whether it is paused.
        stale: No worker has declared it for an hour or more: it does not fire.
    """

    name: str
    spec: str
    missed: str
    queue: str
    next_at: int
    last_at: int | None
    last_job: JobId | None
    paused: bool
    stale: bool


class ScheduleOptions(TypedDict, total=False):
    """
    The options of `worker.every` and `worker.cron`.

    Attributes:
        name: Of the schedule, and the task of its jobs. Default: the function's.
        missed: After downtime: "latest" (default) fires once for all that were missed, "all" fires
            each, "skip" none that is over a minute late.
        queue: Where its jobs go. Default: the worker's first.
        payload: What its jobs carry: any JSON value. Default: null.
        priority: Of its jobs: higher runs first.
        retry, timeout, process: As of Handler.
    """

    name: str
    missed: schedule.Missed
    queue: str
    payload: object
    priority: int
    retry: Retry
    timeout: float | timedelta
    process: bool


class Desk(Protocol):
    """What schedules need of their worker."""

    def opened(self) -> Store:
        """Return the store, open."""
        ...

    def job(self, job_id: JobId) -> Job:
        """Return a job's handle."""
        ...

    def nudge(self) -> None:
        """Have this process's worker look for new jobs."""
        ...

    def reread(self) -> None:
        """Have all workers see what was paused or resumed."""
        ...


class Schedules:
    """
    The schedules in the store, of all workers: iterate over them, ask for one by name, or change one.

    Attributes:
        declared: What this worker declares, by name.
    """

    def __init__(self, desk: Desk, registry: Registry, declared: "dict[str, Declared]") -> None:
        self._desk = desk
        self._registry = registry
        self.declared = declared

    def __iter__(self) -> Iterator[Schedule]:
        with self._desk.opened().sql_look() as look:
            found = [_shown(row, look.now) for row in rows.listed(look)]
        return iter(found)

    def __getitem__(self, name: str) -> Schedule:
        """
        Return a schedule as it stands now.

        Raises:
            ConfigError: There is none of this name.
        """
        with self._desk.opened().sql_look() as look:
            return _shown(_named(look, name), look.now)

    def pause(self, name: str) -> None:
        """
        Let a schedule fire no more, whichever worker declares it, until it is resumed.

        Raises:
            ConfigError: There is none of this name.
        """
        with self._desk.opened().sql() as sql:
            _named(sql, name)
            rows.pause(sql, name)

    def resume(self, name: str) -> None:
        """
        Let a schedule fire again, from now on: what it would have fired meanwhile is not made up for.

        Raises:
            ConfigError: There is none of this name, or this version cannot read it.
        """
        with self._desk.opened().sql() as sql:
            row = _named(sql, name)
            rows.resume(sql, name, schedule.read(row.spec).after(sql.now))
        self._desk.reread()

    def run(self, name: str) -> Job:
        """
        Send a job of a schedule now, be it paused or not; its next firing stays when it is.

        Raises:
            ConfigError: There is none of this name; nothing was stored.
        """
        store = self._desk.opened()
        with store.sql() as sql:
            job_id = rows.run(sql, _named(sql, name))
        store.ring()
        self._desk.nudge()
        return self._desk.job(job_id)

    def forget(self, name: str) -> None:
        """
        Remove a schedule, such as a stale one. A worker that still declares it brings it back when it starts.

        Raises:
            ConfigError: There is none of this name.
        """
        with self._desk.opened().sql() as sql:
            _named(sql, name)
            rows.forget(sql, name)

    # --- for the worker ---------------------------------------------------------------------------

    def declare(
        self,
        fn: Callable[..., Any],
        when: schedule.Schedule,
        options: ScheduleOptions,
        bytes_max: int,
        cover: Cover,
    ) -> None:
        """
        Make a function the handler of a schedule's jobs, and note what is to be written down at the start.

        Raises:
            ConfigError: An option is wrong, or there is such a schedule. NotEncodable: The payload
                cannot be stored. In all of these nothing was declared.
        """
        _check_options(options)
        name = options.get("name") or str(getattr(fn, "__qualname__", "")).rpartition("<locals>.")[2]
        check_name(name, "schedule")
        if name in self.declared:
            raise ConfigError(
                f"a schedule {name!r} is declared already, and stays as it is. "
                'Give this one another name: name="…".'
            )
        queue = options.get("queue")
        declared = Declared(
            name,
            when.spec,
            schedule.check_missed(options.get("missed", "latest")),
            name,
            None if queue is None else check_name(queue, "queue"),
            encode(options.get("payload"), name, bytes_max),
            checked_priority(options.get("priority", 0)),
        )
        handler = made_of(
            fn,
            retry=options.get("retry"),
            timeout=options.get("timeout"),
            process=options.get("process", False),
        )
        _check_payload(declared, handler)
        self._registry[name] = handler
        stored = cover.put(declared.payload, "payload", name)
        self.declared[name] = msgspec.structs.replace(declared, task=cover.name(name), payload=stored)


def _check_options(options: ScheduleOptions) -> None:
    unknown = sorted(set(options) - set(ScheduleOptions.__annotations__))
    if unknown:
        names = ", ".join(sorted(ScheduleOptions.__annotations__))
        raise ConfigError(f"unknown option {unknown[0]!r}; nothing was declared. There are {names}.")


def _check_payload(declared: Declared, handler: Handler) -> None:
    try:
        Entry(declared.task, handler).arguments(declared.payload)
    except NotDecodable as error:
        raise ConfigError(
            f"the jobs of schedule {declared.name!r} have the payload {declared.payload}, which its function "
            f"does not take ({error}); nothing was declared. Give payload=…, or a function without "
            "parameters."
        ) from error


def every(span: float | timedelta | str) -> schedule.Every:
    """
    Return the schedule that fires once in each span.

    Raises:
        ConfigError: It is no span of time, or too short.
    """
    return schedule.Every(round(seconds_of("every", span) * 1000))


def _named(look: Sql, name: str) -> Row:
    row = rows.named(look, name)
    if row is None:
        names = ", ".join(repr(each.name) for each in rows.listed(look)) or "none at all"
        raise ConfigError(
            f"there is no schedule {name!r} in the store; nothing was changed. There are: {names}."
        )
    return row


def _shown(row: Row, now: int) -> Schedule:
    return Schedule(
        row.name,
        row.spec,
        row.missed,
        row.queue,
        row.next_at,
        row.last_at,
        row.last_job,
        row.paused_at is not None,
        now - row.seen_at >= STALE_MS,
    )
