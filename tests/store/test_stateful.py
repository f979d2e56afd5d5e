"""
The store against a simple model: any sequence of what can happen to it.

The model is a dict of jobs and knows no SQL. Time is data: delays are none, 0 or an hour, so
nothing waits. After each step the store and the model hold the same jobs in the same states,
no job is lost and none is in two hands.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dutiful.config import Keep
from dutiful.core.turns import Turns
from dutiful.job import Ack, Claim, ErrorInfo, State
from dutiful.store.contract import Aged, Draft, Outcome, Take, Work
from dutiful.store.sqlite import MEMORY, SqliteStore
from tests.store import inside

QUEUES = ("a", "b")
TASKS = ("known", "strange")
HOUR_S = 3600.0
WORKERS = 2


@dataclass
class Job:
    """A job as the model sees it."""

    queue: str
    task: str
    priority: int
    payload: str
    place: tuple[int, int]  # the order of due times: who became due when, by the model's own count
    is_future: bool
    state: State = State.PENDING
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    owner: int | None = None
    parked: bool = False
    cancel_asked: bool = False
    errors: list[int] = field(default_factory=list)

    def urgency(self) -> tuple[int, tuple[int, int]]:
        return -self.priority, self.place


class StoreMachine(RuleBasedStateMachine):
    """What can happen to a file, at two doors."""

    path = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.jobs: dict[int, Job] = {}
        self.held: dict[int, list[Claim]] = {}
        self.past: list[Claim] = []
        self.last_id = 0
        self.used: set[int] = set()

    @initialize()
    def begin(self) -> None:
        self.doors = [self._open() for _ in range(self._door_count())]
        self.owners = [
            self._door(n).join(f"w{n}", QUEUES, 1, []) if self._can_join(n) else 0 for n in range(WORKERS)
        ]
        self.held = {owner: [] for owner in self.owners if owner}

    def _door_count(self) -> int:
        return WORKERS

    def _can_join(self, n: int) -> bool:
        return True

    def _open(self) -> SqliteStore:
        store = SqliteStore(str(Path(self.folder.name) / "jobs.db"), durability="normal")
        store.open()
        return store

    def _die(self, store: SqliteStore, owner: int) -> None:
        inside.die(store, owner)

    def _door(self, n: int) -> SqliteStore:
        return self.doors[n % len(self.doors)]

    def teardown(self) -> None:
        for door in getattr(self, "doors", []):
            door.close()
        self.folder.cleanup()

    # --- what happens -----------------------------------------------------------------------

    def _step(self, n: int, **wishes: object) -> Outcome:
        outcome = Outcome()
        self._door(n).exchange(Work(**wishes), outcome)  # type: ignore[arg-type]
        assert outcome.committed
        return outcome

    @rule(
        n=st.integers(0, 1),
        queue=st.sampled_from(QUEUES),
        task=st.sampled_from(TASKS),
        priority=st.integers(-1, 1),
        payloads=st.lists(st.sampled_from(['"x"', "null", '"\\u0000é"']), min_size=1, max_size=4),
        time=st.sampled_from(["now", "delay 0", "hour"]),
        room=st.integers(0, 3),
    )
    def insert(self, n, queue, task, priority, payloads, time, room):
        """Store jobs; with room, some are handed over."""
        delay_s = {"now": None, "delay 0": 0.0, "hour": HOUR_S}[time]
        owner = self.owners[n]
        handoff = bool(owner and room)
        take = Take(owner, QUEUES, room, look=False, handoff=True) if handoff else None

        outcome = self._step(n, take=take, drafts=[Draft(task, queue, payloads, priority, delay_s)])

        (ids,) = outcome.stored
        assert self.used.isdisjoint(ids), "an id was used twice"  # each door has a block of its own
        self.used.update(ids)
        assert len(ids) == len(payloads)
        for job_id, payload in zip(ids, payloads, strict=True):
            self.jobs[job_id] = Job(queue, task, priority, payload, self._place(job_id), time == "hour")
        self.last_id = max(self.last_id, ids[-1])
        handed = list(ids)[:room] if handoff and time == "now" else []
        self._claimed(owner, outcome.claims, handed)
        assert outcome.left_pending == (time == "now" and len(handed) < len(ids))

    def _place(self, job_id: int) -> tuple[int, int]:
        # Due times are the store's; two that became due in one millisecond go by id.
        (record,) = self.doors[0].get([job_id])
        return record.due_at, job_id

    @rule(
        n=st.integers(0, 1),
        limit=st.integers(1, 5),
        suspects=st.integers(0, 1),
        knows_all=st.booleans(),
        queues=st.sampled_from([("a",), ("b",)]),
    )
    def take(self, n, limit, suspects, knows_all, queues):
        owner = self.owners[n]
        if not owner:
            return
        due = [
            (job_id, job)
            for job_id, job in sorted(self.jobs.items(), key=lambda pair: pair[1].urgency())
            if job.state is State.PENDING and job.queue in queues and not job.is_future and not job.parked
        ]
        if not knows_all and any(job.crashes and job.task == "strange" for _id, job in due):
            return  # how a suspect of an unknown task counts is the contract's business
        mine = [(job_id, job) for job_id, job in due if knows_all or job.task == "known"]
        expected = [job_id for job_id, job in mine if job.crashes][:suspects]
        expected += [job_id for job_id, job in mine if not job.crashes]

        outcome = self._step(
            n, take=Take(owner, queues, limit, suspects, known=None if knows_all else {"known"})
        )

        got = [claim.id for claim in outcome.claims]
        assert sorted(got) == sorted(expected[:limit])
        assert outcome.unknown <= ({"strange"} if not knows_all else set())
        self._claimed(owner, outcome.claims, got)

    @rule(n=st.integers(0, 1), limit=st.integers(1, 5), is_strict=st.booleans(), old=st.integers(0, 2))
    def take_in_turn(self, n, limit, is_strict, old):
        """By turns of the queues, some of it because it is old: as many as there are, each once."""
        owner = self.owners[n]
        if not owner:
            return
        due = [
            job_id
            for queue in QUEUES
            for job_id, job in sorted(self.jobs.items(), key=lambda pair: pair[1].urgency())
            if job.state is State.PENDING and job.queue == queue and not job.is_future and not job.parked
            if not job.crashes
        ]
        turns = Turns.strictly(QUEUES) if is_strict else Turns.by_weight({"a": 2, "b": 3})
        aged = Aged((("a", 0), ("a", -1), ("b", -1)), 2**60, old) if old else None

        outcome = self._step(n, take=Take(owner, QUEUES, limit, turns=turns, aged=aged))

        got = [claim.id for claim in outcome.claims]
        assert len(set(got)) == len(got) == min(limit, len(due))
        assert set(got) <= set(due)
        assert not (outcome.drained and len(due) > limit)
        assert outcome.aged <= (2 * old)
        if is_strict and not old:
            assert got == due[:limit]
        self._claimed(owner, outcome.claims, got)

    @rule(n=st.integers(0, 1), tasks=st.sets(st.sampled_from(TASKS)), queue=st.sampled_from(QUEUES))
    def park(self, n, tasks, queue):
        """Nobody lists any task here: these are out of the way for an hour."""
        due = [
            job
            for job in self.jobs.values()
            if job.state is State.PENDING and job.queue == queue and job.task in tasks
            if not job.is_future and not job.parked and not job.crashes
        ]

        parked = self._door(n).park(tasks, [queue], after_s=0, park_s=HOUR_S)

        assert sum(parked.values()) == len(due)
        for job in due:
            job.parked = True

    def _claimed(self, owner: int, claims: list[Claim], expected: list[int]) -> None:
        assert [claim.id for claim in claims] == expected
        for claim in claims:
            job = self.jobs[claim.id]
            assert job.state is State.PENDING, "in two hands"
            job.state, job.owner, job.attempt, job.parked = State.RUNNING, owner, job.attempt + 1, False
            assert (claim.attempt, claim.failures, claim.crashes) == (job.attempt, job.failures, job.crashes)
            assert (claim.payload, claim.task) == (job.payload, job.task)
            self.held[owner].append(claim)
            self.past.append(claim)

    @rule(
        n=st.integers(0, 1),
        choice=st.data(),
        end=st.sampled_from(
            [
                "completed",
                "gone",
                State.COMPLETED,
                State.DEAD,
                State.CANCELLED,
                "again",
                "later",
                "failed",
                "crashed",
            ]
        ),
    )
    def end(self, n, choice, end):
        """End up to three attempts of a worker the same way, among them perhaps late ones."""
        held = self.held.get(self.owners[n], [])
        others = [claim for owner, claims in self.held.items() if owner != self.owners[n] for claim in claims]
        # What another still owns is not this worker's to end, and no worker would.
        pool = held + [claim for claim in self.past[-8:] if claim not in others]
        if not pool:
            return
        claims = choice.draw(
            st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique_by=lambda c: c.id)
        )
        acks, completed = [], []
        for claim in claims:
            if end in ("completed", "gone"):
                completed.append((claim.id, claim.attempt))
            else:
                acks.append(self._ack(claim, end))

        outcome = self._step(n, acks=acks, completed=completed, keep_completed=end != "gone")

        late = []
        for claim in claims:
            job = self.jobs.get(claim.id)
            if job is None or job.state is not State.RUNNING or job.attempt != claim.attempt:
                late.append((claim.id, claim.attempt))
                continue
            self._drop(claim)
            job.owner = None
            if end == "gone":
                del self.jobs[claim.id]
            elif end == "completed":
                job.state, job.cancel_asked = State.COMPLETED, False
            else:
                self._apply(job, next(a for a in acks if a.id == claim.id))
        assert sorted(outcome.late) == sorted(late)

    def _drop(self, claim: Claim) -> None:
        for claims in self.held.values():
            if claim in claims:
                claims.remove(claim)

    @staticmethod
    def _ack(claim: Claim, end: State | str) -> Ack:
        counts = claim.failures + (end == "failed"), claim.crashes + (end == "crashed")
        error = ErrorInfo("E", "boom") if end in ("failed", "crashed", State.DEAD) else None
        state = end if isinstance(end, State) else State.PENDING
        delay_s = {"later": HOUR_S, "failed": 0.0}.get(end)
        return Ack(claim.id, claim.attempt, state, *counts, delay_s=delay_s, error=error)

    def _apply(self, job: Job, ack: Ack) -> None:
        # Asked to stop, it is not tried again, however its attempt ended.
        is_given_up = job.cancel_asked and ack.state is State.PENDING
        job.state, job.cancel_asked = State.CANCELLED if is_given_up else ack.state, False
        job.failures, job.crashes = ack.failures, ack.crashes
        if ack.error is not None:
            job.errors.append(ack.attempt)
        if ack.delay_s is not None:
            job.place, job.is_future = self._place(ack.id), ack.delay_s > 0

    @rule(n=st.integers(0, 1), choice=st.data(), edit=st.sampled_from(["retry", "cancel", "delete"]))
    def edit(self, n, choice, edit):
        if not self.jobs:
            return
        ids = choice.draw(st.lists(st.sampled_from(sorted(self.jobs)), max_size=4, unique=True))

        done = self._door(n).edit([*ids, self.last_id + 1000], edit)

        expected = []
        for job_id in ids:
            job = self.jobs[job_id]
            if edit == "retry" and job.state in (State.DEAD, State.CANCELLED, State.COMPLETED):
                job.state, job.failures, job.crashes, job.is_future = State.PENDING, 0, 0, False
                job.parked, job.cancel_asked = False, False
                job.place = self._place(job_id)
            elif edit == "cancel" and job.state is State.PENDING:
                job.state, job.parked = State.CANCELLED, False
            elif edit == "cancel" and job.state is State.RUNNING:
                job.cancel_asked = True
            elif edit == "delete" and job.state is not State.RUNNING:
                del self.jobs[job_id]
            else:
                continue
            expected.append(job_id)
        assert sorted(done) == sorted(expected)

    @rule(n=st.integers(0, 1), all_tasks=st.booleans())
    def unpark(self, n, all_tasks):
        tasks = TASKS if all_tasks else ("known",)
        parked = [job for job in self.jobs.values() if job.parked and job.task in tasks]

        assert self._door(n).unpark(None if all_tasks else set(tasks)) == len(parked)

        for job in parked:
            job.parked = False

    @rule(n=st.integers(0, 1), limit=st.integers(1, 3))
    def prune(self, n, limit):
        """Age 0: every completed and cancelled job is beyond what is kept."""
        prunable = {i for i, job in self.jobs.items() if job.state in (State.COMPLETED, State.CANCELLED)}

        pruned = self._door(n).prune(Keep(count=0, age_s=0), limit=limit)

        left = {record.id for record in self.doors[0].get(sorted(prunable))}
        assert pruned == len(prunable - left) == min(limit, len(prunable))
        for job_id in prunable - left:
            del self.jobs[job_id]

    @rule(n=st.integers(0, 1))
    def leave_and_join_again(self, n):
        owner = self.owners[n]
        if not owner:
            return
        self._door(n).leave(owner)
        self._given_back(owner)
        self.owners[n] = self._door(n).join(f"w{n}", QUEUES, 1, [])
        self.held[self.owners[n]] = []

    def _given_back(self, owner: int, crashed: frozenset[int] = frozenset()) -> None:
        for claim in self.held.pop(owner):
            job = self.jobs[claim.id]
            job.owner = None
            job.state = State.CANCELLED if job.cancel_asked else State.PENDING
            job.cancel_asked = False
            job.crashes += claim.id in crashed

    def _is_file(self) -> bool:
        return True

    @precondition(lambda self: self._is_file())
    @rule(n=st.integers(0, 1), choice=st.data())
    def crash(self, n, choice):
        """A worker dies in the middle of some of its jobs; the other one rescues them."""
        owner, store = self.owners[n], self._door(n)
        held = [claim.id for claim in self.held[owner]]
        running = choice.draw(st.lists(st.sampled_from(held), max_size=2, unique=True)) if held else []
        for slot, job_id in enumerate(running):
            store.mark(owner)[slot] = job_id
        self._die(store, owner)

        ((info, acks),) = self._door(n + 1).rescue(
            lambda claim, ran: Ack(
                claim.id, claim.attempt, State.PENDING, claim.failures, claim.crashes + ran
            )
        )

        assert info.owner == owner
        assert sorted(ack.id for ack in acks) == sorted(held)
        self._given_back(owner, frozenset(running))
        self.owners[n] = store.join(f"w{n}", QUEUES, 1, [])
        self.held[self.owners[n]] = []

    @precondition(lambda self: self._is_file())
    @rule(n=st.integers(0, 1))
    def reopen(self, n):
        self._door(n).leave(self.owners[n])
        self._given_back(self.owners[n])
        self._door(n).close()
        self._door(n).open()
        self.owners[n] = self._door(n).join(f"w{n}", QUEUES, 1, [])
        self.held[self.owners[n]] = []

    # --- what always holds ---------------------------------------------------------------------

    @invariant()
    def store_and_model_agree(self) -> None:
        if not hasattr(self, "doors"):
            return
        for door in self.doors:
            records = {record.id: record for record in door.get(range(1, self.last_id + 1))}
            assert records.keys() == self.jobs.keys(), "a job was lost, or has come back"
            for job_id, job in self.jobs.items():
                found = records[job_id]
                assert (found.state, found.attempt, found.failures, found.crashes) == (
                    job.state,
                    job.attempt,
                    job.failures,
                    job.crashes,
                ), job_id
                assert found.payload == job.payload
                assert [error.attempt for error in found.errors] == job.errors
                if job.state is State.PENDING and not job.parked:
                    assert found.due_at == job.place[0]

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "doors"):
            return
        counts = self.doors[0].counts()
        states = [job.state for job in self.jobs.values()]
        due = [j for j in self.jobs.values() if j.state is State.PENDING and not j.is_future and not j.parked]
        assert counts.by_state == {state: states.count(state) for state in State}
        assert counts.due == len(due)
        assert self.doors[0].unfinished() == states.count(State.PENDING) + states.count(State.RUNNING)
        assert (self.doors[0].next_due_s(QUEUES) == 0.0) == bool(due)

    @invariant()
    def cancellations_agree(self) -> None:
        for n, owner in enumerate(getattr(self, "owners", [])):
            asked = {i for i, j in self.jobs.items() if j.owner == owner and j.cancel_asked}
            assert not owner or set(self._door(n).cancelled(owner)) == asked


class MemoryMachine(StoreMachine):
    """The same in memory: one door, one worker, and nothing survives it."""

    def _door_count(self) -> int:
        return 1

    def _can_join(self, n: int) -> bool:
        return n == 0

    def _open(self) -> SqliteStore:
        store = SqliteStore(MEMORY)
        store.open()
        return store

    def _is_file(self) -> bool:
        return False


LIMITS = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestFile(StoreMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(LIMITS, max_examples=25)


class TestMemory(MemoryMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = LIMITS
