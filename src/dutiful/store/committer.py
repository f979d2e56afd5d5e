"""
Group commit: whoever comes first commits for all who wait.

A caller puts its jobs in a queue and asks for the lead. While another leads, it waits;
when it gets the lead, its jobs are either stored already, or it takes all that has
gathered, its own and others', and stores it in one step. So one caller alone pays no
thread switch, and many share one fsync. What handlers came to travels along; when nobody
sends, a thread of our own writes it a few milliseconds later.

Nothing is in doubt after an interruption: the step's outcome says whether it committed,
and what did not is put back in the queues.
"""

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from dutiful.errors import StoreError
from dutiful.job import FINISHED, Ack, JobId
from dutiful.store.contract import Draft, Outcome, Store, Take, Work

T = TypeVar("T")

# An outcome waits this long for a send to travel with; nobody waits for it longer.
FLUSH_S = 0.002
# After trouble with the store: how long until outcomes are written again.
RETRY_S = 0.25
# A step takes this many new jobs at most, so that it stays within some ten milliseconds.
JOBS_PER_STEP = 8192


class Taker(Protocol):
    """What a started worker wants of each step."""

    def wish(self, *, sending: bool) -> Take | None:
        """Say what to take in this step."""
        ...

    def deliver(self, outcome: Outcome, wish: Take | None) -> None:
        """Receive what a committed step did."""
        ...


class Sending:
    """Some new jobs on their way into the store."""

    __slots__ = ("drafts", "error", "exempt", "is_done", "stored", "when_done")

    def __init__(
        self,
        drafts: Sequence[Draft],
        when_done: Callable[["Sending"], None] | None = None,
        *,
        exempt: bool = False,
    ) -> None:
        self.drafts = drafts
        self.exempt = exempt  # from the bound on unfinished jobs
        self.when_done = when_done
        self.is_done = False
        self.stored: list[range] = []
        self.error: BaseException | None = None


