"""
The version of a payload's form, and the name that a job is stored under.

    Order             version 1
    Order@2           version 2
    Order@2#a45b2514  that, encrypted with the key of this id

What a worker must know to run a job is part of the stored name. So one that knows only version 1,
or has not got the key, meets a task that it does not know, and leaves the job to others, untouched.
A worker that knows version 2 runs "Order" too: the old payload goes through the upgrades first.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from dutiful.errors import ConfigError, NotDecodable, NotEncodable
from dutiful.payload import check_name, decode_plain, encode
from dutiful.signature import is_async

K = TypeVar("K", bound=type)

MARK = "@"  # in no name that users can give; nor is this:
KEY_MARK = "#"
VERSION_MAX = 9999
_ATTRIBUTE = "__dutiful_version__"


def version(number: int) -> Callable[[K], K]:
    """
    Say of which version a payload type is: `@version(2)`, above the class. Without it: 1.

    Raise it when jobs of the new form must not go to workers that run the old code. Subclasses have
    versions of their own.

    Args:
        number: From 1 to 9999.

    Raises:
        ConfigError: It is no such number.
    """
    checked(number)

    def mark(payload_type: K) -> K:
        setattr(payload_type, _ATTRIBUTE, number)
        return payload_type

    return mark


def checked(number: object) -> int:
    """Return a version that can be stored, or raise ConfigError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= VERSION_MAX:
        raise ConfigError(f"version is {number!r}; it must be a whole number from 1 to {VERSION_MAX}.")
    return number


def version_of(payload_type: type) -> int:
    """Return the version that a payload type states itself: a base's does not count."""
    return cast("int", vars(payload_type).get(_ATTRIBUTE, 1))


def stored_name(name: str, number: int) -> str:
    """
    Return what jobs of a task are stored under.

    >>> stored_name("Order", 1), stored_name("Order", 2)
    ('Order', 'Order@2')
    """
    return name if number == 1 else f"{name}{MARK}{number}"


def sealed_name(stored: str, key_id: str) -> str:
    """Return what jobs are stored under that need this key."""
    return f"{stored}{KEY_MARK}{key_id}"


def parted(stored: str) -> tuple[str, str | None]:
    """Return a stored name without the id of a key, and that id; None: it needs no key."""
    name, mark, key_id = stored.rpartition(KEY_MARK)
    return (name, key_id) if mark else (stored, None)


def split(stored: str) -> tuple[str, int]:
    """Return the task and the version of a stored name; what is no version stays part of the name."""
    stored = parted(stored)[0]
    name, mark, number = stored.rpartition(MARK)
    if not mark or not name or not (number.isascii() and number.isdigit() and number[0] != "0"):
        return stored, 1
    return name, int(number)


def task_of(stored: str) -> str:
    """Return the task of a stored name, without version and key."""
    return split(stored)[0] if MARK in stored or KEY_MARK in stored else stored


def checked_task(task: str) -> str:
    """Return what `send(task=…)` names, which may have a version: "Order@2". Raises ConfigError."""
    name, number = split(task)
    return stored_name(check_name(name, "task"), checked(number))


Upgrades = Mapping[int, Callable[[Any], Any]]  # from version → to the next one


def checked_upgrade(fn: Callable[..., Any], from_version: object) -> int:
    """Return the version that an upgrade is for. Raises ConfigError if it cannot be one."""
    number = checked(from_version)
    if not callable(fn) or is_async(fn):
        raise ConfigError(f"an upgrade is a plain function, from the old payload to the next, not {fn!r}.")
    try:
        inspect.signature(fn).bind(None)
    except TypeError as error:
        raise ConfigError(
            f"{_named(fn)} cannot be an upgrade ({error}): it takes one argument, the old payload, and "
            "returns the next version's."
        ) from error
    except ValueError:  # a builtin that does not say what it takes
        return number
    return number


class Upgrade:
    """
    From the payload of an older version to that of the current one, step by step.

    A version without an upgrade is passed on as it is: what was added has defaults.
    """

    def __init__(self, task: str, number: int, current: int, upgrades: Upgrades) -> None:
        self._task = task
        self._number = number
        self._steps = {each: upgrades.get(each) for each in range(number, current)}

    def text(self, text: str) -> str:
        """
        Return the JSON text of the current version.

        Raises:
            NotDecodable: An upgrade failed, or what it returned cannot be stored.
        """
        if not any(self._steps.values()):
            return text
        value = self._decoded(text)
        for number, upgrade in self._steps.items():
            if upgrade is not None:
                value = self._next(number, upgrade, value)
        try:
            return encode(value, self._task, sys.maxsize)
        except NotEncodable as error:
            raise NotDecodable(
                self._task, f"what its upgrade returned is no payload: {error.reason}"
            ) from error

    def _decoded(self, text: str) -> Any:
        try:
            return decode_plain(text)
        except Exception as error:
            raise NotDecodable(self._task, f"it is no JSON: {error}") from error

    def _next(self, number: int, upgrade: Callable[[Any], Any], value: Any) -> Any:
        try:
            return upgrade(value)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise NotDecodable(
                self._task, f"its upgrade from version {number}, {_named(upgrade)}, raised {problem}"
            ) from error

    def explained(self, error: NotDecodable) -> NotDecodable:
        """Return what to say when the payload does not fit after all: which upgrade may be missing."""
        missing = [number for number, upgrade in self._steps.items() if upgrade is None]
        if not missing:
            return error
        first, current = missing[0], max(self._steps) + 1
        said = (
            f"it is of version {self._number}, this worker is at version {current}, and there is no upgrade "
            f"from version {first} (@worker.upgrade(…, from_version={first})); without it: {error.reason}"
        )
        explained = NotDecodable(self._task, said)
        explained.__cause__ = error
        return explained


def _named(fn: object) -> str:
    return str(getattr(fn, "__qualname__", repr(fn))).rpartition("<locals>.")[2] + "()"
