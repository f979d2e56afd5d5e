"""Group commit: many callers share commits, none is forgotten, and no interruption leaves a doubt."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from dutiful.errors import StoreBusy, StoreError
from dutiful.job import Ack, ErrorInfo, State
from dutiful.store.committer import Committer, Sending
from dutiful.store.contract import Draft, Outcome, Query, Take, Work
from dutiful.store.sqlite import MEMORY
from tests.store import inside


class Recorder:
    """A store that notes the steps, can hold one up, and can fail."""

    def __init__(self, store) -> None:
        self.store = store
        self.steps: list[Work] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: BaseException | None = None
        self.rings = 0
        self.label = "recorder"

    def exchange(self, work: Work, outcome: Outcome) -> None:
        self.steps.append(work)
        self.entered.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.store.exchange(work, outcome)

    def ring(self) -> None:
        self.rings += 1


class Taker:
    """A worker that takes nothing and keeps what it is told."""

    def __init__(self, take: Take | None = None) -> None:
        self.take = take
        self.told: list[Outcome] = []

    def wish(self, *, sending: bool) -> Take | None:
        return self.take if sending else None

    def deliver(self, outcome: Outcome, wish: Take | None) -> None:
        self.told.append(outcome)


@pytest.fixture
def store():
    store = inside.opened(MEMORY)
    yield Recorder(store)
    store.close()


@pytest.fixture
def committer(store):
    committer = Committer(store, buffer=None, keep_completed=True)
    yield committer
    store.gate.set()
    committer.close()


def _draft(*payloads: str) -> Draft:
    return Draft("t", "q", list(payloads or ("1",)))


def _wait_until(fact) -> None:
    deadline = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _claimed(store, count: int = 1):
    owner = store.store.join("w", ["q"], 1)
    outcome = Outcome()
    work = Work(take=Take(owner, ("q",), count, handoff=True), drafts=[_draft(*"1" * count)])
    store.store.exchange(work, outcome)
    return outcome.claims


# --- sharing ------------------------------------------------------------------------------


def _elsewhere(function):
    """Call in another thread: the main one leaves its jobs to the committer's."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def test_one_caller_alone_commits_in_its_own_thread(committer, store) -> None:
    (ids,) = _elsewhere(lambda: committer.submit([_draft("1", "2")]))

    assert len(ids) == len(store.store.get(ids)) == 2
    assert len(store.steps) == 1
    assert committer._thread is None


@pytest.mark.parametrize("others", [False, True])
def test_the_main_thread_never_commits_for_others(committer, store, others: bool) -> None:
    """A signal's exception would tear the step apart; what is its own alone it may store itself."""
    threads: list[threading.Thread] = []
    exchange = store.exchange
    store.exchange = lambda work, outcome: (
        threads.append(threading.current_thread()),
        exchange(work, outcome),
    )
    committer.taker = Taker() if others else None

    committer.submit([_draft("1", "2")])

    assert [thread.name for thread in threads] == ["dutiful-committer" if others else "MainThread"]


def test_at_the_interpreters_end_the_main_thread_commits_itself(committer, store, monkeypatch) -> None:
    """No thread can be started any more; the job is stored all the same."""

    def refuse(self) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    (ids,) = committer.submit([_draft()])

    assert len(store.store.get(ids)) == 1


def test_those_who_wait_share_the_next_commit(committer, store) -> None:
    """Eight senders, while one commits: together one more commit, and each gets its own ids."""
    store.gate.clear()
    results: dict[int, list[range]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: committer.submit([_draft(f'"{n}"')])}))
        for n in range(9)
    ]
    threads[0].start()
    assert store.entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    _wait_until(lambda: len(committer._sendings) == 8)
    store.gate.set()
    for thread in threads:
        thread.join(10)

    assert [len(work.drafts) for work in store.steps] == [1, 8]
    assert {n: store.store.get(ids[0])[0].payload for n, ids in results.items()} == {
        n: f'"{n}"' for n in range(9)
    }


def test_a_step_takes_a_bounded_number_of_jobs(committer, store, monkeypatch) -> None:
    monkeypatch.setattr("dutiful.store.committer.JOBS_PER_STEP", 10)
    done: list[Sending] = []
    store.gate.clear()
    for _ in range(8):
        committer.post(Sending([_draft(*"1" * 5)], done.append))
    store.gate.set()
    _wait_until(lambda: len(done) == 8)

    assert max(sum(len(d.payloads) for d in work.drafts) for work in store.steps) <= 10


