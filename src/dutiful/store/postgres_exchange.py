"""
One step on a PostgreSQL store (see Store.exchange), in two trips to the server.

The first does, or reads and locks, all that depends on nothing, and brings the transaction's number;
the second does what follows from it, and commits. So when the answer to the second is lost, the number
is known, and the server is asked what became of it (see `Access.commit`). The most frequent step is
one statement and its commit.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from dutiful.job import Claim, JobId
from dutiful.store import drafting, postgres_step
from dutiful.store.choosing import Found, age, choose, urgency
from dutiful.store.contract import Draft, Outcome, Owner, Take, Work
from dutiful.store.postgres_access import Access, Connection, Cursor
from dutiful.store.postgres_bell import Ring
from dutiful.store.postgres_errors import again_if_deadlocked
from dutiful.store.postgres_sql import PostgresSql
from dutiful.store.special import gates
from dutiful.store.special.insert import insert_all
from dutiful.store.special.release import settle
from dutiful.store.special.start import started
from dutiful.store.special.steps import note_ends

Pair = tuple[JobId, int]

_IDS_AT_ONCE_MAX = 16_384
_FOLLOWED_S = 60.0


class Ids:
    """
    Ids for new jobs, reserved a block at a time, so that most steps need not touch the counter.

    The blocks double, so that a program which sends one job leaves no gap. An id is never given twice, but
    if a server took over that had not heard of it; then what is at hand is forgotten too.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._taking = threading.Lock()
        self._ready = range(0)
        self._block = 1
        self._timeline = ""  # of the server that gave them

    def take(self, count: int, db: Connection | None = None) -> JobId:
        """Return the first of `count` ids in a row; `db`, if given, is in no transaction."""
        with self._taking:
            if db is not None and db.timeline != self._timeline:
                self._ready, self._timeline = range(0), db.timeline
            if len(self._ready) < count:
                block = max(count, self._block)
                first = self._reserve(block, db)
                self._ready = range(first, first + block)
                self._block = min(max(2 * block, 2 * self._block), _IDS_AT_ONCE_MAX)
            first = self._ready.start
            self._ready = self._ready[count:]
            return first

    def take_newest(self, count: int, db: Connection) -> JobId:
        """Return the first of `count` ids that are higher than all that anybody has given until now."""
        # Right before the transaction, on its connection: a server that forgets them forgets the jobs too.
        # Behind a pooler it may be another; without durability the sender has a forgotten job's id.
        is_safe = self._access.is_durable and not self._access.is_pooled
        return self._reserve(count, db, at_hand=not is_safe)

    def _reserve(self, count: int, db: Connection | None, *, at_hand: bool = True) -> JobId:
        if self._access.is_pooled:  # a transaction of ours, whatever the role's level of isolation
            with self._access.writing() as other:
                return postgres_step.reserve_ids(other, count, at_hand=at_hand)
        if db is not None:
            return postgres_step.reserve_ids(db, count, at_hand=at_hand)
        with self._access.looking() as other:
            return postgres_step.reserve_ids(other, count, at_hand=at_hand)

    def give_back(self, ids: range) -> None:
        """Take back ids that were not used after all, if none has been given since."""
        with self._taking:
            if ids and ids.stop == self._ready.start:
                self._ready = range(ids.start, self._ready.stop)

    def forget(self) -> None:
        """The store is closed: a fork from here on has what is at hand twice over."""
        with self._taking:
            self._ready, self._block = range(0), 1


