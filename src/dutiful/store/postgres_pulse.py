"""
The pulse: all that an idle worker wants to know, in one question every 0.7 s.

    is my lock still mine?          else: connect anew
    who cannot be seen to live?     → `Watch`: who is dead
    was a job of mine cancelled?
    when is the next job due?       the backstop of NOTIFY, and the alarm clock of delayed jobs

With the heartbeat and what else there is, a worker that has nothing to do asks less than twice
a second.
"""

import threading
import time
from collections.abc import Collection, Sequence

from msgspec import Struct

from dutiful.job import JobId
from dutiful.store import postgres_worker_rows as rows
from dutiful.store.contract import Owner
from dutiful.store.postgres_access import Connection
from dutiful.store.postgres_look import next_due
from dutiful.store.postgres_marks import LocalFolder
from dutiful.store.postgres_worker_rows import LOCKS, MISSING, Missing

# A killed worker is noticed so late at most.
PULSE_S = 0.72
# Without contact for so long a worker stops what it runs; after half of it, it starts nothing more.
LEASE_S = 10.0
# Others wait a little longer before they take over, so that it has stopped.
RESCUE_S = 12.5
# A worker elsewhere whose lock has just gone may have lost its connection, and be back in some milliseconds.
GRACE_S = 0.2
# Jobs of an owner that nobody knows: it may be a worker that is about to register again.
ORPHAN_S = 5.0


class Heard(Struct, frozen=True):
    """What a pulse has told. `due_s`: seconds until the next job is due; None: none is."""

    has_lock: bool
    has_cancelled: bool
    due_s: float | None
    missing: list[Missing]


def _soonest(*, suspects: bool) -> str:
    """Return the query for the ms until the next job of any of the queues is due."""
    of_one = next_due(suspects=suspects, skip=False).replace("%(queue)s", "queues.name")
    return (
        "SELECT min(soonest.ms) FROM unnest(%(queues)s::text[]) AS queues (name),"
        f" LATERAL ({of_one}) AS soonest (ms)"
    )


_PULSE = f"""
SELECT EXISTS (SELECT FROM ({LOCKS}) AS locks WHERE id = %(owner)s AND pid = pg_backend_pid()),
       EXISTS (SELECT FROM dutiful.job                                     -- index job_cancel
                WHERE owner = %(owner)s AND cancel_at IS NOT NULL AND state = 'running'),
       least(({_soonest(suspects=False)}), ({_soonest(suspects=True)})),
       ({MISSING})
"""


def ask(db: Connection, owner: Owner, queues: Sequence[str], *, here_since: int) -> Heard:
    """Ask once."""
    values = {
        "owner": owner,
        "queues": list(queues),
        "mine": [owner],
        "lease_ms": round(RESCUE_S * 1000),
        "here_since": here_since,
    }
    has_lock, has_cancelled, due_ms, missing = db.one(_PULSE, values)
    due_s = None if due_ms is None else max(0.0, due_ms / 1000)
    return Heard(has_lock, has_cancelled, due_s, rows.read_missing(missing))


class Dead(Struct, frozen=True):
    """A worker that is dead, and which jobs it was running then; None: any that it had claimed."""

    worker: Missing
    running: frozenset[JobId] | None


class Watch:
    """Tells the dead from those that only cannot be seen."""

    def __init__(self, folder: LocalFolder) -> None:
        self._folder = folder
        self._looking = threading.Lock()
        self._since: dict[Owner, float] = {}
        self._orphan_since: dict[Owner, float] = {}
        self.has_orphans = False

    def judge(self, missing: Sequence[Missing]) -> tuple[list[Dead], bool]:
        """Return who is dead, and whether another look after `GRACE_S` may show more."""
        now = time.monotonic()
        with self._looking:
            self._since = {each.owner: self._since.get(each.owner, now) for each in missing}
            since = self._since
        dead: list[Dead] = []
        is_close = False
        for each in missing:
            local = self._folder.look_at(each.token, each.host, each.boot)
            gone_s = now - since[each.owner]
            if local.is_dead:
                dead.append(Dead(each, local.running))
            elif local.is_known:
                # It lives here, without its connection: it stops by itself when its lease is over.
                if each.is_due and gone_s >= RESCUE_S:
                    dead.append(Dead(each, None))
            elif each.is_due and (gone_s >= GRACE_S or not each.has_just_gone):
                dead.append(Dead(each, None))
            else:
                is_close = is_close or each.has_just_gone
        return dead, is_close

    def judge_orphans(self, owners: Collection[Owner]) -> list[Owner]:
        """Return the unknown owners of jobs that have been so for `ORPHAN_S`."""
        now = time.monotonic()
        with self._looking:
            self._orphan_since = {owner: self._orphan_since.get(owner, now) for owner in owners}
            old = [owner for owner, since in self._orphan_since.items() if now - since >= ORPHAN_S]
            self.has_orphans = bool(old)
            return old
