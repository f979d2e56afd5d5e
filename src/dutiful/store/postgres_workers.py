"""The workers of a PostgreSQL store: joining, living, dying, and the rescue of what the dead left."""

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence

import msgspec

from dutiful.crashpoint import crashpoint
from dutiful.job import Ack, Claim, JobId
from dutiful.store import clock, postgres_pulse, postgres_step, postgres_upkeep
from dutiful.store import postgres_worker_rows as rows
from dutiful.store.contract import Marks, Owner, Pulse, WorkerInfo
from dutiful.store.liveness import Life
from dutiful.store.postgres_access import Access, Connection
from dutiful.store.postgres_bell import CANCEL, Bell, Ring, Ringer
from dutiful.store.postgres_hold import Hold
from dutiful.store.postgres_marks import LocalFolder
from dutiful.store.postgres_pulse import Dead, Watch
from dutiful.store.postgres_worker_rows import Missing, Registration

# A worker's number is chosen by chance, and below what every JSON reader takes for a whole number. So
# it is given once, even if a failover loses the last rows, and the lock on it is nobody else's.
OWNER_BITS = 53


class _Here:
    """What a worker of this process holds while it lives."""

    def __init__(self, hold: Hold, life: Life | None) -> None:
        self.hold = hold
        self.life = life

    def end(self) -> None:
        """Let go of all, having left."""
        self._let_go_of_hold()
        if self.life is not None:
            self.life.end()

    def abandon(self) -> None:
        """Let go of all as a process does that dies: the row stays, and the file of marks."""
        self._let_go_of_hold()
        if self.life is not None:
            self.life.abandon()

    def _let_go_of_hold(self) -> None:
        self.hold.end()
        self.hold.bell.close()

    def let_go(self) -> None:
        """In a forked child: all is the parent's."""
        self.hold.let_go()
        self.hold.bell.let_go()
        if self.life is not None:
            self.life.abandon()


