"""
A worker's engine that does nothing by itself: it runs jobs when a test says so, in the test's own thread.

It takes the way of every job: the payload from its JSON, one attempt, its outcome decided by the
same rules and written to the store. What is missing are the threads and their timers: so there are
no timeouts of sync handlers, no heartbeat, no pruning.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context as Variables
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

from dutiful.config import Config
from dutiful.core.lifecycle import after
from dutiful.errors import ConfigError, StoreError
from dutiful.events import Events, WorkerFault
from dutiful.job import Ack, Claim, Interrupted, JobId
from dutiful.middleware import Around
from dutiful.registry import Registry
from dutiful.runner.attempt import Attempt
from dutiful.runner.attempts import Attempts
from dutiful.runner.batches import Batches
from dutiful.runner.failure import crashed
from dutiful.runner.parking import Parking
from dutiful.runner.pauses import Pauses
from dutiful.runner.schedules import Firing
from dutiful.runner.spare import Spare
from dutiful.stopping import Deadline
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft, Outcome, Owner, Store, Take, Work
from dutiful.store.special import clockwork, schedules
from dutiful.store.special.schedules import Declared
from dutiful.testing.outcomes import Overheard

Errors: TypeAlias = Literal["raise", "keep"]

ATTEMPTS_MAX = 100_000  # of one call: beyond, jobs are most likely sending each other without end
SLOTS = 1024  # threads that run jobs at once, at most
LOOKS_MAX = 100_000  # at jobs that step aside one after the other

# Which hand's handler this code belongs to; goes along into the threads of asyncio.to_thread.
_within: ContextVar[object] = ContextVar("dutiful_by_hand", default=None)


class _HereAttempts(Attempts):
    """Runs the handlers of child processes here, where a test's mocks are; and batches as they are given."""

    def run_claims(self, claims: list[Claim], slot: int) -> bool:
        """`run`, for one job, or for several that are a batch."""
        entry = self._registry.entry(claims[0].task)
        if len(claims) > 1 and entry is not None:
            return self._run_together(claims, slot, entry)
        run = self.run if self._around is None else self.run_around
        return run(claims[0], slot)

    def batch_room(self, claim: Claim) -> int:
        """Return how many more jobs may go into one batch with this one."""
        entry = self._registry.entry(claim.task)
        if entry is None or entry.batch is None or claim.crashes or claim.extra is not None:
            return 0
        return max(1, entry.batch >> min(claim.failures, 32)) - 1

    def _run_in_child(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from dutiful.runner.child import ChildBatchContext, ChildContext  # 20 ms, for those who use it

        name = attempt.entry.ctx_name
        if name is not None:
            each = [
                ChildContext(one.id, one.attempt, one.task, one.queue, *asked)
                for one, asked in zip(attempt.claims, self._asked(attempt), strict=True)
            ]
            is_batch = attempt.entry.batch is not None
            kwargs[name] = ChildBatchContext(tuple(each)) if is_batch else each[0]
        self._run_here(attempt, args, kwargs)

    def _over(self, attempt: Attempt, value: object, error: BaseException | None) -> None:
        if isinstance(self.outcomes, Overheard) and not attempt.timed_out:
            self.outcomes.note(attempt.claims, error)
        super()._over(attempt, value, error)


class Hand:
    """Runs a worker's jobs when it is told to; from any thread, and several at once."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: Registry,
        config: Config,
        events: Events,
        draft: Callable[[object, Mapping[str, Any]], Draft],
        declared: Mapping[str, Declared],
        middleware: Sequence[Any],
        *,
        errors: Callable[[], Errors],
    ) -> None:
        self._store = store
        self._schedules = declared
        self._committer = committer
        self._config = config
        self._events = events
        self._errors = errors
        self._pauses = Pauses(config.queues, changed=lambda: None)
        self._parking = Parking(
            store, registry, config, events, paused=lambda: registry.versions_of(self._pauses.tasks)
        )
        self._firing = Firing(store, declared, events, config, call=self._note_firing, fired=self._note_fired)
        self._firing_s = math.inf
        self._has_fired = False
        self._attempts = _HereAttempts(
            store,
            committer,
            registry,
            config,
            events,
            free=self._free,
            look_by=lambda _at: None,
            stuck=lambda _attempt: None,
            suspect_over=lambda _claim: None,
            transacted=lambda: None,
            draft=draft,
            around=Around(middleware) if middleware else None,
            batches=Batches(
                registry, events, config.name, offer=lambda _items: None, is_more_coming=lambda: False
            ),
            spare=Spare(SLOTS),
        )
        self._attempts.outcomes = Overheard(committer, config, events, self._hear)
        self._heard: dict[JobId, BaseException] = {}
        self._owner: Owner = 0
        self._joining = threading.Lock()
        self._slots = list(range(SLOTS))
        self._over: dict[int, threading.Event] = {}
        self._running: set[JobId] = set()
        self._ended = threading.Condition()
        self._tended_at = 0
        self._stops = 0
        committer.watcher = self

    # --- an engine, for the front door --------------------------------------------------------------

    @property
    def finished(self) -> int:
        return self._attempts.finished

    def start(self) -> None:
        self._join()

    def drain(self, deadline: Deadline) -> bool:
        return self.run_ready(deadline)

    def stop(self, deadline: Deadline) -> bool:
        self._stops += 1
        self._attempts.ask_all_to_stop()
        with self._ended:  # only what another thread is running right now
            while self._running and (rest_s := deadline.rest_s(at_most=1.0)) > 0:
                self._ended.wait(rest_s)
        with self._joining:
            owner, self._owner = self._owner, 0
            if owner:
                self._attempts.end_all()
                self._store.leave(owner)
        return True

    def when_over(self, then: Callable[[], None]) -> None:
        then()

    def nudge(self) -> None:
        """Nothing is done unless it is told to."""

    def reread(self) -> None:
        """What is paused is read each time."""

    def declare(self) -> None:
        if self._owner:
            self._firing.declare()

    def runs_here(self) -> bool:
        return _within.get() is self or self._attempts.runs_here()

    # --- what the committer tells -------------------------------------------------------------------

    def trouble(self, error: StoreError) -> None:
        """Whoever asked is told."""

    def recovered(self) -> None:
        """Nobody was told of trouble."""

    def fault(self, duty: str, error: Exception) -> None:
        self._events.emit(WorkerFault(self._config.name, duty, repr(error)))

    def failed_instead(self, ack: Ack, error: Exception) -> Ack | None:
        return self._attempts.failed_instead(ack, error)

    def unwritable(self, ack: Ack, error: Exception) -> None:
        self.fault(f"writing the outcome of job {ack.id}", error)

    # --- running --------------------------------------------------------------------------------------

    def run_ready(self, deadline: Deadline | None = None, until: Callable[[], bool] | None = None) -> bool:
        """
        Run what is ready, one after the other, until nothing is, or `until` is so; return whether in time.

        Raises:
            Exception: What a handler raises, when that is written; the rest stays ready.
        """
        stops = self._stops
        self._join()
        self._declare()
        self._look_at_pauses()
        for _ in range(ATTEMPTS_MAX):
            if until is not None and until():
                return True
            if deadline is not None and deadline.rest_s(at_most=1.0) <= 0:
                return False
            if self._stops != stops:  # a handler has stopped the worker, or another thread
                return False
            if not self._run_next():
                return True
        raise ConfigError(
            f"worker {self._config.name!r} has run {ATTEMPTS_MAX} attempts, and more is ready; the rest "
            "stays stored. Do jobs send each other, or snooze for 0 seconds, without end?"
        )

    def _declare(self) -> None:
        self._firing.declare()
        if self._schedules:  # time may have gone on by days since
            with self._store.sql() as sql:
                schedules.seen(sql, self._schedules)

    def _join(self) -> None:
        with self._joining:
            if self._owner:
                return
            config, tasks = self._config, self._parking.tasks()
            self._owner = self._store.join(config.name, config.queues, config.concurrency, tasks)
            self._attempts.start(self._owner)
            self._store.rescue(self._decide_rescue)
            self._look_at_pauses()
            self._parking.unpark()
            self._firing.declare()

    def _look_at_pauses(self) -> None:
        with self._store.sql_look() as look:
            self._pauses.heed(self._pauses.listed(look))

    def _decide_rescue(self, claim: Claim, was_running: bool) -> Ack:
        result = crashed("its process ended without a word") if was_running else Interrupted()
        return after(claim, result, self._config.retry, self._config.max_crashes, chance=0.0)

    def _run_next(self) -> bool:
        """Run the most urgent job that is ready; return whether there was one."""
        claims = self._claim()
        if not claims and self._is_more():
            claims = self._claim()
        if not claims:
            return False
        claim = claims[0]
        if room := self._attempts.batch_room(claim):
            claims += self._claim(room, known=(claim.task,))
        ids = {each.id for each in claims}
        self._running |= ids
        try:
            self._run(claims)
            self._committer.step()
        finally:
            with self._ended:
                self._running -= ids
                self._ended.notify_all()
        errors = [error for each in claims if (error := self._heard.pop(each.id, None)) is not None]
        error = errors[0] if errors else None
        if error is not None and (self._errors() == "raise" or not isinstance(error, Exception)):
            error.add_note(
                f"It was raised by the handler of job {claim.id} ({claim.task}), attempt {claim.attempt}, "
                'and is recorded there. To let the job fail as it would by itself: errors="keep".'
            )
            raise error
        return True

    def _claim(self, limit: int = 1, known: Container[str] | None = None) -> list[Claim]:
        for _ in range(LOOKS_MAX):
            if not self._pauses.queues:
                return []
            skip = self._parking.passed_over()
            take = Take(
                self._owner,
                self._pauses.queues,
                limit,
                suspects=int(known is None),
                known=self._parking.known if known is None else known,
                skip=skip,
            )
            outcome = Outcome()
            self._store.exchange(Work(take=take), outcome)
            if outcome.claims:
                return outcome.claims
            if known is not None:  # more for a batch
                return []
            if outcome.unknown:
                self._parking.meet(outcome.unknown)
            if outcome.drained:
                return []
        return []

    def _run(self, claims: list[Claim]) -> None:
        slot = self._slots.pop()
        over = self._over[slot] = threading.Event()
        try:
            # As in a thread of its own: what the sender's context has, such as a web framework's request, is
            # not there in real life either.
            if not _without_loop(lambda: Variables().run(self._run_within, claims, slot)):
                over.wait()
        except BaseException as error:
            for claim in claims:
                self._attempts.fault(claim, error)
            raise
        finally:
            del self._over[slot]
            self._slots.append(slot)

    def _run_within(self, claims: list[Claim], slot: int) -> bool:
        _within.set(self)
        return self._attempts.run_claims(claims, slot)

    def _free(self, slot: int) -> None:
        self._over[slot].set()

    def _hear(self, claim: Claim, error: BaseException) -> None:
        self._heard[claim.id] = error

    def wait_for_others(self, job_ids: Iterable[JobId]) -> None:
        """Wait until none of these jobs is run by another thread."""
        mine = set(job_ids)
        with self._ended:
            self._ended.wait_for(lambda: not mine & self._running)

    # --- what falls due by itself ---------------------------------------------------------------------

    def _is_more(self) -> bool:
        """Do what is due by itself; return whether jobs may have become ready by that."""
        self._has_fired = False
        self._firing.fire()
        return self._tend() or self._has_fired

    def _tend(self) -> bool:
        with self._store.sql_look() as look:
            if clockwork.is_quiet(look):
                return False
            found = clockwork.look(look, self._tended_at)
        self._tended_at = found.now
        return clockwork.tend(self._store, found, self._config.name)

    def _note_fired(self) -> None:
        self._has_fired = True

    def _note_firing(self, in_s: float) -> None:
        self._firing_s = in_s

    def next_s(self) -> float | None:
        """Return in how many seconds the next job, or schedule, is due by its time; None: none is."""
        self._join()
        self._firing_s = math.inf
        with self._store.sql_look() as look:
            self._firing.look(look)
            back_s = None if clockwork.is_quiet(look) else clockwork.look(look, self._tended_at).next_s
        skip = self._parking.passed_over()
        due_s = self._store.next_due_s(self._pauses.queues, skip) if self._pauses.queues else None
        found = [each for each in (self._firing_s, back_s, due_s) if each is not None and each > 0]
        nearest = min(found, default=math.inf)
        return None if nearest == math.inf else nearest


def _without_loop(function: Callable[[], bool]) -> bool:
    """Call it where no event loop runs, as none does where sync handlers are called in real life."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1, thread_name_prefix="dutiful-by-hand") as thread:
        return thread.submit(function).result()
