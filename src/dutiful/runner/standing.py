"""
How this worker stands with its store: cut off from it, back again, or told to look for the dead.

    no contact for half a lease   nothing more is started; what waits here goes back
    none for a whole lease        what runs is stopped: others may take over
    connected anew                what others took over meanwhile is stopped

None of it is decided here: the store says how it stands (`Store.pulse`). A store that is a file
never says any of this.
"""

from collections.abc import Callable

from dutiful.events import ConnectionBack, ConnectionLost, Events, LeaseOver, StorePolled
from dutiful.job import Claim
from dutiful.runner.attempts import Attempts
from dutiful.runner.slots import Slots
from dutiful.store.contract import Owner, Pulse, Store


class Standing:
    """
    Looks at the store's pulse, and does what it asks for.

    Args:
        give_back: Gives back jobs that have not begun.
        drop: Forgets jobs that have not begun, and are others' now.
    """

    def __init__(
        self,
        store: Store,
        attempts: Attempts,
        slots: Slots,
        events: Events,
        worker: str,
        *,
        give_back: Callable[[list[Claim]], None],
        drop: Callable[[Claim], None],
    ) -> None:
        self._store = store
        self._attempts = attempts
        self._slots = slots
        self._events = events
        self._worker = worker
        self._give_back = give_back
        self._drop = drop
        self._owner: Owner = 0
        self._seen = 0  # the incarnation whose losses are known
        self.pulse = Pulse()

    def start(self, owner: Owner) -> None:
        """Begin with a worker that has just joined."""
        self._owner = owner
        self.pulse = self._store.pulse(owner)
        self._seen = self.pulse.incarnation
        if self.pulse.is_polling:
            self._events.emit(StorePolled(self._worker, self._store.label))

    @property
    def can_be_cut_off(self) -> bool:
        """Whether the store may leave a thread that asks it without an answer."""
        return self.pulse.dead is not None

    def is_called(self) -> bool:
        """Whether the store has told, since the last look, of somebody dead or something cancelled."""
        pulse, before = self._store.pulse(self._owner), self.pulse
        return bool((pulse.dead and not before.dead) or (pulse.cancelled and not before.cancelled))

    def look(self) -> None:
        """Look how it stands by now, and act."""
        before, self.pulse = self.pulse, self._store.pulse(self._owner)
        pulse = self.pulse
        if pulse.problem is not None and before.problem is None:
            self._events.emit(ConnectionLost(self._worker, pulse.problem))
        if pulse.is_polling and not before.is_polling:
            self._events.emit(StorePolled(self._worker, self._store.label))
        if not pulse.may_start:
            self._start_nothing()
        if not pulse.may_run:
            if before.may_run:
                self._events.emit(LeaseOver(self._worker, len(self._attempts.running)))
            self._attempts.interrupt_all()  # again each time: what was only beginning could not be told
        if pulse.problem is None and pulse.incarnation != self._seen:
            lost = self._stop_what_is_lost()
            self._seen = pulse.incarnation
            self._events.emit(ConnectionBack(self._worker, pulse.incarnation, lost))

    def _start_nothing(self) -> None:
        back = self._slots.take_back(alone=False)
        alone = self._slots.waiting_alone
        if alone is not None:
            back += self._slots.take_out([alone.id])
        self._give_back(back)

    def _stop_what_is_lost(self) -> int:
        """
        Stop the attempts that are not this worker's any more; return how many there were.

        First those here, then the store's: what is claimed in between is in no danger.
        """
        waiting = self._slots.waiting
        running = [claim for attempt in list(self._attempts.running.values()) for claim in attempt.claims]
        held = self._store.held(self._owner)
        lost = {claim.id for claim in waiting if (claim.id, claim.attempt) not in held}
        for claim in self._slots.take_out(lost) if lost else ():
            self._drop(claim)
        gone = [claim for claim in running if (claim.id, claim.attempt) not in held]
        for claim in gone:
            self._attempts.cancel(claim.id)  # what it comes to is late, and changes nothing
        return len(lost) + len(gone)
