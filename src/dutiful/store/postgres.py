"""
The PostgreSQL store.

    PostgresStore            what the rest of dutiful sees; each method goes to its part
      postgres_access        connections, and what a COMMIT came to
        postgres_driver      psycopg as we use it
      postgres_schema        which version is there, migrations
      postgres_exchange      one step of acks, claims and new jobs
        postgres_step        its statements
      postgres_workers       workers living and dead, waking
      postgres_users         what it does in its user's own transaction
      postgres_upkeep, postgres_look    the other writes, the reads
"""

from collections.abc import Callable, Collection, Container, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dutiful.config import Keep
from dutiful.crashpoint import crashpoint
from dutiful.errors import ConfigError, LeaseLost
from dutiful.job import Ack, Claim, JobId, Record
from dutiful.store import drafting, postgres_look, postgres_schema, postgres_step, postgres_upkeep
from dutiful.store.borrowed.borrow import borrow
from dutiful.store.borrowed.completing import Completion
from dutiful.store.borrowed.connection import Borrowed, Steps
from dutiful.store.contract import Counts, Draft, Edit, Marks, Outcome, Owner, Pulse, Query, Work, WorkerInfo
from dutiful.store.postgres_access import READ_S, SCHEMA, Access, Connection, split_url
from dutiful.store.postgres_errors import again_if_deadlocked
from dutiful.store.postgres_exchange import Exchange
from dutiful.store.postgres_moving import PostgresGround, check_not_moved
from dutiful.store.postgres_sql import PostgresSql
from dutiful.store.postgres_users import Users
from dutiful.store.postgres_workers import Workers
from dutiful.store.special import parked

if TYPE_CHECKING:
    from dutiful.store.ear import Ear

__all__ = ["PostgresStore"]


