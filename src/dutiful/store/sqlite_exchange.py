"""One step on a SQLite store (see Store.exchange), by the shortest way that fits it."""

from collections.abc import Sequence

from dutiful.errors import StoreError
from dutiful.job import JobId, State
from dutiful.store import drafting, sqlite_step
from dutiful.store.contract import Draft, Outcome, Take, Work
from dutiful.store.special import gates
from dutiful.store.special.insert import insert_all
from dutiful.store.special.release import has_followers, settle
from dutiful.store.special.start import started
from dutiful.store.special.steps import note_ends
from dutiful.store.sqlite_access import Access
from dutiful.store.sqlite_sql import SqliteSql

_COMMIT_BYTES = 3 * 4096  # what a small commit adds to the log: about three pages
_ROW_BYTES = 256  # a row without its payload, and its entries in the indexes, twice over
_IDS_AT_ONCE_MAX = 16_384


class Ids:
    """
    Ids for new jobs, reserved a block at a time, so that most commits need not touch the counter.

    The blocks double, so that a program which sends one job leaves no gap. An id is never
    given twice: an interruption may lose some, and makes a gap.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._ready = range(0)
        self._coming: range | None = None
        self._block = 1

    def has(self, count: int) -> bool:
        """Whether so many are at hand without a write."""
        return len(self._ready) >= count

    def take(self, count: int) -> JobId:
        """Return the first of `count` ids in a row; inside a transaction, unless `has` them."""
        self._coming = None
        if self.has(count):
            first = self._ready.start
            self._ready = self._ready[count:]
            return first
        block = max(count, self._block)
        first = sqlite_step.reserve_ids(self._access.db, block)
        self._coming = range(first + count, first + block)
        self._block = min(max(2 * block, 2 * self._block), _IDS_AT_ONCE_MAX)
        return first

    def take_newest(self, count: int) -> JobId:
        """Inside a transaction: return the first of `count` ids that are higher than all given until now."""
        return sqlite_step.reserve_ids(self._access.db, count)

    def begin(self) -> None:
        """A transaction begins: what an earlier one reserved and did not commit is not ours."""
        self._coming = None

    def committed(self) -> None:
        """The transaction in which they were taken has committed: the rest of the block is ours."""
        if self._coming is not None:
            self._ready, self._coming = self._coming, None

    def forget(self) -> None:
        """The store is closed: a fork from here on has what is at hand twice over."""
        self._ready, self._coming, self._block = range(0), None, 1


class Unfinished:
    """How many jobs are pending or running: counted when others have written, else kept."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._count = 0
        self._valid_for: tuple[int, int] | None = None

    def now(self) -> int:
        """Return the number, inside the transaction, before it changes anything."""
        seen = (self._access.version(), self._access.resets)
        if seen != self._valid_for:
            self._count = sqlite_step.count_unfinished(self._access.db)
            self._valid_for = seen
        return self._count

    def add(self, change: int) -> None:
        """A committed step of ours changed the number by this."""
        self._count += change

    def forget(self) -> None:
        """Something else of ours changed it."""
        self._valid_for = None


