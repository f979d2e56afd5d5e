"""A clock that stands still until a test moves it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from dutiful.core.durations import seconds_of
from dutiful.errors import ConfigError
from dutiful.store.clock import SYSTEM

Instant = datetime | str


class Hands(Protocol):
    """What a clock moves along: workers whose jobs are run as time passes."""

    def run_ready(self) -> int:
        """Run all that is ready; return how many attempts that took."""
        ...

    def next_at(self) -> int | None:
        """Return the next instant, in ms, at which something falls due; None: none."""
        ...

    def refusal(self) -> str | None:
        """Return why their time cannot be moved; None: it can."""
        ...

    def runs_here(self) -> bool:
        """Whether the caller is one of their handlers."""
        ...


class Clock:
    """
    The time of workers under test. It stands still, and moves when it is told to.

    All that a store decides by time goes by it: delays, retries, schedules, expiries, deadlines, sleeps,
    timeouts of events, limits per second. What a handler asks the system (`time.time()`) does not:
    ask this clock, or have `moved` take another tool along.

    Args:
        start: Where it begins: a datetime with a time zone, or such a text, "2026-03-29T00:30+01:00".
            Default: now.
        moved: Called with the new time whenever it has moved, such as `traveller.move_to` of time-machine.

    Raises:
        ConfigError: `start` is no instant.
    """

    def __init__(
        self, start: Instant | None = None, *, moved: Callable[[datetime], object] | None = None
    ) -> None:
        elapsed_ms = SYSTEM.wall_ms() - SYSTEM.offset_ms()
        self._now_ms = _ms(datetime.now(UTC) if start is None else start)
        # Time passes, and nobody sets the clock: so this stays. As the elapsed time goes on from the
        # system's, delays of jobs that a file has already keep their length.
        self._offset_ms = self._now_ms - elapsed_ms
        self._moved = moved
        self._hands: list[Hands] = []

    def __repr__(self) -> str:
        return f"<Clock at {self.now().isoformat()}>"

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    def time(self) -> float:
        """Return the time as `time.time()` does: seconds since 1970 UTC."""
        return self._now_ms / 1000

    def advance(self, span: float | timedelta | str) -> int:
        """
        Let time pass with the workers at work: each job is run, and each schedule fires, at its instant.

        Takes no more time than the handlers do.

        Args:
            span: Seconds, a timedelta, or a text: "3 days", "1h 30m".

        Returns:
            How many attempts it took.

        Raises:
            ConfigError: It is no span; or the workers' time is not ours to move.
            Exception: What a handler raises, with `errors="raise"`; the time is then that of its attempt.
        """
        return self._advance_to(self._now_ms + round(1000 * seconds_of("span", span)))

    def advance_to(self, instant: Instant) -> int:
        """
        `advance`, to a datetime with a time zone, or such a text.

        Raises:
            As `advance`; ConfigError: It is in the past.
        """
        return self._advance_to(_ms(instant))

    def jump(self, span: float | timedelta | str) -> None:
        """
        Let time pass with no worker at work, as when all were stopped: what fell due runs afterwards.

        Raises:
            ConfigError: It is no span; or the workers' time is not ours to move.
        """
        self._check_movable()
        self._move_to(self._now_ms + round(1000 * seconds_of("span", span)))

    def jump_to(self, instant: Instant) -> None:
        """
        `jump`, to a datetime with a time zone, or such a text.

        Raises:
            As `jump`; ConfigError: It is in the past.
        """
        self._check_movable()
        self._move_to(_ms(instant))

    def _advance_to(self, until_ms: int) -> int:
        self._check_movable()
        hands = list(self._hands)
        if any(each.runs_here() for each in hands):  # a handler that takes its time
            self._move_to(until_ms)
            return 0
        self._check_ahead(until_ms)
        attempts = _all_ready(hands)
        while (at := self._next_at(hands)) is not None and at <= until_ms:
            self._move_to(at)
            attempts += _all_ready(hands)
        if until_ms > self._now_ms:  # a handler may have moved it on
            self._move_to(until_ms)
        return attempts + _all_ready(hands)

    def _next_at(self, hands: list[Hands]) -> int | None:
        ahead = [at for each in hands if (at := each.next_at()) is not None and at > self._now_ms]
        return min(ahead, default=None)

    def _move_to(self, at_ms: int) -> None:
        self._check_ahead(at_ms)
        self._now_ms = at_ms
        if self._moved is not None:
            self._moved(self.now())

    def _check_ahead(self, at_ms: int) -> None:
        if at_ms < self._now_ms:
            raise ConfigError(
                f"the clock is at {self.now().isoformat()}, and cannot go back; it was not moved. "
                "Begin a test with a clock of its own."
            )

    def _check_movable(self) -> None:
        for each in self._hands:
            if (refusal := each.refusal()) is not None:
                raise ConfigError(f"{refusal}; the clock was not moved.")

    # --- for our own parts -----------------------------------------------------------------------------

    def attach(self, hands: Hands) -> None:
        """Move these along."""
        self._hands.append(hands)

    def detach(self, hands: Hands) -> None:
        """Move them no more."""
        self._hands.remove(hands)

    def wall_ms(self) -> int:
        return self._now_ms

    def offset_ms(self) -> int:
        return self._offset_ms


def _all_ready(hands: list[Hands]) -> int:
    """Run all that is ready, and what that makes ready elsewhere."""
    total = 0
    while some := sum(each.run_ready() for each in hands):
        total += some
        if len(hands) == 1:
            break
    return total


def _ms(instant: Instant) -> int:
    try:
        at = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
    except ValueError as error:
        raise ConfigError(f"{instant!r} is no instant ({error}); nothing was changed.") from error
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise ConfigError(
            f"{instant!r} is no instant; nothing was changed. Give a datetime with a time zone, or such a "
            'text: "2026-03-29T00:30+01:00".'
        )
    return round(at.timestamp() * 1000)
