"""
The SQLite store: one file, or memory.

One connection writes, under one lock that all our processes share (liveness.WriteLock);
one reads. A write that was interrupted anywhere, by an exception or a signal, leaves
facts that the next one finds: a transaction still open is rolled back.
"""

import contextlib
import os
import platform
import socket
import sqlite3
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from dutiful.config import Keep
from dutiful.crashpoint import crashpoint
from dutiful.errors import ConfigError, LeaseLost, StoreBusy, StoreError, StoreUnavailable
from dutiful.job import Ack, Claim, JobId, Record, State
from dutiful.store import clock, sqlite_look, sqlite_step, sqlite_upkeep
from dutiful.store.contract import Counts, Draft, Edit, Marks, Outcome, Owner, Query, WorkerInfo, Work
from dutiful.store.fork import ForkGuard
from dutiful.store.liveness import Doorbell, Folder, Life, Ringer, WriteLock, running_of_dead
from dutiful.store.sqlite_file import FileIdentity, connect, migrate, prepare, translated

MEMORY = ":memory:"
# Between checkpoints the log may grow by about this much. Larger saves fsyncs, smaller
# saves disk and the time of a restart; beyond 8 MiB nothing is gained (bench/).
CHECKPOINT_BYTES = 8 * 1024 * 1024
_COMMIT_BYTES = 3 * 4096  # what a small commit adds to the log: about three pages
_IDS_AT_ONCE_MAX = 1024


