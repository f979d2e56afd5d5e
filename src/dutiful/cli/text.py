"""How values read on a screen. What comes out of a store is strangers' text: it is made harmless here."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dutiful import Record

# What a terminal would obey or not show: control characters (C0, DEL, C1), marks that turn the
# direction of writing or are invisible, halves of surrogate pairs. Line breaks and tabs apart.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})


def clean(text: str, *, lines: bool = False) -> str:
    r"""
    Return `text` with what a terminal would obey written out; with `lines` it may have several.

    >>> clean("\x1b[2Jgone\n")
    '\\x1b[2Jgone\\n'
    """
    shown = _UNSAFE.sub(_escaped, text.replace("\r\n", "\n") if lines else text)
    return shown if lines else shown.translate(_BREAKS)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def duration(seconds: float) -> str:
    """
    Return a length of time in its two largest units.

    >>> duration(0.25), duration(42), duration(7500)
    ('0.2 s', '42 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s".replace(".0 s", " s")
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86_400:
        minutes = whole % 3600 // 60
        return f"{whole // 3600} h" + (f" {minutes} min" if minutes else "")
    days, hours = whole // 86_400, whole % 86_400 // 3600
    return f"{days} d" + (f" {hours} h" if hours and days < 10 else "")


def from_now(instant_ms: int, now_ms: int) -> str:
    """Return an instant as seen from now: "3 min ago", "in 2 h"."""
    apart_s = (instant_ms - now_ms) / 1000
    if abs(apart_s) < 0.05:
        return "now"
    return f"in {duration(apart_s)}" if apart_s > 0 else f"{duration(-apart_s)} ago"


def local(instant_ms: int) -> str:
    """Return an instant on this machine's clock, to the second, with its zone."""
    try:
        moment = datetime.fromtimestamp(instant_ms / 1000, UTC).astimezone()
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return f"{instant_ms} ms"
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def iso(instant_ms: int | None) -> str | None:
    """Return an instant for programs: ISO 8601, UTC, milliseconds."""
    if instant_ms is None:
        return None
    try:
        moment = datetime.fromtimestamp(instant_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{instant_ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(count: int) -> str:
    """Return a number of bytes in its unit."""
    number, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{count:,} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def progress(done: float, total: float | None, message: str) -> str:
    """
    Return how far a job has come.

    >>> progress(3, 4, "c.png")
    '3 of 4 (75 %)  c.png'
    """
    share = f"{done:g} of {total:g} ({100 * done / total:.0f} %)" if total else f"{done:g}"
    return clean(f"{share}  {message}".rstrip())


def jobs(count: int) -> str:
    """Return "1 job", "2,000 jobs"."""
    return "1 job" if count == 1 else f"{count:,} jobs"


def task(record: Record) -> str:
    """Return a job's task, with the version of its payload if that is above 1: "Order@2"."""
    return clean(record.task) + (f"@{record.version}" if record.version > 1 else "")


def value(text: str) -> Any:
    """
    Return the value of stored JSON.

    Raises:
        ValueError: It is none (NaN, which Python's parser would take, included), or is too deep.
    """
    try:
        return json.loads(text, parse_constant=_no_json)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def pretty(text: str) -> str:
    """Return stored JSON, indented; and what is no JSON as it is. Harmless."""
    try:
        return clean(json.dumps(value(text), indent=2, ensure_ascii=False), lines=True)
    except ValueError:
        return clean(text, lines=True)
