"""Spans of time, as people write them."""

import re
from datetime import timedelta

from dutiful.core.values import DELAY_S_MAX
from dutiful.errors import ConfigError

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_NAMES = {
    name: unit
    for unit, names in {
        "ms": "ms",
        "s": "s sec second seconds",
        "m": "m min minute minutes",
        "h": "h hour hours",
        "d": "d day days",
        "w": "w week weeks",
    }.items()
    for name in names.split()
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def seconds_of(name: str, span: float | timedelta | str) -> float:
    """
    Return a span as seconds: of a number of seconds, a timedelta, or a text.

    >>> seconds_of("timeout", "1 day 12h")
    129600.0

    Raises:
        ConfigError: It is none of these, below 0, or more than a century; `name` says of what.
    """
    found: float | None = None
    if isinstance(span, timedelta):
        found = span.total_seconds()
    elif isinstance(span, str):
        found = _read(span.strip())
    elif isinstance(span, int | float) and not isinstance(span, bool):
        found = span
    if found is None or not 0 <= found <= DELAY_S_MAX:  # nor is a NaN
        raise ConfigError(
            f"{name} is {span!r}; nothing was changed. "
            'Give seconds, a timedelta, or a text such as "90s", "3 days" or "1h 30m": 0 to a century.'
        )
    return float(found)


def _read(text: str) -> float | None:
    """Return the seconds that a text means; None: it means none."""
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text) or any(unit not in _NAMES for _number, unit in parts):
        return None
    return sum(float(number) * _UNITS_S[_NAMES[unit]] for number, unit in parts)