class Workers:
    """The workers of a store, those of this process and others."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._folder = LocalFolder()
        self._watch = Watch(self._folder)
        self._here: dict[Owner, _Here] = {}
        self._closing = threading.Event()
        self._ringer = Ringer(access)
        self._newest_seen: tuple[object, ...] = ()

    # --- ours ------------------------------------------------------------------------------------------

    def join(self, name: str, queues: Sequence[str], concurrency: int, tasks: Sequence[str] | None) -> Owner:
        """Register a worker: its lock is held before its row can be seen."""
        owner = 1 + secrets.randbelow(2**OWNER_BITS - 1)
        self._closing.clear()
        with contextlib.ExitStack() as undo:
            life = self._folder.life()
            if life is not None:
                undo.callback(life.end)
            who = Registration(
                owner,
                name,
                socket.gethostname(),
                clock.boot_id(),
                os.getpid(),
                secrets.token_hex(8) if life is None else life.token,
                tuple(queues),
                concurrency,
                None if tasks is None else tuple(tasks),
            )
            bell = Bell()
            undo.callback(bell.close)
            hold = Hold(self._access, who, bell, self._ringer, self._watch)
            hold.begin()
            self._here[owner] = _Here(hold, life)
            undo.pop_all()
        return owner

    def leave(self, owner: Owner) -> None:
        """Give back what the worker still owns, and take it out."""
        with self._access.writing() as db:
            postgres_upkeep.set_free(db, rows.give_back(db, owner))
            rows.remove(db, owner)
        here = self._here.pop(owner, None)
        if here is not None:
            here.end()

    def end_all(self) -> None:
        """
        Let go of locks and connections.

        A worker that has not left stays registered, without its lock: so that others see at once
        that it is dead, and take over what it had.
        """
        self._closing.set()
        while self._here:
            self._here.popitem()[1].abandon()
        self._ringer.close()
        self._ringer = Ringer(self._access)

    def let_go(self) -> None:
        """In a forked child: let go of what is the parent's, without a word to the server."""
        for here in self._here.values():
            here.let_go()
        self._here.clear()
        self._ringer = Ringer(self._access)

    def mark(self, owner: Owner) -> Marks:
        """Return the marks of a worker; without a file that others could read, just a dict."""
        here = self._here.get(owner)
        if here is not None and here.life is not None:
            return here.life.marks
        unread: dict[int, JobId] = {}
        return unread

    def held_fd(self, owner: Owner) -> int | None:
        """Return the descriptor of the locked file of marks."""
        here = self._here.get(owner)
        return None if here is None or here.life is None else here.life.fd

    def beat(self, owner: Owner, tasks: Sequence[str] | None) -> None:
        """Say that the worker lives, and which tasks it can run by now."""
        here = self._here.get(owner)
        if here is not None:
            here.hold.who.tasks = None if tasks is None else tuple(tasks)
        with self._access.looking() as db:  # one statement, safe to repeat
            if not rows.beat(db, owner, tasks) and here is not None:
                here.hold.renew(db)

    def pulse(self, owner: Owner) -> Pulse:
        """Return how the worker stands; asks nobody."""
        here = self._here.get(owner)
        return Pulse() if here is None else here.hold.pulse()

    def held(self, owner: Owner) -> set[tuple[JobId, int]]:
        """Return the attempts that the worker owns."""
        with self._access.looking() as db:
            return rows.held(db, owner)

    def cancelled(self, owner: Owner) -> list[JobId]:
        """Return the running jobs of the worker that were asked to stop."""
        with self._access.looking() as db:
            return rows.cancelled(db, owner)

    # --- the others --------------------------------------------------------------------------------------

    def all(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        with self._access.looking() as db:
            found = rows.all_workers(db)
            missing = self._missing(db)
        gone = {each.owner for each in missing if each.is_due}
        return [msgspec.structs.replace(info, is_alive=info.owner not in gone) for info in found]

    def _missing(self, db: Connection) -> list[Missing]:
        holds = [here.hold for here in self._here.values()]
        here_since = max((hold.here_since for hold in holds), default=0)
        return rows.missing(db, list(self._here), lease_s=postgres_pulse.RESCUE_S, here_since=here_since)

    def rescue(
        self, decide: Callable[[Claim, bool], Ack], *, changed: Callable[[], None] = lambda: None
    ) -> list[tuple[WorkerInfo, list[Ack]]]:
        """Put the jobs of dead workers back in line; see Store.rescue."""
        rescued: list[tuple[WorkerInfo, list[Ack]]] = []
        for dead in self._dead():
            acks = self._rescue_one(dead, decide)
            if acks is not None:
                changed()
                self._folder.forget(dead.worker.token)
                rescued.append((dead.worker.info(), acks))
        with self._access.looking() as db:
            orphans = self._watch.judge_orphans(rows.orphan_owners(db))
        for owner in orphans:
            self._rescue_orphans(owner, decide)
            changed()
        return rescued

    def _dead(self) -> list[Dead]:
        """Return who is dead; of those whose lock has just gone, who has not taken it again soon after."""
        with self._access.looking() as db:
            dead, is_close = self._watch.judge(self._missing(db))
        if is_close and not self._closing.wait(postgres_pulse.GRACE_S):
            with self._access.looking() as db:
                dead, _ = self._watch.judge(self._missing(db))
        return dead

    def _rescue_one(self, dead: Dead, decide: Callable[[Claim, bool], Ack]) -> list[Ack] | None:
        """Rescue in one transaction; None if somebody else was first, or it has come back."""
        worker, running = dead.worker, dead.running
        with self._access.writing() as db:
            # Held until the commit: should it come back right now, it waits, and finds itself dead.
            if not rows.try_lock_here(db, worker.owner) or not rows.remove_dead(db, worker):
                return None
            acks = [
                decide(claim, running is None or claim.id in running)
                for claim in rows.running_of(db, worker.owner)
            ]
            if acks:
                postgres_step.ack(db, acks, [worker.owner], worker=worker.name)
                postgres_upkeep.set_free(db, [ack.id for ack in acks])
            crashpoint("rescue.before_commit")
        crashpoint("rescue.after_commit")
        return acks

    def _rescue_orphans(self, owner: Owner, decide: Callable[[Claim, bool], Ack]) -> None:
        """Jobs of a worker whose registration was lost: nobody lives who could say anything of them."""
        with self._access.writing() as db:
            if not rows.try_lock_here(db, owner) or owner not in rows.orphan_owners(db):
                return
            acks = [decide(claim, False) for claim in rows.running_of(db, owner)]  # noqa: FBT003
            if acks:
                postgres_step.ack(db, acks, [owner], worker="unknown")
                postgres_upkeep.set_free(db, [ack.id for ack in acks])

    def remove_orphans(self) -> None:
        """Remove old files of marks."""
        self._folder.remove_old()

    # --- waking -------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """Wake the workers of other processes."""
        if self._access.is_open:
            self._ringer.ring()

    def owners(self) -> list[Owner]:
        """Return the workers that joined here and have not left."""
        return list(self._here)

    def ride(self) -> Ring | None:
        """Return a ring to send with a commit, if now is a time for one (see `Ringer.ride`)."""
        return self._ringer.ride()

    def tell_cancelled(self) -> None:
        """Have all workers look whether a job of theirs was cancelled."""
        if self._access.is_open:
            self._ringer.ring(CANCEL)

    def doorbell(self) -> int | None:
        """Return what becomes readable when somebody rings."""
        return next((here.hold.bell.fileno() for here in self._here.values()), None)

    def changes(self) -> int | None:
        """Return what becomes readable when something may be due."""
        return next((here.hold.bell.changes() for here in self._here.values()), None)

    def hush(self) -> None:
        """Take the rings that came in."""
        for here in self._here.values():
            here.hold.bell.hush()

    def changed(self) -> bool:
        """
        Return whether something may be due, as the pulses have told.

        Without a worker here there are none, and nobody to wake: then new jobs are looked for.
        """
        if self._here:
            # Of each: what is told at one is told.
            return bool(sum(here.hold.bell.take_change() for here in self._here.values()))
        with self._access.looking() as db:
            newest = db.one("SELECT max(id) FROM dutiful.job")
        is_new, self._newest_seen = newest != self._newest_seen, newest
        return is_new
