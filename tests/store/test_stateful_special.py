"""
What jobs ask for, in any mixture: keys, limits, uniqueness, and jobs that wait for others, while workers
fail, die and give back at any step.

No model of the store, but what must hold whatever happens: a key runs one job at a time and in the order
sent, a limit is kept, a unique job is there once, nobody runs before those it waits for; and in the
end, when workers go on, every job comes to its end but those that wait for one that never completes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dutiful.job import FINISHED, Ack, Claim, State
from dutiful.store.contract import Outcome, Special, Unique
from dutiful.store.sqlite import SqliteStore
from dutiful.testing.special import UNFINISHED, tend
from dutiful.testing.tools import ack, draft, put, step, wish
from tests.store import inside

WORKERS = 2
POOL_SIZE = 2
SKIPS = {"a": False, "b": True}  # whether the next of a key may run while one waits for a retry
ENDS = (State.COMPLETED, State.DEAD, State.CANCELLED, "retry", "give back")
ROUNDS_MAX = 300


@dataclass(frozen=True)
class Asked:
    """What a job asked for when it was sent."""

    key: str | None
    pool: str | None
    unique: str | None
    after: tuple[int, ...]
    on_dead: str


class SpecialMachine(RuleBasedStateMachine):
    """Two workers, each with a door of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.asked: dict[int, Asked] = {}
        self.held: dict[int, list[Claim]] = {}
        self.by_hand: set[int] = set()  # were run again, or taken out: they have lost their place in line
        self.completed: set[int] = set()  # at any time
        self.ended: set[int] = set()

    def _open(self) -> SqliteStore:
        store = SqliteStore(str(Path(self.folder.name) / "jobs.db"), durability="normal")
        store.open()
        return store

    def _die(self, store: SqliteStore, owner: int) -> None:
        inside.die(store, owner)

    @initialize()
    def begin(self) -> None:
        self.doors = [self._open() for _ in range(WORKERS)]
        self.owners = [door.join(f"w{n}", ["default"], 1, []) for n, door in enumerate(self.doors)]
        self.held = {owner: [] for owner in self.owners}

    def _states(self) -> dict[int, State]:
        return {record.id: record.state for record in self.doors[0].get(sorted(self.asked))}

    # --- what happens -----------------------------------------------------------------------

    @rule(
        n=st.integers(0, 1),
        count=st.integers(1, 3),
        key=st.sampled_from([None, "a", "b"]),
        pool=st.sampled_from([None, "p"]),
        priority=st.integers(0, 1),
    )
    def send(self, n, count, key, pool, priority):
        special = Special(key=key, key_skips=key is not None and SKIPS[key], pool=pool, pool_size=POOL_SIZE)
        job = draft(*["1"] * count, priority=priority, special=special)
        for job_id in put(self.doors[n], job):
            self.asked[job_id] = Asked(key, pool, None, (), "cancel")

    @rule(n=st.integers(0, 1), key=st.sampled_from([None, "a"]))
    def send_unique(self, n, key):
        before = self._states()
        outcome = Outcome()
        special = Special(key=key, unique=Unique("u", UNFINISHED))
        outcome = step(self.doors[n], drafts=[draft(special=special)])
        (job_id,) = outcome.stored[0]
        if job_id in self.asked:
            assert self.asked[job_id].unique == "u"
            assert before[job_id] in UNFINISHED
            return
        there = [i for i, asked in self.asked.items() if asked.unique and before.get(i) in UNFINISHED]
        assert there == [], "a second unique job"
        self.asked[job_id] = Asked(key, None, "u", (), "cancel")

    @rule(n=st.integers(0, 1), choice=st.data(), on_dead=st.sampled_from(["cancel", "run", "wait"]))
    def send_after(self, n, choice, on_dead):
        there = sorted(self._states())
        if not there:
            return
        parents = tuple(choice.draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True)))
        states = self._states()
        (job_id,) = put(self.doors[n], draft(special=Special(after=parents, on_dead=on_dead)))
        self.asked[job_id] = Asked(None, None, None, parents, on_dead)
        self.completed |= {parent for parent in parents if states[parent] is State.COMPLETED}

    @rule(n=st.integers(0, 1), limit=st.integers(1, 4))
    def take(self, n, limit):
        before = self._states()
        owner = self.owners[n]
        claims = step(self.doors[n], take=wish(owner, limit, suspects=1)).claims
        self.held[owner] += claims
        for claim in claims:
            self._may_begin(claim, before, {other.id for other in claims})

    def _may_begin(self, claim: Claim, before: dict[int, State], with_it: set[int]) -> None:
        asked = self.asked[claim.id]
        for parent in asked.after if claim.id not in self.by_hand else ():  # by hand: with what there is
            done = self.ended if asked.on_dead == "run" else self.completed
            assert parent in done or parent not in before, f"{claim.id} began before {parent}"
        if asked.key is not None and not SKIPS[asked.key] and claim.id not in self.by_hand:
            earlier = [  # ids of jobs with a key rise as they are sent
                job_id
                for job_id, state in before.items()
                if job_id < claim.id and self.asked[job_id].key == asked.key
                if job_id not in self.by_hand and state not in FINISHED
            ]
            assert earlier == [], f"{claim.id} began before {earlier} of its key"

    @rule(n=st.integers(0, 1), choice=st.data(), end=st.sampled_from(ENDS))
    def end(self, n, choice, end):
        owner = self.owners[n]
        if self.held[owner]:
            claim = choice.draw(st.sampled_from(self.held[owner]))
            self._end(n, claim, end)

    def _end(self, n: int, claim: Claim, end: State | str) -> None:
        self.held[self.owners[n]].remove(claim)
        if end == "retry":
            done = ack(claim, State.PENDING, failures=claim.failures + 1, delay_s=0)
        elif end == "give back":
            done = ack(claim, State.PENDING)
        else:
            done = ack(claim, State(end))
        outcome = step(self.doors[n], acks=[done])
        assert outcome.late == []
        self._note()

    @rule(n=st.integers(0, 1))
    def crash(self, n):
        """A worker dies with all that it has; the other one rescues it."""
        owner = self.owners[n]
        for slot, claim in enumerate(self.held[owner]):
            self.doors[n].mark(owner)[slot] = claim.id
        self._die(self.doors[n], owner)
        self.doors[1 - n].rescue(
            lambda claim, ran: Ack(
                *(claim.id, claim.attempt, State.PENDING, claim.failures, claim.crashes + ran),
                special=claim.extra is not None,
            )
        )
        del self.held[owner]
        self.owners[n] = self.doors[n].join(f"w{n}", ["default"], 1, [])
        self.held[self.owners[n]] = []

    @rule(n=st.integers(0, 1), choice=st.data(), edit=st.sampled_from(["cancel", "retry", "delete"]))
    def edit(self, n, choice, edit):
        states = self._states()
        there = [i for i in sorted(states) if states[i] is not State.RUNNING]
        if edit == "retry":  # of a unique one there may be another by now
            there = [i for i in there if self.asked[i].unique is None]
        if there:
            job_id = choice.draw(st.sampled_from(there))
            self.by_hand.add(job_id)
            self.doors[n].edit([job_id], edit)
            self._note()

    @rule(n=st.integers(0, 1))
    def tend(self, n):
        tend(self.doors[n])

    def _note(self) -> None:
        states = self._states()
        self.completed |= {i for i, state in states.items() if state is State.COMPLETED}
        self.ended |= {i for i in self.asked if states.get(i) is None or states[i] in FINISHED}

    # --- what always holds ---------------------------------------------------------------------

    @invariant()
    def no_more_run_than_may(self) -> None:
        if not hasattr(self, "doors"):
            return
        self._note()
        running = [self.asked[i] for i, state in self._states().items() if state is State.RUNNING]
        for key in SKIPS:
            assert sum(asked.key == key for asked in running) <= 1, f"two of key {key} run"
        assert sum(asked.pool == "p" for asked in running) <= POOL_SIZE, "more run than the limit allows"
        held = sorted(claim.id for claims in self.held.values() for claim in claims)
        assert held == sorted(i for i, state in self._states().items() if state is State.RUNNING)

    def teardown(self) -> None:
        try:
            if hasattr(self, "doors"):
                self._come_to_the_end()
        finally:
            for door in getattr(self, "doors", []):
                door.close()
            self.folder.cleanup()

    def _come_to_the_end(self) -> None:
        """Workers go on, and all goes well: nothing is left that could have gone on."""
        for _ in range(ROUNDS_MAX):
            for n in range(WORKERS):
                for claim in list(self.held[self.owners[n]]):
                    self._end(n, claim, State.COMPLETED)
                tend(self.doors[n])
                self.take(n, 4)
            if not any(self.held.values()) and not self._due():
                break
        states = self._states()
        left = {i for i, state in states.items() if state not in FINISHED}
        assert left == self._wait_in_vain(states), "some jobs are stuck"

    def _due(self) -> bool:
        return self.doors[0].next_due_s(["default"]) == 0.0

    def _wait_in_vain(self, states: dict[int, State]) -> set[int]:
        """Return those that wait for one that never completes, or for one that waits in vain."""
        vain: set[int] = set()
        for job_id, asked in self.asked.items():  # in the order sent: whoever waits came later
            if states.get(job_id, State.COMPLETED) in FINISHED:
                continue
            never = {parent for parent in asked.after if parent not in self.completed}
            if asked.on_dead == "wait" and any(states.get(parent) in FINISHED for parent in never):
                vain.add(job_id)
            if never & vain:
                vain.add(job_id)
        return vain


LIMITS = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestFile(SpecialMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = LIMITS