def test_outcomes_travel_with_a_send(committer, store) -> None:
    first, second = _claimed(store, 2)
    store.gate.clear()
    committer.complete(first.id, first.attempt)
    committer.ack(Ack(second.id, second.attempt, State.DEAD, 1, 0))
    store.gate.set()
    committer.submit([_draft()])

    _wait_until(lambda: not committer.has_outcomes())
    states = {job.id: job.state for job in store.store.get([first.id, second.id])}
    assert states == {first.id: State.COMPLETED, second.id: State.DEAD}


def test_outcomes_are_written_soon_when_nobody_sends(committer, store) -> None:
    (claim,) = _claimed(store)

    committer.complete(claim.id, claim.attempt)

    _wait_until(lambda: store.store.get([claim.id])[0].state is State.COMPLETED)


def test_who_watches_a_job_is_told_when_it_is_on_disk(committer, store) -> None:
    (claim,) = _claimed(store)
    told = threading.Event()
    room = threading.Event()
    committer.room_made = room.set
    committer.watched[claim.id] = [told.set]

    committer.complete(claim.id, claim.attempt)

    assert told.wait(10)
    assert room.wait(10)
    assert store.store.get([claim.id])[0].state is State.COMPLETED
    assert committer.watched == {}


def test_a_posted_sending_is_stored_by_the_thread(committer, store) -> None:
    done: list[Sending] = []

    committer.post(Sending([_draft("1", "2")], done.append))

    _wait_until(lambda: done)
    assert len(store.store.get(done[0].stored[0])) == 2
    assert done[0].error is None


def test_left_pending_jobs_ring_the_others(committer, store) -> None:
    committer.submit([_draft()])

    assert store.rings == 1


def test_the_taker_is_asked_and_told(committer, store) -> None:
    owner = store.store.join("w", ["q"], 1)
    committer.taker = taker = Taker(Take(owner, ("q",), 5, handoff=True))

    (ids,) = committer.submit([_draft("1", "2")])

    (outcome,) = taker.told
    assert [claim.id for claim in outcome.claims] == list(ids)


def test_a_step_with_nothing_to_do_does_nothing(committer, store) -> None:
    committer.step()

    assert store.steps == []


def test_exempt_senders_come_first_and_pass_the_bound(store) -> None:
    committer = Committer(store, buffer=1, keep_completed=True)
    committer.submit([_draft()])

    assert [len(ids) for ids in committer.submit([_draft("2", "3")], exempt=True)] == [2]
    assert [len(ids) for ids in committer.submit([_draft("4")])] == [0]
    committer.close()


# --- trouble --------------------------------------------------------------------------------


class Watcher:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def trouble(self, error: StoreError) -> None:
        self.told.append(error)

    def recovered(self) -> None:
        self.told.append("recovered")

    def failed_instead(self, ack: Ack, error: Exception) -> Ack:
        self.told.append((ack.id, error))
        return Ack(ack.id, ack.attempt, State.PENDING, 1, 0, error=ErrorInfo("StoreError", str(error)))

    def unwritable(self, ack: Ack, error: Exception) -> None:
        self.told.append(("gone", ack.id))


def test_a_store_error_reaches_a_client_that_is_alone(committer, store) -> None:
    store.error = StoreBusy("x", 1.0)

    with pytest.raises(StoreBusy):
        committer.submit([_draft()])

    assert store.store.unfinished() == 0


@pytest.mark.parametrize("call", [lambda f: f(), _elsewhere], ids=["main", "thread"])
def test_a_store_error_reaches_each_sender_and_nothing_is_stored(committer, store, call, monkeypatch) -> None:
    monkeypatch.setattr("dutiful.store.committer.RETRY_S", 0.01)
    committer.watcher = watcher = Watcher()
    committer.taker = Taker()
    store.error = StoreBusy("x", 1.0)

    with pytest.raises(StoreBusy):
        call(lambda: committer.submit([_draft()]))
    store.error = None
    call(lambda: committer.submit([_draft()]))

    assert store.store.unfinished() == 1
    _wait_until(lambda: len(watcher.told) == 2)
    assert isinstance(watcher.told[0], StoreBusy)
    assert watcher.told[1] == "recovered"


def _refusing(store, is_bad) -> None:
    """Have the store refuse steps, as it does with a value that it cannot take."""
    exchange = store.exchange

    def refuse(work: Work, outcome: Outcome) -> None:
        if is_bad(work):
            raise ValueError("bad value")
        exchange(work, outcome)

    store.exchange = refuse


