"""From a payload to a stored job: drafts, and the bound on unfinished jobs."""

import difflib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

import msgspec

from dutiful.asking import NAMES, NOTHING, Asking, HasId, Limit, Unique
from dutiful.config import Config
from dutiful.core.values import number, span_s, whole
from dutiful.errors import BufferFull, ConfigError
from dutiful.handler import Entry
from dutiful.job import JobId
from dutiful.payload import check_name, encode
from dutiful.registry import Registry
from dutiful.sealing import Cover
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft, Special
from dutiful.versions import task_of

# send_many commits once per chunk: larger ones were no faster (2026-11), and make others wait longer.
CHUNK_JOBS = 1000
CHUNK_BYTES = 1024 * 1024
PRIORITY_MAX = 2**31 - 1
# How often to look for room that another process's worker made; our own tells us at once.
LOOK_S = 0.01


class SendOptions(TypedDict, total=False):
    """
    How to send; what each means is said at `Worker.send`.

    A typed dict, so that all ways of sending share one list, and a type checker knows it.
    """

    task: type | str | None
    queue: str | None
    delay: float | timedelta | None
    run_at: datetime | None
    priority: int
    key: str | Callable[[Any], str | None] | None
    on_failure: Literal["hold", "skip"]
    unique: bool | Unique | None
    expires: float | timedelta | datetime | None
    deadline: float | timedelta | None
    after: HasId | Iterable[HasId] | None
    on_dead: Literal["cancel", "run", "wait"]
    headers: Mapping[str, str] | None
    secret: bool
    transaction: Any
    timeout: float | None


class Sending:
    """The checked options of one `send`."""

    __slots__ = (
        "_asking",
        "_config",
        "_registry",
        "delay_s",
        "headers_bytes",
        "priority",
        "queue",
        "run_at",
        "secret",
        "task",
        "timeout",
        "transaction",
    )

    def __init__(self, registry: Registry, config: Config, options: SendOptions) -> None:
        self._registry = registry
        self._config = config
        self.task: str | None = None
        self.queue: str | None = None
        self.delay_s: float | None = None
        self.run_at: int | None = None
        self.priority = 0
        self.transaction: Any = None
        self.timeout: float | None = None
        self.secret = False
        self.headers_bytes = 0  # which count as the payload's
        self._asking: Asking | None = None
        if options:
            self._read(options)

    def _read(self, options: SendOptions) -> None:
        if options.keys() - _OPTIONS:
            raise ConfigError(_unknown(options))
        task, queue, delay = options.get("task"), options.get("queue"), options.get("delay")
        self.task = None if task is None else self._registry.resolve_task(task)
        if task is not None and len(options) == 1:  # as most are
            return
        self.queue = None if queue is None else check_name(queue, "queue")
        self.delay_s = _delay_s(delay)
        self.run_at = _instant(options.get("run_at"))
        self.priority = checked_priority(options.get("priority", 0))
        self.transaction = options.get("transaction")
        self.timeout = _timeout_s(options.get("timeout"))
        self.secret = bool(options.get("secret"))
        if options.keys() & NAMES:
            self._asking = Asking(options)
            self.headers_bytes = self._asking.headers_bytes
            if self.transaction is not None:
                raise ConfigError(
                    f"{', '.join(sorted(options.keys() & NAMES))} cannot be used with transaction=; nothing "
                    "was stored. Send without transaction=, or leave them out."
                )
        if delay is not None and self.run_at is not None:
            raise ConfigError("delay= and run_at= were both given; use one. Nothing was stored.")

    @property
    def after(self) -> tuple[JobId, ...]:
        """The jobs that it waits for."""
        return () if self._asking is None else self._asking.after

    def draft(self, task: str, payloads: list[str]) -> Draft:
        """Return the draft of jobs with these options."""
        entry = self._registry.entry(task)
        if self.secret or self._config.keyring is not None or (entry is not None and entry.secret):
            cover = self._cover(entry)
            payloads = [cover.put(text, "payload", task) for text in payloads]
            task = cover.name(task)
        return Draft(task, self._queue_of(entry), payloads, self.priority, self.delay_s, self.run_at)

    def _cover(self, entry: Entry | None) -> Cover:
        is_secret = self.secret or (entry is not None and entry.secret)
        return Cover(self._config.keyring, is_secret=is_secret)

    def _queue_of(self, entry: Entry | None) -> str:
        if self.queue is not None:
            return self.queue
        return self._config.queues[0] if entry is None or entry.queue is None else entry.queue

    def is_plain(self, task: str) -> bool:
        """
        Whether jobs of this task ask for nothing more.

        Raises:
            ConfigError: The task has a limit, which `transaction=` cannot keep.
        """
        if self._asking is None and self._limit(task) is None:
            return True
        if self.transaction is not None:
            raise ConfigError(
                f"the task {task!r} has a limit, and cannot be sent with transaction=; nothing was stored. "
                "Send it without transaction=, or through a task without a limit that sends it on."
            )
        return False

    def _limit(self, task: str) -> Limit | None:
        entry = self._registry.entry(task)
        return None if entry is None else entry.limit

    def special_drafts(self, task: str, pairs: Iterable[tuple[object, str]]) -> list[Draft]:
        """Return the drafts of jobs that ask for more; `pairs` are payloads and their JSON."""
        entry = self._registry.entry(task)
        asking, limit, queue = self._asking or NOTHING, self._limit(task), self._queue_of(entry)
        cover = self._cover(entry)
        digest = None if cover.keyring is None else cover.keyring.digest
        name = cover.name(task)
        drafts: list[Draft] = []
        texts: list[str] = []
        last: Special | None = None
        for payload, text in pairs:
            special = asking.special(task_of(task), payload, text, limit, digest)
            stored = cover.put(text, "payload", task)
            if special == last and not asking.is_unique:
                texts.append(stored)
                continue
            texts, last = [stored], special
            drafts.append(Draft(name, queue, texts, self.priority, self.delay_s, self.run_at, special))
        return drafts