class Exchange:
    """Does steps."""

    def __init__(
        self,
        access: Access,
        worker: str,
        *,
        owners: Callable[[], list[Owner]],
        ride: Callable[[], Ring | None],
    ) -> None:
        self._access = access
        self._worker = worker
        self._owners = owners
        self._ride = ride
        self.ids = Ids(access)
        self._followed_until = 0.0  # monotonic: until then jobs that end are likely to be waited for

    def do(self, work: Work, outcome: Outcome) -> None:
        """Do one step."""
        # Of two that wait for each other the server rolls one back; that one does it again.
        first, count = again_if_deadlocked(partial(self._begun, work, outcome))
        if not outcome.committed:
            again_if_deadlocked(partial(self._whole, work, outcome, first))
            self.ids.give_back(range(first + sum(map(len, outcome.stored)), first + count))
        drafting.after_commit(work, outcome)

    def _begun(self, work: Work, outcome: Outcome) -> tuple[JobId, int]:
        """Take ids that are at hand; return the first and the number. And do it, if one statement can."""
        count = 0 if drafting.has_key(work.drafts) else drafting.jobs_in(work.drafts)
        with self._access.translating(), self._access.borrowed() as db:
            first = self.ids.take(count, db)
            if self._is_simple(work):
                with contextlib.suppress(_Followed):
                    self._fused(db, work, outcome, first)
        return first, count

    def _whole(self, work: Work, outcome: Outcome, first: JobId) -> None:
        drafting.cleared(outcome)
        newest: JobId | None = first
        with self._access.translating(), self._access.borrowed() as db:
            if drafting.has_key(work.drafts):
                # With a bound on unfinished jobs only for those that fit: their senders come again and again.
                bound = work.buffer is not None
                newest = None if bound else self.ids.take_newest(drafting.jobs_in(work.drafts), db)
            self._in_parts(db, work, outcome, newest)

    # --- by one statement ------------------------------------------------------------------------

    def _is_simple(self, work: Work) -> bool:
        if work.acks or work.buffer is not None or (work.take is not None and work.take.look):
            return False
        if self._access.is_pooled or not (work.completed or work.drafts):
            return False
        if time.monotonic() < self._followed_until:
            return False
        if not all(map(drafting.is_plain, work.drafts)):
            return False
        if any(not drafting.alike(draft, work.drafts[0]) for draft in work.drafts[1:]):
            return False
        # Earlier attempts may have left errors, which go with the job.
        return work.keep_completed or all(attempt == 1 for _id, attempt in work.completed)

    def _fused(self, db: Connection, work: Work, outcome: Outcome, first: JobId) -> None:
        values: dict[str, object] = (
            postgres_step.fused_values(work.completed, self._owners()) if work.completed else {}
        )
        draft = drafting.joined(work.drafts) if work.drafts else None
        wish, handed = work.take, 0
        if draft is not None:
            if wish is not None and drafting.may_hand(draft, wish):
                handed = min(wish.limit, len(draft.payloads))
            values |= postgres_step.insert_values(first, draft, handed, None if wish is None else wish.owner)
        sql = postgres_step.FUSED[bool(work.completed), work.keep_completed, draft is not None]
        xid, now, applied = db.send(sql, values)
        rows: list[Any] = [] if applied is None else msgspec.json.decode(applied)
        followed = [row[0] for row in rows if row[2]]
        if followed:
            # Not so frequent after all: what the statement did is undone, and done with what follows from it.
            self._followed_until = time.monotonic() + _FOLLOWED_S
            db.close()
            raise _Followed
        drafting.before_commit(work)
        outcome.left_pending = draft is not None and draft.due_at_once and handed < len(draft.payloads)
        if draft is not None:
            outcome.claims = postgres_step.claims_of(first, draft, handed, int(_text(now)))

        def commit() -> None:
            outcome.has_rung = db.commit_sent(self._ride() if outcome.left_pending else None)

        self._access.commit(db, _text(xid), outcome, commit)
        if applied is not None:
            outcome.late = postgres_step.late(work.completed, rows)
        if draft is not None:
            outcome.stored = drafting.ranges(work.drafts, first)
            if not draft.due_at_once:
                drafting.note_delays(work, outcome)

    # --- by several, in two trips -------------------------------------------------------------------

    def _in_parts(self, db: Connection, work: Work, outcome: Outcome, first: JobId | None) -> None:
        wish = work.take if work.take is not None and work.take.look else None
        claiming = None if wish is None else _Claiming(db, wish, outcome)
        storing = _Storing(db, work, outcome, first)
        unfinished: Cursor | None = None
        with self._access.rolling_back(db):
            # The end of the pipeline is the trip; after it, all rows have come.
            with db.pipeline():
                self._access.begin(db)
                if work.buffer is not None:
                    unfinished = postgres_step.count_alone(db, self._access.schema_name)
                ended = self._end_attempts(db, work)
                if claiming is not None:
                    claiming.ask()
                elif unfinished is None and all(draft.only_if is None for draft in work.drafts):
                    storing.do(work.drafts)
                transaction = db.run(postgres_step.TRANSACTION)
            applied = [
                (pairs, [row for answer in answers for row in answer.fetchall()]) for pairs, answers in ended
            ]
            outcome.late = [pair for pairs, rows in applied for pair in postgres_step.late(pairs, rows)]
            followed = {row[0] for _pairs, rows in applied for row in rows if row[2]}
            if followed:
                self._followed_until = time.monotonic() + _FOLLOWED_S
            if claiming is not None:
                claiming.choose()
            xid, now = _row(transaction)

        special = _SpecialWork(work, outcome, followed, self._worker)
        if special.is_there:
            with self._access.rolling_back(db):
                turn = gates.Turn(PostgresSql(db, now))
                special.end(turn)
                if claiming is not None:
                    claiming.take()
                    special.start(turn)
                drafts = self._fitting(work, outcome, unfinished)
                if not storing.is_done:
                    storing.do(drafts)
                special.finish(turn, drafts)

        def commit() -> None:
            with db.pipeline():
                if claiming is not None:
                    claiming.take()
                if not storing.is_done:
                    storing.do(self._fitting(work, outcome, unfinished))
                outcome.claims += storing.handed_over(now)
                drafting.before_commit(work)
                db.run("COMMIT")

        self._access.commit(db, xid, outcome, commit)
        drafting.note_delays(work, outcome)

    @staticmethod
    def _fitting(work: Work, outcome: Outcome, unfinished: Cursor | None) -> Sequence[Draft]:
        drafts = work.drafts
        if unfinished is not None and work.buffer is not None:
            (count,) = _row(unfinished)
            freed = postgres_step.freed(work.acks, work.completed, outcome.late)
            drafts = drafting.fitting(work, work.buffer - count + freed)
        return drafting.standing(drafts, outcome.late)

    def _end_attempts(self, db: Connection, work: Work) -> list[tuple[Sequence[Pair], list[Cursor]]]:
        """Write what attempts came to; return those that were meant, and the rows that it applied to."""
        ended: list[tuple[Sequence[Pair], list[Cursor]]] = []
        if work.acks:
            pairs = [(ack.id, ack.attempt) for ack in work.acks]
            ended.append((pairs, postgres_step.ack(db, work.acks, self._owners(), worker=self._worker)))
        if work.completed:
            rows = postgres_step.complete(db, work.completed, self._owners(), keep=work.keep_completed)
            ended.append((work.completed, [rows]))
            if not work.keep_completed:
                postgres_step.forget_errors(db, work.completed)
        return ended


