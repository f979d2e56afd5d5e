"""
One attempt, from claim to outcome.

    arguments from the payload → the handler, by its kind → a Result → an Ack → the committer

Nothing that a handler does gets past here: what it raises, returns or becomes is a Result.
"""

import random
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dutiful.config import Config
from dutiful.context import Context
from dutiful.core.lifecycle import after
from dutiful.core.retry import Retry
from dutiful.crashpoint import ARMED, crashpoint
from dutiful.errors import NotDecodable, NotEncodable
from dutiful.events import AckLate, Events, HandlerStuck, JobDead, JobFailed, ResultDropped
from dutiful.job import (
    Cancel,
    Claim,
    Completed,
    Discard,
    ErrorInfo,
    Interrupted,
    JobId,
    Result,
    Snooze,
    State,
)
from dutiful.payload import encode_result
from dutiful.registry import Entry, Kind, Registry
from dutiful.runner.attempt import Attempt
from dutiful.runner.failure import error_info, failed, timed_out
from dutiful.store.committer import Committer
from dutiful.store.contract import Marks, Owner, Store

if TYPE_CHECKING:
    from dutiful.runner.coroutines import Coroutines
    from dutiful.runner.processes import ChildPool, HandlerRef


class Attempts:
    """
    Runs attempts and knows which run.

    Args:
        free: Gives back the slot of an attempt that did not end in the thread it began in.
        watch: Called with an attempt in a thread that has a timeout, and the seconds.
        suspect_over: Called when an attempt at a job that has crashed before has ended.
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
        watch: Callable[[Attempt, float], None],
        suspect_over: Callable[[Claim], None],
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._config = config
        self._events = events
        self._free = free
        self._watch = watch
        self._suspect_over = suspect_over
        self._coroutines: Coroutines | None = None
        self._children: ChildPool | None = None
        self._refs: dict[Entry, HandlerRef] = {}
        self._making = threading.Lock()
        self._marks: Marks = {}
        self._owner: Owner = 0
        self._worker = config.name
        self.running: dict[int, Attempt] = {}
        self.finished = 0
        self.is_stopping = False

    def start(self, owner: Owner) -> None:
        """Take on the identity of a new incarnation."""
        self._owner = owner
        self._marks = self._store.mark(owner)
        self.is_stopping = False

    # --- one attempt --------------------------------------------------------------------------

    def run(self, claim: Claim, slot: int) -> bool:
        """Run a job in this thread; False if it goes on elsewhere and frees its slot itself."""
        entry = self._registry.entry(claim.task)
        if entry is None:  # its handler was taken away after the claim
            self._never_ran(claim, Interrupted(), self._config.retry)
            return True
        if entry.plain is not None and not claim.crashes and claim.payload is not None:
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
            self.end(claim, failed(claim, error, self._retry(entry)), self._retry(entry))
        else:
            if ARMED:
                crashpoint("handler.after")
            self._marks[slot] = 0
            if value is None:
                self._committer.complete(claim.id, claim.attempt)
            else:
                self.end(claim, self._valued(claim, value), self._retry(entry))
        self.finished += 1

    def _run_fully(self, claim: Claim, slot: int, entry: Entry) -> bool:
        attempt = Attempt(claim, entry, slot)
        try:
            args, kwargs = _arguments(entry, claim)
        except NotDecodable as error:
            self._never_ran(claim, Discard(str(error)), self._retry(entry), error_info(error))
            return True
        if entry.ctx_name is not None and entry.kind is not Kind.PROCESS:
            attempt.ctx = Context(claim, lambda: self._transaction(attempt))
            kwargs[entry.ctx_name] = attempt.ctx
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

    def _never_ran(self, claim: Claim, result: Result, retry: Retry, error: ErrorInfo | None = None) -> None:
        self.finished += 1
        self.end(claim, result, retry, error=error)
        if claim.crashes:
            self._suspect_over(claim)

    def _run_here(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entry = attempt.entry
        if entry.timeout_s is not None:
            self._watch(attempt, entry.timeout_s)
        if ARMED:
            crashpoint("handler.before")
        try:
            value = entry.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # as above
            self._over(attempt, self._failed(attempt, error))
        else:
            if ARMED:
                crashpoint("handler.after")
            self._over(attempt, self._returned(attempt, value))

    def _run_in_child(self, attempt: Attempt) -> None:
        from dutiful.runner.children import run_in_child  # 60 ms, for those who use it

        entry = attempt.entry
        result, unencodable = run_in_child(
            self._child_pool(), attempt.claim, entry, self._reference(entry), self._config, self._retry(entry)
        )
        if unencodable is not None:
            self._dropped(attempt.claim, unencodable)
        self._over(attempt, result)

    def _over(self, attempt: Attempt, result: Result) -> None:
        """An attempt has ended: unmark it, and hand its outcome on."""
        self._marks[attempt.slot] = 0
        if self.running.get(attempt.slot) is attempt:
            del self.running[attempt.slot]
        attempt.is_over = True
        self.finished += 1
        if attempt.ctx is None or not attempt.ctx.is_completed:  # else its transaction has said so
            self.end(attempt.claim, result, self._retry(attempt.entry))
        if attempt.claim.crashes:
            self._suspect_over(attempt.claim)

    # --- outcomes -------------------------------------------------------------------------------

    def end(self, claim: Claim, result: Result, retry: Retry, *, error: ErrorInfo | None = None) -> None:
        """Decide what becomes of the job, and have it written."""
        if isinstance(result, Completed) and result.value is None:
            self._committer.complete(claim.id, claim.attempt)
            return
        ack = after(claim, result, retry, self._config.max_crashes, random.random())  # noqa: S311  # jitter
        if error is not None:
            ack = type(ack)(
                ack.id, ack.attempt, ack.state, ack.failures, ack.crashes, ack.delay_s, None, error
            )
        self._committer.ack(ack)
        if ack.error is not None:
            said = f"{ack.error.type}: {ack.error.message}"
            if ack.state is State.DEAD:
                self._events.emit(JobDead(self._worker, claim.id, claim.task, claim.attempt, said))
            elif ack.state is State.PENDING:
                delay_s = ack.delay_s or 0.0
                self._events.emit(JobFailed(self._worker, claim.id, claim.task, claim.attempt, said, delay_s))

    def tell_late(self, late: list[tuple[JobId, int]]) -> None:
        """Say which outcomes came too late to count."""
        for job_id, attempt in late:
            self._events.emit(AckLate(self._worker, job_id, attempt))

    def _retry(self, entry: Entry) -> Retry:
        return self._config.retry if entry.retry is None else entry.retry

    def _returned(self, attempt: Attempt, value: object) -> Result:
        if attempt.timed_out:
            return timed_out(attempt.entry.timeout_s)
        return self._valued(attempt.claim, value)

    def _valued(self, claim: Claim, value: object) -> Result:
        if isinstance(value, Snooze | Cancel | Discard):
            return value
        try:
            return Completed(encode_result(value, self._config.result_bytes_max))
        except NotEncodable as error:
            self._dropped(claim, error.reason)
            return Completed()

    def _dropped(self, claim: Claim, reason: str) -> None:
        self._events.emit(ResultDropped(self._worker, claim.id, claim.task, reason))

    def _failed(self, attempt: Attempt, error: BaseException) -> Result:
        if attempt.cancelled:
            return Cancel("cancelled while it ran")
        if attempt.timed_out:
            return timed_out(attempt.entry.timeout_s)
        if attempt.was_stopped:
            return Interrupted()
        return failed(attempt.claim, error, self._retry(attempt.entry))

    # --- from outside -----------------------------------------------------------------------------

    def cancel(self, job_id: JobId) -> None:
        """Stop a running job as its kind allows: a thread is asked, the others are ended."""
        for attempt in list(self.running.values()):
            if attempt.claim.id == job_id and not attempt.cancelled:
                attempt.cancelled = True
                self._stop(attempt, "cancel")

    def interrupt_all(self) -> None:
        """Stop what runs, as its kind allows, because the worker ends."""
        for attempt in list(self.running.values()):
            attempt.was_stopped = True
            self._stop(attempt, "stop")

    def ask_all_to_stop(self) -> None:
        """Tell handlers that look at their context."""
        for attempt in list(self.running.values()):
            attempt.ask_to_stop()

    def _stop(self, attempt: Attempt, why: Any) -> None:
        attempt.ask_to_stop()
        if attempt.entry.kind is Kind.ASYNC:
            self._event_loop().cancel(attempt)
        elif attempt.entry.kind is Kind.PROCESS and self._children is not None:
            self._children.kill(attempt.claim.id, why)

    def thread_timed_out(self, attempt: Attempt) -> bool:
        """A thread did not end in time; return whether it is really stuck."""
        if attempt.is_over:
            return False
        attempt.timed_out = True
        attempt.ask_to_stop()
        claim = attempt.claim
        self._events.emit(HandlerStuck(self._worker, claim.id, claim.task, attempt.entry.timeout_s or 0.0))
        return True

    def give_up_lease(self, attempt: Attempt) -> None:
        """A stuck thread has had its time: let another attempt have the job. Its own outcome will be late."""
        if not attempt.is_over:
            self.end(attempt.claim, timed_out(attempt.entry.timeout_s), self._retry(attempt.entry))

    # --- helpers ------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, attempt: Attempt) -> Generator[Any]:
        with self._store.transaction(attempt.claim) as connection:
            yield connection
        assert attempt.ctx is not None
        attempt.ctx.is_completed = True
        self._committer.told(attempt.claim.id)

    def _event_loop(self) -> "Coroutines":
        with self._making:
            if self._coroutines is None:
                from dutiful.runner.coroutines import Coroutines  # 20 ms, for those who use it

                self._coroutines = Coroutines(self._async_ended)
            return self._coroutines

    def _async_ended(self, attempt: Attempt, value: object, error: BaseException | None) -> None:
        result = self._returned(attempt, value) if error is None else self._failed(attempt, error)
        self._over(attempt, result)
        self._free(attempt.slot)

    def _child_pool(self) -> "ChildPool":
        with self._making:
            if self._children is None:
                from dutiful.runner.processes import ChildPool  # as above

                self._children = ChildPool(held_fd=self._store.held_fd(self._owner))
            return self._children

    def _reference(self, entry: Entry) -> "HandlerRef":
        from dutiful.runner.processes import HandlerRef  # as above

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
        """Whether this very thread is the one that runs async handlers."""
        return self._coroutines is not None and self._coroutines.runs_here()


def _arguments(entry: Entry, claim: Claim) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if claim.payload is None:
        raise NotDecodable(claim.task, "the stored value is no text")
    return entry.arguments(claim.payload)