class Exchange:
    """Does steps."""

    def __init__(self, access: Access, worker: str) -> None:
        self._access = access
        self._worker = worker
        self._ids = Ids(access)
        self.unfinished = Unfinished(access)

    def closed(self) -> None:
        """Forget what holds only while the store is open here."""
        self._ids.forget()
        self.unfinished.forget()

    def do(self, work: Work, outcome: Outcome) -> None:
        """Do one step."""
        try:
            if self._is_simple(work):
                self._fused(work, outcome)
            else:
                self._in_parts(work, outcome, careful=False)
        except sqlite_step.Followed:
            self._in_parts_or_late(work, drafting.cleared(outcome))
        except sqlite_step.LateAck:
            self._carefully(work, outcome)
        try:
            self._access.logged(_log_bytes(work, outcome))
        except (StoreError, OSError):
            return  # the step is committed: a checkpoint can wait

    def _in_parts_or_late(self, work: Work, outcome: Outcome) -> None:
        try:
            self._in_parts(work, outcome, careful=False)
        except sqlite_step.LateAck:
            self._carefully(work, outcome)

    def _carefully(self, work: Work, outcome: Outcome) -> None:
        """Nothing is committed. Once more, one by one, to find out which came too late."""
        self._in_parts(work, drafting.cleared(outcome), careful=True)

    # --- by one statement ------------------------------------------------------------------------

    def _is_simple(self, work: Work) -> bool:
        if work.acks or work.buffer is not None or (work.take is not None and work.take.look):
            return False
        if len(work.drafts) == 1 and not work.completed:  # a send alone: no time to lose
            draft = work.drafts[0]
            return drafting.is_plain(draft) and self._ids.has(len(draft.payloads))
        if not all(map(drafting.is_plain, work.drafts)):
            return False
        if any(not drafting.alike(draft, work.drafts[0]) for draft in work.drafts[1:]):
            return False
        if not self._ids.has(drafting.jobs_in(work.drafts)):
            return False
        attempts = {attempt for _id, attempt in work.completed}
        # Earlier attempts may have left errors, which go with the job.
        return len(attempts) <= 1 and (work.keep_completed or attempts <= {1})

    def _fused(self, work: Work, outcome: Outcome) -> None:
        draft = drafting.joined(work.drafts) if work.drafts else None
        count = 0 if draft is None else len(draft.payloads)
        wish = work.take
        handed = 0
        if draft is not None and wish is not None and drafting.may_hand(draft, wish):
            handed = min(wish.limit, count)

        def statement(now: int) -> None:
            drafting.before_commit(work)
            first = self._ids.take(count)
            owner = wish.owner if wish is not None and handed else None
            if count == 1 and not work.completed and draft is not None:
                sqlite_step.insert(self._access.db, first, draft, now, owner)
            else:
                sqlite_step.fused(
                    self._access.db,
                    work.completed,
                    draft,
                    keep=work.keep_completed,
                    now=now,
                    first=first,
                    handed=handed,
                    owner=owner,
                )
            if draft is not None:
                outcome.claims = (
                    sqlite_step.claims_of(first, drafting.part(draft, 0, handed), now) if handed else []
                )
                outcome.left_pending = draft.due_at_once and handed < count
                outcome.stored = drafting.ranges(work.drafts, first)

        self._access.write_at_once(outcome, statement)
        self.unfinished.add(count - len(work.completed))
        if draft is None or not draft.due_at_once:
            drafting.note_delays(work, outcome)
        drafting.after_commit(work, outcome)

    # --- by several, in a transaction ---------------------------------------------------------------

    def _in_parts(self, work: Work, outcome: Outcome, *, careful: bool) -> None:
        with self._access.writing(outcome, then=self._ids.committed) as now:
            self._ids.begin()
            room = None if work.buffer is None else work.buffer - self.unfinished.now()
            self._end_attempts(work, outcome, now, careful=careful)
            sql = SqliteSql(self._access.db, now)
            self._set_free(sql, work, outcome)
            if work.take is not None and work.take.look:
                sqlite_step.take(self._access.db, work.take, outcome, now=now)
                self._look_at_special(sql, outcome)
            ended = sqlite_step.freed(work.acks, work.completed, late=outcome.late)
            if work.drafts:
                self._store(work, outcome, now, None if room is None else room + ended)
            drafting.note_delays(work, outcome)
            drafting.before_commit(work)
        if outcome.late or any(ack.state is State.PENDING for ack in work.acks):
            self.unfinished.forget()  # a late one changed nothing; a cancelled one has ended after all
        self.unfinished.add(sum(map(len, outcome.stored)) - ended)
        drafting.after_commit(work, outcome)

    def _end_attempts(self, work: Work, outcome: Outcome, now: int, *, careful: bool) -> None:
        db, keep = self._access.db, work.keep_completed
        if careful:
            outcome.late = sqlite_step.acks_one_by_one(
                db, work.acks, work.completed, keep=keep, now=now, worker=self._worker
            )
            return
        if work.completed:
            sqlite_step.complete(db, work.completed, keep=keep, now=now)
        if work.acks:
            sqlite_step.ack(db, work.acks, now=now, worker=self._worker)

    def _set_free(self, sql: SqliteSql, work: Work, outcome: Outcome) -> None:
        """What special jobs held, or others wait for."""
        late = set(outcome.late)
        followed = bool(work.acks or work.completed) and has_followers(sql)
        ended = [
            ack.id for ack in work.acks if (ack.special or followed) and (ack.id, ack.attempt) not in late
        ]
        if followed:
            ended += [job_id for job_id, attempt in work.completed if (job_id, attempt) not in late]
        if not ended:
            return
        turn = gates.Turn(sql)
        if note_ends(sql, [ack for ack in work.acks if (ack.id, ack.attempt) not in late]):
            outcome.left_pending = True
        settle(turn, ended, followed=followed)
        turn.finish_into(outcome)
        self.unfinished.forget()

    def _look_at_special(self, sql: SqliteSql, outcome: Outcome) -> None:
        if any(claim.extra is not None for claim in outcome.claims):
            turn = gates.Turn(sql)
            outcome.claims = started(turn, outcome.claims, self._worker)
            turn.finish_into(outcome)
            self.unfinished.forget()

    def _store(self, work: Work, outcome: Outcome, now: int, room: int | None) -> None:
        drafts = work.drafts if room is None else drafting.fitting(work, room)
        drafts = drafting.standing(drafts, outcome.late)
        take = self._ids.take_newest if drafting.has_key(drafts) else self._ids.take
        first = take(drafting.jobs_in(drafts))
        outcome.stored = drafting.ranges(drafts, first)
        if any(draft.special is not None for draft in drafts):
            self._store_special(drafts, outcome, now)
        wish = work.take
        to_hand = 0
        if wish is not None and wish.handoff and (outcome.drained or not wish.look):
            to_hand = wish.limit - len(outcome.claims)
        for start, draft in drafting.in_order(
            drafting.merged([draft for draft in drafts if draft.payloads]), first
        ):
            if draft.special is not None:
                continue
            handed = 0
            if wish is not None and drafting.may_hand(draft, wish):
                handed = min(to_hand, len(draft.payloads))
            self._insert(start, draft, handed, wish, outcome, now)
            to_hand -= handed

    def _store_special(self, drafts: Sequence[Draft], outcome: Outcome, now: int) -> None:
        turn = gates.Turn(SqliteSql(self._access.db, now))
        if insert_all(turn, drafts, outcome):
            outcome.left_pending = True
        turn.finish_into(outcome)
        self.unfinished.forget()

    def _insert(
        self, first: JobId, draft: Draft, handed: int, wish: Take | None, outcome: Outcome, now: int
    ) -> None:
        """Store one draft, the first `handed` jobs of it as claimed."""
        db, count = self._access.db, len(draft.payloads)
        if handed and wish is not None:
            part = drafting.part(draft, 0, handed)
            sqlite_step.insert(db, first, part, now, wish.owner)
            outcome.claims += sqlite_step.claims_of(first, part, now)
        if handed < count:
            sqlite_step.insert(db, first + handed, drafting.part(draft, handed, count), now)
            outcome.left_pending = outcome.left_pending or draft.due_at_once


def _log_bytes(work: Work, outcome: Outcome) -> int:
    """Estimate what a step adds to the log."""
    if work.take is not None and work.take.look:  # a claim writes the row anew
        size = sum(len(claim.payload or "") + _ROW_BYTES for claim in outcome.claims)
    else:
        size = 0
    size += _COMMIT_BYTES + _ROW_BYTES * (len(work.completed) + len(work.acks))
    for draft in work.drafts:
        size += sum(map(len, draft.payloads)) + _ROW_BYTES * len(draft.payloads)
    return size
