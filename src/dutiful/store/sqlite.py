"""
The SQLite store: one file, or memory.

    SqliteStore            what the rest of dutiful sees; each method goes to its part
      sqlite_access        the open file: who may write and read it, and how
      sqlite_exchange      one step of acks, claims and new jobs
      sqlite_step          its statements
      sqlite_workers       workers living and dead
      sqlite_users         what it does in its user's own transaction
      sqlite_upkeep, sqlite_look    the other writes, the reads
"""

import sqlite3
from collections.abc import Callable, Collection, Container, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dutiful.config import Keep
from dutiful.crashpoint import crashpoint
from dutiful.errors import ConfigError, LeaseLost
from dutiful.job import Ack, Claim, JobId, Record
from dutiful.store import sqlite_file, sqlite_look, sqlite_step, sqlite_upkeep
from dutiful.store.clock import SYSTEM, Clock
from dutiful.store.contract import Counts, Draft, Edit, Marks, Outcome, Owner, Pulse, Query, Work, WorkerInfo
from dutiful.store.special import parked
from dutiful.store.sqlite_access import MEMORY, Access
from dutiful.store.sqlite_exchange import Exchange
from dutiful.store.sqlite_moving import SqliteGround, check_not_moved, refuse_moved
from dutiful.store.sqlite_sql import SqliteSql
from dutiful.store.sqlite_workers import Workers

if TYPE_CHECKING:
    from dutiful.store.borrowed.completing import Completion
    from dutiful.store.borrowed.connection import Borrowed, Steps
    from dutiful.store.ear import Ear

__all__ = ["MEMORY", "SqliteStore"]


