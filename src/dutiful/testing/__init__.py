"""
Testing what is built on dutiful.

    override, inline     an app's workers, on a store of the test's own
    Clock                time that moves when it is told to
    sent, assert_sent    what was sent
    crash_at             a process that dies at a chosen place
    StoreContract, …     whether a store keeps its word; these need pytest

See docs/testing.md. `dutiful.testing.plugin` has the fixtures for pytest, which finds it by itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dutiful.testing.asserting import Sent, assert_sent, sent
    from dutiful.testing.bench import inline, override
    from dutiful.testing.clock import Clock
    from dutiful.testing.crashing import CRASH_POINTS, Crash, crash_at, crashpoint
    from dutiful.testing.suites import (
        DoorbellContract,
        DurableContract,
        SpecialContract,
        StoreContract,
        UsersTransactionContract,
    )

# Each is loaded when it is first used: pytest, which finds the plugin here, is not to pay for the rest.
_HOMES = {
    "CRASH_POINTS": "crashing",
    "Clock": "clock",
    "Crash": "crashing",
    "DoorbellContract": "suites",
    "DurableContract": "suites",
    "Sent": "asserting",
    "SpecialContract": "suites",
    "StoreContract": "suites",
    "UsersTransactionContract": "suites",
    "assert_sent": "asserting",
    "crash_at": "crashing",
    "crashpoint": "crashing",
    "inline": "bench",
    "override": "bench",
    "sent": "asserting",
}

__all__ = [
    "CRASH_POINTS",
    "Clock",
    "Crash",
    "DoorbellContract",
    "DurableContract",
    "Sent",
    "SpecialContract",
    "StoreContract",
    "UsersTransactionContract",
    "assert_sent",
    "crash_at",
    "crashpoint",
    "inline",
    "override",
    "sent",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dutiful.testing' has no attribute {name!r}")
    value = getattr(import_module(f"dutiful.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *globals()]
