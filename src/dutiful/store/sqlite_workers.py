"""The workers of a SQLite store: joining, living, dying, and the rescue of what the dead left."""

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dutiful.crashpoint import crashpoint
from dutiful.job import Ack, Claim, JobId
from dutiful.store import clock, notify, sqlite_look, sqlite_step, sqlite_upkeep
from dutiful.store.contract import Marks, Owner, WorkerInfo
from dutiful.store.liveness import Doorbell, Life, Ringer, running_of_dead
from dutiful.store.sqlite_access import Access


@dataclass(slots=True)
class _Here:
    """What a worker of this process holds while it lives."""

    life: Life
    bell: Doorbell
    changes: int | None = None

    def end(self) -> None:
        self.let_go()
        self.life.end()

    def let_go(self) -> None:
        self.bell.close()
        if self.changes is not None:
            os.close(self.changes)
            self.changes = None


class Workers:
    """The workers of a store, those of this process and others."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._here: dict[Owner, _Here] = {}
        self._joined: dict[Owner, tuple[str, Sequence[str], int]] = {}
        self._retired: list[Life] = []
        self._ringer: Ringer | None = None

    # --- ours --------------------------------------------------------------------------------------

    def join(self, name: str, queues: Sequence[str], concurrency: int, tasks: Sequence[str] | None) -> Owner:
        """Register an incarnation: its lock is held before its row can be seen."""
        folder = self._access.folder
        with contextlib.ExitStack() as undo:
            here: _Here | None = None
            if folder is not None:
                life = Life(folder)
                undo.callback(life.end)
                here = _Here(life, Doorbell(folder, life.token))
                undo.callback(here.bell.close)
            with self._access.writing() as now:
                who = self._who(name, here, now)
                owner = sqlite_upkeep.add_worker(self._access.db, who, queues, concurrency, tasks)
            if here is not None:
                here.changes = notify.watch(Path(f"{self._access.path}-wal"))
                self._here[owner] = here
            self._joined[owner] = name, queues, concurrency
            undo.pop_all()
        return owner

    @staticmethod
    def _who(name: str, here: _Here | None, now: int) -> tuple[str, str, str, int, str, int, int]:
        token = secrets.token_hex(8) if here is None else here.life.token
        return name, socket.gethostname(), clock.boot_id(), os.getpid(), token, now, now

    def leave(self, owner: Owner) -> None:
        """Give back what the worker still owns, and take it out."""
        with self._access.writing() as now:
            sqlite_upkeep.give_back(self._access.db, owner, now)
            sqlite_upkeep.remove_worker(self._access.db, owner)
        self._end(owner)

    def _end(self, owner: Owner) -> None:
        self._joined.pop(owner, None)
        here = self._here.pop(owner, None)
        if here is not None:
            here.end()
        if not self._here:
            self._end_retired()

    def _end_retired(self) -> None:
        for life in self._retired:
            life.abandon()
        self._retired.clear()

    def end_all(self) -> None:
        """
        Give back locks and sockets.

        A worker that has not left stays registered, with its lock file: unlocked, so that others
        see at once that it is dead, and take over what it had.
        """
        for here in self._here.values():
            here.let_go()
            here.life.abandon()
        self._here.clear()
        self._end_retired()
        if self._ringer is not None:
            self._ringer.close()
            self._ringer = None

    def let_go(self) -> None:
        """In a forked child: let go of what is the parent's, without touching its files."""
        for here in self._here.values():
            here.let_go()
            here.life.abandon()
        self._here.clear()
        self._end_retired()
        self._ringer = None

    def mark(self, owner: Owner) -> Marks:
        """Return the marks of a worker; in memory, where nobody could read them, just a dict."""
        if owner in self._here:
            return self._here[owner].life.marks
        unread: dict[int, JobId] = {}
        return unread

    def held_fd(self, owner: Owner) -> int | None:
        """Return the descriptor whose lock says that this worker lives."""
        return self._here[owner].life.fd if owner in self._here else None

    def beat(self, owner: Owner, tasks: Sequence[str] | None) -> None:
        """Say that the worker lives; make its lock file again if somebody removed it."""
        here = self._here.get(owner)
        if here is not None and not here.life.is_in_place():
            self._here[owner] = self._again(here)
        with self._access.writing() as now:
            db = self._access.db
            sqlite_upkeep.keep_clock(db, self._access.clock.offset_ms())
            if not sqlite_upkeep.beat(db, owner, tasks, now) and owner in self._joined:
                # Taken for dead, as after a long sleep: what it had is rescued, and its attempts will
                # be late; from here on it is seen again.
                name, queues, concurrency = self._joined[owner]
                who = self._who(name, self._here.get(owner), now)
                sqlite_upkeep.add_worker(db, who, queues, concurrency, tasks, owner)

    def _again(self, before: _Here) -> _Here:
        """Make the lock file again, under its name. Its bell, if that is gone too, is done without."""
        folder = self._access.folder
        assert folder is not None, "in memory there is no lock file"
        folder.make()
        life = Life(folder, before.life.token)
        life.marks[:] = before.life.marks
        # Its marks are still written to by attempts that run; they are let go with the worker.
        self._retired.append(before.life)
        return _Here(life, before.bell, before.changes)

    # --- the others ------------------------------------------------------------------------------------

    def all(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        with self._access.looking() as db:
            found = sqlite_look.workers(db)
        return [
            msgspec.structs.replace(
                info, is_alive=info.owner in self._here or not self._look_at(info, boot)[0]
            )
            for info, boot in found
        ]

    def rescue(
        self, decide: Callable[[Claim, bool], Ack], *, changed: Callable[[], None]
    ) -> list[tuple[WorkerInfo, list[Ack]]]:
        """Put the jobs of dead workers back in line; see Store.rescue."""
        if self._access.folder is None:
            return []
        with self._access.looking() as db:
            others = [pair for pair in sqlite_look.workers(db) if pair[0].owner not in self._here]
            orphans = [owner for owner in sqlite_look.orphan_owners(db) if owner not in self._joined]
        rescued: list[tuple[WorkerInfo, list[Ack]]] = []
        for info, boot in others:
            is_dead, running = self._look_at(info, boot)
            acks = self._rescue_one(info, running, decide) if is_dead else None
            if acks is not None:
                changed()
                self._access.folder.forget(info.token)
                rescued.append((info, acks))
        for owner in orphans:
            self._rescue_orphans(owner, decide)
            changed()
        return rescued

    def _rescue_orphans(self, owner: Owner, decide: Callable[[Claim, bool], Ack]) -> None:
        """Jobs of a worker whose registration was lost: nobody lives who could say anything of them."""
        with self._access.writing() as now:
            db = self._access.db
            if owner not in sqlite_look.orphan_owners(db):
                return
            acks = [decide(claim, False) for claim in sqlite_upkeep.running_of(db, owner)]  # noqa: FBT003
            if acks:
                sqlite_step.ack(db, acks, now=now, worker="unknown")
                sqlite_upkeep.set_free(db, [ack.id for ack in acks], now)

    def _look_at(self, info: WorkerInfo, boot: str) -> tuple[bool, frozenset[JobId] | None]:
        """Return whether a worker is dead, and what it was running then, as far as is known."""
        is_other_boot = boot != clock.boot_id()
        if self._access.folder is None:
            return False, None  # in memory all are of this process
        path = self._access.folder.path / f"{info.token}.lock"
        if path.exists():
            is_dead, running = running_of_dead(path)
            return is_dead, frozenset() if is_other_boot else running  # the machine went down: no job's fault
        if is_other_boot:
            return True, frozenset()
        # Its lock file is gone, which says nothing: its heartbeat decides.
        return self._access.clock.wall_ms() - info.seen_at > sqlite_upkeep.LEASE_MS, None

    def _rescue_one(
        self, info: WorkerInfo, running: frozenset[JobId] | None, decide: Callable[[Claim, bool], Ack]
    ) -> list[Ack] | None:
        """Rescue in one transaction; None if somebody else was first."""
        with self._access.writing() as now:
            db = self._access.db
            if not sqlite_upkeep.remove_worker(db, info.owner):
                return None
            acks = [
                decide(claim, running is None or claim.id in running)
                for claim in sqlite_upkeep.running_of(db, info.owner)
            ]
            if acks:
                sqlite_step.ack(db, acks, now=now, worker=info.name)
                sqlite_upkeep.set_free(db, [ack.id for ack in acks], now)
            crashpoint("rescue.before_commit")
        crashpoint("rescue.after_commit")
        return acks

    def remove_orphans(self) -> None:
        """Remove lock files of workers that died between making it and their first commit."""
        folder = self._access.folder
        if folder is None:
            return
        known = {info.token for info in self.all()}
        for token in folder.tokens() - known:
            folder.forget_if_dead(token)

    # --- bells --------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """Wake the workers of other processes."""
        folder = self._access.folder
        if folder is None or not self._access.is_open:
            return
        if self._ringer is None:
            self._ringer = Ringer(folder)
        self._ringer.ring({f"{here.life.token}.sock" for here in self._here.values()})

    def doorbell(self) -> int | None:
        """Return what becomes readable when somebody rings."""
        return next((here.bell.fileno() for here in self._here.values()), None)

    def changes(self) -> int | None:
        """Return what becomes readable when the log is written to, by us or others."""
        return next((here.changes for here in self._here.values()), None)

    def hush(self) -> None:
        """Take the rings that came in."""
        for here in self._here.values():
            here.bell.hush()
