"""What a SQLite store does in its user's own transaction (see borrowed/connection.py)."""

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from dutiful.errors import ConfigError, LeaseLost
from dutiful.job import Claim
from dutiful.store import sqlite_step
from dutiful.store.borrowed.connection import Borrowed, Steps
from dutiful.store.contract import Draft
from dutiful.store.sqlite_access import Access
from dutiful.store.sqlite_file import translated


def insertion(access: Access, borrowed: Borrowed, drafts: Sequence[Draft]) -> Steps[list[range]]:
    """Store new jobs; return their ids."""
    yield from checked(access, borrowed)
    stored: list[range] = []
    try:
        for draft in drafts:
            # Not from a block of ours: it is theirs to commit.
            yield sqlite_step.reserving(len(draft.payloads))
            rows = yield sqlite_step.RESERVED, ()
            first = int(rows[0][0]) - len(draft.payloads)
            yield sqlite_step.inserting(first, draft, access.clock.wall_ms())
            stored.append(range(first, first + len(draft.payloads)))
    except sqlite3.ProgrammingError as error:
        raise borrowed.unusable(error) from error
    except sqlite3.Error as error:
        raise translated(error, access.label, access.busy_s) from error
    return stored


# A write: from here on nobody else's comes between, and the last step cannot fail for that.
_OWN = "UPDATE dutiful_job SET attempt = attempt WHERE id = ? AND attempt = ? AND state = 'running'"


class Completion:
    """Completes jobs in their handler's own transaction (see borrowed/completing.py)."""

    def __init__(self, access: Access, claims: Sequence[Claim]) -> None:
        self._access = access
        self._claims = claims

    def acquire(self) -> Callable[[], None]:
        """Take our turn to write, as `Access.own_transaction` does."""
        return self._access.acquire_turn()

    def inside(self) -> AbstractContextManager[None]:
        return self._access.within()

    def first(self, borrowed: Borrowed) -> Steps[None]:
        yield from checked(self._access, borrowed)
        for claim in self._claims:
            yield from self._one(claim, _OWN, (claim.id, claim.attempt))

    def last(self, borrowed: Borrowed) -> Steps[None]:
        if not borrowed.is_open():
            raise borrowed.ended()
        now = self._access.clock.wall_ms()
        for claim in self._claims:
            yield from self._one(claim, sqlite_step.COMPLETE_ONE, (now, claim.id, claim.attempt))

    def _one(self, claim: Claim, sql: str, values: tuple[int, ...]) -> Steps[None]:
        try:
            yield sql, values
            changed = yield "SELECT changes()", ()
        except sqlite3.Error as error:
            raise translated(error, self._access.label, self._access.busy_s) from error
        if changed[0][0] != 1:
            raise LeaseLost(claim.id)


def checked(access: Access, borrowed: Borrowed) -> Steps[None]:
    """
    Raises:
        ConfigError: It leads elsewhere, or is in no transaction.
    """
    borrowed.check("sqlite", access.label)
    if access.in_memory:
        leads_here = borrowed.given is access.db
    else:
        try:
            leads_here = _is_file(access, (yield "PRAGMA database_list", ()))
        except sqlite3.Error as error:
            raise borrowed.unusable(error) from error
    if not leads_here:
        raise ConfigError(
            f"transaction= ({borrowed.name}) is not a connection to {access.label}, where this worker keeps "
            "its jobs; nothing was stored. Open it on the same file."
        )


def _is_file(access: Access, databases: Sequence[Sequence[str | bytes]]) -> bool:
    file = next((row[2] for row in databases if row[1] in ("main", b"main")), "")
    path = Path(os.fsdecode(file))
    return bool(file) and path.exists() and access.path.samefile(path)
