"""The steps of a move, each one transaction in one store: it can end after any, and go on (see moving.py)."""

import contextlib
import secrets
from collections.abc import Callable

import msgspec

from dutiful.crashpoint import crashpoint
from dutiful.errors import StoreError
from dutiful.job import Ack, Claim
from dutiful.store import moving
from dutiful.store.moving import IDENTITY, NEXT_ID, Ground, Hand, Note, Totals, erase, note_of, read, write

_TRIES = 3  # to find a store without workers: dead ones are rescued first, which may show others


class Mover:
    """
    Moves all jobs of one store to another.

    Args:
        source, target: Two different ones.
        decide: What becomes of a job whose worker is dead.
        tell: Is told how many jobs of how many are there.
    """

    def __init__(
        self,
        source: Ground,
        target: Ground,
        *,
        decide: Callable[[Claim, bool], Ack],
        tell: Callable[[int, int], None],
    ) -> None:
        self._source = source
        self._target = target
        self._decide = decide
        self._tell = tell

    def run(self) -> tuple[Totals, Totals, bool]:
        """
        Move, or go on with the move that was begun.

        Returns what the source and the target hold, and whether it had been done before.

        Raises:
            StoreError: It cannot be, or is not finished: the text says which, and what is in charge.
        """
        self._source.open()
        note = self._begun()
        if note is None:
            self._check_nobody_works(self._source)  # before a target is made
        self._target.open()
        note = note or self._begin()
        try:
            self._receive(note)
            if not note.is_over:
                self._copy(note)
                self._copy_beside(note)
                self._check(note)
                self._hand_over(note)
            crashpoint("move.handed_over")
            is_new = self._take_over(note)
            crashpoint("move.done")
        except StoreError as error:
            self._advise(error)
            raise
        return self._source.totals(), self._target.totals(), not is_new

    def _advise(self, error: StoreError) -> None:
        """Add what to do about a move that is not finished."""
        with contextlib.suppress(StoreError), self._source.change() as hand:
            note = note_of(hand)
            if note is not None and note.side == "from":
                way_out = "." if note.is_over else ", or give it up (--give-up)."
                error.add_note(
                    f"The move is not finished, and until then neither store can be used: repeat it{way_out}"
                )

    # --- beginning ----------------------------------------------------------------------------------

    def _begun(self) -> Note | None:
        """Return the note of the move that was begun. If it is another one, no target is made."""
        with self._source.change() as hand:
            ours = note_of(hand)
        if ours is None or (ours.side == "to" and ours.is_over):
            return None
        if ours.side == "to":
            raise _moved(self._source, ours)
        if ours.other != self._target.label:
            raise _moved(self._source, ours)
        return ours

    def _begin(self) -> Note:
        """Mark the source, if nobody works there and the target can take its jobs."""
        with self._target.change() as hand:
            problem = _unfit(hand, self._target, None)
        if problem is not None and not problem.startswith(_UNFINISHED):
            raise StoreError(self._target.label, problem)
        for _ in range(_TRIES):
            self._check_nobody_works(self._source)
            self._source.rescue(self._decide)
            with self._source.change() as hand:
                if not hand.is_idle():
                    continue
                identity = hand.get(IDENTITY) or secrets.token_hex(16)
                hand.put(IDENTITY, identity)
                note = Note("from", secrets.token_hex(8), identity, self._target.label)
                write(hand, note, guarded=True)
            crashpoint("move.marked")
            return note
        self._check_nobody_works(self._source)
        raise StoreError(
            self._source.label,
            "a worker was registered a moment ago, or its jobs are not yet back in line; nothing was "
            "changed. Stop all workers, and repeat it in half a minute.",
        )

    @staticmethod
    def _check_nobody_works(ground: Ground) -> None:
        living = [worker for worker in ground.workers() if worker.is_alive]
        if living:
            names = ", ".join(f"{worker.name} (pid {worker.pid} on {worker.host})" for worker in living[:5])
            more = f" and {len(living) - 5} more" if living[5:] else ""
            raise StoreError(
                ground.label,
                f"workers run on it: {names}{more}; nothing was changed. Stop them, and repeat it.",
            )

    def _receive(self, note: Note) -> None:
        """Make the target the one of this move; if it cannot be, the source is free again."""
        with self._source.change() as hand:
            next_id = int(hand.get(NEXT_ID) or 1)
        with self._target.change() as hand:
            found = note_of(hand)
            if found is not None and found.side == "to" and found.move == note.move:
                return
            problem = _unfit(hand, self._target, note)
            if note.is_over:
                raise StoreError(
                    self._target.label,
                    f"{self._source.label} was moved here, and this store knows nothing of it: it was made "
                    "anew; nothing was changed. What was moved is in the source still, out of reach.",
                )
            if problem is None:
                hand.clear()
                hand.forget_clock()
                hand.put(NEXT_ID, str(max(next_id, int(hand.get(NEXT_ID) or 1))))
                arriving = msgspec.structs.replace(note, side="to", other=self._source.label, is_over=False)
                write(hand, arriving, guarded=True)
        if problem is not None:
            self.give_up(self._source)
            raise StoreError(self._target.label, problem)
        crashpoint("move.received")

    # --- copying -------------------------------------------------------------------------------------

    def _copy(self, note: Note) -> None:
        with self._target.change() as hand:
            self._expect(hand, self._target, note, "to")
            after = hand.last_id()
        total, done = self._source.totals().jobs, self._target.totals().jobs
        self._tell(done, total)
        while (batch := self._source.batch(after)).rows:
            with self._target.change() as hand:
                self._expect(hand, self._target, note, "to")
                if hand.last_id() != after:
                    raise StoreError(
                        self._target.label,
                        "another `dutiful move` works on it right now; leave it to that one.",
                    )
                hand.add(batch)
                crashpoint("move.in_batch")
            crashpoint("move.batch")
            after = batch.rows[-1].id
            done += len(batch.rows)
            self._tell(done, total)

    def _copy_beside(self, note: Note) -> None:
        """Copy what lies beside the jobs: who waits for whom, limits, steps, events, schedules, pauses."""
        for table in moving.BESIDE:
            rows = self._source.beside(table)
            with self._target.change() as hand:
                self._expect(hand, self._target, note, "to")
                hand.put_beside(table, rows)
        crashpoint("move.beside")

    def _check(self, note: Note) -> None:
        """Compare the counts; if they differ, the source stays in charge."""
        crashpoint("move.copied")
        source, target = self._source.totals(), self._target.totals()
        if (source.by_state, source.errors) == (target.by_state, target.errors):
            return
        with self._source.change() as hand:
            self._expect(hand, self._source, note, "from")
            erase(hand)
        raise StoreError(
            self._target.label,
            f"it holds {_told(target)} after the move, and {self._source.label} {_told(source)}; that one "
            "stays in charge, and this one is unfinished. Look what else writes here, and repeat it.",
        )

    def _hand_over(self, note: Note) -> None:
        """There is no way back from here."""
        with self._source.change() as hand:
            found = self._expect(hand, self._source, note, "from")
            write(hand, msgspec.structs.replace(found, is_over=True), guarded=True)

    def _take_over(self, note: Note) -> bool:
        """Open the target for work; return whether it was not yet."""
        with self._target.change() as hand:
            found = self._expect(hand, self._target, note, "to")
            if not found.is_over:
                hand.put(NEXT_ID, str(max(int(hand.get(NEXT_ID) or 1), hand.last_id() + 1)))
                write(hand, msgspec.structs.replace(found, is_over=True), guarded=False)
        return not found.is_over

    @staticmethod
    def _expect(hand: Hand, ground: Ground, note: Note, side: str) -> Note:
        """Return the store's note, which must be of this move still."""
        found = note_of(hand)
        if found is None or found.side != side or found.move != note.move:
            raise StoreError(
                ground.label,
                "its part in this move was given up meanwhile, or is another's; nothing was changed.",
            )
        return found

    # --- giving up -----------------------------------------------------------------------------------

    @staticmethod
    def give_up(source: Ground) -> bool:
        """
        Put the source of an unfinished move in charge again; return whether there was one.

        Raises:
            StoreMoved: It has handed over already.
        """
        with source.change() as hand:
            note = note_of(hand)
            if note is None or (note.side == "to" and note.is_over):
                return False
            if note.is_over or note.side == "to":
                raise _moved(source, note)
            erase(hand)
        return True