class _Storing:
    """The new jobs of a step, and how many of them go to a handler at once."""

    def __init__(self, db: Connection, work: Work, outcome: Outcome, first: JobId | None) -> None:
        self._db = db
        self._wish = work.take
        self._outcome = outcome
        self._first = first
        self._handed: list[tuple[JobId, Draft, int]] = []
        self.is_done = False

    def do(self, drafts: Sequence[Draft]) -> None:
        """Store them, most urgent first, as claimed as far as there is room."""
        self.is_done = True
        outcome = self._outcome
        start = self._first
        if start is None:  # by now it is known how many there are
            start = postgres_step.take_ids_within(self._db, drafting.jobs_in(drafts))
        outcome.stored = drafting.ranges(drafts, start)
        room = self._room()
        filled = drafting.merged([draft for draft in drafts if draft.payloads])
        for first, draft in drafting.in_order(filled, start):
            if draft.special is not None:
                continue
            wish, handed = self._wish, 0
            if wish is not None and drafting.may_hand(draft, wish):
                handed = min(room, len(draft.payloads))
            postgres_step.insert(self._db, first, draft, handed, None if wish is None else wish.owner)
            room -= handed
            self._handed.append((first, draft, handed))
            if draft.due_at_once and handed < len(draft.payloads):
                outcome.left_pending = True

    def _room(self) -> int:
        wish = self._wish
        if wish is None or not wish.handoff or (wish.look and not self._outcome.drained):
            return 0
        return wish.limit - len(self._outcome.claims)

    def handed_over(self, now: int) -> list[Claim]:
        """Return the claims of those that were stored as claimed, at about this instant."""
        return [
            claim
            for first, draft, handed in self._handed
            for claim in postgres_step.claims_of(first, draft, handed, now)
        ]


class _SpecialWork:
    """What of a step concerns jobs that are not plain (see store/special)."""

    def __init__(self, work: Work, outcome: Outcome, followed: set[JobId], worker: str) -> None:
        late = set(outcome.late)
        self._outcome = outcome
        self._followed = bool(followed)
        self._worker = worker
        acks = [ack for ack in work.acks if (ack.id, ack.attempt) not in late]
        self._acks = acks
        self._ended = {ack.id for ack in acks if ack.special} | followed
        self.is_there = (
            bool(self._ended)
            or any(draft.special is not None for draft in work.drafts)
            or any(claim.extra is not None for claim in outcome.claims)
        )

    def end(self, turn: gates.Turn) -> None:
        """Set free what ended jobs held, or others wait for."""
        if not self._ended:
            return
        if note_ends(turn.sql, self._acks):
            self._outcome.left_pending = True
        settle(turn, sorted(self._ended), followed=self._followed)

    def start(self, turn: gates.Turn) -> None:
        """Look at those that were claimed."""
        if any(claim.extra is not None for claim in self._outcome.claims):
            self._outcome.claims = started(turn, self._outcome.claims, self._worker)

    def finish(self, turn: gates.Turn, drafts: Sequence[Draft]) -> None:
        """Store the special ones of the new jobs, and let through whoever may go on."""
        if insert_all(turn, drafts, self._outcome):
            self._outcome.left_pending = True
        turn.finish_into(self._outcome)