class Drafting:
    """Turns payloads into drafts."""

    def __init__(self, registry: Registry, config: Config) -> None:
        self._registry = registry
        self._config = config

    def one(self, payload: object, options: Sending) -> Draft:
        """Return the draft of one job."""
        task = options.task or self._registry.task_of(payload)
        text = encode(payload, task, self._config.payload_bytes_max, beside=options.headers_bytes)
        if options.is_plain(task):
            return options.draft(task, [text])
        return options.special_drafts(task, [(payload, text)])[0]

    def chunks(self, payloads: Iterable[object], options: Sending, jobs_max: int) -> Iterator[list[Draft]]:
        """
        Return drafts of many jobs, a chunk at a time; a chunk is read only when it is asked for.

        Raises:
            NotEncodable, UnknownTask: The chunk with that payload is not stored; earlier ones are.
        """
        registry, bytes_max = self._registry, self._config.payload_bytes_max
        given, beside = options.task, options.headers_bytes
        chunk: list[Draft] = []
        texts: list[str] = []
        objects: list[object] = []
        task, kind, jobs, size = given or "", None, 0, 0
        plain = given is None or options.is_plain(given)

        def drafts() -> list[Draft]:
            if plain:
                return [options.draft(task, texts)]
            return options.special_drafts(task, zip(objects, texts, strict=True))

        for payload in payloads:
            if given is None and type(payload) is not kind:
                if texts:
                    chunk += drafts()
                    texts, objects = [], []
                kind = type(payload)
                task = registry.task_of(payload)
                plain = options.is_plain(task)
            text = encode(payload, task, bytes_max, beside=beside)
            texts.append(text)
            if not plain:
                objects.append(payload)
            jobs += 1
            size += len(text)
            if jobs >= jobs_max or size >= CHUNK_BYTES:
                yield [*chunk, *drafts()]
                chunk, texts, objects, jobs, size = [], [], [], 0, 0
        if texts:
            yield [*chunk, *drafts()]


class Room:
    """The bound on unfinished jobs: where senders wait for room."""

    def __init__(self, committer: Committer, buffer: int | None) -> None:
        self._committer = committer
        self._buffer = buffer
        self._made = threading.Condition()

    def made(self) -> None:
        """Wake those who wait: there may be room, or they are to leave."""
        with self._made:
            self._made.notify_all()

    def store(
        self,
        drafts: list[Draft],
        timeout: float | None,
        stored: list[range],
        *,
        exempt: bool,
        check: Callable[[], None],
    ) -> None:
        """
        Store drafts, waiting for room; add the ids to `stored`, in order, as they are stored.

        `check` is called between two looks for room, and may raise.

        Raises:
            BufferFull: No room within `timeout` seconds for what is not in `stored`.
        """
        if self._buffer is None or exempt:
            stored += self._committer.submit(drafts, exempt=exempt)
            return
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            got = self._committer.submit(drafts)
            stored += [ids for ids in got if ids]
            drafts = _rest(drafts, got)
            if not drafts:
                return
            self._wait(until, timeout)
            check()

    def _wait(self, until: float | None, timeout: float | None) -> None:
        rest_s = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
        if rest_s <= 0:
            raise BufferFull(self._buffer or 0, timeout or 0.0)
        with self._made:
            self._made.wait(rest_s)


_OPTIONS = frozenset(SendOptions.__annotations__)


def _unknown(options: SendOptions) -> str:
    wrong = min(options.keys() - _OPTIONS)
    near = difflib.get_close_matches(wrong, _OPTIONS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else f" There are {', '.join(sorted(_OPTIONS))}."
    return f"unknown option {wrong!r}; nothing was stored.{hint}"


def _rest(drafts: list[Draft], stored: list[range]) -> list[Draft]:
    """Return what of the drafts is not stored yet; if they are bound, it is all of them or none."""
    if drafts[-1].bound:
        return [] if any(stored) else drafts
    rest: list[Draft] = []
    for draft, ids in zip(drafts, stored, strict=True):
        if len(ids) < len(draft.payloads):
            payloads = draft.payloads[len(ids) :]
            rest.append(msgspec.structs.replace(draft, payloads=payloads))
    return rest


def _delay_s(delay: float | timedelta | None) -> float | None:
    if delay is None:
        return None
    return span_s("delay", delay, may_be_0=True) or None


def _timeout_s(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    return float(number("timeout", timeout, 0, wanted="seconds, 0 or more, or None"))


def _instant(run_at: datetime | None) -> int | None:
    if run_at is None:
        return None
    if not isinstance(run_at, datetime) or run_at.tzinfo is None:
        raise ConfigError(
            f"run_at is {run_at!r}; it must be a datetime with a time zone, such as "
            "datetime.now(timezone.utc). Nothing was stored."
        )
    return round(run_at.timestamp() * 1000)


def checked_priority(priority: int) -> int:
    """Return a priority that fits into the store, or raise ConfigError."""
    return whole("priority", priority, -PRIORITY_MAX - 1, PRIORITY_MAX)
