"""
How long to wait after a failure, and when to give up.

Pure: chance comes in as an argument, so every delay can be tested exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from dutiful.core.values import DELAY_S_MAX, number, whole
from dutiful.errors import ConfigError

GIVE_UP = -1.0
_HINT = "See Retry and Backoff."


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    Exponential retry delays with a ceiling.

    The n-th failure waits `first_s * factor ** (n - 1)` seconds, at most
    `limit_s`, less a random share up to `jitter`, so that jobs that failed
    together do not come back together.

    Args:
        first_s: Seconds before the first retry; 0 or more.
        factor: Growth per failure; >= 1.
        limit_s: Longest wait, in seconds.
        jitter: Largest share that chance may take off; 0 to 1.

    Raises:
        ConfigError: A number is outside its range.

    >>> Backoff(first_s=2).delay_s(failures=3, chance=0.0)
    8.0

    Source: AWS, "Exponential Backoff And Jitter" (2015). We take off a share
    rather than all of the wait, so a retry is never immediate.
    """

    first_s: float = 1.0
    factor: float = 2.0
    limit_s: float = 3600.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        number("first_s", self.first_s, 0, wanted="seconds, 0 or more", unchanged=_HINT)
        number("factor", self.factor, 1, wanted="a number, 1 or more", unchanged=_HINT)
        wanted = "seconds, 0 or more, and a century at most"
        number("limit_s", self.limit_s, 0, DELAY_S_MAX, wanted=wanted, unchanged=_HINT)
        number("jitter", self.jitter, 0, 1, wanted="a number between 0 and 1", unchanged=_HINT)

    def delay_s(self, failures: int, chance: float) -> float:
        """Return the wait after `failures` (>= 1); `chance` is in [0, 1)."""
        assert failures >= 1, failures
        assert 0 <= chance < 1, chance
        try:
            wait_s = self.first_s * self.factor ** (failures - 1)
        except OverflowError:  # 2.0 ** 1024; the ceiling has long been reached
            wait_s = self.limit_s
        return min(wait_s, self.limit_s) * (1 - self.jitter * chance)


@dataclass(frozen=True, slots=True)
class Retry:
    """
    What becomes of a job whose handler raises.

    Args:
        max_attempts: Failures after which the job is dead; 1 means no retry.
        backoff: The waits between attempts.
        give_up_on: Exception types that make the job dead at once.
        decide: Asked with the exception and the number of failures so far
            (1 at the first). Returns seconds to wait, None for the backoff, or
            False to give up.

    Raises:
        ConfigError: A value is outside its range.

    The default, 20 attempts, spans about ten hours: long enough for a service
    to be mended, short enough for a person to notice a dead job the next day.
    """

    max_attempts: int = 20
    backoff: Backoff = field(default_factory=Backoff)
    give_up_on: tuple[type[BaseException], ...] = ()
    decide: Callable[[BaseException, int], float | bool | None] | None = None

    def __post_init__(self) -> None:
        whole("max_attempts", self.max_attempts, 1, unchanged=_HINT)
        if not isinstance(self.backoff, Backoff):
            raise ConfigError(f"backoff is {self.backoff!r}; it must be a Backoff, as Backoff(first_s=5).")
        kinds: object = self.give_up_on
        if not _are_errors(kinds):
            raise ConfigError(f"give_up_on is {kinds!r}; it must be a tuple of error types: (ValueError,).")
        if self.decide is not None and not callable(cast("object", self.decide)):
            raise ConfigError(f"decide is {self.decide!r}; it must be a function, or None.")

    def after_s(self, error: BaseException, failures: int) -> float | None:
        """Return what this policy says of `error`: seconds, GIVE_UP, or None for the backoff."""
        if isinstance(error, self.give_up_on):
            return GIVE_UP
        if self.decide is None:
            return None
        said = self.decide(error, failures)
        if said is False:
            return GIVE_UP
        if said is None or said is True:
            return None
        return min(max(0.0, float(said)), DELAY_S_MAX)  # a NaN is 0


def _are_errors(kinds: object) -> bool:
    each = cast("tuple[object, ...]", kinds) if isinstance(kinds, tuple) else (kinds,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in each)