def test_an_outcome_that_cannot_be_written_holds_up_no_other(committer, store) -> None:
    """Whatever the store makes of its value: the one at fault is found, and fails."""
    committer.watcher = watcher = Watcher()
    claims = _claimed(store, 4)
    bad = claims[1].id
    _refusing(store, lambda work: any(ack.id == bad and ack.state is State.DEAD for ack in work.acks))
    for claim in claims[:3]:
        committer.ack(Ack(claim.id, 1, State.DEAD, 0, 0))
    committer.complete(claims[3].id, 1)

    _wait_until(lambda: store.store.counts().by_state[State.RUNNING] == 0)
    _wait_until(lambda: not committer.has_outcomes())
    assert [told[0] for told in watcher.told] == [bad]
    states = [store.store.get([claim.id])[0].state for claim in claims]
    assert states == [State.DEAD, State.PENDING, State.DEAD, State.COMPLETED]


def test_an_outcome_of_which_not_even_the_failure_can_be_written_is_let_go(committer, store) -> None:
    committer.watcher = watcher = Watcher()
    (claim,) = _claimed(store)
    _refusing(store, lambda work: bool(work.acks))

    committer.ack(Ack(claim.id, 1, State.DEAD, 0, 0))

    _wait_until(lambda: ("gone", claim.id) in watcher.told)
    assert not committer.has_outcomes()


@pytest.mark.parametrize("busy", [0, 1])
def test_jobs_that_go_with_an_outcome_and_cannot_be_stored_make_it_a_failure(
    committer, store, monkeypatch, busy: int
) -> None:
    """Neither are they stored, nor is the job completed, whatever trouble the store has meanwhile."""
    monkeypatch.setattr("dutiful.store.committer.RETRY_S", 0.01)
    committer.watcher = watcher = Watcher()
    (claim,) = _claimed(store)
    troubles = [StoreBusy("x", 1.0)] * busy
    exchange = store.exchange

    def refuse(work: Work, outcome: Outcome) -> None:
        if any(draft.payloads == ["bad"] for draft in work.drafts):
            raise ValueError("bad value")
        if troubles:
            raise troubles.pop()
        exchange(work, outcome)

    store.exchange = refuse
    sent = [Draft("t", "q", [text], only_if=(claim.id, 1)) for text in ("1", "bad")]
    committer.ack(Ack(claim.id, 1, State.COMPLETED, 0, 0), sent)

    _wait_until(lambda: store.store.get([claim.id])[0].state is State.PENDING)
    assert store.store.unfinished() == 1
    assert [told[0] for told in watcher.told if isinstance(told, tuple)] == [claim.id] * (1 + busy)


def test_a_value_that_the_store_cannot_take_fails_no_other_sender(committer, store) -> None:
    """Eight share a step, and one of them is at fault: it alone is told."""
    store.gate.clear()
    done: dict[str, Sending] = {}
    committer.post(Sending([_draft()], lambda sending: done.update(first=sending)))
    assert store.entered.wait(10)
    _refusing(store, lambda work: any("bad" in draft.payloads for draft in work.drafts))
    for name in ("1", "2", "bad", "4", "5"):
        committer.post(Sending([_draft(name)], lambda sending, name=name: done.update({name: sending})))
    store.gate.set()
    _wait_until(lambda: len(done) == 6)

    assert [name for name, sending in done.items() if sending.error is not None] == ["bad"]
    assert isinstance(done["bad"].error, StoreError)
    assert store.store.unfinished() == 5


def test_who_follows_one_that_is_not_stored_is_not_stored_either(committer, store) -> None:
    """As when they come in two steps."""
    store.gate.clear()
    done: list[Sending] = []
    committer.post(Sending([_draft()], done.append))
    assert store.entered.wait(10)
    _refusing(store, lambda work: any("bad" in draft.payloads for draft in work.drafts))
    sendings = [Sending([_draft(name)], done.append) for name in ("bad", "2", "3")]
    sendings[1].follows = sendings[0]
    for sending in sendings:
        committer.post(sending)
    store.gate.set()
    _wait_until(lambda: len(done) == 4)

    assert [sending.error is None for sending in sendings] == [False, False, True]
    assert store.store.unfinished() == 2


def test_after_trouble_in_the_middle_nothing_more_is_tried(committer, store, monkeypatch) -> None:
    """The rest fails as it would have in one step, and does not wait for the store again, each on its own."""
    store.gate.clear()
    done: list[Sending] = []
    committer.post(Sending([_draft()], done.append))
    assert store.entered.wait(10)
    asked: list[int] = []

    def refuse(work: Work, outcome: Outcome) -> None:
        asked.append(len(work.drafts))
        raise ValueError("bad value") if len(work.drafts) == 4 else StoreBusy("x", 1.0)

    store.exchange = refuse
    for name in "1234":
        committer.post(Sending([_draft(name)], done.append))
    store.gate.set()
    _wait_until(lambda: len(done) == 5)

    assert asked == [4, 2]
    assert [type(sending.error) for sending in done[1:]] == [StoreBusy] * 4


@pytest.mark.parametrize("call", [lambda f: f(), _elsewhere], ids=["main", "thread"])
def test_a_client_that_is_alone_gets_an_error_of_ours(committer, store, call) -> None:
    store.error = ValueError("bad value")

    with pytest.raises(StoreError, match="bad value"):
        call(lambda: committer.submit([_draft()]))


def test_a_value_that_the_store_cannot_take_fails_its_sender(committer, store) -> None:
    committer.taker = Taker()
    store.error = ValueError("bad value")

    with pytest.raises(StoreError, match="bad value"):
        committer.submit([_draft()])

    store.error = None
    committer.submit([_draft()])


def test_outcomes_are_kept_over_trouble_and_written_later(committer, store, monkeypatch) -> None:
    """In order, as often as it takes."""
    monkeypatch.setattr("dutiful.store.committer.RETRY_S", 0.01)
    claims = _claimed(store, 3)
    store.error = StoreBusy("x", 1.0)
    for claim in claims[:2]:
        committer.complete(claim.id, claim.attempt)
    committer.ack(Ack(claims[2].id, 1, State.CANCELLED, 0, 0))
    _wait_until(lambda: len(store.steps) >= 3)
    assert committer.has_outcomes()
    with pytest.raises(StoreBusy):
        committer.step()

    store.error = None

    _wait_until(lambda: not committer.has_outcomes() and store.store.counts().by_state[State.RUNNING] == 0)
    assert store.store.counts().by_state[State.COMPLETED] == 2


def test_an_interrupted_sender_withdraws_what_no_step_has_taken(committer, store) -> None:
    """It is not stored behind the back of who was told that it was not."""
    store.gate.clear()
    committer.post(Sending([_draft()]))
    assert store.entered.wait(10)
    sending = Sending([_draft('"mine"')])
    committer.post(sending)
    committer.withdraw(sending)
    committer.withdraw(sending)
    store.gate.set()
    _wait_until(lambda: store.store.unfinished() == 1)
    _elsewhere(lambda: committer.submit([_draft()]))

    assert store.store.unfinished() == 2
    assert not sending.is_done


class _Lead:
    """The lead, which opens a gate when somebody has to wait for it."""

    def __init__(self, lock, gate: threading.Event) -> None:
        self.lock, self.gate = lock, gate
        self.release = lock.release

    def acquire(self, *, blocking: bool = True) -> bool:
        if self.lock.acquire(blocking=False):
            return True
        self.gate.set()
        return blocking and self.lock.acquire()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()


def test_between_steps_nothing_is_half_handed_over(committer, store) -> None:
    """Who looks waits for the step that is under way."""
    store.gate.clear()
    committer.post(Sending([_draft()]))
    assert store.entered.wait(10)
    committer._lead = _Lead(committer._lead, store.gate)

    assert committer.between_steps(lambda: store.store.unfinished() == 1)


def test_a_finished_transaction_tells_who_waits(committer) -> None:
    told: list[int] = []
    committer.watched[7] = [lambda: told.append(7)]
    committer.room_made = lambda: told.append(0)

    committer.told(7)

    assert told == [7, 0]


def test_closing_twice_and_sending_afterwards_is_harmless(committer, store) -> None:
    (claim,) = _claimed(store)
    committer.complete(claim.id, claim.attempt)
    committer.close()
    committer.close()

    committer.submit([_draft()])
    committer.kick()

    _wait_until(lambda: not committer.has_outcomes())


# --- interruptions ----------------------------------------------------------------------------

STORM = """
import faulthandler, json, signal, sys, threading, time
from dutiful.errors import StoreError
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft
from dutiful.store.sqlite import SqliteStore

faulthandler.dump_traceback_later(float(sys.argv[3]) + 8, exit=True)
path, followers, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
store = SqliteStore(path, busy_s=2.0, durability="normal"); store.open()
committer = Committer(store, buffer=None, keep_completed=True)
acknowledged, errors, storming = [], [], True

def send(name):
    committer.submit([Draft("t", "q", [name])])
    acknowledged.append(name)

def follow(n):
    turn = 0
    while storming:
        turn += 1
        try:
            send(f"{n}.{turn}")
        except StoreError as error:
            errors.append(repr(error))

armed = False

def interrupt(*_):
    global armed
    if armed:  # not in what this program does about it
        armed = False
        raise KeyboardInterrupt

threads = [threading.Thread(target=follow, args=(n,), daemon=True) for n in range(1, followers + 1)]
for thread in threads:
    thread.start()
signal.signal(signal.SIGALRM, interrupt)
interrupted, turn, until = 0, 0, time.monotonic() + seconds
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while time.monotonic() < until:
    turn += 1
    try:
        armed = True
        send(f"0.{turn}")
        armed = False
    except KeyboardInterrupt:
        interrupted += 1
    except StoreError as error:
        armed = False
        errors.append(repr(error))
signal.setitimer(signal.ITIMER_REAL, 0)
try:
    for n in range(5):
        send(f"late.{n}")
except StoreError as error:
    errors.append("afterwards: " + repr(error))
storming = False
for thread in threads:
    thread.join(5)
stuck = sum(thread.is_alive() for thread in threads)
from dutiful.store.contract import Query
stored = [job.payload for job in store.find(Query(limit=10**6))]
found = dict(acknowledged=acknowledged, errors=errors, interrupted=interrupted, stuck=stuck, stored=stored)
print(json.dumps(found))
sys.stdout.flush()
if not stuck:
    committer.close()
    store.close()
import os; os._exit(0)
"""


def _storm(path, followers: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", STORM, str(path), str(followers), "1.0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("followers", [0, 3])
def test_a_storm_of_interruptions_leaves_no_doubt_and_nothing_stuck(tmp_path, followers: int) -> None:
    """A KeyboardInterrupt each millisecond: what was acknowledged is stored, once; later sends work."""
    found = _storm(tmp_path / "jobs.db", followers)

    assert found["interrupted"] > 50
    assert found["stuck"] == 0
    assert found["errors"] == []
    assert len(found["stored"]) == len(set(found["stored"]))
    assert set(found["acknowledged"]) <= set(found["stored"])
    assert {f"late.{n}" for n in range(5)} <= set(found["acknowledged"])


# --- jobs that are sent with an ack ------------------------------------------------------------


def _sent_with(claim) -> Draft:
    return Draft("t", "q", ["sent"], only_if=(claim.id, claim.attempt))


def _ack_of(claim) -> Ack:
    return Ack(claim.id, claim.attempt, State.COMPLETED, 0, 0)


def _payloads(store) -> list[str | None]:
    return [record.payload for record in store.store.find(Query())]


def test_jobs_sent_with_an_ack_are_in_its_step_before_those_of_others(store, committer):
    (claim,) = _claimed(store)
    store.gate.clear()
    store.entered.clear()
    first = threading.Thread(target=committer.submit, args=([_draft("first")],))
    first.start()
    assert store.entered.wait(10)
    committer.ack(_ack_of(claim), [_sent_with(claim)])
    second = threading.Thread(target=committer.submit, args=([_draft("second"), _draft("third")],))
    second.start()
    _wait_until(lambda: committer._sendings)
    store.gate.set()

    first.join(10)
    second.join(10)
    _wait_until(lambda: not committer.has_outcomes() and len(_payloads(store)) == 5)
    with_ack = [work for work in store.steps if work.acks]
    assert [[draft.payloads for draft in work.drafts][:1] for work in with_ack] == [[["sent"]]]
    assert not committer._with_ack


def test_an_ack_and_its_jobs_stay_together_when_a_step_fails(store, committer):
    (claim,) = _claimed(store)
    store.error = StoreBusy("recorder", 0.0)
    committer.ack(_ack_of(claim), [_sent_with(claim)])
    _wait_until(lambda: len(store.steps) > 1)
    assert _payloads(store) == ["1"]

    store.error = None
    _wait_until(lambda: not committer.has_outcomes() and len(_payloads(store)) == 2)

    assert all([draft.payloads for draft in work.drafts] == [["sent"]] for work in store.steps if work.acks)
    assert not committer._with_ack


def test_jobs_that_the_store_cannot_take_are_let_go_with_their_ack(store, committer):
    bad, good = _claimed(store, 2)
    watcher = Watcher()
    committer.watcher = watcher
    committer.ack(_ack_of(bad), [Draft("t", "q", [object(), object()], only_if=(bad.id, bad.attempt))])
    committer.ack(_ack_of(good), [_sent_with(good)])

    _wait_until(lambda: not committer.has_outcomes() and "sent" in _payloads(store))

    assert bad.id in [told[0] for told in watcher.told if isinstance(told, tuple)]
    assert not committer._with_ack
