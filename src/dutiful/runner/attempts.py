"""
One attempt, from claim to outcome.

    arguments from the payload → the handler, by its kind → what it did → outcomes.py
"""

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from dutiful.config import Config
from dutiful.context import Context, Desk
from dutiful.crashpoint import ARMED, crashpoint
from dutiful.errors import KeyMissing, PayloadError, StoreError
from dutiful.events import Events, HandlerStuck, WorkerFault
from dutiful.handler import Arguments, Entry, Kind
from dutiful.job import Ack, Claim, Discard, Interrupted, JobId, Result, State
from dutiful.middleware import Around
from dutiful.registry import Registry
from dutiful.runner import batch
from dutiful.runner.attempt import Attempt
from dutiful.runner.batch import Batch
from dutiful.runner.batches import Batches, Item, Place
from dutiful.runner.failure import error_info, failed, timed_out
from dutiful.runner.outcomes import Outcomes
from dutiful.runner.reading import Reading
from dutiful.runner.spare import Spare
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft, Marks, Owner, Store
from dutiful.store.liveness import SLOTS_MAX
from dutiful.store.special.steps import need_key, write_progress
from dutiful.versions import parted, sealed_name, task_of

if TYPE_CHECKING:
    from dutiful.runner.children import Asked
    from dutiful.runner.coroutines import Coroutines
    from dutiful.runner.messages import HandlerRef
    from dutiful.runner.processes import ChildPool


