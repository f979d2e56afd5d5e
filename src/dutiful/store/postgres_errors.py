"""What a PostgreSQL server's errors mean to us, by their codes (PostgreSQL, appendix A)."""

from collections.abc import Callable
from typing import TypeVar

from dutiful.errors import StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreMoved, StoreUnavailable
from dutiful.store import moving
from dutiful.store.postgres_driver import Error, is_about_the_connection, is_bad_value

_BUSY = {"55P03", "40P01", "40001", "57014"}  # lock or statement timeout, deadlock, serialization
_FULL = {"53100", "53200"}
_CORRUPT = {"XX001", "XX002"}
_ABSENT = {"3F000", "42P01", "42703"}  # schema, table, column
_DENIED = {"42501", "28000", "28P01"}
_READ_ONLY = "25006"


_DEADLOCK = "40P01"
_TRIES = 5
T = TypeVar("T")


def again_if_deadlocked(function: Callable[[], T]) -> T:
    """Call a function that does one transaction, again if the server rolled it back for a deadlock."""
    for _ in range(_TRIES - 1):
        try:
            return function()
        except StoreBusy as error:
            if not isinstance(error.__cause__, Error) or error.__cause__.sqlstate != _DEADLOCK:
                raise
    return function()


def is_busy(error: Error) -> bool:
    """Whether somebody else was in the way: the same may go well in a moment."""
    return error.sqlstate in _BUSY


def translated(error: Error, label: str, waited_s: float) -> Exception:
    """Return the error of ours that says what a driver's error means."""
    code = error.sqlstate or ""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if code in _BUSY:
        return StoreBusy(label, waited_s)
    if code == moving.SQLSTATE:
        return moving.read(label, text) or StoreMoved(label, text)
    if is_bad_value(error):
        return ValueError(text)  # a caller's value; no fault of the store's
    if code in _FULL:
        problem = f"{text}; nothing was stored. Make room; then it goes on by itself."
        return StoreFull(label, problem)
    if code in _CORRUPT:
        problem = f"{text}; nothing was changed. Keep a copy, and see PostgreSQL's manual, 'amcheck'."
        return StoreCorrupt(label, problem)
    problem = _unavailable(code, text)
    if problem or is_about_the_connection(error):
        return StoreUnavailable(
            label, problem or f"{text}; nothing was stored. Is the server up, and the address right?"
        )
    return StoreError(label, f"{text}; nothing was stored.")


def _unavailable(code: str, text: str) -> str:
    if code in _ABSENT:
        return f"{text}; nothing was stored. The store is not there, or not whole: run `dutiful migrate`."
    if code in _DENIED:
        return f"{text}; nothing was stored. Give the role its rights: docs/postgres.md, 'Grants'."
    if code == _READ_ONLY:
        return "the server only reads, as a standby does; nothing was stored. Connect to the primary."
    return ""