class SqliteStore:
    """
    Jobs in a SQLite file, or in memory for `":memory:"`.

    Args:
        path: The file; made, for this user alone, if it is not there.
        durability: See Config.
        busy_s: Seconds to wait for the write lock.
        worker: The name that is written beside errors.
        create: Whether to make the store if it is not there.
        clock: Where its time comes from.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: Literal["full", "normal"] = "full",
        busy_s: float = 10.0,
        worker: str = "worker",
        create: bool = True,
        clock: Clock = SYSTEM,
    ) -> None:
        self._access = Access(
            path, durability=durability, busy_s=busy_s, create=create, clock=clock, let_go=self._let_go
        )
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
        if self._access.open():
            try:
                check_not_moved(self._access)
            except BaseException:
                self._access.close()
                raise

    def close(self) -> None:
        self._workers.end_all()
        self._access.close()
        self._exchange.closed()

    def ground(self) -> SqliteGround:
        """Return this store as one end of a move."""
        return SqliteGround(self._access, workers=self._workers.all, rescue=self.rescue, close=self.close)

    def migrated(self) -> tuple[int, int]:
        """Bring the schema up to date; return its version before, and now."""
        found = self._version()
        self._access.open()
        return found, sqlite_file.SCHEMA_VERSION

    def migration(self) -> str:
        """Return the SQL that would do it, "" if there is nothing to do. Changes nothing."""
        found = self._version()
        return sqlite_file.script(found) if found < sqlite_file.SCHEMA_VERSION else ""

    def _version(self) -> int:
        path = self._access.path
        with sqlite_file.reachable(path):
            return sqlite_file.version_in(path) if not self.in_memory and path.exists() else 0

    def _let_go(self) -> None:
        self._workers.let_go()

    # --- jobs -------------------------------------------------------------------------------------

    def exchange(self, work: Work, outcome: Outcome) -> None:
        self._exchange.do(work, outcome)

    def insert_in(self, transaction: Any, drafts: Sequence[Draft]) -> list[range]:
        from dutiful.store.borrowed.borrow import borrow  # 3 ms, for those who use it

        return borrow(transaction).run(self.insertion(drafts))

    def insertion(self, drafts: Sequence[Draft]) -> "Callable[[Borrowed], Steps[list[range]]]":
        from dutiful.store import sqlite_users  # as above

        return lambda borrowed: sqlite_users.insertion(self._access, borrowed, drafts)

    def completion(self, claim: Claim, *others: Claim) -> "Completion":
        from dutiful.store import sqlite_users  # as above

        return sqlite_users.Completion(self._access, (claim, *others))

    @contextmanager
    def transaction(self, claim: Claim, *others: Claim) -> Generator[sqlite3.Connection]:
        with self._access.own_transaction() as db:
            for each in (claim, *others):
                if not sqlite_look.owns(db, each):
                    raise LeaseLost(each.id)
            yield db
            if not db.in_transaction:
                raise ConfigError(
                    f"the transaction of job {claim.id} was ended inside ctx.transaction(); leave COMMIT and "
                    "ROLLBACK to the block, so that the job's completion commits with your writes."
                )
            with self._access.translating():
                now = self._access.clock.wall_ms()
                for each in (claim, *others):
                    db.execute(sqlite_step.COMPLETE_ONE, (now, each.id, each.attempt))
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

    def pulse(self, owner: Owner) -> Pulse:
        del owner  # a file is always there, and cheap to ask
        return Pulse()

    def held(self, owner: Owner) -> set[tuple[JobId, int]]:
        with self._access.looking() as db:
            return sqlite_look.held(db, owner)

    def cancelled(self, owner: Owner) -> list[JobId]:
        with self._access.looking() as db:
            return sqlite_look.cancelled(db, owner)

    def unpark(self, known: Container[str] | None) -> int:
        with self._access.looking() as db:
            tasks = [task for task in sqlite_look.parked_tasks(db) if known is None or task in known]
        total, some = 0, 1
        while tasks and some:
            with self._access.writing() as now:
                sql = SqliteSql(self._access.db, now)
                limits = parked.limits_of(sql, tasks)
                some = sqlite_upkeep.unpark(self._access.db, tasks)
                parked.look_at(sql, limits)
            total += some
        return total

    def park(
        self,
        tasks: Collection[str],
        queues: Sequence[str],
        *,
        after_s: float,
        park_s: float,
        listed: bool = False,
    ) -> dict[str, int]:
        wanted = set(tasks) if listed else self._nobodys(tasks, queues)
        if not wanted:
            return {}
        with self._access.writing() as now:
            counts = sqlite_upkeep.park(
                self._access.db,
                wanted,
                queues,
                now=now,
                after_ms=round(after_s * 1000),
                park_ms=round(park_s * 1000),
            )
            sql = SqliteSql(self._access.db, now)
            parked.look_at(sql, parked.limits_of(sql, counts))
            return counts

    def _nobodys(self, tasks: Collection[str], queues: Sequence[str]) -> set[str]:
        with self._access.looking() as db:
            taken_care_of = sqlite_look.tasks_taken_care_of(db, queues)
        return set() if taken_care_of is None else set(tasks) - taken_care_of

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

    @contextmanager
    def sql(self) -> Generator[SqliteSql]:
        with self._access.writing() as now:
            refuse_moved(self._access.db, self.label)  # the guards are asked only for rows that are there
            self._exchange.unfinished.forget()
            yield SqliteSql(self._access.db, now)

    @contextmanager
    def sql_look(self) -> Generator[SqliteSql]:
        with self._access.looking() as db:
            yield SqliteSql(db, self._access.clock.wall_ms())

    def ear(self) -> "Ear | None":
        from dutiful.store.ear import FileEar  # for those who use it

        return None if self.in_memory else FileEar(Path(f"{self._access.path}-wal"))

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
            return sqlite_look.counts(db, self._access.clock.wall_ms())

    def unfinished(self) -> int:
        with self._access.looking() as db:
            return sqlite_step.count_unfinished(db)

    def next_due_s(self, queues: Sequence[str], skip: Collection[str] = ()) -> float | None:
        self._access.follow_clock()
        with self._access.looking() as db:
            due_at = sqlite_look.next_due(db, queues, skip)
        return None if due_at is None else max(0.0, (due_at - self._access.clock.wall_ms()) / 1000)

    # --- editing and upkeep -----------------------------------------------------------------------------

    def edit(self, ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        with self._access.writing() as now:
            self._exchange.unfinished.forget()
            return sqlite_upkeep.edit(self._access.db, ids, edit, now)

    def prune(self, keep: Keep, *, limit: int) -> int:
        with self._access.looking() as db:
            before = sqlite_look.prune_before(db, keep, self._access.clock.wall_ms())
        if before is None:
            return 0
        with self._access.writing() as now:
            return sqlite_upkeep.prune(self._access.db, before, limit, now)

    def tidy(self) -> None:
        if self.in_memory:
            return
        self._workers.remove_orphans()
        pages = 1
        while pages:
            with self._access.writing():
                pages = sqlite_upkeep.shrink(self._access.db)
        self._access.shorten_log()
