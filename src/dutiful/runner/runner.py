"""The life of a started worker: what it takes, what it runs, how it ends."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from dutiful.config import Config
from dutiful.core import pacing
from dutiful.core.lifecycle import after
from dutiful.errors import StoreError
from dutiful.events import (
    Events,
    WorkerFault,
    WorkerRescued,
    WorkerStarted,
    WorkerStopped,
)
from dutiful.job import Ack, Cancel, Claim, Interrupted
from dutiful.middleware import Around
from dutiful.registry import Registry
from dutiful.runner.alarm import Alarm
from dutiful.runner.attempt import Attempt
from dutiful.runner.attempts import Attempts
from dutiful.runner.batches import Batches, Item
from dutiful.runner.doubts import Doubts
from dutiful.runner.failure import crashed
from dutiful.runner.leaving import Leaving
from dutiful.runner.line import Line
from dutiful.runner.loop import Loop
from dutiful.runner.parking import Parking
from dutiful.runner.pauses import Pauses
from dutiful.runner.schedules import Firing
from dutiful.runner.slots import Slots
from dutiful.runner.spare import Spare
from dutiful.runner.standing import Standing
from dutiful.runner.suspects import Suspects
from dutiful.runner.trouble import Troubles
from dutiful.runner.upkeep import TICK_S, Duty, Upkeep
from dutiful.stopping import Deadline
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft, Outcome, Owner, Store, Take
from dutiful.store.special import clockwork
from dutiful.store.special.schedules import Declared

HEARTBEAT_S = 10.0
TIDY_S = 30.0
TEND_S = 5.0
TRANSACTED_S = 0.02  # after a handler's own transaction: many share one look for who has waited for its job
AGE_LOOK_S = 1.0  # how often to look, while more is due than there is room for, who has waited long
IDLE_PAUSE_S = 30.0  # with nothing due the loop still looks now and then; it is woken long before
BUSY_PAUSE_S = 0.25  # all slots are taken: the loop is woken as soon as that changes
BLOCKED_PAUSE_S = 0.05  # something is due that cannot be taken yet, such as a second suspect
STALE_S = 0.5  # a job that waits in memory longer than this goes back for others to take
PRUNE_JOBS = 500  # a few ms of the write lock
SELDOM_S = 30.0  # how often a worker looks for what others may have left to it, if nothing happens here
REREAD_S = 0.25  # how often, at most, rings have us read what people pause and resume
REREAD_AFTER_S = 0.005  # a ring is most often for a job, which is not to wait for that


class Runner:
    """One incarnation of a worker, from `start` to `stop`."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: Registry,
        config: Config,
        events: Events,
        draft: Callable[[object, Mapping[str, Any]], Draft],
        schedules: Mapping[str, Declared],
        middleware: Sequence[Any] = (),
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._config = config
        self._events = events
        self._pauses = Pauses(config.queues, changed=self._heed_pauses)
        self._parking = Parking(store, registry, config, events, paused=self._paused_tasks)
        self._suspects = Suspects(registry)
        self._doubts = Doubts()
        self._troubles = Troubles(events, config.name, over=self.nudge)
        self._pace = pacing.Pace()
        self._line = Line(store, config.turns, config.age_s)
        self._payload_bytes = 0.0
        self._batches = Batches(
            registry, events, config.name, offer=self._offer, is_more_coming=self._is_more_coming
        )
        spare = Spare(config.concurrency)
        self._attempts = Attempts(
            store,
            committer,
            registry,
            config,
            events,
            free=self._free,
            look_by=self._look_by,
            stuck=self._stuck,
            suspect_over=self._suspect_over,
            transacted=self._transacted,
            draft=draft,
            around=Around(middleware) if middleware else None,
            batches=self._batches,
            spare=spare,
        )
        self._slots = Slots(
            config.concurrency,
            self._attempts.run_around if middleware else self._attempts.run,
            when_low=self._want_more,
            when_free=self._became_free,
            fault=self._attempts.fault,
            batches=self._batches,
            spare=spare,
        )
        self._outcomes = self._attempts.outcomes
        self._leaving = Leaving(store, committer, self._attempts, self._slots, events, config.name)
        self._standing = Standing(
            store,
            self._attempts,
            self._slots,
            events,
            config.name,
            give_back=self._interrupt,
            drop=self._suspects.let_go,
        )
        self._firing = Firing(store, schedules, events, config, call=self._call_firing, fired=self._has_fired)
        self._firing_duty = Duty("firing schedules", math.inf, self._firing.fire)
        self._park_duty = Duty("parking what cannot run", TICK_S, self._park)
        self._reread_duty = Duty("reading what is paused", math.inf, self.reread)
        self._reread_at = 0.0
        self._is_rung = False
        self._owner: Owner = 0
        self._backlog = True  # something due may be waiting in the store
        self._notes = 0  # how often that was noted
        self._notes_seen = 0
        self._asked = False
        self._alarm = Alarm()  # for when the next pending job falls due
        self._offered_at = 0.0
        self._finished_before = 0  # at the last look for stale jobs
        self._tended_at = 0  # ms, by the store's clock
        self._prune_at = 0.0
        self._pruned = -1  # how many attempts had finished then
        self._is_taking = False
        self._loop: Loop | None = None
        self._upkeep: Upkeep | None = None
        self._watch: Upkeep | None = None

    # --- starting --------------------------------------------------------------------------------

    def start(self) -> None:
        """Join the store, rescue what dead workers left, and take jobs."""
        config = self._config
        self._owner = self._store.join(config.name, config.queues, config.concurrency, self._parking.tasks())
        try:
            self._attempts.start(self._owner)
            self._standing.start(self._owner)
            self._leaving.start(self._owner)
            self._rescue_all()
            self._firing.declare()
            self.reread()
            self._parking.unpark()
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
            rung=self._rung,
            changes=self._store.changes(),
            trouble=partial(self._troubles.note, "fetch"),
        )
        self._upkeep = Upkeep(
            self._duties(),
            self._events,
            self._config.name,
            trouble=partial(self._troubles.note, "upkeep"),
            recovered=partial(self._troubles.clear, "upkeep"),
            timeouts=self._no_timeouts if self._standing.can_be_cut_off else self._attempts.look_at_timeouts,
        )
        self._begin_watch()
        self._committer.watcher = self
        self._committer.taker = self
        self._is_taking = True
        self._upkeep.start()
        self._loop.start()
        config = self._config
        self._events.emit(
            WorkerStarted(
                config.name,
                self._store.label,
                tuple(sorted(self._registry.names())),
                config.queues,
                config.concurrency,
            )
        )

    def _begin_watch(self) -> None:
        """What has to be on time, and asks nobody, gets a thread that never waits for the store."""
        if self._standing.can_be_cut_off:
            self._watch = Upkeep(
                [Duty("looking how it stands with the store", TICK_S, self._standing.look)],
                self._events,
                self._config.name,
                trouble=partial(self._troubles.note, "watch"),
                recovered=partial(self._troubles.clear, "watch"),
                timeouts=self._attempts.look_at_timeouts,
            )
            self._watch.start()

    def _no_timeouts(self) -> None:
        """They are looked at elsewhere."""

    def _duties(self) -> list[Duty]:
        self._tending = Duty("what is late", self._tend_s(), self._tend)
        return [
            Duty("rescuing the jobs of dead workers", TICK_S, self._rescue),
            Duty("looking for cancelled jobs", TICK_S, self._cancel),
            Duty("giving back waiting jobs", TICK_S, self._give_back_stale),
            self._park_duty,
            Duty("pruning", TICK_S, self._prune),
            Duty("writing how far jobs have come", TICK_S, self._attempts.write_progress),
            Duty("looking for what has waited long", max(self._tend_s(), AGE_LOOK_S), self._look_at_age),
            self._tending,
            Duty("giving back what was taken unawares", TEND_S, self._settle_doubts),
            self._firing_duty,
            self._reread_duty,
            Duty("what people pause and resume", self._tend_s(), self._reread_now_and_then),
            Duty("the heartbeat", HEARTBEAT_S, self._beat),
            Duty("tidying up", TIDY_S, self._store.tidy),
        ]

    def _paused_tasks(self) -> Collection[str]:
        """Return the stored names of the tasks that are paused: in all versions, with all keys."""
        paused = self._pauses.tasks
        return self._registry.versions_of(paused) if paused else paused

    # --- taking: what the committer asks in each step -----------------------------------------------

    def wish(self, *, sending: bool) -> Take | None:
        """Say what to take in this step; called by whoever leads it."""
        look = self._backlog
        if not self._is_taking or self._slots.is_closed or not (look or sending):
            return None
        if not self._standing.pulse.may_start:
            return None
        limit, queues = self._room(), self._pauses.queues
        if limit == 0 or not queues:
            return None
        self._notes_seen = self._notes  # what is noted from here on is not seen by this step
        return Take(
            self._owner,
            queues,
            limit,
            suspects=self._suspects.room(),
            known=self._parking.known,
            skip=self._parking.passed_over(),
            look=look,
            handoff=True,
            turns=self._line.turns,
            aged=self._line.aged(limit),
        )

    def _note_backlog(self) -> None:
        self._notes += 1
        self._backlog = True

    def _room(self) -> int:
        attempts, slots, batches = self._attempts, self._slots, self._batches
        pace = self._pace.look(attempts.finished, time.monotonic(), is_idle=slots.is_idle)
        return pacing.room(
            slots=slots.count,
            busy=slots.busy,
            ready=len(slots.ready),
            pace_per_s=pace,
            payload_bytes=self._payload_bytes,
            lacking=batches.lacking,
            gathered=batches.held,
        )

    def deliver(self, outcome: Outcome, wish: Take | None) -> None:
        """Receive what a step did; called by whoever led it."""
        if outcome.left_pending:
            self._note_backlog()
        elif wish is not None and wish.look and outcome.drained and self._notes == self._notes_seen:
            self._backlog = False
        if outcome.claims:
            if wish is not None and wish.look:
                self._line.took(wish, outcome)
            self._receive(outcome.claims)
        if outcome.late:
            self._outcomes.tell_late(outcome.late)
        if outcome.left_ends and self._upkeep is not None:
            self._upkeep.call(self._tending, time.monotonic())
        if outcome.unknown:
            self._parking.meet(outcome.unknown)
        if outcome.aside_s is not None and self._upkeep is not None:
            self._upkeep.call(self._tending, time.monotonic() + outcome.aside_s)
        if outcome.next_delay_s is not None and self._alarm.set(time.monotonic() + outcome.next_delay_s):
            self._wake()
        if self._backlog:
            self._want_more()

    def doubt(self, claims: Sequence[Claim]) -> None:
        """A step may have taken these; called by whoever led it."""
        self._doubts.add(claims)

    def _receive(self, claims: list[Claim]) -> None:
        self._doubts.received(claims)
        if self._pauses.is_any:  # since they were asked for
            held = set(self._pauses.held(claims))
            self._interrupt([claim for claim in claims if claim.id in held])
            claims = [claim for claim in claims if claim.id not in held]
            if not claims:
                return
        size = sum(len(claim.payload or "") for claim in claims) / len(claims)
        self._payload_bytes = max(size, (self._payload_bytes + size) / 2)
        self._offered_at = time.monotonic()
        gather = self._batches.gather if self._registry.has_batches else _as_they_are
        suspect = next((claim for claim in claims if claim.crashes), None)
        if suspect is not None:
            self._suspects.hold(suspect)
            if self._suspects.must_run_alone(suspect):
                self._slots.offer(gather([claim for claim in claims if claim is not suspect]))
                self._slots.offer_alone(suspect)
                return
        self._slots.offer(gather(claims))

    def _is_more_coming(self) -> bool:
        return self._backlog and self._is_taking and not self._slots.is_closed and self._room() > 0

    def _offer(self, items: Sequence[Item]) -> None:
        self._slots.offer(items)

    def _free(self, slot: int) -> None:
        self._slots.free(slot)

    def _suspect_over(self, claim: Claim) -> None:
        """A suspect came to its end without a crash: the next one may come, and the others go on."""
        if not self._suspects.holds(claim):  # it was given up before
            return
        self._suspects.acquit()
        if self._suspects.must_run_alone(claim):
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
        try:
            return self._take_due()
        finally:
            if self._is_rung:
                self._heed_ring()

    def _take_due(self) -> float:
        self._asked = False
        if not self._is_taking or not self._pauses.queues:
            return IDLE_PAUSE_S  # it is woken when they are resumed
        if time.monotonic() >= self._alarm.at:
            self._look_ahead()
        if not self._backlog:
            return max(0.0, self._alarm.at - time.monotonic())
        if not self._room() or self._slots.is_closed:
            return BUSY_PAUSE_S  # `_want_more` and `_became_free` wake the loop before
        held = self._slots.held
        self._committer.step()
        if self._backlog and self._slots.held > held:
            return 0.0
        if not self._backlog:
            return max(0.0, self._alarm.at - time.monotonic())
        return BLOCKED_PAUSE_S

    def _look_ahead(self) -> None:
        """Find out, by reading alone, whether something is due, or when it will be."""
        with self._alarm.looking():
            due_s = self._store.next_due_s(self._pauses.queues, self._parking.passed_over())
            self._troubles.clear("fetch")
            if due_s is not None and due_s <= 0:
                due_s = BLOCKED_PAUSE_S
                self._note_backlog()
            self._alarm.set(time.monotonic() + min(IDLE_PAUSE_S if due_s is None else due_s, IDLE_PAUSE_S))

    def _rung(self) -> None:
        """Another process says that something is due."""
        self._store.hush()
        self._note_backlog()  # take it at once: a look first would only cost time
        self._is_rung = True

    def _heed_ring(self) -> None:
        """A ring may be about more than jobs; that is seen to when the handlers have begun."""
        self._is_rung = False
        if self._upkeep is None:
            return
        if self._standing.is_called():
            self._upkeep.hurry()
        at = max(time.monotonic() + REREAD_AFTER_S, self._reread_at + REREAD_S)
        self._upkeep.call(self._reread_duty, at)

    def _changed(self) -> bool:
        if not self._store.changed():
            return False
        self._alarm.set(0.0)  # look ahead: something may be due
        return True

    def _became_free(self) -> None:
        self._want_more()
        self._leaving.became_free()

    # --- upkeep ---------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._store.beat(self._owner, self._parking.tasks())
        self._firing.keep_fresh()
        self._attempts.start(self._owner)  # the marks may be elsewhere now

    def _rescue(self) -> None:
        if self._store.pulse(self._owner).dead is not False:
            self._rescue_all()

    def _rescue_all(self) -> None:
        for dead, acks in self._store.rescue(self._decide_rescue):
            ran = sum(ack.crashes > 0 for ack in acks)
            self._events.emit(
                WorkerRescued(self._config.name, dead.name, dead.pid, running=ran, waiting=len(acks) - ran)
            )
            if acks:  # back in line, or out of another's way
                self._note_backlog()
                self.nudge()

    def _decide_rescue(self, claim: Claim, was_running: bool) -> Ack:
        result = crashed("its process ended without a word") if was_running else Interrupted()
        return after(claim, result, self._config.retry, self._config.max_crashes, chance=0.0)

    def _tend_s(self) -> float:
        # Where a look is a trip to a server, an idle worker is not to ask often.
        return TICK_S if self._store.pulse(self._owner).dead is None else TEND_S

    def _tend(self) -> None:
        """End what was not started in time, let back what had stepped aside, and follow up transactions."""
        with self._store.sql_look() as look:
            if clockwork.is_quiet(look):
                return
            found = clockwork.look(look, self._tended_at)
        moved = clockwork.tend(self._store, found, self._config.name)
        self._tended_at = found.now
        every_s = self._tend_s()
        self._tending.every_s = every_s if found.next_s is None else min(every_s, max(0.01, found.next_s))
        if moved:
            self._note_backlog()
            self.nudge()
            self._store.ring()

    def declare(self) -> None:
        """Write down the schedules that were declared since the start."""
        self._firing.declare()

    def _call_firing(self, in_s: float) -> None:
        at = time.monotonic() + in_s
        if self._upkeep is None:  # the first, which it does when it has begun
            self._firing_duty.called_at = min(at, self._firing_duty.called_at)
        else:
            self._upkeep.call(self._firing_duty, at)

    def _has_fired(self) -> None:
        self._store.ring()
        self._note_backlog()
        self._wake()

    def _reread_now_and_then(self) -> None:
        # Where a look is a trip to a server it rings for us, if it can: this is for what is missed then.
        pulse = self._store.pulse(self._owner)
        every_s = 0.0 if pulse.dead is None else TEND_S if pulse.is_polling else SELDOM_S
        if time.monotonic() >= self._reread_at + every_s:
            self.reread()

    def reread(self) -> None:
        """Read what is paused by now, and when schedules fire: somebody may have changed that by hand."""
        self._reread_at = time.monotonic()
        with self._pauses.reading:
            with self._store.sql_look() as look:
                paused = self._pauses.listed(look)
                self._firing.look(look)
            self._pauses.heed(paused)

    def _heed_pauses(self) -> None:
        """What is paused has changed: jobs of it that wait here go back, others may come."""
        held = self._pauses.held(self._slots.waiting)
        if held:
            self._interrupt(self._slots.take_out(held))
        self._note_backlog()
        self.nudge()

    def _settle_doubts(self) -> None:
        if self._doubts:
            # Between steps: what one has taken and not delivered yet is not to be taken for lost.
            found = self._committer.between_steps(lambda: self._doubts.found(self._store.held(self._owner)))
            self._interrupt(found)
            if found:
                self._note_backlog()
                self._wake()

    def _cancel(self) -> None:
        if self._store.pulse(self._owner).cancelled is False:
            return
        ids = [job_id for job_id in self._store.cancelled(self._owner) if not self._attempts.cancel(job_id)]
        for claim in self._slots.take_out(ids) if ids else ():
            self._outcomes.end(claim, Cancel("cancelled before it began"))
            self._suspects.let_go(claim)
            self._note_backlog()
            self._wake()

    def _give_back_stale(self) -> None:
        """Jobs that wait here because long ones came in between go back for others to take."""
        slots, finished = self._slots, self._attempts.finished
        is_stuck = finished == self._finished_before
        self._finished_before = finished
        waited_s = time.monotonic() - self._offered_at
        if slots.ready and is_stuck and waited_s > STALE_S:
            self._interrupt(slots.take_back(alone=False, gathering=False))
        alone = slots.waiting_alone
        if alone is not None and waited_s > self._suspects.patience_s:
            self._put_off(alone)

    def _put_off(self, alone: Claim) -> None:
        """A job that must run alone waits behind long ones, and all others with it: go on, and try later."""
        self._suspects.put_off()
        taken = self._slots.take_out([alone.id])
        self._interrupt(taken)
        if taken:
            self._note_backlog()
            self._wake()

    def _interrupt(self, claims: list[Claim]) -> None:
        for claim in claims:
            self._outcomes.end(claim, Interrupted())
            self._suspects.let_go(claim)

    def _look_at_age(self) -> None:
        self._line.look(self._pauses.queues, self._parking.passed_over(), is_behind=self._backlog)

    def _park(self) -> None:
        if self._parking.tend() or self._parking.is_more:  # what was parked may have held a slot
            self._note_backlog()
            self._wake()
        if self._parking.is_more and self._upkeep is not None:  # with others' turns in between
            self._upkeep.call(self._park_duty, time.monotonic())

    def _prune(self) -> None:
        finished = self._attempts.finished
        if finished == self._pruned and time.monotonic() < self._prune_at:
            return
        keep = self._config.keep_completed
        # What is due to go by its age alone goes at most twice as old.
        self._pruned, self._prune_at = finished, time.monotonic() + min(SELDOM_S, keep.age_s)
        while self._is_taking and self._store.prune(keep, limit=PRUNE_JOBS) == PRUNE_JOBS:
            pass

    def trouble(self, error: StoreError) -> None:
        """A step failed; it is tried again."""
        self._troubles.note("commit", error)

    def recovered(self) -> None:
        """A step succeeded."""
        self._troubles.clear("commit")

    def fault(self, duty: str, error: Exception) -> None:
        """Something of ours went wrong after a commit, which holds."""
        self._events.emit(WorkerFault(self._config.name, duty, repr(error)))

    def failed_instead(self, ack: Ack, error: Exception) -> Ack | None:
        """What an attempt came to cannot be written: return that it has failed, for that reason."""
        return self._attempts.failed_instead(ack, error)

    def unwritable(self, ack: Ack, error: Exception) -> None:
        """An outcome can never be written: a bug; the job runs again after a restart."""
        duty = f"writing the outcome of job {ack.id} (it runs again after a restart)"
        self._events.emit(WorkerFault(self._config.name, duty, repr(error)))

    def _transacted(self) -> None:
        """A handler's own transaction has committed: jobs may have come, or may wait for its own."""
        self.nudge()
        if self._upkeep is not None:
            self._upkeep.call(self._tending, time.monotonic() + TRANSACTED_S)

    def nudge(self) -> None:
        """Something may be due that nobody announced."""
        self._alarm.set(0.0)
        self._wake()

    def _look_by(self, at: float) -> None:
        watch = self._watch or self._upkeep
        assert watch is not None, "handlers run between start and stop"
        watch.look_by(at)

    def _stuck(self, attempt: Attempt) -> None:
        self._slots.replace(attempt.slot)
        if attempt.claim.crashes:
            self._suspect_over(attempt.claim)
        self._became_free()

    # --- stopping ----------------------------------------------------------------------------------------

    def runs_here(self) -> bool:
        """Whether this very thread is one of ours, which cannot wait for its own end."""
        return self._slots.serves_here() or self._attempts.runs_here()

    @property
    def finished(self) -> int:
        """How many attempts have ended."""
        return self._attempts.finished

    def drain(self, deadline: Deadline) -> bool:
        """
        Wait until all that is ready has been finished.

        Returns whether that is so: False if the time is up, or if it takes nothing more.
        """
        self._batches.hurry()
        try:
            return self._wait_until_drained(deadline)
        finally:
            self._batches.take_time()  # it may go on

    def _wait_until_drained(self, deadline: Deadline) -> bool:
        while not self._committer.between_steps(self._is_drained):
            rest_s = deadline.rest_s(at_most=0.05)
            if rest_s <= 0 or not self._is_taking:
                return False
            if self._slots.is_idle:
                self._committer.kick()
                self.nudge()
                rest_s = min(rest_s, 0.002)
            self._leaving.wait(rest_s)
        return True

    def _is_drained(self) -> bool:
        if not self._slots.is_idle or self._batches.held or self._committer.has_outcomes():
            return False
        due_s = self._store.next_due_s(self._pauses.queues, self._parking.passed_over())
        return due_s is None or due_s > 0

    def stop(self, deadline: Deadline) -> bool:
        """
        Take nothing more, let running handlers end, write what they came to, and leave.

        Returns whether all is over: False if threads are stuck in handlers, whose jobs then
        stay with this process until they end.
        """
        self._is_taking = False
        self._slots.shut()
        if self._loop is not None:
            self._loop.end()
        back = self._slots.take_back(alone=True)
        self._interrupt(back)
        self._batches.end()
        interrupted = self._leaving.end_running(deadline)
        for duties in (self._upkeep, self._watch):  # in this order: the watch ends what the other waits for
            if duties is not None:
                duties.end()
        self._slots.end()
        stuck = self._slots.running
        if stuck:
            self._attempts.unmark_all()
        self._leaving.flush(deadline)
        if not stuck:
            self._leaving.leave(deadline)
        self._events.emit(WorkerStopped(self._config.name, len(back) + interrupted - stuck, stuck))
        return not stuck

    def when_over(self, then: Callable[[], None]) -> None:
        """After a stop that left threads in handlers: leave when the last of them has ended."""
        self._leaving.when_over(then)


def _as_they_are(claims: list[Claim]) -> list[Claim]:
    return claims
