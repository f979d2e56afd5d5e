"""
An open SQLite store: one connection that writes, one that reads, and how each may be used.

All writes, of all our processes, take turns under one lock (liveness.WriteLock). A write
that was interrupted anywhere, by an exception or a signal, leaves facts that the next one
finds: a transaction still open is rolled back. What is committed is committed, even if
the exception came right after; `Outcome.committed` tells.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from dutiful.errors import ConfigError, StoreBusy, StoreError, StoreUnavailable
from dutiful.store import sqlite_step, sqlite_upkeep
from dutiful.store.clock import Clock, StepDetector
from dutiful.store.contract import Outcome
from dutiful.store.fork import ForkGuard
from dutiful.store.liveness import FileLock, Folder
from dutiful.store.log_room import LogRoom
from dutiful.store.sqlite_file import (
    FileIdentity,
    check_there,
    connect,
    migrate,
    prepare,
    reachable,
    translated,
)

MEMORY = ":memory:"
INSIDE_TRANSACTION = (
    "this is inside ctx.transaction(), which holds the write lock; nothing was changed. "
    "Send with transaction=…, or after the block."
)
# Which store's own_transaction the caller is in. Goes along into the threads of asyncio.to_thread.
_within: ContextVar[object] = ContextVar("dutiful_transaction", default=None)
# Between checkpoints the log may grow by about this much. Larger saves fsyncs, smaller saves
# disk and the time of a restart; 8 MiB is a compromise.
CHECKPOINT_BYTES = 8 * 1024 * 1024


class Access:
    """
    The way to a SQLite file, or to memory.

    Args:
        path: The file, or ":memory:".
        durability, busy_s: See Config.
        create: Whether to make the store if it is not there.
        clock: Where its time comes from.
        let_go: Called in a forked child, to let go of what else is the parent's.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: Literal["full", "normal"],
        busy_s: float,
        create: bool,
        clock: Clock,
        let_go: Callable[[], None],
    ) -> None:
        self.clock = clock
        self.in_memory = path == MEMORY
        # Two names of one file must lead to one folder of locks.
        self.path = Path(path) if self.in_memory else Path(path).resolve()
        self._given = Path(path)
        self.label = str(self.path)
        self.busy_s = busy_s
        self.folder = None if self.in_memory else Folder(self.path)
        self.is_open = False
        self.resets = 0  # how often a write failed: what was counted before may not hold
        self._create = create
        self._durability: Literal["full", "normal"] = durability
        # Each use of the writing connection is short, so its threads wait without a time limit;
        # other processes, and handlers in their own transactions, may be slow: those with one.
        self._threads = threading.Lock()
        self._file_lock: FileLock | None = None
        self._transacting: set[int] = set()  # threads inside own_transaction
        self._opening = threading.Lock()
        self._reading = threading.RLock()
        self._let_go = let_go
        self._fork = ForkGuard(self._after_fork)
        self._log_bytes = 0
        self._room: LogRoom | None = None
        self._is_broken = False  # after an I/O error, until fresh connections are open
        self._seen = 0

    # --- opening and closing --------------------------------------------------------------------

    def open(self) -> bool:
        """Open or create the store; return whether it was closed before."""
        if self.is_open:
            self._fork.check()
        with self._opening:
            if self.is_open:
                return False
            self._fork.renew()
            if self.folder is not None:
                with reachable(self.path):
                    if not self._create:
                        check_there(self.path)
                    prepare(self._given, self.path)
                    self.folder.make()
                    self._file_lock = self._new_file_lock()
            try:
                with self._locked_file():
                    self._connect()
            except BaseException:
                self._close_lock()
                raise
            self.is_open = True
            return True

    def _new_file_lock(self) -> FileLock:
        assert self.folder is not None, "memory needs none"
        return FileLock(self.folder.path / "write.lock", self.label, self.busy_s)

    def _close_lock(self) -> None:
        if self._file_lock is not None:
            self._file_lock.close()
            self._file_lock = None

    def _connect(self) -> None:
        try:
            self.db = connect(str(self.path), self._durability, busy_s=self.busy_s)
            try:
                migrate(self.db, self.label)
                sqlite_step.prepare_fused(self.db)
                self.reader = self.db if self.in_memory else self.connection()
            except BaseException:
                self.db.close()
                raise
        except sqlite3.Error as error:
            raise translated(error, self.label, self.busy_s) from error
        self.db.text_factory = bytes  # a batch that is no UTF-8 is looked into, not lost
        if not self.in_memory:
            self.reader.text_factory = _readable
            self._identity = FileIdentity(self.path)
            self._close_room()
            if self._durability == "full":  # else nobody waits for a sync
                self._room = LogRoom(self.path.with_name(self.path.name + "-wal"), CHECKPOINT_BYTES)
        self.resets += 1
        self._log_bytes = 0
        self._seen = self.version()
        self._steps = StepDetector(self.clock)
        self._is_clock_set = False

    def connection(self) -> sqlite3.Connection:
        """Return a new connection, for the caller to close."""
        return connect(str(self.path), self._durability, busy_s=self.busy_s)

    def close(self) -> None:
        """Close the connections. In a forked child they are the parent's, and stay."""
        if not self.is_open or self._fork.is_forked:
            return
        with self._opening:
            if not self.is_open:
                return
            try:
                with self._locked_file(), self._reading:
                    # The last connection to close checkpoints and removes the log: under our lock.
                    self._close_connections()
            except StoreBusy:
                with self._threads, self._reading:
                    # Whoever holds the lock has a connection too, so ours is not the last.
                    self._close_connections()
            self._close_lock()

    def _close_connections(self) -> None:
        self.is_open = False  # first: whatever interrupts what follows, the next open begins anew
        self._close_room()
        self.reader.close()
        self.db.close()

    def _close_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.close()

    def _after_fork(self) -> None:
        if self.is_open:
            self._close_room()
            self._let_go()
            self._fork.immortalize(self.db, self.reader)
            self._close_lock()

    # --- writing -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(
        self, outcome: Outcome | None = None, then: Callable[[], None] | None = None
    ) -> Generator[int]:
        """
        Hold the write lock and a transaction; give the time. Commit at the end, or roll back.

        `then` is called after the commit, with the lock still held.
        """
        with self._locked():
            db = self.db
            committing = False
            try:
                db.execute("BEGIN IMMEDIATE")
                self._set_clock()
                yield self.clock.wall_ms()
                committing = True
                db.execute("COMMIT")
            except BaseException as error:
                self._roll_back(error, outcome, committing=committing)
                raise
            if then is not None:
                then()
            self._committed(outcome)

    def write_at_once(self, outcome: Outcome, statement: Callable[[int], None]) -> None:
        """Run, under the write lock, one statement that commits by itself; it is told the time."""
        self._check_usable()
        with self._threads:
            lock = self._file_lock
            try:
                if lock is not None:
                    lock.acquire()
                self._write_at_once(outcome, statement)
            finally:
                if lock is not None:
                    lock.release()

    def _write_at_once(self, outcome: Outcome, statement: Callable[[int], None]) -> None:
        self._prepare()
        db = self.db
        try:
            if not self._is_clock_set or self._steps.step_ms():
                db.execute("BEGIN IMMEDIATE")
                self._set_clock()
                db.execute("COMMIT")
            statement(self.clock.wall_ms())
        except sqlite3.Error as error:
            self._roll_back(error, outcome, committing=False)
            raise
        self._committed(outcome)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        self._check_usable()
        with self._locked_file():
            self._prepare()
            yield

    @contextlib.contextmanager
    def _locked_file(self) -> Generator[None]:
        """Keep out our other threads and processes."""
        with self._threads:
            lock = self._file_lock
            try:
                if lock is not None:
                    lock.acquire()
                yield
            finally:
                if lock is not None:
                    lock.release()

    def _check_usable(self) -> None:
        self._fork.check()
        if self.is_in_transaction_here():
            raise ConfigError(INSIDE_TRANSACTION)

    def _prepare(self) -> None:
        self._check_open()
        if self._is_broken:
            self._begin_again()
        if self.db.in_transaction:  # an interruption left it
            self.db.execute("ROLLBACK")

    def _check_open(self) -> None:
        if not self.is_open:
            raise StoreUnavailable(self.label, "the store is closed; nothing was changed.")

    def _committed(self, outcome: Outcome | None) -> None:
        """It counts only if it went into the file that others will open: so look after the commit."""
        if not self.in_memory:
            self._identity.check()
        if outcome is not None:
            outcome.committed = True
        if self._room is not None:  # under our threads' lock: nobody closes it meanwhile
            self._room.make()

    def _roll_back(self, error: BaseException, outcome: Outcome | None, *, committing: bool) -> None:
        """Undo what is not committed; find out what is. A driver's error is raised as ours."""
        self.resets += 1
        self._is_clock_set = False  # what was moved with the clock is rolled back too
        db = self.db
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the next write finds it and tries again
                db.execute("ROLLBACK")
        elif committing and not isinstance(error, sqlite3.Error):
            self._committed(outcome)  # a signal's exception, after COMMIT had returned
        if isinstance(error, sqlite3.Error):
            ours = translated(error, self.label, self.busy_s)
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_IOERR:
                self._after_io_error()
            raise ours from error

    def _after_io_error(self) -> None:
        """
        Begin again with fresh connections, which read what is really there.

        A failed fsync must not be repeated on the same state of the file: the second may claim
        success for pages that were dropped (PostgreSQL wiki, "Fsync Errors"). And the failed
        commit's frames may lie in the log: write over them, or a crash before the next commit
        could bring them to life.
        """
        if self.in_memory:
            return
        self._is_broken = True
        with contextlib.suppress(StoreError):  # the next write tries again
            self._begin_again()

    def _begin_again(self) -> None:
        self._identity.check()  # opening would make a new file in place of a deleted one
        with self._reading, self.translating():
            self.reader.close()
            self.db.close()
            self._connect()
            # Another value, or nothing would be written.
            self.db.execute("UPDATE dutiful_meta SET value = value + 1 WHERE key = 'next_id'")
        self._is_broken = False

    def follow_clock(self) -> None:
        """Move due times now if the wall clock was set."""
        if self._steps.step_ms():
            with self.writing():
                pass

    def _set_clock(self) -> None:
        """Follow the wall clock when it was set, and move the due times that came from delays."""
        if not self._is_clock_set or self._steps.step_ms():
            self._steps.offset = sqlite_upkeep.follow_clock(self.db, self.clock.offset_ms())
            self._is_clock_set = True

    @contextlib.contextmanager
    def own_transaction(self) -> Generator[sqlite3.Connection]:
        """Hold the write lock, and give a connection in a transaction, for a user to write on."""
        self._check_usable()
        me = threading.get_ident()
        if me in self._transacting:
            raise ConfigError(
                "another coroutine of this event loop is inside ctx.transaction(); nothing was changed. "
                "Do not await inside the block, or do its work in a sync handler."
            )
        self._transacting.add(me)
        token = _within.set(self)
        try:
            with self._memory_transaction() if self.in_memory else self._file_transaction() as db:
                yield db
        finally:
            _within.reset(token)
            self._transacting.discard(me)
            self.resets += 1

    @contextlib.contextmanager
    def _memory_transaction(self) -> Generator[sqlite3.Connection]:
        with self._threads:
            self._prepare()
            try:
                self.db.text_factory = str  # for the user's own tables
                self.db.execute("BEGIN IMMEDIATE")
                yield self.db
            finally:
                self.db.text_factory = bytes
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    @contextlib.contextmanager
    def within(self) -> Generator[None]:
        """Be inside a transaction that somebody else has begun (see `is_in_transaction_here`)."""
        token = _within.set(self)
        try:
            yield
        finally:
            _within.reset(token)
            self.resets += 1

    def acquire_turn(self) -> Callable[[], None]:
        """
        Take the write lock for somebody else's transaction; return how to give it back, in any thread.

        Raises:
            StoreBusy: It was not free in time. ConfigError: In memory nobody else has one.
        """
        self._check_usable()
        self._check_open()
        if self.in_memory:
            raise ConfigError(
                "jobs in memory are on no connection but ours; nothing was written. "
                "Use ctx.transaction() without an argument."
            )
        self._identity.check()
        lock = self._new_file_lock()

        def release() -> None:
            lock.release()
            lock.close()

        try:
            lock.acquire()
        except BaseException:
            release()
            raise
        return release

    @contextlib.contextmanager
    def _file_transaction(self) -> Generator[sqlite3.Connection]:
        """On a connection and a lock of its own, like another process: our threads do not wait in line."""
        self._check_open()
        self._identity.check()
        lock = self._new_file_lock()
        try:
            lock.acquire()
            with self.translating():
                opened = self.connection()
            with contextlib.closing(opened) as db:
                with self.translating():
                    db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
        finally:
            lock.release()
            lock.close()

    @contextlib.contextmanager
    def translating(self) -> Generator[None]:
        """Raise a driver's error as ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise translated(error, self.label, self.busy_s) from error

    # --- reading -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def looking(self) -> Generator[sqlite3.Connection]:
        """Give the connection that reads. In a file it waits for no writer."""
        self._fork.check()
        held: contextlib.AbstractContextManager[Any] = self._reading
        if self.in_memory:
            is_mine = threading.get_ident() in self._transacting
            held = contextlib.nullcontext() if is_mine else self._threads
        with held:
            self._check_open()
            with self.translating():
                yield self.reader

    def is_in_transaction_here(self) -> bool:
        """Whether the caller, a thread or a coroutine, is inside `own_transaction`."""
        # In memory there is one connection, which the whole thread would wait for.
        return _within.get() is self or (self.in_memory and threading.get_ident() in self._transacting)

    def version(self) -> int:
        """Return a number that changes when another connection has committed; 3 µs, no disk."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    def changed(self) -> bool:
        """Whether another connection has committed since the last call; False while we commit."""
        if self.in_memory or not self._threads.acquire(blocking=False):
            return False
        try:
            version = self.version() if self.is_open else self._seen
        except sqlite3.Error:  # whoever uses the store next is told
            return False
        finally:
            self._threads.release()
        changed = version != self._seen
        self._seen = version
        return changed

    # --- the log -----------------------------------------------------------------------------------------

    def logged(self, size: int) -> None:
        """Count what a commit added to the log, and move the log into the file now and then."""
        self._log_bytes += size
        if self._log_bytes >= CHECKPOINT_BYTES and not self.in_memory:
            self.checkpoint()

    def checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"] = "PASSIVE") -> None:
        """
        Move what the log holds into the file, under the write lock.

        A failure loses nothing: what is committed is in the log, and a later one moves it.
        """
        with self._locked():
            self._log_bytes = 0
            with contextlib.suppress(sqlite3.Error):
                self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def shorten_log(self) -> None:
        """After a burst: cut the log's file back."""
        try:
            size = self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return
        if size > 2 * CHECKPOINT_BYTES:
            self.checkpoint("TRUNCATE")


def _readable(raw: bytes) -> str:
    """Read stored text for people: what is no UTF-8 is shown as such, and is no error."""
    return raw.decode("utf-8", "replace")
