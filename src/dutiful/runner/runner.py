"""The life of a started worker: what it takes, what it runs, how it ends."""

import threading
import time
from collections.abc import Callable

from dutiful.config import Config
from dutiful.core import pacing
from dutiful.core.lifecycle import after, runs_alone
from dutiful.errors import StoreError
from dutiful.events import (
    Events,
    StoreRecovered,
    StoreTrouble,
    TasksParked,
    WorkerFault,
    WorkerRescued,
    WorkerStarted,
    WorkerStopped,
)
from dutiful.job import Ack, Claim, Interrupted, State
from dutiful.registry import Registry
from dutiful.runner.attempt import Attempt
from dutiful.runner.attempts import Attempts
from dutiful.runner.failure import crashed
from dutiful.runner.loop import Loop
from dutiful.runner.slots import Slots
from dutiful.runner.upkeep import TICK_S, Duty, Upkeep
from dutiful.store.committer import Committer
from dutiful.store.contract import Outcome, Owner, Store, Take

HEARTBEAT_S = 10.0
TIDY_S = 30.0
PARKED_LOG_S = 60.0
IDLE_PAUSE_S = 30.0  # with nothing due the loop still looks now and then; it is woken long before
BLOCKED_PAUSE_S = 0.05  # something is due that cannot be taken yet, such as a second suspect
STALE_S = 0.5  # a job that waits in memory longer than this goes back for others to take
PRUNE_JOBS = 500  # a few ms of the write lock
UNWIND_S = 1.0  # for interrupted coroutines and children to come to their end


