"""
The connection that says that a worker lives, and the thread that holds it.

A lock of the server's, on the worker's own number, belongs to this one connection: it falls when
the process dies, however that happens, and everybody sees it. On it the worker also LISTENs, and
asks its pulse. When the connection is lost, the thread connects anew, takes the lock again, and
writes that it is there, in a new incarnation: what the worker had is still its own, unless others
have taken over in the meantime, which `Store.held` tells. Who takes over holds that same lock
meanwhile, so that there is never a doubt.

Behind a pooler that gives each transaction another session there are neither locks nor LISTEN.
Then the heartbeat is the lease, and the pulse is the poll.
"""

import contextlib
import os
import random
import select
import threading
import time

import msgspec

from dutiful.errors import StoreError, StoreUnavailable
from dutiful.store import postgres_pulse, postgres_worker_rows
from dutiful.store.contract import Pulse
from dutiful.store.postgres_access import Access, Connection, Error
from dutiful.store.postgres_bell import ASK, CANCEL, Bell, Ringer
from dutiful.store.postgres_pulse import Heard, Watch
from dutiful.store.postgres_worker_rows import Registration

BEAT_S = 2.5  # of a lease that nothing else renews: it may fail three times
ORPHANS_EVERY_S = 30.0
LOCK_WAIT_S = 5.0  # for a rescue to end, or the server to let go of our lost connection
LOCK_LOOK_S = 0.02
BACKOFF_S, BACKOFF_MAX_S = 0.05, 3.0
BREAK_OFF_LEASES = 1.5
END_S = 1.5  # a thread that is connecting cannot be interrupted; it ends by itself
# The server must not let go of a silent worker's lock before that has stopped what it runs (LEASE_S).
PATIENCE = (
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "15000"),
)


