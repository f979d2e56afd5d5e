"""
The SQLite store: one file, or memory.

    SqliteStore            what the rest of dutiful sees; each method goes to its part
      sqlite_access        the open file: who may write and read it, and how
      sqlite_exchange      one step of acks, claims and new jobs
      sqlite_step          its statements
      sqlite_workers       workers living and dead
      sqlite_upkeep, sqlite_look    the other writes, the reads
"""

import os
import sqlite3
from collections.abc import Callable, Collection, Container, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dutiful.config import Keep
from dutiful.crashpoint import crashpoint
from dutiful.errors import ConfigError, LeaseLost
from dutiful.job import Ack, Claim, JobId, Record
from dutiful.store import clock, sqlite_look, sqlite_step, sqlite_upkeep
from dutiful.store.contract import Counts, Draft, Edit, Marks, Outcome, Owner, Query, Work, WorkerInfo
from dutiful.store.sqlite_access import MEMORY, Access
from dutiful.store.sqlite_exchange import Exchange
from dutiful.store.sqlite_file import translated
from dutiful.store.sqlite_workers import Workers

__all__ = ["MEMORY", "SqliteStore"]

_LEGACY = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, Python 3.12


class SqliteStore:
    """
    Jobs in a SQLite file, or in memory for `":memory:"`.

    Args:
        path: The file; made, for this user alone, if it is not there.
        durability: See Config.
        busy_s: Seconds to wait for the write lock.
        worker: The name that is written beside errors.
        create: Whether to make the store if it is not there.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: Literal["full", "normal"] = "full",
        busy_s: float = 10.0,
        worker: str = "worker",
        create: bool = True,
    ) -> None:
        self._access = Access(path, durability=durability, busy_s=busy_s, create=create, let_go=self._let_go)
        self._exchange = Exchange(self._access, worker)
        self._workers = Workers(self._access)

    @property
    def label(self) -> str:
        return self._access.label

    @property
    def in_memory(self) -> bool:
        """Whether the jobs end with the process."""
        return self._access.in_memory

    def open(self) -> None:
        self._access.open()

    def close(self) -> None:
        self._workers.end_all()
        self._access.close()

    def _let_go(self) -> None:
        self._workers.let_go()

    # --- jobs -------------------------------------------------------------------------------------

    def exchange(self, work: Work, outcome: Outcome) -> None:
        self._exchange.do(work, outcome)

    def insert_in(self, transaction: Any, drafts: Sequence[Draft]) -> list[range]:
        db = sqlite_step.plain(self._checked(transaction))
        stored: list[range] = []
        try:
            for draft in drafts:
                # Not from a block of ours: it is theirs to commit.
                first = sqlite_step.reserve_ids(db, len(draft.payloads))
                sqlite_step.insert(db, first, draft, clock.wall_ms())
                stored.append(range(first, first + len(draft.payloads)))
        except sqlite3.Error as error:
            raise translated(error, self.label, self._access.busy_s) from error
        return stored

    def _checked(self, transaction: Any) -> sqlite3.Connection:
        if not isinstance(transaction, sqlite3.Connection):
            raise ConfigError(
                f"transaction= is a {type(transaction).__name__}; this store takes a sqlite3.Connection to "
                f"{self.label}. Nothing was stored."
            )
        try:
            leads_here = self._leads_here(transaction)
        except sqlite3.ProgrammingError as error:
            raise ConfigError(f"transaction= cannot be used: {error} Nothing was stored.") from error
        if not leads_here:
            raise ConfigError(
                f"transaction= is not a connection to {self.label}, where this worker keeps its jobs; "
                "nothing was stored. Open it on the same file."
            )
        # In the old mode, with an isolation level, Python begins a transaction with our first write.
        begins_itself = (
            transaction.isolation_level is not None and getattr(transaction, "autocommit", _LEGACY) == _LEGACY
        )
        if not transaction.in_transaction and not begins_itself:
            raise ConfigError(
                "transaction= has no open transaction; nothing was stored. Execute BEGIN first."
            )
        return transaction

    def _leads_here(self, db: sqlite3.Connection) -> bool:
        if self.in_memory:
            return db is self._access.db
        rows = sqlite_step.plain(db).execute("PRAGMA database_list").fetchall()
        file = next((row[2] for row in rows if row[1] in ("main", b"main")), "")
        path = Path(os.fsdecode(file))
        return bool(file) and path.exists() and self._access.path.samefile(path)

    @contextmanager
    def transaction(self, claim: Claim) -> Generator[sqlite3.Connection]:
        with self._access.own_transaction() as db:
            if not sqlite_look.owns(db, claim):
                raise LeaseLost(claim.id)
            yield db
            if not db.in_transaction:
                raise ConfigError(
                    f"the transaction of job {claim.id} was ended inside ctx.transaction(); leave COMMIT and "
                    "ROLLBACK to the block, so that the job's completion commits with your writes."
                )
            with self._access.translating():
                sqlite_step.complete(db, [(claim.id, claim.attempt)], keep=True, now=clock.wall_ms())
                crashpoint("transaction.before_commit")
                db.execute("COMMIT")
                crashpoint("transaction.after_commit")

    # --- workers --------------------------------------------------------------------------------------

    def join(
        self, name: str, queues: Sequence[str], concurrency: int, tasks: Sequence[str] | None = None
    ) -> Owner:
        return self._workers.join(name, queues, concurrency, tasks)

    def leave(self, owner: Owner) -> None:
        self._workers.leave(owner)
        self._exchange.unfinished.forget()

    def mark(self, owner: Owner) -> Marks:
        return self._workers.mark(owner)

    def held_fd(self, owner: Owner) -> int | None:
        return self._workers.held_fd(owner)

    def beat(self, owner: Owner, tasks: Sequence[str] | None = None) -> None:
        self._workers.beat(owner, tasks)

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> list[tuple[WorkerInfo, list[Ack]]]:
        return self._workers.rescue(decide, changed=self._exchange.unfinished.forget)

    def workers(self) -> list[WorkerInfo]:
        return self._workers.all()

    def cancelled(self, owner: Owner) -> list[JobId]:
        with self._access.looking() as db:
            return sqlite_look.cancelled(db, owner)

    def unpark(self, known: Container[str] | None) -> int:
        with self._access.looking() as db:
            tasks = [task for task in sqlite_look.parked_tasks(db) if known is None or task in known]
        total, some = 0, 1
        while tasks and some:
            with self._access.writing():
                some = sqlite_upkeep.unpark(self._access.db, tasks)
            total += some
        return total

    def park(
        self, tasks: Collection[str], queues: Sequence[str], *, after_s: float, park_s: float
    ) -> dict[str, int]:
        with self._access.looking() as db:
            taken_care_of = sqlite_look.tasks_taken_care_of(db, queues)
        if taken_care_of is None or not set(tasks) - taken_care_of:
            return {}
        with self._access.writing() as now:
            return sqlite_upkeep.park(
                self._access.db,
                set(tasks) - taken_care_of,
                queues,
                now=now,
                after_ms=round(after_s * 1000),
                park_ms=round(park_s * 1000),
            )

    def ring(self) -> None:
        self._workers.ring()

    def doorbell(self) -> int | None:
        return self._workers.doorbell()

    def changes(self) -> int | None:
        return self._workers.changes()

    def hush(self) -> None:
        self._workers.hush()

    def changed(self) -> bool:
        return self._access.changed()

    def is_in_transaction_here(self) -> bool:
        return self._access.is_in_transaction_here()

    # --- looking ----------------------------------------------------------------------------------------

    def get(self, ids: Sequence[JobId]) -> list[Record]:
        with self._access.looking() as db:
            return sqlite_look.get(db, ids)

    def find(self, query: Query) -> list[Record]:
        with self._access.looking() as db:
            return sqlite_look.find(db, query)

    def counts(self) -> Counts:
        with self._access.looking() as db:
            return sqlite_look.counts(db, clock.wall_ms())

    def unfinished(self) -> int:
        with self._access.looking() as db:
            return sqlite_step.count_unfinished(db)

    def next_due_s(self, queues: Sequence[str], skip: Collection[str] = ()) -> float | None:
        self._access.follow_clock()
        with self._access.looking() as db:
            due_at = sqlite_look.next_due(db, queues, skip)
        return None if due_at is None else max(0.0, (due_at - clock.wall_ms()) / 1000)

    # --- editing and upkeep -----------------------------------------------------------------------------

    def edit(self, ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        with self._access.writing() as now:
            self._exchange.unfinished.forget()
            return sqlite_upkeep.edit(self._access.db, ids, edit, now)

    def prune(self, keep: Keep, *, limit: int) -> int:
        with self._access.looking() as db:
            before = sqlite_look.prune_before(db, keep, clock.wall_ms())
        if before is None:
            return 0
        with self._access.writing():
            return sqlite_upkeep.prune(self._access.db, before, limit)

    def tidy(self) -> None:
        if self.in_memory:
            return
        self._workers.remove_orphans()
        pages = 1
        while pages:
            with self._access.writing():
                pages = sqlite_upkeep.shrink(self._access.db)
        self._access.shorten_log()