class _Known:
    """The tasks that this worker can run, subclasses' names included."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __contains__(self, task: object) -> bool:
        return isinstance(task, str) and self._registry.entry(task) is not None


class Runner:
    """One incarnation of a worker, from `start` to `stop`."""

    def __init__(
        self, store: Store, committer: Committer, registry: Registry, config: Config, events: Events
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._config = config
        self._events = events
        self._known = _Known(registry)
        self._pace = pacing.Pace()
        self._payload_bytes = 0.0
        self._attempts = Attempts(
            store,
            committer,
            registry,
            config,
            events,
            free=self._free,
            watch=self._watch,
            suspect_over=self._suspect_over,
        )
        self._slots = Slots(
            config.concurrency, self._attempts.run, when_low=self._want_more, when_free=self._became_free
        )
        self._owner: Owner = 0
        self._suspect: int | None = None  # the id of the suspect that is held here
        self._backlog = True  # something due may be waiting in the store
        self._notes = 0  # how often that was noted
        self._notes_seen = 0
        self._asked = False
        self._due_at = 0.0  # monotonic: when the next pending job falls due
        self._offered_at = 0.0
        self._finished_at_offer = 0
        self._parked_log_at = 0.0
        self._parked: dict[str, int] = {}
        self._in_trouble = False
        self._is_taking = False
        self._idle = threading.Condition()
        self._loop: Loop | None = None
        self._upkeep: Upkeep | None = None

    # --- starting --------------------------------------------------------------------------------

    def start(self) -> None:
        """Join the store, rescue what dead workers left, and take jobs."""
        self._owner = self._store.join(self._config.name, self._config.queues, self._config.concurrency)
        try:
            self._attempts.start(self._owner)
            self._rescue()
            self._store.unpark(self._known)
            self._begin()
        except BaseException:
            self._store.leave(self._owner)
            raise

    def _begin(self) -> None:
        bell = self._store.doorbell()
        self._loop = Loop(
            self._fetch,
            self._events,
            self._config.name,
            changed=self._changed if bell is not None else None,
            doorbell=bell,
            hush=self._store.hush,
        )
        self._upkeep = Upkeep(self._duties(), self._events, self._config.name, trouble=self._trouble)
        self._committer.trouble = self._trouble
        self._committer.taker = self
        self._is_taking = True
        self._upkeep.start()
        self._loop.start()
        config = self._config
        self._events.emit(
            WorkerStarted(
                config.name,
                self._store.label,
                tuple(sorted(self._registry.tasks())),
                config.queues,
                config.concurrency,
            )
        )

    def _duties(self) -> list[Duty]:
        return [
            Duty("rescuing the jobs of dead workers", TICK_S, self._rescue),
            Duty("looking for cancelled jobs", TICK_S, self._cancel),
            Duty("giving back waiting jobs", TICK_S, self._give_back_stale),
            Duty("pruning", TICK_S, self._prune),
            Duty("the heartbeat", HEARTBEAT_S, lambda: self._store.beat(self._owner)),
            Duty("tidying up", TIDY_S, self._store.tidy),
        ]

    # --- taking: what the committer asks in each step -----------------------------------------------

    def wish(self, *, sending: bool) -> Take | None:
        """Say what to take in this step; called by whoever leads it."""
        look = self._backlog
        if not self._is_taking or self._slots.is_closed or not (look or sending):
            return None
        limit = self._room()
        if limit == 0:
            return None
        self._notes_seen = self._notes  # what is noted from here on is not seen by this step
        return Take(
            self._owner,
            self._config.queues,
            limit,
            suspects=int(self._suspect is None),
            known=self._known,
            park_s=self._config.park_s,
            look=look,
            handoff=True,
        )

    def _note_backlog(self) -> None:
        self._notes += 1
        self._backlog = True

    def _room(self) -> int:
        attempts, slots = self._attempts, self._slots
        pace = self._pace.look(attempts.finished, time.monotonic(), is_idle=slots.is_idle)
        return pacing.room(
            slots=slots.count,
            busy=slots.busy,
            ready=len(slots.ready),
            pace_per_s=pace,
            payload_bytes=self._payload_bytes,
        )

    def deliver(self, outcome: Outcome, wish: Take | None) -> None:
        """Receive what a step did; called by whoever led it."""
        if outcome.left_pending:
            self._note_backlog()
        elif wish is not None and wish.look and outcome.drained and self._notes == self._notes_seen:
            self._backlog = False
        if outcome.claims:
            self._receive(outcome.claims)
        if outcome.late:
            self._attempts.tell_late(outcome.late)
        if outcome.parked:
            self._note_parked(outcome.parked)
        if outcome.next_delay_s is not None:
            due_at = time.monotonic() + outcome.next_delay_s
            if due_at < self._due_at:
                self._due_at = due_at
                self._wake()
        if self._backlog:
            self._want_more()

    def _receive(self, claims: list[Claim]) -> None:
        size = sum(len(claim.payload or "") for claim in claims) / len(claims)
        self._payload_bytes = max(size, (self._payload_bytes + size) / 2)
        self._offered_at = time.monotonic()
        self._finished_at_offer = self._attempts.finished
        first = claims[0]
        if first.crashes:
            self._suspect = first.id
            if runs_alone(first):
                self._slots.offer(claims[1:])
                self._slots.offer_alone(first)
                return
        self._slots.offer(claims)

    def _free(self, slot: int) -> None:
        self._slots.free(slot)

    def _suspect_over(self, claim: Claim) -> None:
        """A suspect came to its end without a crash: the next one may come, and the others go on."""
        self._suspect = None
        if runs_alone(claim):
            self._slots.open_again()
        self._note_backlog()
        self._want_more()

    def _want_more(self) -> None:
        """Little is left in line: have the loop fetch, if there may be something."""
        if self._backlog and not self._asked and self._room():
            self._asked = True
            self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.wake()

    # --- fetching: the loop's step --------------------------------------------------------------------

    def _fetch(self) -> float:
        """Take what is due and has room; return how long to sleep at most."""
        self._asked = False
        if not self._is_taking:
            return IDLE_PAUSE_S
        if time.monotonic() >= self._due_at:
            self._look_ahead()
        if not self._backlog:
            return max(0.0, self._due_at - time.monotonic())
        if not self._room() or self._slots.is_closed:
            return IDLE_PAUSE_S  # `_want_more` and `_became_free` wake the loop
        held = len(self._slots.ready)
        self._committer.step()
        if self._backlog and len(self._slots.ready) > held:
            return 0.0
        if not self._backlog:
            return 0.0 if self._due_at <= time.monotonic() else self._due_at - time.monotonic()
        return BLOCKED_PAUSE_S

    def _look_ahead(self) -> None:
        """Find out, by reading alone, whether something is due, or when it will be."""
        due_s = self._store.next_due_s(self._config.queues)
        if due_s is None:
            self._due_at = time.monotonic() + IDLE_PAUSE_S
        elif due_s > 0:
            self._due_at = time.monotonic() + min(due_s, IDLE_PAUSE_S)
        else:
            self._due_at = time.monotonic() + BLOCKED_PAUSE_S
            self._note_backlog()

    def _changed(self) -> bool:
        if not self._store.changed():
            return False
        self._due_at = 0.0  # look ahead: something may be due
        return True

    def _became_free(self) -> None:
        self._want_more()
        with self._idle:
            self._idle.notify_all()

    # --- upkeep ---------------------------------------------------------------------------------------

    def _rescue(self) -> None:
        for dead, acks in self._store.rescue(self._decide_rescue):
            ran = sum(ack.crashes > 0 for ack in acks)
            self._events.emit(
                WorkerRescued(self._config.name, dead.name, dead.pid, running=ran, waiting=len(acks) - ran)
            )
            if any(ack.state is State.PENDING for ack in acks):
                self._note_backlog()
                self._wake()

    def _decide_rescue(self, claim: Claim, was_running: bool) -> Ack:
        result = crashed("its process ended without a word") if was_running else Interrupted()
        return after(claim, result, self._config.retry, self._config.max_crashes, chance=0.0)

    def _cancel(self) -> None:
        for job_id in self._store.cancelled(self._owner):
            self._attempts.cancel(job_id)

    def _give_back_stale(self) -> None:
        """Jobs that wait here because long ones came in between go back for others to take."""
        slots = self._slots
        stuck = self._attempts.finished == self._finished_at_offer
        if slots.ready and stuck and time.monotonic() - self._offered_at > STALE_S:
            self._interrupt(slots.take_back(alone=False))

    def _interrupt(self, claims: list[Claim]) -> None:
        for claim in claims:
            self._attempts.end(claim, Interrupted(), self._config.retry)
            if claim.id == self._suspect:
                self._suspect = None

    def _prune(self) -> None:
        keep = self._config.keep_completed
        while self._is_taking and self._store.prune(keep, limit=PRUNE_JOBS) == PRUNE_JOBS:
            pass

    def _note_parked(self, parked: dict[str, int]) -> None:
        for task, count in parked.items():
            self._parked[task] = self._parked.get(task, 0) + count
        if time.monotonic() >= self._parked_log_at:
            self._parked_log_at = time.monotonic() + PARKED_LOG_S
            counts, self._parked = self._parked, {}
            self._events.emit(TasksParked(self._config.name, counts, self._config.park_s))

    def _trouble(self, error: StoreError | None) -> None:
        if error is not None and not self._in_trouble:
            self._in_trouble = True
            self._events.emit(StoreTrouble(self._config.name, str(error)))
        elif error is None and self._in_trouble:
            self._in_trouble = False
            self._events.emit(StoreRecovered(self._config.name))

    @property
    def in_trouble(self) -> bool:
        """Whether the store cannot be used right now."""
        return self._in_trouble

    def _watch(self, attempt: Attempt, timeout_s: float) -> None:
        assert self._upkeep is not None
        self._upkeep.call_in(timeout_s, lambda: self._thread_timed_out(attempt))

    def _thread_timed_out(self, attempt: Attempt) -> None:
        if self._attempts.thread_timed_out(attempt):
            self._slots.replace(attempt.slot)
            assert self._upkeep is not None
            self._upkeep.call_in(self._config.lease_s, lambda: self._attempts.give_up_lease(attempt))

    # --- stopping ----------------------------------------------------------------------------------------

    def runs_here(self) -> bool:
        """Whether this very thread is one of ours, which cannot wait for its own end."""
        return self._slots.serves_here() or self._attempts.runs_here()

    def drain(self, until: float | None) -> None:
        """Wait until all that is ready has been finished, or the time is up."""
        while not self._committer.between_steps(self._is_drained):
            rest_s = 0.05 if until is None else min(0.05, until - time.monotonic())
            if rest_s <= 0:
                return
            if self._slots.is_idle:
                self._committer.kick()
                self._wake()
                rest_s = min(rest_s, 0.002)
            with self._idle:
                self._idle.wait(rest_s)

    def _is_drained(self) -> bool:
        if not self._slots.is_idle or self._committer.has_outcomes():
            return False
        due_s = self._store.next_due_s(self._config.queues)
        return due_s is None or due_s > 0

    def stop(self, until: float) -> bool:
        """
        Take nothing more, let running handlers end, write what they came to, and leave.

        Returns whether all is over: False if threads are stuck in handlers, whose jobs then
        stay with this process until they end.
        """
        self._is_taking = False
        self._attempts.is_stopping = True
        self._slots.shut()
        if self._loop is not None:
            self._loop.end()
        back = self._slots.take_back(alone=True)
        self._interrupt(back)
        self._attempts.ask_all_to_stop()
        self._wait_for_running(until)
        interrupted = self._slots.running
        self._attempts.interrupt_all()
        self._wait_for_running(time.monotonic() + UNWIND_S)
        if self._upkeep is not None:
            self._upkeep.end()
        self._slots.end()
        self._committer.taker = None
        stuck = self._slots.running
        self._flush(until)
        if not stuck:
            self._leave()
        self._events.emit(WorkerStopped(self._config.name, len(back) + interrupted - stuck, stuck))
        return not stuck

    def _wait_for_running(self, until: float) -> None:
        while self._slots.running:
            rest_s = until - time.monotonic()
            if rest_s <= 0:
                return
            with self._idle:
                self._idle.wait(min(rest_s, 0.02))

    def _flush(self, until: float) -> None:
        """Write what attempts came to; a store in trouble gets until the time is up, and 1 s at least."""
        until = max(until, time.monotonic() + 1.0)
        while self._committer.has_outcomes():
            try:
                self._committer.step()
            except StoreError as error:
                if time.monotonic() > until:
                    self._events.emit(
                        WorkerFault(
                            self._config.name, "writing the last outcomes (their jobs run again)", str(error)
                        )
                    )
                    return
                time.sleep(0.05)

    def _leave(self) -> None:
        self._attempts.end_all()
        try:
            self._store.leave(self._owner)
        except StoreError as error:  # what is left is rescued by the next worker
            self._events.emit(WorkerFault(self._config.name, "leaving the store", str(error)))
        self._committer.trouble = None

    def when_over(self, then: Callable[[], None]) -> None:
        """After a stop that left threads in handlers: leave when the last of them has ended."""

        def wait() -> None:
            while self._slots.running:
                time.sleep(0.05)
            self._flush(time.monotonic())
            self._leave()
            then()

        threading.Thread(target=wait, name="dutiful-last", daemon=True).start()