class Committer:
    """Gathers what threads want of a store into steps."""

    def __init__(self, store: Store, *, buffer: int | None, keep_completed: bool) -> None:
        self._store = store
        self._buffer = buffer
        self._keep_completed = keep_completed
        self._lead = threading.Lock()
        self._leader = 0
        self._sendings: deque[Sending] = deque()
        self.completed: deque[tuple[JobId, int]] = deque()
        self.acks: deque[Ack] = deque()
        self._is_armed = False
        self._wake = threading.Event()
        self._is_urgent = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._is_closing = False
        self._stepped_at = 0.0
        self.taker: Taker | None = None
        self.watched: dict[JobId, list[Callable[[], None]]] = {}
        self.room_made: Callable[[], None] | None = None
        self.trouble: Callable[[StoreError | None], None] | None = None

    @property
    def is_leading_here(self) -> bool:
        """Whether this very thread is inside a step: a signal handler must not wait for it."""
        return self._leader == threading.get_ident()

    # --- for callers ------------------------------------------------------------------------

    def submit(self, drafts: Sequence[Draft], *, exempt: bool = False) -> list[range]:
        """
        Store jobs; return their ids per draft when they are on disk.

        With a bound on unfinished jobs the ids may be fewer than the payloads: the rest found
        no room. An `exempt` sender is not bound: a handler that waited for room would wait
        for itself.

        Raises:
            StoreError: They are not stored.
        """
        sending = Sending(drafts, exempt=exempt)
        self._sendings.append(sending)
        try:
            with self._lead:
                while not sending.is_done:
                    self._step()
        except BaseException:
            self._withdraw(sending)
            raise
        if sending.error is not None:
            raise own_copy(sending.error)
        return sending.stored

    def post(self, sending: Sending) -> None:
        """Have jobs stored soon; `when_done` is called, in another thread, when it is decided."""
        self._sendings.append(sending)
        self.kick()

    def complete(self, job_id: JobId, attempt: int) -> None:
        """Record, soon, that an attempt ended well and without a result. The hot path."""
        self.completed.append((job_id, attempt))
        if not self._is_armed:
            self._arm()
        if job_id in self.watched:
            self.kick()

    def ack(self, ack: Ack) -> None:
        """Record, soon, what an attempt came to."""
        self.acks.append(ack)
        if not self._is_armed:
            self._arm()
        if ack.id in self.watched:
            self.kick()

    def told(self, job_id: JobId) -> None:
        """A job has finished in a transaction of its handler's: tell who waits for it."""
        for tell in self.watched.pop(job_id, ()):
            tell()
        if self.room_made is not None:
            self.room_made()

    def step(self) -> None:
        """Do one step now: what waits is written, and what is wished is taken."""
        with self._lead:
            self._step()

    def between_steps(self, look: Callable[[], bool]) -> bool:
        """Return what `look` says while no step is under way, so that nothing is half handed over."""
        with self._lead:
            return look()

    def has_outcomes(self) -> bool:
        """Whether anything that attempts came to is not on disk yet."""
        return bool(self.completed or self.acks)

    def kick(self) -> None:
        """Have the thread write what waits at once."""
        self._is_urgent = True
        self._arm()

    # --- the step ---------------------------------------------------------------------------

    def _step(self) -> None:
        self._is_armed = False
        sendings = self._gathered()
        if self._buffer is not None:
            sendings.sort(key=lambda sending: not sending.exempt)
        work = Work(
            acks=_drained(self.acks),
            completed=_drained(self.completed),
            drafts=[draft for sending in sendings for draft in sending.drafts],
            exempt=sum(len(sending.drafts) for sending in sendings if sending.exempt),
            buffer=self._buffer,
            keep_completed=self._keep_completed,
        )
        if self.taker is not None:
            work.take = self.taker.wish(sending=bool(work.drafts))
        if not (work.acks or work.completed or work.drafts or work.take):
            return
        outcome = Outcome()
        failure: BaseException | None = None
        self._leader = threading.get_ident()
        try:
            self._store.exchange(work, outcome)
        except StoreError as error:
            failure = error
        except BaseException:  # a signal's exception: settle by the facts, then let it go on
            self._settle(work, outcome, sendings, None)
            raise
        finally:
            self._leader = 0
        self._settle(work, outcome, sendings, failure)

    def _gathered(self) -> list[Sending]:
        gathered: list[Sending] = []
        jobs = 0
        while self._sendings and jobs < JOBS_PER_STEP:
            try:
                sending = self._sendings.popleft()
            except IndexError:  # withdrawn just now
                break
            gathered.append(sending)
            jobs += sum(len(draft.payloads) for draft in sending.drafts)
        return gathered

    def _settle(
        self, work: Work, outcome: Outcome, sendings: list[Sending], failure: BaseException | None
    ) -> None:
        self._stepped_at = time.monotonic()
        if outcome.committed:
            self._hand_out(outcome, sendings)
            if self.taker is not None:
                self.taker.deliver(outcome, work.take)
            if outcome.left_pending:
                self._store.ring()
            self._announce(work)
            if self.trouble is not None:
                self.trouble(None)
            return
        self.completed.extendleft(reversed(work.completed))
        self.acks.extendleft(reversed(work.acks))
        if failure is None:
            self._sendings.extendleft(reversed(sendings))
            return
        for sending in sendings:
            sending.error = failure
            self._done(sending)
        if isinstance(failure, StoreError) and self.trouble is not None:
            self.trouble(failure)
        if not sendings:
            raise failure

    def _hand_out(self, outcome: Outcome, sendings: list[Sending]) -> None:
        stored = iter(outcome.stored)
        for sending in sendings:
            sending.stored = [next(stored) for _ in sending.drafts]
            self._done(sending)

    @staticmethod
    def _done(sending: Sending) -> None:
        sending.is_done = True
        if sending.when_done is not None:
            sending.when_done(sending)

    def _announce(self, work: Work) -> None:
        if not (work.completed or work.acks):
            return
        if self.watched:
            finished = [job_id for job_id, _attempt in work.completed]
            finished += [ack.id for ack in work.acks if ack.state in FINISHED]
            for job_id in finished:
                for tell in self.watched.pop(job_id, ()):
                    tell()
        if self.room_made is not None:
            self.room_made()

    def _withdraw(self, sending: Sending) -> None:
        """After an interruption: if nobody took it yet, nobody will."""
        if not sending.is_done:
            try:
                self._sendings.remove(sending)
            except ValueError:  # it was taken: it is stored, or was put back and is stored later
                return

    # --- the thread ------------------------------------------------------------------------------

    def _arm(self) -> None:
        self._is_armed = True
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._is_closing = False
                    self._thread = threading.Thread(target=self._run, name="dutiful-committer", daemon=True)
                    self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._is_closing:
                return
            is_urgent = self._wait_for_company()
            self._wake.clear()
            if not (self.completed or self.acks or self._sendings):
                continue
            if not self._lead.acquire(blocking=is_urgent):
                self._wake.set()  # somebody commits right now; what comes too late for that waits again
                continue
            try:
                self._step()
            except StoreError:  # told by `trouble`; what waits is kept
                time.sleep(RETRY_S)
                self._wake.set()
            finally:
                self._lead.release()

    def _wait_for_company(self) -> bool:
        """Wait until the last step is a while ago, or somebody asks for haste; return whether so."""
        rest_s = FLUSH_S
        while rest_s > 0 and not self._is_urgent:
            time.sleep(rest_s)
            rest_s = self._stepped_at + FLUSH_S - time.monotonic()
        is_urgent, self._is_urgent = self._is_urgent, False
        return is_urgent

    def close(self) -> None:
        """End the thread. What was not written stays in the queues."""
        with self._starting:
            self._is_closing = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.set()
            if thread is not threading.current_thread():
                thread.join()
            self._wake.clear()


def own_copy(error: BaseException) -> BaseException:
    """Return a copy to raise: one error may meet many senders, and each adds its traceback."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied


def _drained(queue: deque[T]) -> list[T]:
    drained: list[T] = []
    take: Callable[[], T] = queue.popleft
    put: Callable[[T], None] = drained.append
    try:
        while True:
            put(take())
    except IndexError:
        return drained