class PostgresStore:
    """
    Jobs in a PostgreSQL database.

    Args:
        url: postgresql://user:password@host:port/database?parameters. Besides libpq's own parameters it
            may have `dutiful_schema=name` and `dutiful_migrate=off`, for the arguments of that name.
        schema: Where our tables are.
        durability: See Config. "normal" may lose what was sent in the last moments before the server
            crashes (`synchronous_commit = off`).
        busy_s: Seconds to wait for a lock, or for a server that is gone, to tell what became of a commit.
        worker: The name that is written beside errors, and shown by the server.
        create: Whether to make the store if it is not there.
        migrate: Whether to bring an older one up to date; else that is an error.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        durability: Literal["full", "normal"] = "full",
        busy_s: float = 10.0,
        worker: str = "worker",
        create: bool = True,
        migrate: bool = True,
    ) -> None:
        url, options = split_url(url)
        self._create = create
        self._migrate = migrate and options.pop("migrate", "on") != "off"
        schema = options.pop("schema", None) or schema or SCHEMA
        if options:
            raise ConfigError(
                f"the store's URL has dutiful_{min(options)}, which is no parameter of ours; nothing was "
                "changed. There are dutiful_schema=name and dutiful_migrate=off."
            )
        self._access = Access(
            url, schema=schema, durability=durability, busy_s=busy_s, worker=worker, let_go=self._let_go
        )
        self._workers = Workers(self._access)
        self._exchange = Exchange(self._access, worker, owners=self._workers.owners, ride=self._workers.ride)
        self._users = Users(self._access)

    @property
    def label(self) -> str:
        return self._access.label

    def open(self) -> None:
        if self._access.open():
            try:
                postgres_schema.migrate(
                    self._access, create=self._create and self._migrate, migrate=self._migrate
                )
                check_not_moved(self._access)
            except BaseException:
                self._access.close()
                raise

    def close(self) -> None:
        self._workers.end_all()
        self._access.close()
        self._exchange.ids.forget()

    def ground(self) -> PostgresGround:
        """Return this store as one end of a move."""
        return PostgresGround(
            self._access,
            create=self._create,
            workers=self._workers.all,
            rescue=self._workers.rescue_patiently,
            close=self.close,
        )

    def migrated(self) -> tuple[int, int]:
        """Bring the schema up to date, asked for or not; return its version before, and now."""
        self._access.open()
        found = postgres_schema.version(self._access)
        postgres_schema.migrate(self._access, create=True, migrate=True)
        return found, postgres_schema.SCHEMA_VERSION

    def migration(self) -> str:
        """Return the SQL that would do it, "" if there is nothing to do. Changes nothing."""
        self._access.open()
        found = postgres_schema.version(self._access)
        is_done = found == postgres_schema.SCHEMA_VERSION
        return "" if is_done else postgres_schema.script(self._access.schema_name, found)

    def _let_go(self) -> None:
        self._workers.let_go()

    # --- jobs -------------------------------------------------------------------------------------

    def exchange(self, work: Work, outcome: Outcome) -> None:
        self._exchange.do(work, outcome)
        self._workers.tell_ended(work)

    def insert_in(self, transaction: Any, drafts: Sequence[Draft]) -> list[range]:
        borrowed = borrow(transaction)  # before ids are spent on something else
        return borrowed.run(self.insertion(drafts))

    def insertion(self, drafts: Sequence[Draft]) -> Callable[[Borrowed], Steps[list[range]]]:
        # Given for good, whatever becomes of the transaction: it must not hold the counter.
        first = self._exchange.ids.take(drafting.jobs_in(drafts))
        firsts: list[JobId] = []
        for draft in drafts:
            firsts.append(first)
            first += len(draft.payloads)
        return lambda borrowed: self._users.insertion(borrowed, firsts, drafts)

    def completion(self, claim: Claim, *others: Claim) -> Completion:
        return self._users.completion(claim, *others)

    @contextmanager
    def transaction(self, claim: Claim, *others: Claim) -> Generator[Connection]:
        # In one order for all, so that two who complete the same rows do not wait for each other in a circle.
        claims = sorted((claim, *others), key=lambda each: each.id)
        with self._access.lent() as db:
            xid: str | None = None
            for each in claims:
                with self._access.translating():
                    xid = postgres_look.begin_of_attempt(db, each)
                if xid is None:
                    raise LeaseLost(each.id)
            assert xid is not None, "there is one claim at least"
            with db.patient(None):  # what a handler asks for is its own affair
                yield db
            if not db.is_in(xid):
                raise ConfigError(
                    f"the transaction of job {claim.id} was ended inside ctx.transaction(); leave COMMIT and "
                    "ROLLBACK to the block, so that the job's completion commits with your writes."
                )
            with self._access.translating():
                # Not locked before, so that a job can be cancelled or rescued meanwhile: the fence is here.
                for each in claims:
                    if not postgres_step.complete_alone(db, (each.id, each.attempt)):
                        raise LeaseLost(each.id)
                crashpoint("transaction.before_commit")
                self._access.commit(db, xid, None, db.end)
                crashpoint("transaction.after_commit")
        self._workers.tell_ended(Work(completed=[(each.id, each.attempt) for each in claims]))

    # --- workers --------------------------------------------------------------------------------------

    def join(
        self, name: str, queues: Sequence[str], concurrency: int, tasks: Sequence[str] | None = None
    ) -> Owner:
        return self._workers.join(name, queues, concurrency, tasks)

    def leave(self, owner: Owner) -> None:
        self._workers.leave(owner)

    def mark(self, owner: Owner) -> Marks:
        return self._workers.mark(owner)

    def held_fd(self, owner: Owner) -> int | None:
        return self._workers.held_fd(owner)

    def beat(self, owner: Owner, tasks: Sequence[str] | None = None) -> None:
        self._workers.beat(owner, tasks)

    def pulse(self, owner: Owner) -> Pulse:
        return self._workers.pulse(owner)

    def held(self, owner: Owner) -> set[tuple[JobId, int]]:
        return self._workers.held(owner)

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> list[tuple[WorkerInfo, list[Ack]]]:
        return self._workers.rescue(decide)

    def workers(self) -> list[WorkerInfo]:
        return self._workers.all()

    def cancelled(self, owner: Owner) -> list[JobId]:
        return self._workers.cancelled(owner)

    def unpark(self, known: Container[str] | None) -> int:
        with self._access.looking() as db:
            tasks = [task for task in postgres_look.parked_tasks(db) if known is None or task in known]
        total, some = 0, 1
        while tasks and some:
            with self._access.writing() as db:
                sql = PostgresSql(db)
                limits = parked.limits_of(sql, tasks)
                some = postgres_upkeep.unpark(db, tasks)
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
        with self._access.writing() as db:
            counts = postgres_upkeep.park(
                db, wanted, queues, after_ms=round(after_s * 1000), park_ms=round(park_s * 1000)
            )
            sql = PostgresSql(db)
            parked.look_at(sql, parked.limits_of(sql, counts))
            return counts

    def _nobodys(self, tasks: Collection[str], queues: Sequence[str]) -> set[str]:
        with self._access.looking() as db:
            taken_care_of = postgres_look.tasks_taken_care_of(db, queues)
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
        return self._workers.changed()

    @contextmanager
    def sql(self) -> Generator[PostgresSql]:
        with self._access.writing() as db:
            yield PostgresSql(db)

    @contextmanager
    def sql_look(self) -> Generator[PostgresSql]:
        with self._access.looking() as db:
            yield PostgresSql(db)

    def ear(self) -> "Ear | None":
        from dutiful.store.postgres_ear import PostgresEar  # for those who use it

        return None if self._access.is_pooled else PostgresEar(self._access)

    def is_in_transaction_here(self) -> bool:
        return False  # other connections' writes do not wait for it

    # --- looking ----------------------------------------------------------------------------------------

    def get(self, ids: Sequence[JobId]) -> list[Record]:
        with self._access.looking() as db:
            return postgres_look.get(db, ids)

    def find(self, query: Query) -> list[Record]:
        with self._access.looking() as db, db.patient(READ_S):
            return postgres_look.find(db, query)

    def counts(self) -> Counts:
        with self._access.looking() as db, db.patient(READ_S):
            return postgres_look.counts(db)

    def unfinished(self) -> int:
        with self._access.looking() as db, db.patient(READ_S):
            return postgres_step.count_unfinished(db)

    def next_due_s(self, queues: Sequence[str], skip: Collection[str] = ()) -> float | None:
        with self._access.looking() as db:
            return postgres_look.next_due_s(db, queues, skip)

    # --- editing and upkeep -----------------------------------------------------------------------------

    def edit(self, ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        done = again_if_deadlocked(partial(self._edit, ids, edit))
        if done and edit == "cancel":
            self._workers.tell_cancelled()
        if done:  # run again, or out of another's way
            self._workers.ring()
            self._workers.tell_some_ended()
        return done

    def _edit(self, ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        with self._access.writing() as db:
            return postgres_upkeep.edit(db, ids, edit)

    def prune(self, keep: Keep, *, limit: int) -> int:
        with self._access.looking() as db, db.patient(READ_S):
            before = postgres_look.prune_before(db, keep)
        if before is None:
            return 0
        with self._access.writing() as db, db.patient(READ_S):
            return postgres_upkeep.prune(db, before, limit)

    def tidy(self) -> None:
        self._workers.remove_orphans()  # the disk space is autovacuum's
