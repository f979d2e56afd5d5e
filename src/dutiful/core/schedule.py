"""
Schedules: when something fires again and again.

Pure: the clock comes in as an argument. Instants are milliseconds since 1970 UTC.

    every    at the multiples of its span since 1970 UTC: "5m" is at :00, :05, :10 …, "1d" at midnight UTC.
             So it does not matter when a worker was started, nor which one.
    cron     five fields (minute, hour, day of the month, month, day of the week), as read by the
             clocks of a time zone; or six, with the seconds first.

Where clocks are put forward or back, cron does as Debian's does, for schedules of certain hours and minutes
("0 3 * * *", not "*/5 * * * *"):

    forward  what would have fired within the hour that is left out fires right after it, once
    back     what has fired within the hour that comes twice does not fire again in the second

All others go by the time that passes: "*/5 * * * *" fires each five minutes, in both hours.

What was missed while no worker ran is made up for, by the schedule's `missed`:

    latest   one firing for all that were missed
    all      each
    skip     none that is more than LATE_MS late

Source: cron(8) of Debian, "Notes"; the package cronsim, which follows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count, islice, takewhile
from typing import Literal, NamedTuple, Protocol, cast

from dutiful.errors import ConfigError

Missed = Literal["latest", "all", "skip"]

LATE_MS = 60_000  # what is less late than this has not been missed
EVERY_MS_MIN = 100
FIRINGS_MAX = 500  # of one decision: a few ms of the write lock

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
# How far back the last firing is looked for, one after the other, so that it is found in few steps.
_BACK_MS = (_HOUR_MS, _DAY_MS, 31 * _DAY_MS, 366 * _DAY_MS)
# Clocks are put back by less than this; cron(8) treats greater changes as corrections.
_FOLD_MS = 3 * _HOUR_MS
_FIELDS = (5, 6)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Schedule(Protocol):
    """When to fire."""

    @property
    def spec(self) -> str:
        """The schedule as one line of text, which `read` reads."""
        ...

    def after(self, instant: int) -> int:
        """Return the first firing after an instant."""
        ...

    def since(self, instant: int) -> Iterator[int]:
        """Yield the firings after an instant, without end."""
        ...

    def last(self, first: int, until: int) -> int:
        """Return the last firing up to and with `until`; `first` is one."""
        ...


class Decision(NamedTuple):
    """What is to be fired now, and when the next time will be."""

    firings: list[int]
    next_at: int


@dataclass(frozen=True, slots=True)
class Every:
    """At the multiples of a span since 1970 UTC."""

    span_ms: int

    def __post_init__(self) -> None:
        if self.span_ms < EVERY_MS_MIN:
            raise ConfigError(
                f"every {self.span_ms} ms is too often; nothing was declared. "
                f"Give at least {EVERY_MS_MIN} ms."
            )

    @property
    def spec(self) -> str:
        whole, rest = divmod(self.span_ms, 1000)
        return f"every {whole}" if not rest else f"every {whole}.{rest:03}".rstrip("0")

    def after(self, instant: int) -> int:
        return next(self.since(instant))

    def since(self, instant: int) -> Iterator[int]:
        return count((instant // self.span_ms + 1) * self.span_ms, self.span_ms)

    def last(self, first: int, until: int) -> int:
        return max(first, until // self.span_ms * self.span_ms)


class Cron:
    """
    As a line of a crontab says, in a time zone.

    Raises:
        ConfigError: There is no such time, or no such zone.
    """

    __slots__ = ("_is_of_certain_hours", "_zone", "line", "tz")

    def __init__(self, line: str, tz: str = "UTC") -> None:
        for name, given in (("the cron line", line), ("tz", tz)):
            if not isinstance(cast("object", given), str):
                raise ConfigError(
                    f'{name} is {given!r}; nothing was declared. Give a text: cron("0 3 * * mon-fri", '
                    'tz="Europe/Berlin").'
                )
        self.line = " ".join(line.split())
        self.tz = tz
        self._zone = _zone(tz)
        self._is_of_certain_hours = _is_of_certain_hours(self.line)
        self._check()

    def _check(self) -> None:
        from cronsim import CronSimError

        try:
            self.after(0)
        except (CronSimError, StopIteration) as error:
            raise ConfigError(
                f"the cron line {self.line!r} cannot be read ({error}); nothing was declared. "
                'Give five fields, such as "0 3 * * mon-fri".'
            ) from error

    def __repr__(self) -> str:
        return f"Cron({self.line!r}, {self.tz!r})"

    @property
    def spec(self) -> str:
        return f"cron {self.line} {self.tz}"

    def after(self, instant: int) -> int:
        return next(self.since(instant))

    def last(self, first: int, until: int) -> int:
        for back in _BACK_MS:
            found = self._last_since(max(first, until - back), until)
            if found is not None:
                return found
        found = self._last_since(first, until)
        return first if found is None else found

    def _last_since(self, start: int, until: int) -> int | None:
        found = None
        for at in takewhile(lambda at: at <= until, self.since(start)):
            found = at
        return found

    def since(self, instant: int) -> Iterator[int]:
        from cronsim import CronSim

        # Begun in the hour that comes twice, the first of the two would not be known of.
        start = instant - (_FOLD_MS if self._is_of_certain_hours else 0)
        begin = (_EPOCH + timedelta(milliseconds=start)).astimezone(self._zone)
        last = instant
        for moment in CronSim(self.line, begin):
            at = round(moment.timestamp() * 1000)
            if at > last:
                last = at
                yield at


def _is_of_certain_hours(line: str) -> bool:
    """Whether cron(8) has a firing of this line run once, whatever is done to the clocks."""
    fields = line.split()
    return len(fields) == _FIELDS[0] and not fields[0].startswith("*") and not fields[1].startswith("*")


def _zone(tz: str) -> tzinfo:
    if tz == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # for those who name one

    try:
        return ZoneInfo(tz)
    except (LookupError, ValueError, OSError) as error:
        raise ConfigError(
            f"the time zone {tz!r} is not known here; nothing was declared. Give a name such as "
            '"Europe/Berlin" (the package tzdata has them all).'
        ) from error


def read(spec: str) -> Schedule:
    """
    Return the schedule that a text stands for.

    >>> read("every 300")
    Every(span_ms=300000)
    >>> read("cron 0 3 * * mon-fri Europe/Berlin")
    Cron('0 3 * * mon-fri', 'Europe/Berlin')

    Raises:
        ConfigError: It stands for none.
    """
    kind, _, rest = spec.partition(" ")
    if kind == "every":
        return Every(round(float(rest) * 1000))
    if kind == "cron":
        line, _, tz = rest.rpartition(" ")
        return Cron(line, tz)
    raise ConfigError(f"the schedule {spec!r} is of a kind that this version does not know.")


def check_missed(missed: str) -> Missed:
    """
    Return what is to become of missed firings.

    Raises:
        ConfigError: It is none of the three.
    """
    match missed:
        case "latest" | "all" | "skip":
            return missed
        case _:
            pass
    raise ConfigError(f"missed is {missed!r}; nothing was declared. It must be 'latest', 'all' or 'skip'.")


def decide(schedule: Schedule, missed: Missed, next_at: int, now: int) -> Decision:
    """
    Return what to fire at `now` of a schedule that is to fire at `next_at`.

    Of "all", at most FIRINGS_MAX at a time: `next_at` is then in the past still.

    >>> decide(Every(1000), "all", 4000, 6500)
    Decision(firings=[4000, 5000, 6000], next_at=7000)
    >>> decide(Every(1000), "latest", 4000, 6500)
    Decision(firings=[6000], next_at=7000)
    """
    if next_at > now:
        return Decision([], next_at)
    if missed == "all":
        more = takewhile(lambda at: at <= now, schedule.since(next_at))
        firings = [next_at, *islice(more, FIRINGS_MAX - 1)]
        return Decision(firings, schedule.after(firings[-1]))
    last = schedule.last(next_at, now)
    is_late = missed == "skip" and now - last > LATE_MS
    return Decision([] if is_late else [last], schedule.after(now))
