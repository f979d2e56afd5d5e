"""
Waking, by NOTIFY: who rings, and what a ring is on this side.

A NOTIFY inside the transaction that stores a job would make all commits of the database wait
for each other: PostgreSQL takes one lock for it until the commit is done. So a ring is a
transaction of its own. If the last one is a while ago it is sent right behind the commit, in the
same trip to the server; else by a thread, a few milliseconds later, for all that gathered. A ring
that is lost costs at most a pulse: each worker looks for itself every `PULSE_S` (see `postgres_pulse`).
"""

import contextlib
import os
import secrets
import threading
import time

from dutiful.errors import StoreError
from dutiful.store.postgres_access import Access, Connection, Error

RING_EVERY_S = 0.005  # a burst of sends rings so often; each ring costs every worker a claim
DUE, CANCEL = "due", "cancel"

Ring = tuple[str, str]  # a channel, and what is sent on it


class Bell:
    """Two descriptors that a worker's loop waits on: somebody rang, and something may have changed."""

    def __init__(self) -> None:
        self._door = _pipe()
        self._changes = _pipe()
        self._is_changed = False
        self._closing = threading.Lock()
        self._is_closed = False

    def fileno(self) -> int:
        """Return what becomes readable when somebody rings."""
        return self._door[0]

    def changes(self) -> int:
        """Return what becomes readable when `take_change` will be true."""
        return self._changes[0]

    def ring(self) -> None:
        """Make the doorbell readable."""
        self._put(self._door)

    def change(self) -> None:
        """Say that something may be due."""
        self._is_changed = True
        self._put(self._changes)

    def take_change(self) -> bool:
        """Return whether something may be due, once."""
        is_changed, self._is_changed = self._is_changed, False
        return is_changed

    def hush(self) -> None:
        """Take all rings that came in."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._door[0], 4096):
                pass

    def _put(self, pipe: tuple[int, int]) -> None:
        with self._closing:  # else the number might be another file's by now
            if not self._is_closed:
                with contextlib.suppress(BlockingIOError):  # full: it is readable as it is
                    os.write(pipe[1], b"1")

    def close(self) -> None:
        """Close the pipes."""
        with self._closing:
            self._is_closed = True
            for fd in (*self._door, *self._changes):
                os.close(fd)

    def let_go(self) -> None:
        """In a forked child: close the copies of the pipes."""
        self._closing = threading.Lock()  # a thread that is not here may hold the other
        self.close()


class Ringer:
    """
    Rings for the workers of other processes, and never keeps anybody waiting.

    What is sent has two words: what it is about, and who rings, so that nobody wakes himself.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self.channel = access.schema_name
        self.name = secrets.token_hex(8)
        self._wanted: set[str] = set()
        self._rung_at = 0.0
        self._came = threading.Event()
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._db: Connection | None = None

    def ring(self, word: str = DUE) -> None:
        """Have it sent, soon."""
        if word in self._wanted:
            return
        self._wanted.add(word)
        self._came.set()
        if self._thread is None:
            self._start()

    def ride(self) -> Ring | None:
        """Return a ring to be sent at once by who has just stored something; None: `ring`, it is too soon."""
        now = time.monotonic()
        if self._wanted or now < self._rung_at + RING_EVERY_S or not self._access.is_open:
            return None
        self._rung_at = now
        return self.channel, f"{DUE} {self.name}"

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._run, name="dutiful-ringer", daemon=True)
                with contextlib.suppress(RuntimeError):  # "can't create new thread": the pulses serve
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            self._came.wait()
            # Clear, then take: what is wanted from here on sets it again.
            self._came.clear()
            while self._wanted:
                self._closing.wait(max(0.0, self._rung_at + RING_EVERY_S - time.monotonic()))
                self._rung_at = time.monotonic()
                self._send(self._wanted.pop())
            if self._closing.is_set() and not self._wanted:
                break
        self._hang_up()

    def _send(self, word: str) -> None:
        """Send one ring. On a connection that was lost meanwhile a second time; else the pulses serve."""
        for _ in range(2):
            try:
                if self._db is None:
                    self._db = self._access.connect("bell")
                    if not self._access.is_pooled:
                        # Nothing is stored by a ring: it need not wait for the disk.
                        self._db.execute("SET synchronous_commit = off")
                self._db.execute("SELECT pg_notify(%s, %s)", (self.channel, f"{word} {self.name}"))
            except (Error, StoreError):
                self._hang_up()
            else:
                return

    def _hang_up(self) -> None:
        if self._db is not None:
            self._access.disconnect(self._db)
            self._db = None

    def close(self) -> None:
        """Send what is wanted still, and end."""
        with self._starting:
            self._closing.set()
            thread = self._thread
        self._came.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def heard(self, payload: str) -> str | None:
        """Return what a notification is about; None for one's own. Any other word means: due."""
        word, _, name = payload.partition(" ")
        if word == CANCEL:
            return CANCEL
        return None if name == self.name else DUE


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends
