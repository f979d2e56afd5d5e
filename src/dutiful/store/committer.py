"""
Group commit: whoever comes first commits for all who wait.

A caller puts its jobs in a queue and asks for the lead. While another leads, it waits;
when it gets the lead, its jobs are either stored already, or it takes all that has
gathered, its own and others', and stores it in one step. So one caller alone pays no
thread switch, and many share one fsync. What handlers came to travels along; when nobody
sends, a thread of our own writes it a few milliseconds later.

The main thread never leads: a signal's exception (Ctrl-C) can strike it between any two
instructions, and would tear a step apart. When others' work is about, as in the process of
a started worker, it leaves its jobs to our thread and waits, which can be interrupted
safely; when it is alone, it stores them itself, and nothing else.
"""

import contextlib
import copy
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeVar

from dutiful.errors import ConfigError, DuplicateJob, GroupGone, StoreError, StoreUnknown
from dutiful.job import FINISHED, Ack, Claim, JobId
from dutiful.store.contract import Draft, Outcome, Store, Take, Work

if TYPE_CHECKING:
    from types import FrameType

T = TypeVar("T")

# An outcome waits this long for a send to travel with; nobody waits for it longer.
FLUSH_S = 0.002
# After trouble with the store: how long until outcomes are written again.
RETRY_S = 0.25
# A follower asks for the lead itself after this long, should the last leader have been
# interrupted before it could pass it on.
TURN_S = 0.2
# A leader that was called upon waits this long for others that were woken with it.
COMPANY_S = 50e-6
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

    def doubt(self, claims: Sequence[Claim]) -> None:
        """Receive what a step has taken, if it was done: nobody could say."""
        ...


class Watcher(Protocol):
    """Who wants to know how the store is doing."""

    def trouble(self, error: StoreError) -> None:
        """A step failed; it is tried again."""
        ...

    def recovered(self) -> None:
        """A step succeeded."""
        ...

    def fault(self, duty: str, error: Exception) -> None:
        """Something of ours went wrong after a commit, which holds."""
        ...

    def failed_instead(self, ack: Ack, error: Exception) -> Ack | None:
        """Return what to write of an attempt of which this cannot be; None: it does not run any more."""
        ...

    def unwritable(self, ack: Ack, error: Exception) -> None:
        """Nor can that be written; it was let go."""
        ...


class Sending:
    """Some new jobs on their way into the store."""

    __slots__ = (
        "can_lead",
        "drafts",
        "error",
        "exempt",
        "follows",
        "found",
        "is_done",
        "stored",
        "turn",
        "when_done",
    )

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
        self.follows: Sending | None = None
        self.is_done = False
        self.turn: threading.Lock | None = None  # released when it is done, or is to lead
        self.can_lead = False
        self.stored: list[range] = []
        self.found: set[int] = set()  # which drafts met a job that was there already
        self.error: BaseException | None = None

    def done(self) -> bool:
        """Whether it is decided."""
        return self.is_done

    def result(self) -> list[range]:
        """
        Return the ids per draft.

        Raises:
            StoreError: They are not stored. DuplicateJob: One is not, as there is one already.
        GroupGone: Some are not, as their group takes no more.
        """
        if self.error is None:
            if self.found:
                raise_duplicates(self.drafts, self.found, self.stored)
            return self.stored
        # One error may meet many senders, and each adds its traceback: so a copy.
        copied = copy.copy(self.error)
        copied.__cause__ = self.error.__cause__
        raise copied


class Committer:
    """Gathers what threads want of a store into steps."""

    def __init__(self, store: Store, *, buffer: int | None, keep_completed: bool) -> None:
        self._store = store
        self._buffer = buffer
        self._keep_completed = keep_completed
        self._lead = threading.Lock()
        self._sendings: deque[Sending] = deque()
        self.completed: deque[tuple[JobId, int]] = deque()
        self.acks: deque[Ack] = deque()
        self._with_ack: dict[tuple[JobId, int], Sequence[Draft]] = {}  # jobs that are stored if it applies
        self._is_armed = False
        self._is_urgent = False
        self._bell: SimpleQueue[None] = SimpleQueue()  # in C: an Event costs three times as much
        self._thread: threading.Thread | None = None
        self._changing = threading.Lock()
        self._is_closing = False
        self._stepped_at = 0.0
        self._in_trouble = False
        self.taker: Taker | None = None
        self.watcher: Watcher | None = None
        self.room_made: Callable[[], None] | None = None
        self.watched: dict[JobId, list[Callable[[], None]]] = {}

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
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self._lead.locked():
            self._check_not_interrupting()
        if is_main and self._is_alone():
            return self._store_alone(drafts, exempt=exempt)
        sending = Sending(drafts, exempt=exempt)
        sending.turn = threading.Lock()
        sending.turn.acquire()
        if is_main and self._is_running():
            self._leave_to_thread(sending)
        else:
            self._lead_or_follow(sending)
        return sending.result()

    def begin(
        self, drafts: Sequence[Draft], *, exempt: bool = False, follows: Sending | None = None
    ) -> Sending:
        """
        Have jobs stored by the thread while the caller goes on; `finish` waits for it.

        If `follows` is not stored, neither are they.
        """
        if self._lead.locked():
            self._check_not_interrupting()
        sending = Sending(drafts, exempt=exempt)
        sending.follows = follows
        sending.turn = threading.Lock()
        sending.turn.acquire()
        if self._is_running():
            self.post(sending)
        else:  # at the interpreter's end
            self._lead_or_follow(sending)
        return sending

    def finish(self, sending: Sending) -> list[range]:
        """
        Return the ids of what was begun, when it is on disk.

        Raises:
            StoreError: They are not stored.
        """
        if not sending.is_done:
            _wait(sending, -1)
        return sending.result()

    def _is_alone(self) -> bool:
        return self.taker is None and not (self._sendings or self.completed or self.acks)

    def _store_alone(self, drafts: Sequence[Draft], *, exempt: bool) -> list[range]:
        """
        Store them right here: nothing of anybody else's can be torn apart.

        A signal's exception finds them stored or not, and `with` gives back the locks.
        """
        outcome = Outcome()
        work = Work(drafts=drafts, exempt=len(drafts) if exempt else 0, buffer=self._buffer)
        with self._lead:
            try:
                self._store.exchange(work, outcome)
            except StoreError:
                raise
            except Exception as error:
                if not outcome.committed:
                    raise _unexpected(self._store, error) from error
        self._pass_on()
        if outcome.left_pending and not outcome.has_rung:
            self._ring()
        if outcome.found:
            raise_duplicates(drafts, outcome.found, outcome.stored)
        return outcome.stored

    def _ring(self) -> None:
        try:
            self._store.ring()
        except (StoreError, OSError):
            return  # it is stored; the backstop wakes them

    @staticmethod
    def _check_not_interrupting() -> None:
        """A signal's handler that struck a commit of this very thread cannot wait for its end."""
        frame: FrameType | None = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            if frame.f_code is Committer._store_alone.__code__:
                raise ConfigError(
                    "this send is in a signal's handler that interrupted another send of the same thread; "
                    "nothing was stored. Set a flag in the handler and send afterwards, or start the worker: "
                    "then a handler may send."
                )
            frame = frame.f_back

    def _leave_to_thread(self, sending: Sending) -> None:
        try:
            self.post(sending)
            _wait(sending, -1)
        except BaseException:
            self.withdraw(sending)
            raise

    def _lead_or_follow(self, sending: Sending) -> None:
        sending.can_lead = True
        self._sendings.append(sending)
        # First queued, then tried: if the lead is taken, its holder looks at the queue again
        # after it has let go.
        if not self._lead.acquire(blocking=False):
            _wait(sending, TURN_S)
            if sending.is_done:
                return
            self._lead.acquire()  # it is our turn to lead
            # Those who were served with the last step are just putting in their next: 16 threads
            # in one tight loop stored two to three times as many so; bench/single.py shows less (2026-11).
            time.sleep(COMPANY_S)
        try:
            while not sending.is_done:
                self._step()
        finally:
            self._lead.release()
            self._pass_on()

    def _pass_on(self) -> None:
        """See to it that somebody leads, if anybody waits."""
        for sending in list(self._sendings):
            if sending.can_lead and sending.turn is not None:
                sending.can_lead = False
                sending.turn.release()
                return
        if self._sendings:
            self.kick()

    def post(self, sending: Sending) -> None:
        """Have jobs stored soon; `when_done` is called, in another thread, when it is decided."""
        self._sendings.append(sending)
        self.kick()

    def withdraw(self, sending: Sending) -> None:
        """Take it back, if no step has taken it yet; else it is stored, or failed, as it is."""
        with contextlib.suppress(ValueError):
            self._sendings.remove(sending)

    def complete(self, job_id: JobId, attempt: int) -> None:
        """Record, soon, that an attempt ended well and without a result. The hot path."""
        self.completed.append((job_id, attempt))
        if not self._is_armed:
            self._arm()
        if job_id in self.watched:
            self.kick()

    def ack(self, ack: Ack, drafts: Sequence[Draft] = ()) -> None:
        """Record, soon, what an attempt came to, and in the same step store jobs that are `only_if` of it."""
        if drafts:
            self._with_ack[ack.id, ack.attempt] = drafts  # first: a step may take it at once
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
        """
        Do one step now: what waits is written, and what is wished is taken.

        Raises:
            StoreError: Nothing was done; what waits is kept.
        """
        with self._lead:
            failure = self._step()
        if failure is not None:
            raise failure

    def between_steps(self, look: Callable[[], T]) -> T:
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

    def _step(self) -> StoreError | None:
        """Do one step, as the leader; return why it failed, if it did."""
        self._is_armed = False
        sendings = self._gathered()
        work = self._work(sendings)
        if self.taker is not None:
            work.take = self.taker.wish(sending=bool(work.drafts))
        if not (work.acks or work.completed or work.drafts or work.take):
            return None
        return self._do(work, sendings)

    def _do(self, work: Work, sendings: list[Sending]) -> StoreError | None:
        """Do the work; return the store's own error, if that is why it is not done."""
        outcome = Outcome()
        failure: StoreError | None = None
        try:
            self._store.exchange(work, outcome)
        except StoreError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # a value that the store cannot take, or a bug
            if not outcome.committed:
                return self._apart(work, sendings, error)
        finally:
            self._stepped_at = time.monotonic()
        if outcome.committed:
            self._settle(work, outcome, sendings)
            return None
        assert failure is not None, "a step either commits or says why not"
        if isinstance(failure, StoreUnknown) and outcome.claims and self.taker is not None:
            self.taker.doubt(outcome.claims)
        self._fail(work, sendings, failure)
        return failure

    def _work(self, sendings: list[Sending]) -> Work:
        return self._work_of(_drained(self.acks), _drained(self.completed), sendings)

    def _work_of(
        self, acks: Sequence[Ack], completed: Sequence[tuple[JobId, int]], sendings: Sequence[Sending]
    ) -> Work:
        sent = self._sent_with(acks)
        return Work(
            acks=acks,
            completed=completed,
            # Those of handlers first: they are exempt, for one that waited for room would wait for itself.
            drafts=[*sent, *(draft for sending in sendings for draft in sending.drafts)],
            exempt=len(sent) + sum(len(sending.drafts) for sending in sendings if sending.exempt),
            buffer=self._buffer,
            keep_completed=self._keep_completed,
        )

    # --- a value at fault -------------------------------------------------------------------

    def _apart(self, work: Work, sendings: list[Sending], error: Exception) -> StoreError | None:
        """
        Not the store's own error: some value is at fault, and must not hold up the others.

        The work is done again in two halves, and so on, until the one at fault stands alone. Nothing is
        taken meanwhile: the next step does that.
        """
        failure: StoreError | None = None
        halves = self._halves(work, sendings)
        if not halves:
            return self._blame(work, sendings, error)
        for half, its in halves:
            stored = [sending for sending in its if not _fails_with_another(sending)]
            if failure is not None:  # the store cannot do it now: no need to ask it again
                self._fail(half, stored, failure)
            elif stored == its:
                failure = self._do(half, its)
            else:
                failure = self._do(self._work_of(half.acks, half.completed, stored), stored)
        return failure

    def _halves(self, work: Work, sendings: list[Sending]) -> list[tuple[Work, list[Sending]]]:
        """Return the work in two parts, in order; nothing if it is not to be divided."""
        acks, completed = work.acks, work.completed
        if len(acks) + len(completed) + len(sendings) < 2:
            return []
        if sendings and (acks or completed):
            return [(self._work_of(acks, completed, []), []), (self._work_of([], [], sendings), sendings)]
        if acks and completed:
            return [(self._work_of(acks, [], []), []), (self._work_of([], completed, []), [])]
        at = max(len(acks), len(completed), len(sendings)) // 2
        return [
            (self._work_of(acks[part], completed[part], sendings[part]), sendings[part])
            for part in (slice(at), slice(at, None))
        ]

    def _blame(self, work: Work, sendings: list[Sending], error: Exception) -> StoreError | None:
        """The one thing of this work is at fault: its sender is told, or its job's attempt has failed."""
        for sending in sendings:
            sending.error = _unexpected(self._store, error)
            _done(sending)
        for ack in work.acks:
            return self._instead(ack, error)
        if sendings:
            return None
        failure = _unexpected(self._store, error)  # of ids alone, or of what was to be taken: a bug in us
        self._fail(work, [], failure)
        return failure

    def _instead(self, ack: Ack, error: Exception) -> StoreError | None:
        """
        Write that an attempt has failed, as what it came to cannot be written: a job it sent, say.

        An outcome is never dropped: its job would run for ever, and hold its key.
        """
        if self.watcher is None:
            self._fail(Work(acks=[ack]), [], failure := _unexpected(self._store, error))
            return failure
        outcome, work = Outcome(), Work()
        try:
            failed = self.watcher.failed_instead(ack, error)
            if failed is None:  # it has another attempt by now, or is gone
                self._with_ack.pop((ack.id, ack.attempt), None)
                return None
            work = Work(acks=[failed], buffer=self._buffer, keep_completed=self._keep_completed)
            self._store.exchange(work, outcome)
        except StoreError as trouble:
            if not outcome.committed:
                self._fail(Work(acks=[ack]), [], trouble)
                return trouble
        except Exception as second:  # noqa: BLE001  # then it is not the value, but a bug in us
            if not outcome.committed:
                self._with_ack.pop((ack.id, ack.attempt), None)
                self.watcher.unwritable(ack, second)
                return None
        self._settle(work, outcome, [])
        return None

    def _sent_with(self, acks: Sequence[Ack]) -> list[Draft]:
        if not self._with_ack:
            return []
        return [draft for ack in acks for draft in self._with_ack.get((ack.id, ack.attempt), ())]

    def _gathered(self) -> list[Sending]:
        gathered: list[Sending] = []
        jobs = 0
        while self._sendings and jobs < JOBS_PER_STEP:
            try:
                sending = self._sendings.popleft()
            except IndexError:  # withdrawn just now
                break
            if _fails_with_another(sending):
                continue
            gathered.append(sending)
            jobs += sum(len(draft.payloads) for draft in sending.drafts)
        if self._buffer is not None:
            gathered.sort(key=lambda sending: not sending.exempt)
        return gathered

    def _settle(self, work: Work, outcome: Outcome, sendings: list[Sending]) -> None:
        at = len(self._sent_with(work.acks))
        stored = iter(outcome.stored[at:])
        for sending in sendings:
            sending.stored = [next(stored) for _ in sending.drafts]
            if outcome.found:
                its = range(at, at + len(sending.drafts))
                sending.found = {found - at for found in outcome.found if found in its}
                at = its.stop
        if self._with_ack:
            for ack in work.acks:
                self._with_ack.pop((ack.id, ack.attempt), None)
        # It is committed: nothing that goes wrong from here on may look like a failure of it.
        if self.taker is not None:
            self._guarded(self.taker.deliver, outcome, work.take)
        for sending in sendings:
            self._guarded(_done, sending)
        if outcome.left_pending and not outcome.has_rung:
            self._guarded(self._store.ring)
        self._guarded(self._announce, work)
        if self._in_trouble:
            self._in_trouble = False
            if self.watcher is not None:
                self.watcher.recovered()

    def _guarded(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001  # a bug in us: told, and the thread serves on
            if self.watcher is not None:
                self.watcher.fault("telling what was committed", error)

    def _fail(self, work: Work, sendings: list[Sending], failure: StoreError) -> None:
        """Nothing was done: the senders are told; outcomes are kept and written later."""
        self.completed.extendleft(reversed(work.completed))
        self.acks.extendleft(reversed(work.acks))
        for sending in sendings:
            sending.error = failure
            _done(sending)
        self._in_trouble = True
        if self.watcher is not None:
            self.watcher.trouble(failure)
        if self.has_outcomes():
            self._arm()

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

    # --- the thread ------------------------------------------------------------------------------

    def _arm(self) -> None:
        self._is_armed = True
        if self._thread is None:
            self._is_running()
        self._bell.put(None)

    def _is_running(self) -> bool:
        """Start the thread if need be; return False if it cannot be, as at the interpreter's end."""
        if self._thread is not None:
            return True
        thread = threading.Thread(target=self._run, name="dutiful-committer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # "can't create new thread at interpreter shutdown"
            return False
        return True

    def _is_the_one(self) -> bool:
        """The thread says that it runs, by itself: an interruption of who started it changes nothing."""
        with self._changing:
            if self._thread is not None or self._is_closing:
                return False
            self._thread = threading.current_thread()
            return True

    def _run(self) -> None:
        if not self._is_the_one():
            return
        while True:
            self._bell.get()
            is_urgent = self._wait_for_company()
            # Emptied first, then looked: what comes from here on is seen here, or rings again.
            self._is_armed = False
            while not self._bell.empty():
                self._bell.get()
            if self._is_closing:
                return
            if not (self.completed or self.acks or self._sendings):
                continue
            if not self._lead.acquire(blocking=is_urgent):
                self._bell.put(None)  # somebody commits right now; what comes too late for that waits again
                continue
            try:
                failure = self._step()
            finally:
                self._lead.release()
                self._pass_on()
            if failure is not None and not self._sendings:
                time.sleep(RETRY_S)
            if self.has_outcomes():
                self._arm()

    def _wait_for_company(self) -> bool:
        """Wait until the last step is a while ago, or somebody asks for haste; return whether so."""
        rest_s = FLUSH_S
        while rest_s > 0 and not self._is_urgent and not self._is_closing:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=rest_s)
            rest_s = self._stepped_at + FLUSH_S - time.monotonic()
        is_urgent, self._is_urgent = self._is_urgent, False
        return is_urgent

    def close(self, error: BaseException | None = None) -> None:
        """End the thread. Outcomes that were not written stay; who waits to be stored gets `error`."""
        with self._changing:
            self._is_closing = True
            thread = self._thread
        if thread is not None:
            self._bell.put(None)
            if thread is not threading.current_thread():
                thread.join()
        while self._sendings:
            with contextlib.suppress(IndexError):  # withdrawn just now
                sending = self._sendings.popleft()
                sending.error = error or StoreError(
                    self._store.label, "the store is closed; nothing was stored."
                )
                _done(sending)
        with self._changing:
            self._thread = None
            self._is_closing = False


def raise_duplicates(drafts: Sequence[Draft], found: set[int], stored: Sequence[range]) -> None:
    """
    Raises:
        DuplicateJob: One of the drafts that met a job already there asked for that.
        GroupGone: One is of a group that takes no more.
    """
    for at in sorted(found):
        special = drafts[at].special
        if special is not None and (group := special.member_of or special.closes):
            raise GroupGone(group)
        if special is not None and special.unique is not None and special.unique.on_conflict == "raise":
            raise DuplicateJob(stored[at].start, drafts[at].task)


def _unexpected(store: Store, error: Exception) -> StoreError:
    failure = StoreError(store.label, f"unexpected: {error!r}; nothing was stored.")
    failure.__cause__ = error
    return failure


def _fails_with_another(sending: Sending) -> bool:
    """Whether a sending was to be stored only after one that is not; then it is told so."""
    if sending.follows is None or sending.follows.error is None:
        return False
    sending.error = sending.follows.error
    _done(sending)
    return True


def _done(sending: Sending) -> None:
    sending.is_done = True
    sending.follows = None  # each would hold on to all before it
    if sending.turn is not None and sending.turn.locked():
        sending.turn.release()
    if sending.when_done is not None:
        sending.when_done(sending)


def _wait(sending: Sending, limit_s: float) -> None:
    assert sending.turn is not None, "only a sender that waits has a turn"
    sending.turn.acquire(timeout=limit_s)


def _drained(queue: deque[T]) -> list[T]:
    drained: list[T] = []
    take: Callable[[], T] = queue.popleft
    put: Callable[[T], None] = drained.append
    try:
        while True:
            put(take())
    except IndexError:
        pass
    return drained
