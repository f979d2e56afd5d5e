"""
What is asked of each peer: the little interface that the adapters beside this file fill.

An adapter is a module with a class `Adapter`; it runs in a process of its own, under the
Python where its package is installed, and imports nothing of dutiful (but for dutiful's).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

Durability = Literal["full", "normal"]
PAYLOAD = "x" * 98  # 100 bytes as JSON; here, since the peers' processes cannot import what imports dutiful
POLL_S = 0.001  # how often a peer looks that can only poll: 1 ms costs an idle one 5 % of a CPU (dbos: 40 %)
ACK_BATCH = 100  # jobs whose completion a peer commits together, where its API lets its user choose


class Done(Protocol):
    """A threading.Event, or what stands in for one."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Peer(Protocol):
    """
    One queue, on one SQLite file that it makes if it is not there.

    Args:
        path: The file, in a folder of its own.
        handle: Called with each payload.
        durability: "full": as durable as dutiful, if it can be set; "normal": WAL with
            synchronous=NORMAL.
    """

    def __init__(self, path: Path, handle: Callable[[str], None], durability: Durability) -> None: ...

    def said(self) -> str:
        """Say how durable it is: what its own connection answers, where it can be asked."""

    def send_many(self, payloads: list[str]) -> None:
        """Send in its bulk way; where there is none, one by one."""

    def send_one(self, payload: str) -> None: ...

    def start(self) -> None:
        """Start its worker in the background, if it has one."""

    def work(self, done: Done) -> None:
        """Run its worker here, or wait for the one in the background, until done is set."""


class Background:
    """`work` of peers whose worker runs in the background."""

    def work(self, done: Done) -> None:
        done.wait()


def pragmas(db: Any) -> str:
    """Ask a connection how durable it is: `db` is a sqlite3 one, or has its execute()."""
    mode = str(db.execute("PRAGMA journal_mode").fetchone()[0])
    level = ("OFF", "NORMAL", "FULL", "EXTRA")[int(db.execute("PRAGMA synchronous").fetchone()[0])]
    return f"{mode.upper() if mode == 'wal' else mode}, synchronous={level}"