_KEPT = {"event": "events that nobody has waited for", "schedule": "schedules", "pause": "pauses"}
_UNFINISHED = "it is the unfinished target of a move"


def _unfit(hand: Hand, ground: Ground, note: Note | None) -> str | None:
    """Return why a store cannot be the target; None if it can (`note`'s own earlier attempt is no reason)."""
    found = note_of(hand)
    if found is not None and found.side == "from":
        return f"it cannot be the target: {found.text()}"
    if found is not None and not found.is_over:
        if note is not None and found.source == note.source:
            return None
        return (
            f"{_UNFINISHED} from {found.other}; nothing was changed. Finish that, or choose another target."
        )
    living = [worker for worker in ground.workers() if worker.is_alive]
    if living:
        return "workers run there already; nothing was changed. Start them when the move is done."
    if hand.last_id():
        return "it has jobs already; nothing was changed. Choose an empty store, or delete them."
    kept = hand.kept_beside()
    if kept is not None:
        return (
            f"it has {_KEPT[kept]} already, which would be lost; nothing was changed. Choose an empty store, "
            "or remove them."
        )
    return None


def _moved(ground: Ground, note: Note) -> StoreError:
    error = read(ground.label, note.text())
    assert error is not None, "our own text"
    return error


def _told(totals: Totals) -> str:
    states = ", ".join(f"{count:,} {state}" for state, count in totals.by_state.items() if count)
    return f"{states or 'no jobs'} (and {totals.errors:,} errors in their history)"