class _Followed(Exception):
    """Internal: a job that has ended is waited for by others."""


class _Claiming:
    """What a take asks of each queue, and what is taken of the answers."""

    def __init__(self, db: Connection, wish: Take, outcome: Outcome) -> None:
        self._db = db
        self._wish = wish
        self._outcome = outcome
        self._skip = set(wish.skip)
        self._suspects = wish.suspects
        self._limit = wish.limit
        self._turns = wish.turns
        self._answers: list[tuple[str, Cursor | None, list[Cursor], Cursor]] = []
        self._locked: list[Claim] = []

    def ask(self) -> None:
        """Lock what is due: of each queue as much as all together may be."""
        self._answers = [
            (queue, self._ask_for_suspects(queue), self._ask_for_aged(queue), self._ask_for(queue))
            for queue in self._wish.queues
        ]

    def _ask_for_suspects(self, queue: str) -> Cursor | None:
        if not self._suspects:
            return None
        return postgres_step.select_due(self._db, queue, self._suspects, self._skip, suspects=True)

    def _ask_for_aged(self, queue: str) -> list[Cursor]:
        aged, limit = self._wish.aged, self._aged_max()
        if aged is None or limit <= 0:
            return []
        return [
            postgres_step.select_aged(self._db, queue, priority, aged.till, limit, self._skip)
            for its_queue, priority in aged.levels
            if its_queue == queue
        ]

    def _aged_max(self) -> int:
        return 0 if self._wish.aged is None else min(self._limit, self._wish.aged.limit - self._outcome.aged)

    def _ask_for(self, queue: str) -> Cursor:
        return postgres_step.select_due(self._db, queue, self._limit, self._skip)

    def choose(self) -> None:
        """Choose of the answers, and ask again for as many as nobody here knows: those are left to others."""
        wish, outcome = self._wish, self._outcome
        while True:
            chosen, is_all = self._chosen()
            known = chosen if wish.known is None else [claim for claim in chosen if claim.task in wish.known]
            unknown = {claim.task for claim in chosen} - {claim.task for claim in known}
            outcome.claims += known
            self._locked = known
            outcome.unknown |= unknown
            outcome.drained = is_all
            self._skip |= unknown
            self._suspects -= sum(claim.crashes > 0 for claim in known)
            self._limit -= len(known)
            if unknown:
                # Others could not see what was locked here: they are to look again.
                outcome.left_pending = True
            if is_all or self._limit <= 0:
                return
            with self._db.pipeline():
                self.take()  # first: our own locks would not keep us from finding them again
                self.ask()

    def take(self) -> None:
        """Claim what was chosen last."""
        postgres_step.claim(self._db, self._locked, self._wish.owner)
        self._locked = []

    def _chosen(self) -> tuple[list[Claim], bool]:
        """Return the most urgent of what was found, suspects first, and whether that is all there are."""
        found = {
            queue: Found(
                [] if guilty is None else postgres_step.claims_in(guilty),
                sorted((claim for each in old for claim in postgres_step.claims_in(each)), key=age),
                postgres_step.claims_in(innocent),
            )
            for queue, guilty, old, innocent in self._answers
        }
        is_all = all(len(each.suspects) + len(each.others) < self._limit for each in found.values())
        if self._turns is not None or self._wish.aged is not None:
            return self._chosen_in_turn(found, is_all=is_all)
        suspects = [claim for each in found.values() for claim in each.suspects]
        others = [claim for each in found.values() for claim in each.others]
        if len(found) > 1:
            suspects.sort(key=urgency)
            others.sort(key=urgency)
        chosen = (suspects[: self._suspects] + others)[: self._limit]
        if len(chosen) < len(suspects) + len(others):
            self._outcome.left_pending = True  # locked for a moment, as above
            is_all = False
        return chosen, is_all

    def _chosen_in_turn(self, found: dict[str, Found], *, is_all: bool) -> tuple[list[Claim], bool]:
        chosen = choose(
            found, self._turns, limit=self._limit, suspects=self._suspects, aged=max(0, self._aged_max())
        )
        self._turns = self._outcome.turns = chosen.turns
        self._outcome.aged += chosen.aged
        if not chosen.is_all:
            self._outcome.left_pending = True  # as above
        return chosen.claims, is_all and chosen.is_all


def _row(cursor: Cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None, "such a query has one row"
    return row


def _text(value: bytes | None) -> str:
    assert value is not None, "it is never NULL"
    return value.decode()
