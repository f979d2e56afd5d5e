"""
What is asked of each peer: the little interface that the adapters beside this file fill.

An adapter is a module with a class `Adapter` and perhaps WORKERS, how many processes of workers serve it
best; it runs in a process of its own, under the Python where its package is installed, and imports nothing
of dutiful (but for dutiful's).
"""

from collections.abc import Callable, Iterable
from typing import Protocol


class Peer(Protocol):
    """
    One queue in one database.

    Args:
        url: The database.
        handle: Called by its handler with each payload.
    """

    def __init__(self, url: str, handle: Callable[[str], None]) -> None: ...

    def install(self) -> None:
        """Make its tables."""

    def send_many(self, payloads: list[str]) -> None:
        """Send in its bulk way; where there is none, one by one."""

    def send_each(self, payloads: Iterable[str]) -> None:
        """Send one by one, each when the one before is stored."""

    def work(self) -> None:
        """Run its worker until the process is killed."""
