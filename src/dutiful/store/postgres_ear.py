"""
Hearing from a PostgreSQL server that jobs have finished.

A NOTIFY for each job that ends would be paid by all, and mostly for nobody. So who waits asks, by a
NOTIFY to all workers, for the jobs that he waits for; whoever ends one of these rings. A worker
remembers it in memory, for a while, and is asked again before that is over: so a worker that
comes later, and a ring that is lost, cost a second or so, and nobody has to clean up.
"""

import contextlib
import select
import time
from collections.abc import Collection

from dutiful.errors import StoreError
from dutiful.job import JobId
from dutiful.store.ear import Waking
from dutiful.store.postgres_access import Access, Connection, Error
from dutiful.store.postgres_bell import ASK, done_channel

ASK_AGAIN_S = 5.0  # before the workers forget it: postgres_asked.ASKED_S
IDS_PER_NOTIFY = 350  # of 20 digits and a comma: within the 8,000 bytes that one may have
_TRY_AGAIN_S = 1.0


class PostgresEar:
    """Listens on a connection of its own. While it cannot, it only waits."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._waking = Waking()
        self._db: Connection | None = None
        self._asked: dict[JobId, float] = {}  # → when to ask again
        self._try_at = 0.0

    def wait(self, ids: Collection[JobId], timeout_s: float) -> None:
        try:
            self._listen()
            self._ask(ids)
        except (Error, StoreError):
            self._hang_up()
        poll = select.poll()
        poll.register(self._waking.inlet, select.POLLIN)
        if self._db is not None:
            poll.register(self._db.fileno(), select.POLLIN)
        poll.poll(1000 * timeout_s)
        self._waking.quiet()
        if self._db is not None:
            try:
                self._take()
            except (Error, StoreError):
                self._hang_up()

    def _listen(self) -> None:
        if self._db is None and time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + _TRY_AGAIN_S
            self._db = self._access.connect("ear")
            self._db.run(f'LISTEN "{done_channel(self._access.schema_name)}"')
            self._asked = {}

    def _ask(self, ids: Collection[JobId]) -> None:
        if self._db is None:
            return
        now = time.monotonic()
        self._asked = {job_id: at for job_id, at in self._asked.items() if at > now}
        new = [job_id for job_id in ids if job_id not in self._asked]
        for start in range(0, len(new), IDS_PER_NOTIFY):
            some = new[start : start + IDS_PER_NOTIFY]
            words = f"{ASK} {','.join(map(str, some))}"
            self._db.run("SELECT pg_notify(%s, %s)", (self._access.schema_name, words))
            self._asked.update(dict.fromkeys(some, now + ASK_AGAIN_S))

    def _take(self) -> None:
        """Take what has come: that something has, says all."""
        assert self._db is not None, "as its caller has looked"
        if self._db.is_spoken_to:
            self._db.pgconn.consume_input()
            while self._db.pgconn.notifies() is not None:
                pass

    def wake(self) -> None:
        self._waking.wake()

    def close(self) -> None:
        self._hang_up()
        self._waking.close()

    def _hang_up(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(Error, StoreError):
                self._access.disconnect(db)