class Attempts:
    """
    Runs attempts, and knows which run.

    Args:
        free: Gives back the slot of an attempt that did not end in the thread it began in.
        look_by: Asks for `look_at_timeouts` to be called by a time (monotonic seconds).
        stuck: Told of an attempt whose thread did not end in time.
        suspect_over: Called when an attempt at a job that has crashed before has ended.
        transacted: Called when a handler's own transaction has completed its jobs.
        draft: From a payload and the options of `send` to the job to store.
        around: The middleware, if there is any: then jobs are run with `run_around`.
        batches: Where the jobs of a batch are when its turn has come.
        spare: Numbers to mark them with.
    """

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: Registry,
        config: Config,
        events: Events,
        *,
        free: Callable[[int], None],
        look_by: Callable[[float], None],
        stuck: Callable[[Attempt], None],
        suspect_over: Callable[[Claim], None],
        transacted: Callable[[], None],
        draft: Callable[[object, Mapping[str, Any]], Draft],
        around: Around | None,
        batches: Batches,
        spare: Spare,
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._config = config
        self._events = events
        self._free = free
        self._look_by = look_by
        self._stuck = stuck
        self._suspect_over = suspect_over
        self._transacted = transacted
        self._draft = draft
        self._around = around
        self._batches = batches
        self._spare = spare
        self.outcomes = Outcomes(committer, config, events)
        self._coroutines: Coroutines | None = None
        self._children: ChildPool | None = None
        self._refs: dict[Entry, HandlerRef] = {}
        self._making = threading.Lock()
        self._deciding = threading.Lock()
        self._marks: Marks = {}
        self._owner: Owner = 0
        self.running: dict[int, Attempt] = {}
        self.finished = 0

    def start(self, owner: Owner) -> None:
        """Take on the identity of a new incarnation."""
        self._owner = owner
        self._marks = self._store.mark(owner)

    # --- one attempt --------------------------------------------------------------------------

    def run(self, claim: Item, slot: int) -> bool:
        """Run a job in this thread; False if it goes on elsewhere and frees its slot itself."""
        entry = self._registry.entry(claim.task)
        if entry is None:  # its handler was taken away after the claim
            return self._give_back(claim)
        if (
            entry.plain is not None
            and not claim.crashes
            and claim.payload is not None
            and claim.extra is None
        ):
            try:
                argument = entry.plain(claim.payload)
            except Exception:  # noqa: BLE001, S110  # told below, where it is decoded again
                pass
            else:
                self._run_plain(claim, slot, entry, argument)  # type: ignore[arg-type]  # no Place: a payload
                return True
        return self._run_fully(claim, slot, entry)

    def run_around(self, claim: Item, slot: int) -> bool:
        """`run`, with middleware around the handler."""
        entry = self._registry.entry(claim.task)
        return self._give_back(claim) if entry is None else self._run_fully(claim, slot, entry)

    def _give_back(self, item: Item) -> bool:
        for claim in self._batches.draw(item) if isinstance(item, Place) else [item]:
            self._never_ran(claim, Interrupted())
        return True

    def _run_plain(self, claim: Claim, slot: int, entry: Entry, argument: object) -> None:
        """
        The hot path: a thread's handler without context or timeout.

        There is nothing to cancel or to stop, so no Attempt is kept of it.
        """
        self._marks[slot] = claim.id
        if ARMED:
            crashpoint("handler.before")
        try:
            value = entry.fn(argument)
        except BaseException as error:  # noqa: BLE001  # SystemExit too: it is the handler's, not ours
            self._marks[slot] = 0
            self.outcomes.raised(claim, entry, error)
        else:
            if ARMED:
                crashpoint("handler.after")
            self._marks[slot] = 0
            if value is None:
                self._committer.complete(claim.id, claim.attempt)
            else:
                self.outcomes.returned(claim, entry, value)
        self.finished += 1

    def _run_fully(self, claim: Item, slot: int, entry: Entry) -> bool:
        if entry.batch is not None or isinstance(claim, Place):
            return self._run_batch(claim, slot, entry)
        reading = Reading(claim, entry)
        found = self._read(reading, claim, slot)
        if found is None:
            return True
        args, kwargs = found
        attempt = Attempt(claim, entry, slot)
        attempt.texts, attempt.is_secret = [reading.text], reading.is_secret
        if entry.ctx_name is not None and entry.kind is not Kind.PROCESS:
            attempt.ctx = kwargs[entry.ctx_name] = Context(claim, self._desk(attempt))
        return self._begin(attempt, args, kwargs)

    def _read(self, reading: Reading, claim: Claim, slot: int) -> Arguments | None:
        """Return what the handler is called with for a job; None: it was dealt with."""
        self._marks[slot] = claim.id  # upgrades and validators are the user's code, too
        try:
            return reading.arguments(self._config.keyring)
        except PayloadError as error:
            self._marks[slot] = 0
            self._unreadable(claim, error, is_secret=reading.is_secret)
            return None
        except BaseException:
            self._marks[slot] = 0
            raise

    def _run_batch(self, item: Item, slot: int, entry: Entry) -> bool:
        claims = self._batches.draw(item) if isinstance(item, Place) else [item]
        try:
            # The handler may have been replaced meanwhile, by one that takes less, or single jobs.
            most = entry.batch or 0
            if len(claims) > most:
                self._batches.offer(claims[most:])
                claims = claims[:most]
            return self._run_together(claims, slot, entry)
        except BaseException as error:  # noqa: BLE001  # a bug in us: told of each job
            for claim in claims:
                self.fault(claim, error)
            return True

    def _run_together(self, claims: list[Claim], slot: int, entry: Entry) -> bool:
        decoded: list[Claim] = []
        read: list[Reading] = []
        each: list[Arguments] = []
        readings = [Reading(claim, entry) for claim in claims]
        for reading, claim in zip(readings, claims, strict=True):
            found = self._read(reading, claim, slot)
            if found is not None:
                each.append(found)
                decoded.append(claim)
                read.append(reading)
        if not decoded:  # or all were cancelled, or given back, before the turn came
            return True
        attempt = Batch(decoded, entry, slot)
        attempt.texts = [reading.text for reading in read]
        attempt.is_secret = any(reading.is_secret for reading in read)  # they may tell of each other
        args, kwargs = entry.together(each)
        if entry.ctx_name is not None and entry.kind is not Kind.PROCESS:
            from dutiful.batch_context import BatchContext  # for those who use it

            attempt.batch_ctx = kwargs[entry.ctx_name] = BatchContext(decoded, self._desk(attempt))
        return self._begin(attempt, args, kwargs)

    def _desk(self, attempt: Attempt) -> Desk:
        return Desk(
            self._store,
            self._draft,
            lambda own: self._transaction(attempt, own),
            self._config.result_bytes_max,
            self.outcomes.cover(is_secret=attempt.is_secret),
        )

    def _begin(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        entry = attempt.entry
        if self._around is not None:
            wrap = self._around.asynchronous if entry.kind is Kind.ASYNC else self._around.sync
            attempt.fn = wrap(attempt.claims, entry.fn, entry.ctx_name)
        self.running[attempt.slot] = attempt
        self._mark(attempt)
        if entry.kind is Kind.ASYNC:
            self._event_loop().start(attempt, args, kwargs)
            return False
        if entry.kind is Kind.PROCESS:
            self._run_in_child(attempt, args, kwargs)
        else:
            self._run_here(attempt, args, kwargs)
        return True

    def _never_ran(
        self, claim: Claim, result: Result, error: BaseException | None = None, *, is_secret: bool = False
    ) -> None:
        self.finished += 1
        info = None if error is None else error_info(error)
        self.outcomes.end(claim, result, error=info, is_secret=is_secret)
        if claim.crashes:
            self._suspect_over(claim)

    def _unreadable(self, claim: Claim, error: PayloadError, *, is_secret: bool) -> None:
        if not isinstance(error, KeyMissing):
            self._never_ran(claim, Discard(str(error)), error, is_secret=is_secret)
            return
        self.finished += 1
        self._put_back(claim, error)
        if claim.crashes:
            self._suspect_over(claim)

    def _lacks_key(self, attempt: Attempt, error: KeyMissing) -> bool:
        """
        A step, an event, or a result that a job comes after needs a key: put that one job back.

        Others of its batch are run again without it. Returns False if it is none of these jobs' own.
        """
        if all(claim.id != error.job_id for claim in attempt.claims):
            return False
        for claim in attempt.claims:
            if claim.id == error.job_id:
                self._put_back(claim, error)
            else:
                self.outcomes.end(claim, Interrupted())
        return True

    def _put_back(self, claim: Claim, error: KeyMissing) -> None:
        """A key is missing here: from now on this is a job for those who have it."""
        name = sealed_name(parted(claim.task)[0], error.key_id)
        try:
            with self._store.sql() as sql:
                need_key(sql, claim, name)  # should we die then: whoever rescues it gives it back so
        except StoreError as trouble:  # it will be met again
            self._events.emit(WorkerFault(self._config.name, f"putting back job {claim.id}", str(trouble)))
        self.outcomes.put_back(claim)

    def _run_here(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if attempt.timeout_s is not None:
            attempt.deadline = time.monotonic() + attempt.timeout_s
            self._look_by(attempt.deadline)
        if ARMED:
            crashpoint("handler.before")
        value: object = None
        failure: BaseException | None = None
        try:
            value = attempt.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # as above
            failure = error
        with self._deciding:  # in time, or out of time: not both
            attempt.is_over = True
        if ARMED:
            crashpoint("handler.after")
        self._over(attempt, value, failure)

    def _run_in_child(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from dutiful.runner.children import End, run_around_child, run_in_child  # 60 ms, for those who use it

        entry, retry = attempt.entry, self.outcomes.retry(attempt.entry)
        try:
            asked = self._asked(attempt)
        except (StoreError, PayloadError) as error:  # what it has waited for could not be read
            self._unmark(attempt)
            if isinstance(error, KeyMissing) and self._lacks_key(attempt, error):
                self._after(attempt)
                return
            ends = [End(failed(claim, error, retry)) for claim in attempt.claims]
        else:
            bytes_max = self._config.result_bytes_max
            run = partial(
                run_in_child, self._child_pool(), attempt, self._reference(entry), bytes_max, retry, asked
            )
            if self._around is None:
                ends = run().ends
            else:
                around = partial(self._around.sync, attempt.claims, ctx_name=None)
                of_end = partial(self._results, attempt)
                is_batch = entry.batch is not None
                ends = run_around_child(around, run, args, kwargs, of_end, is_batch=is_batch)
        self._unmark(attempt)
        for claim, end in zip(attempt.claims, ends, strict=True):
            if end.unencodable is not None:
                self.outcomes.dropped(claim, end.unencodable, is_secret=attempt.is_secret)
            self.outcomes.end(claim, end.result, retry, is_secret=attempt.is_secret)
        self._after(attempt)

    def _asked(self, attempt: Attempt) -> "list[Asked]":
        """Return what a child's handler can ask of each job that it cannot see from there."""
        if attempt.entry.ctx_name is None:
            return [({}, ())] * len(attempt.claims)
        contexts = [Context(claim, self._desk(attempt)) for claim in attempt.claims]
        return [(dict(ctx.headers), tuple(ctx.after)) for ctx in contexts]

    def _results(self, attempt: Attempt, value: object, error: BaseException | None) -> Sequence[Result]:
        if isinstance(attempt, Batch):
            return batch.results(attempt, value, error, self.outcomes)
        return [self.outcomes.of_attempt(attempt, value, error)]

    def _over(self, attempt: Attempt, value: object, error: BaseException | None) -> None:
        """A handler has ended in this process."""
        self._unmark(attempt)
        if isinstance(error, KeyMissing) and not attempt.is_completed and self._lacks_key(attempt, error):
            pass
        elif isinstance(attempt, Batch):
            batch.end(attempt, value, error, self.outcomes)
        elif attempt.ctx is not None and attempt.ctx.is_completed:  # its transaction has said so
            if error is not None:
                self.outcomes.raised_after_completion(attempt.claim, error, is_secret=attempt.is_secret)
        else:
            result = self.outcomes.of_attempt(attempt, value, error)
            self.outcomes.end(attempt.claim, result, self.outcomes.retry(attempt.entry), attempt=attempt)
        self._after(attempt)

    def _mark(self, attempt: Attempt) -> None:
        self._marks[attempt.slot] = attempt.claim.id
        if isinstance(attempt, Batch):
            batch.mark(attempt, self._marks, self._spare)

    def _unmark(self, attempt: Attempt) -> None:
        self._marks[attempt.slot] = 0
        if isinstance(attempt, Batch):
            batch.unmark(attempt, self._marks, self._spare)
        self.running.pop(attempt.slot, None)
        attempt.is_over = True

    def _after(self, attempt: Attempt) -> None:
        self.finished += 1
        if attempt.claim.crashes:
            self._suspect_over(attempt.claim)

    def unmark_all(self) -> None:
        """What still runs is being left behind: should the process end, that is no crash of theirs."""
        for slot in range(SLOTS_MAX):
            self._marks[slot] = 0

    def fault(self, claim: Item, error: BaseException) -> None:
        """Something of ours raised while it ran a job."""
        assert not isinstance(claim, Place), "`_run_batch` tells of its jobs itself"
        for attempt in list(self.running.values()):
            if any(each is claim for each in attempt.claims):
                self._unmark(attempt)
        self.outcomes.fault(claim, error)
        if claim.crashes:
            self._suspect_over(claim)

    def failed_instead(self, ack: Ack, error: Exception) -> Ack | None:
        """Return what to write of an attempt of which this cannot be; None: it does not run any more."""
        for job in self._store.get([ack.id]):
            if job.state is State.RUNNING and job.attempt == ack.attempt:
                entry = self._registry.entry(job.task)
                return self.outcomes.unstored(job, error, entry, self._store.label)
        return None

    # --- from outside -----------------------------------------------------------------------------

    def cancel(self, job_id: JobId) -> bool:
        """Stop a running job as its kind allows: a thread is asked, the others are ended."""
        for attempt in list(self.running.values()):
            if any(claim.id == job_id for claim in attempt.claims):
                # A batch goes on for the others. If it is cancelled already, it was told.
                if attempt.call_off(job_id) and not attempt.cancelled:
                    attempt.cancelled = True  # first: it may end at once
                    attempt.cancelled = self._stop(attempt, "cancel")
                return True
        return False

    def ask_all_to_stop(self) -> None:
        """Tell handlers that look at their context that the worker ends."""
        for attempt in list(self.running.values()):
            attempt.ask_to_stop()

    def interrupt_all(self) -> None:
        """Stop what runs, as its kind allows, because the worker ends."""
        for attempt in list(self.running.values()):
            attempt.was_stopped = True
            self._stop(attempt, "stop")

    def _stop(self, attempt: Attempt, why: Any) -> bool:
        """Return whether it was told; a child process that is only being started cannot be yet."""
        attempt.ask_to_stop()
        if attempt.entry.kind is Kind.ASYNC:
            self._event_loop().cancel(attempt)
        elif attempt.entry.kind is Kind.PROCESS:
            return self._children is not None and self._children.kill(attempt.claim.id, why)
        return True

    def look_at_timeouts(self) -> float | None:
        """Deal with handlers in threads that ran out of time; return when to look again, if ever."""
        now = time.monotonic()
        for attempt in list(self.running.values()):
            if attempt.deadline is not None and attempt.deadline <= now and not attempt.is_over:
                if attempt.timed_out:
                    attempt.deadline = None
                    self._give_up_lease(attempt)
                else:
                    attempt.deadline = now + self._config.lease_s
                    self._out_of_time(attempt)
        deadlines = [each.deadline for each in list(self.running.values()) if each.deadline is not None]
        return min(deadlines, default=None)

    def _out_of_time(self, attempt: Attempt) -> None:
        """Open another slot, and ask the handler to stop: a thread cannot be ended from outside."""
        with self._deciding:
            if attempt.is_over:
                return
            attempt.timed_out = True
            self._stuck(attempt)
        attempt.ask_to_stop()
        claim, timeout_s = attempt.claim, attempt.timeout_s or 0.0
        self._events.emit(HandlerStuck(self._config.name, claim.id, task_of(claim.task), timeout_s))

    def _give_up_lease(self, attempt: Attempt) -> None:
        """A stuck thread has had its time: another attempt may have the job. Its own outcome will be late."""
        retry = self.outcomes.retry(attempt.entry)
        for claim in attempt.claims:
            self.outcomes.end(claim, timed_out(claim, attempt.timeout_s, retry), retry)

    def write_progress(self) -> None:
        """Write how far the running attempts have come, those of which that is new."""
        said = [
            (claim, text)
            for attempt in list(self.running.values())
            for claim, ctx in zip(attempt.claims, attempt.contexts, strict=False)  # there may be none
            if (text := ctx.take_progress()) is not None
        ]
        if said:
            with self._store.sql() as sql:
                write_progress(sql, said)

    # --- helpers ------------------------------------------------------------------------------------

    def _transaction(self, attempt: Attempt, own: Any) -> AbstractContextManager[Any]:
        if own is None:
            return self._ours(attempt)
        from dutiful.store.borrowed.completing import OwnTransaction  # 3 ms, for those who use it

        completion = self._store.completion(*attempt.claims)
        return OwnTransaction(own, completion, lambda: self._completed(attempt))

    @contextmanager
    def _ours(self, attempt: Attempt) -> Generator[Any]:
        with self._store.transaction(*attempt.claims) as connection:
            yield connection
        self._completed(attempt)

    def _completed(self, attempt: Attempt) -> None:
        attempt.has_completed()
        for claim in attempt.claims:
            self._committer.told(claim.id)
        self._transacted()

    def _event_loop(self) -> "Coroutines":
        with self._making:
            if self._coroutines is None:
                from dutiful.runner.coroutines import Coroutines  # 20 ms, for those who use it

                self._coroutines = Coroutines(self._async_ended)
            return self._coroutines

    def _async_ended(self, attempt: Attempt, value: object, error: BaseException | None) -> None:
        try:
            self._over(attempt, value, error)
        except BaseException as fault:  # noqa: BLE001  # a bug in us must not cost the slot, or the loop
            for claim in attempt.claims:
                self.fault(claim, fault)
        self._free(attempt.slot)

    def _child_pool(self) -> "ChildPool":
        with self._making:
            if self._children is None:
                from dutiful.runner.processes import ChildPool  # as above

                self._children = ChildPool(held_fd=self._store.held_fd(self._owner))
            return self._children

    def _reference(self, entry: Entry) -> "HandlerRef":
        from dutiful.runner.messages import HandlerRef  # as above

        if entry not in self._refs:
            self._refs[entry] = HandlerRef.to(
                entry.fn, entry.task, entry.given_type, spread=entry.spread, batch=entry.batch
            )
        return self._refs[entry]

    def end_all(self) -> None:
        """Give back the event loop and the child processes."""
        with self._making:
            children, self._children = self._children, None
            coroutines, self._coroutines = self._coroutines, None
        if coroutines is not None:
            coroutines.end()
        if children is not None:
            children.close()

    def runs_here(self) -> bool:
        """Whether this very thread is the one that runs async handlers, or works for one."""
        return self._coroutines is not None and self._coroutines.runs_here()
