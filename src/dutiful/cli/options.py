"""Options that several commands share, and how their values are read."""

import argparse
import re
from datetime import datetime

STATES = ("pending", "blocked", "running", "completed", "dead", "cancelled")
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the store: a file such as jobs.db, or its URL")


def as_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"for programs: {what}")


def which_jobs(parser: argparse.ArgumentParser, *, states: tuple[str, ...] = STATES) -> None:
    """Add the filters of a list of jobs."""
    parser.add_argument(
        "--state", choices=states, action="append", help="only in this state (may be repeated)"
    )
    parser.add_argument("--task", help="only of this task")
    parser.add_argument("--queue", help="only of this queue")


def seconds(text: str) -> float:
    """Read a length of time: 90, 90s, 10m, 2h, 1d."""
    found = _SECONDS.fullmatch(text.strip())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write 90, 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def instant(text: str) -> datetime:
    """Read an instant: ISO 8601 with its zone."""
    example = "2027-01-31T09:00+01:00, or with Z for UTC"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no instant; write {example}") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone; write {example}")
    return moment


def count(text: str) -> int:
    """Read a whole number from 1 up."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)
