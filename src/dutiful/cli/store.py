"""Getting at a store from the outside, without making one by a slip of the fingers."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dutiful.cli import codes

if TYPE_CHECKING:
    from collections.abc import Generator

    from dutiful import Worker

# Our commands are no worker: their name stands nowhere but in messages.
_NAME = "dutiful-cli"


@contextmanager
def opened(store: str, *, make: bool = False) -> Generator[Worker, None, None]:
    """
    Open a store as a client, that never runs a job; with `make` it may be new.

    Raises:
        Refused: It ends with the process. Its other faults are raised at the first use: StoreError.
    """
    if path_of(store) == Path(":memory:"):
        raise codes.Refused(f"{store} ends with the process that uses it; name a file.")
    from dutiful import Worker

    worker = Worker(store, name=_NAME, create=make)
    try:
        yield worker
    finally:
        worker.stop()


def label_of(store: str, worker: Worker) -> str:
    """Return what to call a store on the screen: a file as it was given, a URL without its password."""
    return worker.label if path_of(store) is None else store


def path_of(store: str) -> Path | None:
    """Return the file of a SQLite store; None for one on a server."""
    scheme, mark, rest = store.partition("://")
    if not mark:
        return Path(store)
    return Path(rest[1:]) if scheme == "sqlite" else None