class SqliteStore:
    """
    Jobs in a SQLite file, or in memory for `":memory:"`.

    Args:
        path: The file; made, for this user alone, if it is not there.
        durability: See Config.
        busy_s: Seconds to wait for the write lock.
        worker: The name that is written beside errors.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: Literal["full", "normal"] = "full",
        busy_s: float = 10.0,
        worker: str = "worker",
    ) -> None:
        self.in_memory = path == MEMORY
        self.path = Path(path) if self.in_memory else Path(path).absolute()
        self._durability: Literal["full", "normal"] = durability
        self._busy_s = busy_s
        self._worker = worker
        self._folder = None if self.in_memory else Folder(self.path)
        self._lock = WriteLock(self._folder and self._folder.path / "write.lock", self.label)
        self._opening = threading.Lock()
        self._reading = threading.RLock()
        self._is_open = False
        self._lives: dict[Owner, tuple[Life, Doorbell]] = {}
        self._ringer: Ringer | None = None
        self._fork = ForkGuard(self._abandon)

    @property
    def label(self) -> str:
        return str(self.path)

    # --- opening and closing ------------------------------------------------------------

    def open(self) -> None:
        self._fork.check()
        with self._opening:
            if self._is_open:
                return
            if self._folder is not None:
                prepare(self.path)
                self._folder.make()
                self._ringer = Ringer(self._folder)
            self._lock.open()
            try:
                with self._lock.held(self._busy_s):
                    self._connect()
            except BaseException:
                self._shut()
                raise
            self._is_open = True

    def _connect(self) -> None:
        try:
            self._db = connect(str(self.path), self._durability, busy_s=self._busy_s)
            try:
                migrate(self._db, self.label)
                self._reader = self._db if self.in_memory else connect(str(self.path), self._durability, busy_s=self._busy_s)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise translated(error, self.label, self._busy_s) from error
        self._db.text_factory = bytes  # a batch that is no UTF-8 is looked into, not lost
        if not self.in_memory:
            self._reader.text_factory = lambda raw: raw.decode("utf-8", "replace")
            self._identity = FileIdentity(self.path)
        self._ids = range(0)
        self._ids_at_once = 1
        self._unfinished: int | None = None
        self._log_bytes = 0
        self._seen = self._version()
        self._counted_at = self._seen
        self._clock = clock.StepDetector()
        self._clock_checked = False

    def close(self) -> None:
        with self._opening:
            if not self._is_open:
                return
            if self._fork.is_forked:
                return
            for owner in list(self._lives):
                self._end_life(owner)
            with self._reading, contextlib.suppress(StoreBusy), self._lock.held(self._busy_s):
                # The last connection to close checkpoints and removes the log: under our lock.
                self._reader.close()
                self._db.close()
                self._is_open = False
            self._shut()

    def _shut(self) -> None:
        if self._ringer is not None:
            self._ringer.close()
            self._ringer = None
        self._lock.close()

    def _abandon(self) -> None:
        """In a forked child: let go of what is the parent's, without touching it."""
        for life, bell in self._lives.values():
            life.abandon()
            bell.close()
        self._lives.clear()
        if self._is_open:
            self._fork.immortalize(self._db, self._reader)
            self._lock.close()

    def _reopen(self) -> None:
        """
        After an I/O error: begin again with fresh connections, and read what is really there.

        A failed fsync must not be repeated on the same file state: the second may claim
        success for pages that were dropped (PostgreSQL wiki, "Fsync Errors").
        """
        with self._reading:
            if not self.in_memory:
                self._reader.close()
                self._db.close()
                self._connect()

    # --- the step -------------------------------------------------------------------------

    def exchange(self, work: Work, outcome: Outcome) -> None:
        try:
            self._exchange(work, outcome, careful=False)
        except sqlite_step.LateAck:
            clean = Outcome()
            for name in outcome.__struct_fields__:
                setattr(outcome, name, getattr(clean, name))
            self._exchange(work, outcome, careful=True)

    def _exchange(self, work: Work, outcome: Outcome, *, careful: bool) -> None:
        with self._writing(outcome) as now:
            db = self._db
            if careful:
                outcome.late = sqlite_step.acks_one_by_one(
                    db, work.acks, work.completed, keep=work.keep_completed, now=now, worker=self._worker
                )
            else:
                if work.completed:
                    sqlite_step.complete(db, work.completed, keep=work.keep_completed, now=now)
                if work.acks:
                    sqlite_step.ack(db, work.acks, now=now, worker=self._worker)
            if work.take is not None and work.take.look:
                sqlite_step.take(db, work.take, outcome, now=now)
            if work.drafts:
                self._store(db, work, outcome, now)
            self._note_delays(work, outcome)
            if work.acks or work.completed:
                crashpoint("ack.before_commit")
            if work.drafts:
                crashpoint("send.before_commit")
        self._count(work, outcome)
        if work.acks or work.completed:
            crashpoint("ack.after_commit")
        if work.drafts:
            crashpoint("send.after_commit")
        if outcome.claims and not work.drafts:
            crashpoint("claim.after_commit")
        self._checkpoint_when_due(work)

    def _store(self, db: sqlite3.Connection, work: Work, outcome: Outcome, now: int) -> None:
        drafts = work.drafts
        if work.buffer is not None:
            drafts = self._fitting(db, work, work.buffer)
        first = self._take_ids(db, sum(len(draft.payloads) for draft in drafts))
        wish = work.take
        room = 0
        if wish is not None and wish.handoff and (outcome.drained or not wish.look):
            room = wish.limit - len(outcome.claims)
        for draft in _merged([draft for draft in drafts if draft.payloads]):
            room -= self._insert(db, first, draft, work, outcome, now, room)
            first += len(draft.payloads)
        first -= sum(len(draft.payloads) for draft in drafts)
        for draft in drafts:
            outcome.stored.append(range(first, first + len(draft.payloads)))
            first += len(draft.payloads)

    def _insert(
        self, db: sqlite3.Connection, first: JobId, draft: Draft, work: Work, outcome: Outcome, now: int, room: int
    ) -> int:
        """Store one draft, as much of it as `room` allows as claimed; return how much that was."""
        wish = work.take
        count = len(draft.payloads)
        handed = 0
        if (
            wish is not None
            and room > 0
            and draft.due_at_once
            and draft.queue in wish.queues
            and (wish.known is None or draft.task in wish.known)
        ):
            handed = min(room, count)
            part = draft if handed == count else _part(draft, 0, handed)
            sqlite_step.insert(db, first, part, now, wish.owner)
            outcome.claims += sqlite_step.claims_of(first, part, now)
        if handed < count:
            rest = draft if handed == 0 else _part(draft, handed, count)
            sqlite_step.insert(db, first + handed, rest, now)
            outcome.left_pending = outcome.left_pending or draft.due_at_once
        return handed

    def _fitting(self, db: sqlite3.Connection, work: Work, buffer: int) -> list[Draft]:
        """Return as much of the drafts as the bound leaves room for, in order."""
        if self._unfinished is None or self._version() != self._counted_at:
            # Counted after the acks above, so they must not be taken off a second time.
            self._counted_at = self._version()
            unfinished = sqlite_step.count_unfinished(db)
            self._unfinished = unfinished + sqlite_step.freed(work.acks, work.completed)
        else:
            unfinished = self._unfinished - sqlite_step.freed(work.acks, work.completed)
        room = buffer - unfinished
        fitting: list[Draft] = []
        for at, draft in enumerate(work.drafts):
            count = len(draft.payloads)
            fitting.append(draft if count <= room or at < work.exempt else _part(draft, 0, max(room, 0)))
            room -= count
        return fitting

    def _count(self, work: Work, outcome: Outcome) -> None:
        if self._unfinished is not None:
            self._unfinished += sum(map(len, outcome.stored))
            self._unfinished -= sqlite_step.freed(work.acks, work.completed)
            if outcome.late:
                self._unfinished = None

    @staticmethod
    def _note_delays(work: Work, outcome: Outcome) -> None:
        delays = [a.delay_s for a in work.acks if a.state is State.PENDING and a.delay_s]
        delays += [d.delay_s for d in work.drafts if d.delay_s is not None]
        outcome.next_delay_s = min(delays, default=None)
        if any(d.run_at is not None for d in work.drafts):
            outcome.next_delay_s = 0.0  # somebody has to look
        if any(a.state is State.PENDING and not a.delay_s for a in work.acks):
            outcome.left_pending = True

    def _take_ids(self, db: sqlite3.Connection, count: int) -> JobId:
        """
        Return the first of `count` ids in a row.

        Ids are reserved a block at a time, so most commits need not touch the counter's
        page; the block doubles, so that a program which sends one job leaves no gap.
        """
        if len(self._ids) < count:
            block = max(count, self._ids_at_once)
            first = sqlite_step.reserve_ids(db, block)
            self._ids_new = range(first, first + block)
        else:
            self._ids_new = self._ids
        first = self._ids_new.start
        self._ids_new = self._ids_new[count:]
        return first

    def insert_in(self, transaction: Any, drafts: Sequence[Draft]) -> list[range]:
        db = self._checked(transaction)
        stored: list[range] = []
        try:
            for draft in drafts:
                first = sqlite_step.reserve_ids(db, len(draft.payloads))
                sqlite_step.insert(db, first, draft, clock.wall_ms())
                stored.append(range(first, first + len(draft.payloads)))
        except sqlite3.Error as error:
            raise translated(error, self.label, self._busy_s) from error
        return stored

    def _checked(self, transaction: Any) -> sqlite3.Connection:
        if not isinstance(transaction, sqlite3.Connection):
            raise ConfigError(
                f"transaction= is a {type(transaction).__name__}; this store takes a sqlite3.Connection to "
                f"{self.label}. Nothing was stored."
            )
        if transaction is not self._db and not self._leads_here(transaction):
            raise ConfigError(
                f"transaction= is not a connection to {self.label}, where this worker keeps its jobs; nothing was "
                "stored. Open it on the same file."
            )
        if not transaction.in_transaction and transaction.isolation_level is None:
            raise ConfigError(
                "transaction= has no open transaction (isolation_level=None); nothing was stored. "
                "Execute BEGIN first."
            )
        return transaction

    def _leads_here(self, db: sqlite3.Connection) -> bool:
        file = next((row[2] for row in db.execute("PRAGMA database_list") if _str(row[1]) == "main"), "")
        return bool(file) and not self.in_memory and os.path.samefile(_str(file), self.path)

    # --- transactions -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, outcome: Outcome | None = None) -> Iterator[int]:
        """Hold the write lock and a transaction; give the time. Commit at the end, or roll back."""
        self._fork.check()
        if self._lock.is_mine:
            raise ConfigError(
                "this thread is inside ctx.transaction(), which holds the write lock; nothing was changed. "
                "Send with transaction=…, or after the block."
            )
        with self._lock.held(self._busy_s):
            if not self._is_open:
                raise StoreUnavailable(self.label, "the store is closed; nothing was changed.")
            db = self._db
            committing = False
            try:
                if not self.in_memory:
                    self._identity.check()
                if db.in_transaction:  # an interruption left it
                    db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                self._ids_new = self._ids
                self._set_clock()
                yield clock.wall_ms()
                committing = True
                db.execute("COMMIT")
            except BaseException as error:
                self._roll_back(error, committing, outcome)
                raise
            self._committed(outcome)

    def _committed(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            outcome.committed = True
        if self._ids_new is not self._ids and self._ids_new.stop != self._ids.stop:
            self._ids_at_once = min(self._ids_at_once * 2, _IDS_AT_ONCE_MAX)
        self._ids = self._ids_new

    def _roll_back(self, error: BaseException, committing: bool, outcome: Outcome | None) -> None:
        """Undo what is not committed; find out what is. The error goes on to the caller, translated."""
        db = self._db
        self._unfinished = None
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the next write finds it and tries again
                db.execute("ROLLBACK")
        elif committing and not isinstance(error, sqlite3.Error):
            self._committed(outcome)  # a signal's exception, after COMMIT had returned
        if isinstance(error, sqlite3.Error):
            ours = translated(error, self.label, self._busy_s)
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_IOERR:
                self._after_io_error(outcome)
            raise ours from error

    def _after_io_error(self, outcome: Outcome | None) -> None:
        try:
            self._reopen()
            # The frames of the failed commit may lie in the log: write over them, or a crash
            # before the next commit could bring them to life.
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("UPDATE dutiful_meta SET value = value WHERE key = 'next_id'")
            self._db.execute("COMMIT")
        except (sqlite3.Error, StoreError):
            self._log_bytes = CHECKPOINT_BYTES  # the next write tries; this one is an error already

    def _set_clock(self) -> None:
        """Follow the wall clock when it was set, and move the due times that came from delays."""
        step = self._clock.step_ms()
        if step or not self._clock_checked:
            self._clock.offset = sqlite_upkeep.follow_clock(self._db)
            self._clock_checked = True

    def _checkpoint_when_due(self, work: Work) -> None:
        size = _COMMIT_BYTES + 256 * (len(work.completed) + len(work.acks))
        size += sum(sum(map(len, d.payloads)) + 128 * len(d.payloads) for d in work.drafts)
        self._log_bytes += size
        if self._log_bytes >= CHECKPOINT_BYTES and not self.in_memory:
            self.checkpoint()

    def checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"] = "PASSIVE") -> None:
        """Move what the log holds into the file, under the write lock."""
        with self._lock.held(self._busy_s):
            self._log_bytes = 0
            try:
                self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            except sqlite3.Error as error:
                # Nothing is lost: what is committed is in the log, and a later one moves it.
                raise translated(error, self.label, self._busy_s) from error

    @contextlib.contextmanager
    def transaction(self, claim: Claim, worker: str) -> Iterator[sqlite3.Connection]:
        self._fork.check()
        if self._lock.is_mine:
            raise ConfigError("this thread is inside ctx.transaction() already; use the one it has.")
        with self._lock.held(self._busy_s):
            db = self._db if self.in_memory else connect(str(self.path), self._durability, busy_s=self._busy_s)
            try:
                yield from self._completing(db, claim)
            except sqlite3.Error as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                if not self.in_memory:
                    db.close()
                self._unfinished = None

    def _completing(self, db: sqlite3.Connection, claim: Claim) -> Iterator[sqlite3.Connection]:
        db.execute("BEGIN IMMEDIATE")
        try:
            if not sqlite_look.owns(db, claim):
                raise LeaseLost(claim.id)
            yield db
            if not db.in_transaction:
                raise ConfigError(
                    f"the transaction of job {claim.id} was ended inside ctx.transaction(); leave COMMIT and ROLLBACK "
                    "to the block, so that the job's completion commits with your writes."
                )
            sqlite_step.complete(db, [(claim.id, claim.attempt)], keep=True, now=clock.wall_ms())
            crashpoint("transaction.before_commit")
            db.execute("COMMIT")
            crashpoint("transaction.after_commit")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    # --- workers --------------------------------------------------------------------------------

    def join(self, name: str, queues: Sequence[str], concurrency: int) -> Owner:
        life = None if self._folder is None else Life(self._folder)
        bell = None if life is None or self._folder is None else Doorbell(self._folder, life.token)
        try:
            with self._writing() as now:
                token = life.token if life else "memory"
                owner = sqlite_upkeep.add_worker(
                    self._db,
                    (name, socket.gethostname() or platform.node(), clock.boot_id(), os.getpid(), token, now, now),
                    queues,
                    concurrency,
                )
        except BaseException:
            if life is not None and bell is not None:
                bell.close()
                life.end()
            raise
        if life is not None and bell is not None:
            self._lives[owner] = (life, bell)
        return owner

    def leave(self, owner: Owner) -> None:
        with self._writing():
            self._unfinished = None
            sqlite_upkeep.give_back(self._db, owner)
            sqlite_upkeep.remove_worker(self._db, owner)
        self._end_life(owner)

    def _end_life(self, owner: Owner) -> None:
        life, bell = self._lives.pop(owner, (None, None))
        if bell is not None:
            bell.close()
        if life is not None:
            life.end()

    def mark(self, owner: Owner) -> Marks:
        if owner in self._lives:
            return self._lives[owner][0].marks
        return {}  # in memory: what would read them dies with us

    def held_fd(self, owner: Owner) -> int | None:
        """Return the descriptor whose lock says that this worker lives; its children hold it too."""
        return self._lives[owner][0].fd if owner in self._lives else None

    def cancelled(self, owner: Owner) -> list[JobId]:
        with self._look() as db:
            return sqlite_look.cancelled(db, owner)

    def beat(self, owner: Owner) -> None:
        if owner in self._lives:
            life, bell = self._lives[owner]
            if not life.is_in_place():
                self._replace_life(owner, life, bell)
        with self._writing() as now:
            sqlite_upkeep.keep_clock(self._db)
            sqlite_upkeep.beat(self._db, owner, now)

    def _replace_life(self, owner: Owner, life: Life, bell: Doorbell) -> None:
        """Somebody removed our lock file: make another, or others would take us for dead."""
        assert self._folder is not None
        self._folder.make()
        again = Life(self._folder)
        again.marks[:] = life.marks
        with self._writing():
            sqlite_upkeep.rename_worker(self._db, owner, again.token)
        self._lives[owner] = (again, Doorbell(self._folder, again.token))
        bell.close()
        life.end()

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> list[tuple[WorkerInfo, list[Ack]]]:
        rescued: list[tuple[WorkerInfo, list[Ack]]] = []
        if self._folder is None:
            return rescued
        for info, boot in self._others():
            dead, running = self._is_dead(info, boot)
            if not dead:
                continue
            with self._writing() as now:
                self._unfinished = None
                if not sqlite_upkeep.remove_worker(self._db, info.owner):
                    continue  # somebody else was first
                acks = [
                    decide(claim, running is None or claim.id in running)
                    for claim in sqlite_upkeep.running_of(self._db, info.owner)
                ]
                if acks:
                    sqlite_step.ack(self._db, acks, now=now, worker=info.name)
                crashpoint("rescue.before_commit")
            crashpoint("rescue.after_commit")
            self._folder.forget(info.token)
            rescued.append((info, acks))
        return rescued

    def _others(self) -> list[tuple[WorkerInfo, str]]:
        with self._look() as db:
            return [pair for pair in sqlite_look.workers(db) if pair[0].owner not in self._lives]

    def _is_dead(self, info: WorkerInfo, boot: str) -> tuple[bool, frozenset[JobId] | None]:
        if boot != clock.boot_id():
            return True, frozenset()  # the machine went down: no job's fault
        assert self._folder is not None
        path = self._folder.path / f"{info.token}.lock"
        if path.exists():
            return running_of_dead(path)
        # Its lock file is gone, which says nothing: its heartbeat decides.
        silent_ms = clock.wall_ms() - info.seen_at
        return silent_ms > sqlite_upkeep.LEASE_MS, None

    def workers(self) -> list[WorkerInfo]:
        with self._look() as db:
            return [info for info, _boot in sqlite_look.workers(db)]

    def unpark(self, known: Container[str] | None) -> int:
        with self._look() as db:
            tasks = [task for task in sqlite_look.parked_tasks(db) if known is None or task in known]
        if not tasks:
            return 0
        with self._writing():
            return sqlite_upkeep.unpark(self._db, tasks)

    # --- looking and editing ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _look(self) -> Iterator[sqlite3.Connection]:
        self._fork.check()
        if self.in_memory:
            held: contextlib.AbstractContextManager[Any] = (
                contextlib.nullcontext() if self._lock.is_mine else self._lock.held(self._busy_s)
            )
        else:
            held = self._reading
        with held:
            if not self._is_open:
                raise StoreUnavailable(self.label, "the store is closed.")
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise translated(error, self.label, self._busy_s) from error

    def get(self, ids: Sequence[JobId]) -> list[Record]:
        with self._look() as db:
            return sqlite_look.get(db, ids)

    def find(self, query: Query) -> list[Record]:
        with self._look() as db:
            return sqlite_look.find(db, query)

    def counts(self) -> Counts:
        with self._look() as db:
            return sqlite_look.counts(db, clock.wall_ms())

    def unfinished(self) -> int:
        with self._look() as db:
            return sqlite_step.count_unfinished(db)

    def next_due_s(self, queues: Sequence[str]) -> float | None:
        with self._look() as db:
            due_at = sqlite_look.next_due(db, queues)
            return None if due_at is None else max(0.0, (due_at - clock.wall_ms()) / 1000)

    def edit(self, ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        with self._writing() as now:
            self._unfinished = None
            return sqlite_upkeep.edit(self._db, ids, edit, now)

    def prune(self, keep: Keep, *, limit: int) -> int:
        with self._look() as db:
            before = sqlite_look.prune_before(db, keep, clock.wall_ms())
        if before is None:
            return 0
        with self._writing():
            return sqlite_upkeep.prune(self._db, before, limit)

    def changed(self) -> bool:
        if self.in_memory or self._lock.is_mine or not self._lock.try_threads():
            return False
        try:
            version = self._version() if self._is_open else self._seen
        finally:
            self._lock.release_threads()
        changed = version != self._seen
        self._seen = version
        return changed

    def _version(self) -> int:
        # Says that another connection has committed; 3 µs, no disk.
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def ring(self) -> None:
        if self._ringer is not None:
            own = next((life.token for life, _bell in self._lives.values()), None)
            self._ringer.ring(own)

    def doorbell(self) -> int | None:
        return next((bell.fileno() for _life, bell in self._lives.values()), None)

    def hush(self) -> None:
        """Take the rings that came in, so that the doorbell is quiet again."""
        for _life, bell in self._lives.values():
            bell.hush()

    def tidy(self) -> None:
        if self.in_memory:
            return
        self._remove_orphans()
        pages = 1
        while pages:
            with self._writing():
                pages = sqlite_upkeep.shrink(self._db)
        if self._log_bytes == 0 and self._log_size() > 2 * CHECKPOINT_BYTES:
            self.checkpoint("TRUNCATE")

    def _log_size(self) -> int:
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def _remove_orphans(self) -> None:
        """Remove lock files of workers that died between making it and their first commit."""
        assert self._folder is not None
        with self._look() as db:
            known = {info.token for info, _boot in sqlite_look.workers(db)}
        for token in self._folder.tokens() - known:
            if running_of_dead(self._folder.path / f"{token}.lock")[0]:
                self._folder.forget(token)


def _part(draft: Draft, start: int, stop: int) -> Draft:
    return Draft(
        draft.task, draft.queue, draft.payloads[start:stop], draft.priority, draft.delay_s, draft.run_at
    )


def _merged(drafts: Sequence[Draft]) -> Iterator[Draft]:
    """Join neighbours that differ in their payloads alone, so that they share a statement."""
    waiting: list[Draft] = []
    for draft in drafts:
        if waiting and not _alike(waiting[0], draft):
            yield _joined(waiting)
            waiting = []
        waiting.append(draft)
    if waiting:
        yield _joined(waiting)


def _alike(one: Draft, other: Draft) -> bool:
    return (one.task, one.queue, one.priority, one.delay_s, one.run_at) == (
        other.task,
        other.queue,
        other.priority,
        other.delay_s,
        other.run_at,
    )


def _joined(drafts: Sequence[Draft]) -> Draft:
    if len(drafts) == 1:
        return drafts[0]
    first = drafts[0]
    payloads = [payload for draft in drafts for payload in draft.payloads]
    return Draft(first.task, first.queue, payloads, first.priority, first.delay_s, first.run_at)


def _str(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
