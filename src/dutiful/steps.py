"""
What a handler does once, though it may be run again: `ctx.step`, `ctx.sleep`, `ctx.wait_event`.

Each has a name, under which the store keeps what it came to. A later attempt finds it there and
goes on. A sleep ends the attempt: `Leave` is raised through the handler, and the runner makes a
Snooze of it. So it is a BaseException, which no `except Exception` of the handler's stops.
"""

import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

from dutiful.core.durations import seconds_of
from dutiful.core.values import DELAY_S_MAX, text
from dutiful.errors import ConfigError, EventTimeout, LeaseLost, NotEncodable
from dutiful.job import Claim
from dutiful.payload import decode_plain, encode
from dutiful.returned import decoder_of
from dutiful.sealing import Cover
from dutiful.signature import is_async, returns_of
from dutiful.store.contract import Store
from dutiful.store.special import events
from dutiful.store.special import steps as stored
from dutiful.store.special.steps import Noted

T = TypeVar("T")
NAME_CHARS_MAX = 200


class Leave(BaseException):
    """
    Internal: the job sleeps. Let it pass.

    Attributes:
        seconds: For so long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return "the job sleeps; let this pass: it ends the attempt, and is no error"


def is_leave(error: BaseException) -> bool:
    """Return whether this is a Leave, or several that a task group has put together."""
    if isinstance(error, Leave):
        return True
    if not isinstance(error, BaseExceptionGroup):
        return False
    group = cast("BaseExceptionGroup[BaseException]", error)
    return all(is_leave(each) for each in group.exceptions)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call something that blocks without blocking the event loop."""
    import asyncio  # 20 ms, for those who use it

    return await asyncio.to_thread(function, *args, **kwargs)