class Hold:
    """
    Holds one worker's lock, from `begin` to `end`.

    Attributes:
        who: What is written of the worker; its incarnation rises with every new connection.
        here_since: The server's instant of the last time that it was written.
    """

    def __init__(self, access: Access, who: Registration, bell: Bell, ringer: Ringer, watch: Watch) -> None:
        self._access = access
        self.who = who
        self.bell = bell
        self._ringer = ringer
        self._watch = watch
        self._db: Connection | None = None
        self._backend = 0
        self.here_since = 0
        self._contact_at = 0.0
        self._problem: str | None = None
        self._has_dead = False
        self._has_cancelled = False
        self._due_at = float("inf")
        self._pulse_at = 0.0
        self._beat_at = 0.0
        self._orphans_at = 0.0
        self._ending = threading.Event()
        self._inlet, self._outlet = os.pipe()
        self._thread = threading.Thread(target=self._run, name="dutiful-hold", daemon=True)

    # --- for the worker's threads ---------------------------------------------------------------------

    def begin(self) -> None:
        """
        Connect, take the lock, and register.

        Raises:
            StoreError: It cannot be done; nothing is registered.
        """
        try:
            with self._access.translating():
                self._connect(None, self.who.incarnation)
        except BaseException:
            self._close_pipe()
            raise
        self._thread.start()

    def pulse(self) -> Pulse:
        """Return how the worker stands; asks nobody."""
        silent_s = time.monotonic() - self._contact_at
        if silent_s > BREAK_OFF_LEASES * postgres_pulse.LEASE_S:
            # The network swallows what is sent, or the server is frozen: nobody is to wait for it for long.
            # What has been connected since may lead to a server that is well, if far away.
            self._access.break_off(until=self._contact_at)
        return Pulse(
            dead=self._has_dead,
            cancelled=self._has_cancelled,
            incarnation=self.who.incarnation,
            may_start=silent_s <= postgres_pulse.LEASE_S / 2,
            may_run=silent_s <= postgres_pulse.LEASE_S,
            problem=self._problem,
            is_polling=not self.who.has_lock,
        )

    def renew(self, db: Connection) -> None:
        """Register again: somebody has removed the row."""
        self._register(db, self.who.incarnation + 1)

    def _register(self, db: Connection, incarnation: int) -> None:
        who = msgspec.structs.replace(self.who, incarnation=incarnation)
        self.here_since = postgres_worker_rows.register(db, who)
        self.who.incarnation = incarnation  # last: who sees it asks what is left to it

    def end(self) -> None:
        """Let go of the lock."""
        os.write(self._outlet, b"1")  # first: the thread closes the pipe at its end
        self._ending.set()
        self._thread.join(END_S)
        db = self._db
        if self._thread.is_alive() and db is not None:  # a question is without an answer
            db.break_off()
            self._thread.join(END_S)

    def let_go(self) -> None:
        """In a forked child, where the thread does not live on."""
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._inlet)
        os.close(self._outlet)

    # --- the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._serve()
            except (Error, StoreError) as error:
                self._lose(str(error).strip())
            except Exception as error:  # noqa: BLE001  # a bug in us must not cost the worker its lock
                self._lose(repr(error))
            else:
                break
            self._come_back()
        self._give_up_lock()
        self._drop()
        self._close_pipe()

    def _give_up_lock(self) -> None:
        """Let others see at once that it is gone: a server takes a moment to notice a closed connection."""
        if self._db is not None and self.who.has_lock:
            with contextlib.suppress(Error):  # then it notices
                postgres_worker_rows.unlock(self._db, self.who.owner)

    def _serve(self) -> None:
        """Listen, and ask the pulse, until the end or until the connection is lost."""
        db = self._db
        assert db is not None, "connected"
        poll = select.poll()
        poll.register(db.fileno(), select.POLLIN)
        poll.register(self._inlet, select.POLLIN)
        while not self._ending.is_set():
            now = time.monotonic()
            if now >= self._pulse_at:
                self._feel(db)
            if now >= self._due_at:
                self._due_at = float("inf")
                self.bell.change()
            rest_s = min(self._pulse_at, self._due_at) - time.monotonic()
            if db.fileno() in [fd for fd, _event in poll.poll(max(0.0, 1000 * rest_s))]:
                self._listen(db)

    def _listen(self, db: Connection) -> None:
        """Take what the server has sent: rings, or its farewell."""
        db.pgconn.consume_input()
        while (notification := db.pgconn.notifies()) is not None:
            self._hear(notification.extra.decode())

    def _hear(self, payload: str) -> None:
        if payload.startswith(f"{ASK} "):
            self._ringer.asked.hear(payload.removeprefix(f"{ASK} "))
            return
        word = self._ringer.heard(payload)
        if word == CANCEL:
            self._has_cancelled = True
        if word is not None:
            self.bell.ring()

    def _feel(self, db: Connection) -> None:
        """Ask the pulse; the contact counts from before, so that no way back makes a lease longer."""
        began_at = time.monotonic()
        if not self.who.has_lock and began_at >= self._beat_at:
            if not postgres_worker_rows.touch(db, self.who.owner):
                self.renew(db)  # taken for dead, as after a long sleep
            self._beat_at = began_at + BEAT_S
            self._contact_at = began_at
        heard = postgres_pulse.ask(db, self.who.owner, self.who.queues, here_since=self.here_since)
        if self.who.has_lock:
            if not heard.has_lock:
                raise StoreUnavailable(
                    self._access.label, "the server does not hold the worker's lock any more"
                )
            self._contact_at = began_at
        # Not in step with others: all of them asking at once would make a crowd.
        self._pulse_at = began_at + postgres_pulse.PULSE_S * random.uniform(0.97, 1.0)  # noqa: S311
        self._take(heard)
        if began_at >= self._orphans_at:
            orphans = postgres_worker_rows.orphan_owners(db)
            self._watch.judge_orphans(orphans)
            self._orphans_at = began_at + (postgres_pulse.ORPHAN_S if orphans else ORPHANS_EVERY_S)

    def _take(self, heard: Heard) -> None:
        dead, is_close = self._watch.judge(heard.missing)
        has_dead = bool(dead) or is_close or self._watch.has_orphans
        if (has_dead and not self._has_dead) or (heard.has_cancelled and not self._has_cancelled):
            self._has_dead, self._has_cancelled = has_dead, heard.has_cancelled
            self.bell.ring()
        self._has_dead, self._has_cancelled = has_dead, heard.has_cancelled
        # What falls due before the next pulse is told of when it does.
        if heard.due_s is not None and time.monotonic() + heard.due_s < self._pulse_at:
            self._due_at = time.monotonic() + heard.due_s

    # --- connecting --------------------------------------------------------------------------------------

    def _connect(self, spare: Connection | None, incarnation: int) -> None:
        began_at = time.monotonic()
        db = spare or self._access.connect("worker")
        db.connected_at = began_at  # the silence before is no sign against a spare one
        db.patience_s = postgres_pulse.LEASE_S  # what comes later is too late anyway
        try:
            # Behind a pooler a lock would stay with a session that is others' next.
            self.who.has_lock = not self._access.is_pooled
            if self.who.has_lock:
                self._take_lock(db)
                db.add_notify_handler(lambda notification: self._hear(notification.payload))
                db.run(f'LISTEN "{self._ringer.channel}"')
            self._register(db, incarnation)
        except BaseException:
            self._access.disconnect(db)
            raise
        self._db, self._backend = db, db.info.backend_pid
        self._contact_at = began_at
        self._pulse_at = self._beat_at = 0.0
        self._problem = None

    def _take_lock(self, db: Connection) -> None:
        until = time.monotonic() + LOCK_WAIT_S
        while not postgres_worker_rows.try_lock(db, self.who.owner, former=self._backend):
            if time.monotonic() > until or self._ending.wait(LOCK_LOOK_S):
                raise StoreUnavailable(
                    self._access.label, "the worker's lock is held by another connection; it is tried again."
                )
        settings = (*PATIENCE, ("application_name", self._access.name_of("worker")))
        db.run(
            "SELECT " + ", ".join(["set_config(%s, %s, false)"] * len(settings)),
            [word for pair in settings for word in pair],
        )

    def _lose(self, problem: str) -> None:
        self._problem = problem
        self._drop()

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(Error):
                self._access.disconnect(db)

    def _come_back(self) -> None:
        """
        Connect anew, again and again: soon at first, then more patiently, and not in step with others.

        First on a connection that is there already. That takes one trip to the server, where a new one takes
        eight or more: and a worker that is far away has to be back before others take it for dead.
        """
        backoff_s = 0.0
        while not self._ending.wait(backoff_s * random.uniform(0.5, 1.0)):  # noqa: S311
            try:
                self._connect(None if backoff_s else self._access.spare(), self.who.incarnation + 1)
            except (Error, StoreError) as error:
                self._problem = str(error).strip()
            except Exception as error:  # noqa: BLE001  # no error may end this thread: it is the worker's life
                self._problem = repr(error)
            else:
                # What rang in between was not heard.
                self.bell.ring()
                self.bell.change()
                return
            backoff_s = min(BACKOFF_MAX_S, max(BACKOFF_S, 2 * backoff_s))
