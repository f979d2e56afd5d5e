"""
One attempt, from claim to outcome.

    arguments from the payload → the handler, by its kind → what it did → outcomes.py
"""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from dutiful.config import Config
from dutiful.context import Context, Desk
from dutiful.crashpoint import ARMED, crashpoint
from dutiful.errors import NotDecodable, StoreError
from dutiful.events import Events, HandlerStuck
from dutiful.handler import Entry, Kind
from dutiful.job import Claim, Discard, Interrupted, JobId, Result
from dutiful.registry import Registry
from dutiful.runner.attempt import Attempt
from dutiful.runner.failure import error_info, failed, timed_out
from dutiful.runner.outcomes import Outcomes
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft, Marks, Owner, Store
from dutiful.store.liveness import SLOTS_MAX
from dutiful.store.special.steps import write_progress

if TYPE_CHECKING:
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
        nudge: Has the worker look whether something is due.
        draft: From a payload and the options of `send` to the job to store.
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
        nudge: Callable[[], None],
        draft: Callable[[object, Mapping[str, Any]], Draft],
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
        self._nudge = nudge
        self._draft = draft
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

    def run(self, claim: Claim, slot: int) -> bool:
        """Run a job in this thread; False if it goes on elsewhere and frees its slot itself."""
        entry = self._registry.entry(claim.task)
        if entry is None:  # its handler was taken away after the claim
            self._never_ran(claim, Interrupted())
            return True
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
                self._run_plain(claim, slot, entry, argument)
                return True
        return self._run_fully(claim, slot, entry)

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

    def _run_fully(self, claim: Claim, slot: int, entry: Entry) -> bool:
        attempt = Attempt(claim, entry, slot)
        try:
            args, kwargs = _arguments(entry, claim)
        except NotDecodable as error:
            self._never_ran(claim, Discard(str(error)), error)
            return True
        if entry.ctx_name is not None and entry.kind is not Kind.PROCESS:
            kwargs[entry.ctx_name] = attempt.ctx = self._context(attempt)
        self.running[slot] = attempt
        self._marks[slot] = claim.id
        if entry.kind is Kind.ASYNC:
            self._event_loop().start(attempt, args, kwargs)
            return False
        if entry.kind is Kind.PROCESS:
            self._run_in_child(attempt)
        else:
            self._run_here(attempt, args, kwargs)
        return True

    def _context(self, attempt: Attempt) -> Context:
        desk = Desk(
            self._store,
            self._draft,
            lambda own: self._transaction(attempt, own),
            self._config.result_bytes_max,
        )
        return Context(attempt.claim, desk)

    def _never_ran(self, claim: Claim, result: Result, error: BaseException | None = None) -> None:
        self.finished += 1
        self.outcomes.end(claim, result, error=None if error is None else error_info(error))
        if claim.crashes:
            self._suspect_over(claim)

    def _run_here(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entry = attempt.entry
        if attempt.timeout_s is not None:
            attempt.deadline = time.monotonic() + attempt.timeout_s
            self._look_by(attempt.deadline)
        if ARMED:
            crashpoint("handler.before")
        value: object = None
        failure: BaseException | None = None
        try:
            value = entry.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # as above
            failure = error
        with self._deciding:  # in time, or out of time: not both
            attempt.is_over = True
        if ARMED:
            crashpoint("handler.after")
        self._over(attempt, value, failure)

    def _run_in_child(self, attempt: Attempt) -> None:
        from dutiful.runner.children import run_in_child  # 60 ms, for those who use it

        claim, entry = attempt.claim, attempt.entry
        retry = self.outcomes.retry(entry)
        ctx = None if entry.ctx_name is None else self._context(attempt)
        try:
            result, unencodable = run_in_child(
                self._child_pool(), claim, entry, self._reference(entry), self._config, retry, ctx
            )
        except StoreError as error:  # what it has waited for could not be read
            result, unencodable = failed(claim, error, retry), None
        if unencodable is not None:
            self.outcomes.dropped(claim, unencodable)
        self._unmark(attempt)
        self.outcomes.end(claim, result, retry)
        self._after(attempt)

    def _over(self, attempt: Attempt, value: object, error: BaseException | None) -> None:
        """A handler has ended in this process."""
        self._unmark(attempt)
        if attempt.ctx is not None and attempt.ctx.is_completed:  # its transaction has said so
            if error is not None:
                self.outcomes.raised_after_completion(attempt.claim, error)
        else:
            result = self.outcomes.of_attempt(attempt, value, error)
            self.outcomes.end(attempt.claim, result, self.outcomes.retry(attempt.entry), attempt=attempt)
        self._after(attempt)

    def _unmark(self, attempt: Attempt) -> None:
        self._marks[attempt.slot] = 0
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

    def fault(self, claim: Claim, error: BaseException) -> None:
        """Something of ours raised while it ran a job."""
        for attempt in list(self.running.values()):
            if attempt.claim is claim:
                self._unmark(attempt)
        self.outcomes.fault(claim, error)
        if claim.crashes:
            self._suspect_over(claim)

    # --- from outside -----------------------------------------------------------------------------

    def cancel(self, job_id: JobId) -> bool:
        """Stop a running job as its kind allows: a thread is asked, the others are ended."""
        for attempt in list(self.running.values()):
            if attempt.claim.id == job_id:
                if not attempt.cancelled:  # else it was told
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
        self._events.emit(HandlerStuck(self._config.name, claim.id, claim.task, timeout_s))

    def _give_up_lease(self, attempt: Attempt) -> None:
        """A stuck thread has had its time: another attempt may have the job. Its own outcome will be late."""
        retry = self.outcomes.retry(attempt.entry)
        self.outcomes.end(attempt.claim, timed_out(attempt.claim, attempt.timeout_s, retry), retry)

    def write_progress(self) -> None:
        """Write how far the running attempts have come, those of which that is new."""
        said = [
            (attempt.claim, text)
            for attempt in list(self.running.values())
            if attempt.ctx is not None and (text := attempt.ctx.take_progress()) is not None
        ]
        if said:
            with self._store.sql() as sql:
                for claim, text in said:
                    write_progress(sql, claim, text)

    # --- helpers ------------------------------------------------------------------------------------

    def _transaction(self, attempt: Attempt, own: Any) -> AbstractContextManager[Any]:
        if own is None:
            return self._ours(attempt)
        from dutiful.store.borrowed.completing import OwnTransaction  # 3 ms, for those who use it

        completion = self._store.completion(attempt.claim)
        return OwnTransaction(own, completion, lambda: self._completed(attempt))

    @contextmanager
    def _ours(self, attempt: Attempt) -> Generator[Any]:
        with self._store.transaction(attempt.claim) as connection:
            yield connection
        self._completed(attempt)

    def _completed(self, attempt: Attempt) -> None:
        assert attempt.ctx is not None, "only a context opens transactions"
        attempt.ctx.is_completed = True
        self._committer.told(attempt.claim.id)
        self._nudge()  # it may have sent jobs in that transaction

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
            self.fault(attempt.claim, fault)
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
            self._refs[entry] = HandlerRef.to(entry.fn, entry.task, entry.given_type, spread=entry.spread)
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


def _arguments(entry: Entry, claim: Claim) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if claim.payload is None:
        raise NotDecodable(claim.task, "the stored value is no text")
    return entry.arguments(claim.payload)
