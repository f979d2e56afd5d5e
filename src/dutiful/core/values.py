"""
What every store can keep: the one place that refuses texts and numbers which one of them could not.

A text must be Unicode, so no half of a surrogate pair, and without NUL, which ends a text in
PostgreSQL and in SQLite's JSON functions. A number must fit into 64 bits, and so must an instant
made of one: spans end at a century.
"""

import math
from datetime import timedelta
from typing import cast

from dutiful.errors import ConfigError

DELAY_S_MAX = 100 * 365.25 * 86_400  # a century: beyond it, instants would leave 64 bits
WHOLE_MAX = 2**63 - 1
NOTHING_STORED = "Nothing was stored."


def is_text(value: object) -> bool:
    """Return whether this is a text that every store can keep."""
    if not isinstance(value, str) or "\0" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text(name: str, value: object, *, chars_max: int, unchanged: str = NOTHING_STORED) -> str:
    """
    Return a text of 1 to `chars_max` letters.

    Raises:
        ConfigError: It is none, or no store could keep it; `unchanged` says what was not done.
    """
    if not is_text(value) or not 0 < len(cast("str", value)) <= chars_max:
        raise ConfigError(
            f"{name} is {value!r:.300}; it must be a text of 1 to {chars_max} letters, with no NUL and "
            f"no half of a surrogate pair. {unchanged}"
        )
    return cast("str", value)


def escaped(value: str) -> str:
    """Return a text that is not to be refused, such as an error's, with what cannot be kept in escapes."""
    return value.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def whole(
    name: str, value: object, least: int, most: int = WHOLE_MAX, *, unchanged: str = NOTHING_STORED
) -> int:
    """
    Return a whole number.

    Raises:
        ConfigError: It is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        upper = "or more" if most == WHOLE_MAX else f"to {most}"
        raise ConfigError(
            f"{name} is {value!r:.300}; it must be a whole number, {least} {upper}. {unchanged}"
        )
    return value


def number(
    name: str,
    value: object,
    least: float,
    most: float = math.inf,
    *,
    wanted: str,
    unchanged: str = NOTHING_STORED,
) -> float:
    """
    Return a number; infinity is one if `most` says so.

    Raises:
        ConfigError: It is none, or out of range; `wanted` says what it must be.
    """
    # Not a NaN either: it compares with nothing.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r:.300}; it must be {wanted}. {unchanged}")
    return value


def span_s(name: str, value: object, *, may_be_0: bool = False, unchanged: str = NOTHING_STORED) -> float:
    """
    Return a span of seconds, or a timedelta, in seconds.

    Raises:
        ConfigError: It is neither, below 0, or more than a century; or 0, unless it may be.
    """
    found: object = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    found_s = cast("float", found) if is_number else -1.0
    if not 0 <= found_s <= DELAY_S_MAX or not (found_s or may_be_0):
        least = "0 or more" if may_be_0 else "> 0"
        raise ConfigError(
            f"{name} is {value!r:.300}; it must be seconds, {least}, or a timedelta: a century at most. "
            f"{unchanged}"
        )
    return float(found_s)