class Steps:
    """
    The steps of one attempt.

    Args:
        bytes_max: The largest result of one, in bytes of JSON.
        check: Raises what ends the handler, if it should end.
        cover: How what a step returned is stored.

    Attributes:
        is_used: Whether the job has any.
        left: The way out that was taken, which the handler must not stop.
    """

    def __init__(
        self, store: Store, claim: Claim, bytes_max: int, check: Callable[[], None], cover: Cover
    ) -> None:
        self._store = store
        self._claim = claim
        self._bytes_max = bytes_max
        self._check = check
        self._cover = cover
        self._noted: dict[str, Noted] | None = None
        self._met: set[str] = set()
        self.is_used = False
        self._sleeping = threading.Lock()  # tasks of one handler that would sleep at once: the first does
        self.left: Leave | None = None

    @property
    def awaited(self) -> tuple[str, ...]:
        """The waits that are open, as far as this attempt knows."""
        return tuple(name for name, noted in (self._noted or {}).items() if noted.event is not None)

    # --- steps ---------------------------------------------------------------------------------

    def run(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what `fn` returned once."""
        if is_async(fn):
            raise ConfigError(_ASYNC.format(name=name))
        found = self._begin(name, "step")
        if found is None:
            with self._again_if_it_fails(name):
                value = fn(*args, **kwargs)
                if inspect.iscoroutine(value):
                    value.close()
                    raise ConfigError(_ASYNC.format(name=name))
                found = self._finish(name, value)
        return self._read(fn, name, found)

    async def arun(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """`run`, for a coroutine function, or one that is called in a thread."""
        found = await in_thread(self._begin, name, "step")
        if found is None:
            with self._again_if_it_fails(name):
                value = fn(*args, **kwargs) if is_async(fn) else await in_thread(fn, *args, **kwargs)
                if inspect.isawaitable(value):
                    value = await value
                found = await in_thread(self._finish, name, value)
        return self._read(fn, name, found)

    def _read(self, fn: Callable[..., Any], name: str, found: Noted) -> Any:
        if found.value is None:
            return None
        text = self._cover.get(found.value, "step", self._claim.id, name)
        return None if text == "null" else decoder_of(returns_of(fn))(text)

    @contextmanager
    def _again_if_it_fails(self, name: str) -> Generator[None]:
        try:
            yield
        except BaseException:
            self._met.discard(name)  # the handler may try it once more
            raise

    def _begin(self, name: str, kind: str) -> Noted | None:
        """Return what is noted under this name; None: nothing."""
        if self.left is not None:
            raise self.left
        self._check()
        text("the name of a step", name, chars_max=NAME_CHARS_MAX, unchanged="It was not run.")
        if name in self._met:
            raise ConfigError(
                f"job {self._claim.id} has two steps named {name!r}; the second was not run. "
                'Give each a name of its own, in a loop too: f"charge {order.id}".'
            )
        self._met.add(name)
        noted = self._all()
        found = noted.get(name)
        if found is not None and found.kind != kind:
            raise ConfigError(
                f"{name!r} of job {self._claim.id} was a {found.kind} in an earlier attempt and is a {kind} "
                "now; it was not run. Give what is new a name of its own."
            )
        return found

    def _all(self) -> dict[str, Noted]:
        if self._noted is None:
            # Who has noted anything is special, and has been claimed before.
            if self._claim.attempt == 1 or self._claim.extra is None:
                self._noted = {}
            else:
                with self._store.sql_look() as look:
                    self._noted = stored.noted(look, self._claim.id)
        return self._noted

    def _finish(self, name: str, value: object) -> Noted:
        """Store what a step returned, if the attempt still owns the job."""
        try:
            json = encode(value, f"step {name}", self._bytes_max, "result_bytes_max")
        except NotEncodable as error:
            raise NotEncodable(
                f"step {name}", f"{error.reason}. It has run, and its job runs it again when it is retried"
            ) from error
        json = self._cover.put(json, "step", self._claim.id, name)
        with self._store.sql() as sql:
            is_mine = stored.owns(sql, self._claim)
            new = Noted("step", sql.now, None, json)
            if is_mine:
                stored.note(sql, self._claim.id, name, new)
        return self._kept(name, new, is_mine=is_mine)

    def _kept(self, name: str, new: Noted, *, is_mine: bool) -> Noted:
        if not is_mine:
            raise LeaseLost(self._claim.id)
        self.is_used = True
        self._all()[name] = new
        return new

    # --- sleeping --------------------------------------------------------------------------------

    def sleep(self, name: str, span: float | timedelta | str) -> None:
        """Leave the handler until it is over, or go on if it is."""
        span_s = seconds_of("the span of a sleep", span)
        with self._sleeping:
            self._sleep(name, span_s)

    def _sleep(self, name: str, span_s: float) -> None:
        found = self._begin(name, "sleep")
        with self._store.sql() as sql:
            is_mine = stored.owns(sql, self._claim)
            now = sql.now
            if found is None:
                found = Noted("sleep", now + round(span_s * 1000))
                if is_mine:
                    stored.note(sql, self._claim.id, name, found)
        self._kept(name, found, is_mine=is_mine)
        if found.at > now:
            self._leave((found.at - now) / 1000)

    def wait_event(self, event: str, timeout: float | timedelta | str | None, step: str | None) -> Any:
        """Return the value of an event, or leave the handler until it comes."""
        timeout_s = DELAY_S_MAX if timeout is None else seconds_of("timeout", timeout)
        check_event(event)
        with self._sleeping:
            return self._wait(event, timeout_s, f"event {event}" if step is None else step)

    def _wait(self, event: str, timeout_s: float, name: str) -> Any:
        found = self._begin(name, "event")
        if found is None or found.event is not None:
            with self._store.sql() as sql:
                found = events.ask(sql, self._claim, name, event, round(timeout_s * 1000))
                now = sql.now
            if found is None:
                raise LeaseLost(self._claim.id)
            self._kept(name, found, is_mine=True)
            if found.event is not None:
                self._leave(max(0, found.at - now) / 1000)
        if found.value is None:
            raise EventTimeout(self._claim.id, event)
        return decode_plain(self._cover.get(found.value, "event"))

    def _leave(self, seconds: float) -> None:
        self.left = Leave(seconds)
        raise self.left


def check_event(name: object) -> None:
    """
    Raises:
        ConfigError: It cannot name an event.
    """
    chars_max = NAME_CHARS_MAX - len("event ")
    text("the name of an event", name, chars_max=chars_max, unchanged="Nothing was changed.")


_ASYNC = "the function of step {name!r} is async; it was not run. Write: await ctx.astep({name!r}, …)"
