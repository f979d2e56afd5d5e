"""The contract: jobs that ask for a key, a limit, uniqueness, an expiry, or other jobs to wait for."""

import pytest

from dutiful.config import Keep
from dutiful.job import Ack, Claim, ErrorInfo, JobId, State
from dutiful.store.contract import Owner, Special, Store, Unique
from dutiful.store.special import clockwork
from dutiful.testing.groups import ChainContract, GroupContract
from dutiful.testing.once import OnceContract
from dutiful.testing.periodic import PauseContract, ScheduleContract
from dutiful.testing.tools import TASK, Doors, Hooks, ack, draft, ids_of, one, put, state_of, step, take

UNFINISHED = (State.PENDING, State.BLOCKED, State.RUNNING)
WAITING = (State.PENDING, State.BLOCKED)


def keyed(key: str = "k", **more: object) -> Special:
    return Special(key=key, **more)  # type: ignore[arg-type]


def unique(key: str = "u", **more: object) -> Special:
    return Special(unique=Unique(key, **{"states": UNFINISHED, **more}))  # type: ignore[arg-type]


def joined(store: Store) -> Owner:
    return store.join("w", ["default"], 8, None)


def tend(store: Store, since: int = 0) -> bool:
    """Do what a worker does now and then; return whether any job may run now."""
    with store.sql_look() as look:
        found = clockwork.look(look, since)
    return clockwork.tend(store, found, "w")


class KeyContract(Hooks):
    """One at a time per key, in the order sent."""

    def test_jobs_of_a_key_run_one_at_a_time_in_the_order_sent(self, store: Store) -> None:
        owner = joined(store)
        ids = put(store, draft("1", "2", "3", special=keyed()))
        ran: list[JobId] = []
        for _ in ids:
            (claim,) = take(store, owner)
            ran.append(claim.id)
            assert take(store, owner) == []
            step(store, acks=[ack(claim)])

        assert ran == ids
        assert [state_of(store, job_id) for job_id in ids] == [State.COMPLETED] * 3

    def test_other_keys_and_plain_jobs_go_on(self, store: Store) -> None:
        owner = joined(store)
        first, _ = put(store, draft("1", "2", special=keyed("a")))
        (other,) = put(store, draft(special=keyed("b")))
        (plain,) = put(store, draft())

        assert sorted(ids_of(take(store, owner))) == sorted([first, other, plain])

    def test_a_waiting_retry_holds_its_key(self, store: Store) -> None:
        owner = joined(store)
        first, second = put(store, draft("1", "2", special=keyed()))
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING, failures=1, delay_s=60)])

        assert take(store, owner) == []
        self.pass_time(store, 61)
        (again,) = take(store, owner)
        assert again.id == first
        step(store, acks=[ack(again)])
        assert ids_of(take(store, owner)) == [second]

    def test_a_waiting_retry_may_let_its_key_go_on(self, store: Store) -> None:
        owner = joined(store)
        first, second = put(store, draft("1", "2", special=keyed(key_skips=True)))
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING, failures=1, delay_s=60)])
        (next_claim,) = take(store, owner)
        assert next_claim.id == second
        assert state_of(store, first) is State.BLOCKED

        self.pass_time(store, 61)
        tend(store)
        assert take(store, owner) == []
        step(store, acks=[ack(next_claim)])
        assert ids_of(take(store, owner)) == [first]

    @pytest.mark.parametrize("end", ["cancel", "delete"])
    def test_one_that_is_taken_away_lets_the_next_go(self, store: Store, end: str) -> None:
        owner = joined(store)
        first, second = put(store, draft("1", "2", special=keyed()))

        assert store.edit([first], end) == [first]  # type: ignore[arg-type]

        assert ids_of(take(store, owner)) == [second]

    def test_one_that_is_run_again_waits_for_its_key(self, store: Store) -> None:
        owner = joined(store)
        first, second = put(store, draft("1", "2", special=keyed()))
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim)])
        (held,) = take(store, owner)
        assert store.edit([first], "retry") == [first]

        assert take(store, owner) == []
        step(store, acks=[ack(held)])
        assert ids_of(take(store, owner)) == [first]
        assert held.id == second

    def test_what_finds_no_room_takes_no_ids(self, store: Store) -> None:
        """Its sender tries again and again; then it has its place behind all that were sent before."""
        first = put(store, draft(special=keyed()), buffer=2)
        full = [put(store, draft("1", "2", "3", special=keyed()), buffer=1) for _ in range(3)]
        fits = step(store, drafts=[draft("4", "5", special=keyed())], buffer=2).stored

        assert full == [[], [], []]
        assert [list(ids) for ids in fits] == [[first[0] + 1]]


class LimitContract(Hooks):
    """So many at once, so many a second."""

    def test_no_more_run_than_the_limit_allows(self, store: Store) -> None:
        owner = joined(store)
        ids = put(store, draft(*"12345", special=Special(pool="p", pool_size=2)))
        claims = take(store, owner)
        assert ids_of(claims) == ids[:2]
        step(store, acks=[ack(claims[0])])

        assert ids_of(take(store, owner)) == [ids[2]]

    def test_a_parked_job_takes_no_slot_and_asks_for_one_again(self, store: Store) -> None:
        owner = joined(store)
        limit = Special(pool="p", pool_size=1)
        (stuck,) = put(store, draft(task="strange", special=limit))
        first, second = put(store, draft("1", "2", special=limit))
        assert take(store, owner, known={TASK}) == []

        store.park({"strange"}, ["default"], after_s=0, park_s=3600, listed=True)
        (claim,) = take(store, owner)
        assert claim.id == first
        assert store.unpark({"strange"}) == 1
        assert take(store, owner) == []  # it waits for its slot, as it is the first in line
        step(store, acks=[ack(claim)])
        (claim,) = take(store, owner)
        assert claim.id == stuck
        step(store, acks=[ack(claim)])
        assert ids_of(take(store, owner)) == [second]

    def test_a_waiting_retry_takes_no_slot(self, store: Store) -> None:
        owner = joined(store)
        first, second = put(store, draft("1", "2", special=Special(pool="p", pool_size=1)))
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING, failures=1, delay_s=60)])
        (other,) = take(store, owner)
        assert other.id == second
        step(store, acks=[ack(other)])
        assert take(store, owner) == []

        self.pass_time(store, 61)
        tend(store)
        assert ids_of(take(store, owner)) == [first]

    def test_the_urgent_go_first(self, store: Store) -> None:
        owner = joined(store)
        special = Special(pool="p", pool_size=1)
        (held,) = put(store, draft(special=special))
        (low,) = put(store, draft(special=special))
        (high,) = put(store, draft(priority=5, special=special))
        (claim,) = take(store, owner)
        assert claim.id == held
        step(store, acks=[ack(claim)])

        (claim,) = take(store, owner)
        assert claim.id == high
        step(store, acks=[ack(claim)])
        assert ids_of(take(store, owner)) == [low]

    def test_no_job_starves_behind_more_urgent_ones_of_its_limit(self, store: Store) -> None:
        """Once it has waited for long, a share of the slots goes to the oldest, and only a share."""
        owner, special = joined(store), Special(pool="p", pool_size=1)
        low = put(store, draft(*map(str, range(3)), special=special))
        put(store, draft(*map(str, range(150)), priority=5, special=special))
        (first,) = take(store, owner)
        step(store, acks=[ack(first)])
        order: list[JobId] = []

        for aged in (False, True):
            if aged:
                self.pass_time(store, 400)
            for _ in range(60):
                (claim,) = take(store, owner)
                order.append(claim.id)
                self.pass_time(store, 0.003)
                step(store, acks=[ack(claim)])

        assert [job_id for job_id in order if job_id in low] == low[1:]
        assert not set(order[:60]) & set(low)

    def test_a_rate_spreads_the_starts(self, store: Store) -> None:
        owner = joined(store)
        ids = put(store, draft(*"1234", special=Special(pool="p", per_s=1 / 60, burst=2)))
        assert ids_of(take(store, owner)) == ids[:2]

        self.pass_time(store, 61)
        assert ids_of(take(store, owner)) == [ids[2]]

    def test_a_key_and_a_limit_both_hold(self, store: Store) -> None:
        owner = joined(store)
        first, second = put(store, draft("1", "2", special=Special(key="a", pool="p", pool_size=5)))
        (third,) = put(store, draft(special=Special(key="b", pool="p", pool_size=5)))

        claims = take(store, owner)
        assert sorted(ids_of(claims)) == [first, third]
        step(store, acks=[ack(claim) for claim in claims])
        assert ids_of(take(store, owner)) == [second]


class UniqueContract(Hooks):
    """At most one with a unique key."""

    def test_a_second_one_is_not_stored(self, store: Store) -> None:
        (first,) = put(store, draft("1", special=unique()))

        outcome = step(store, drafts=[draft("2", special=unique())])

        assert outcome.stored == [range(first, first + 1)]
        assert outcome.found == {0}
        assert one(store, first).payload == "1"

    def test_within_one_step_too(self, store: Store) -> None:
        outcome = step(store, drafts=[draft("1", special=unique()), draft("2", special=unique())])

        assert outcome.stored[0] == outcome.stored[1]
        assert outcome.found == {1}

    def test_once_it_has_finished_there_may_be_another(self, store: Store) -> None:
        owner = joined(store)
        (first,) = put(store, draft(special=unique()))
        step(store, acks=[ack(claim) for claim in take(store, owner)])

        (second,) = put(store, draft(special=unique()))
        assert second != first

    def test_while_it_runs_there_may_be_another_if_only_waiting_ones_count(self, store: Store) -> None:
        owner = joined(store)
        (first,) = put(store, draft(special=unique(states=WAITING)))
        take(store, owner)

        (second,) = put(store, draft(special=unique(states=WAITING)))
        assert second != first

    def test_finished_ones_can_count(self, store: Store) -> None:
        owner = joined(store)
        (first,) = put(store, draft(special=unique(states=tuple(State))))
        step(store, acks=[ack(claim) for claim in take(store, owner)])

        assert put(store, draft(special=unique(states=tuple(State)))) == [first]

    def test_for_a_time(self, store: Store) -> None:
        owner = joined(store)
        special = unique(within_s=60.0)
        (first,) = put(store, draft(special=special))
        step(store, acks=[ack(claim) for claim in take(store, owner)])
        assert put(store, draft(special=special)) == [first]

        self.pass_time(store, 61)
        assert put(store, draft(special=special)) != [first]

    def test_its_payload_and_time_can_be_replaced(self, store: Store) -> None:
        owner = joined(store)
        special = unique(states=WAITING, on_conflict="reschedule")
        (first,) = put(store, draft("1", delay_s=60, special=special))

        assert put(store, draft("2", delay_s=600, special=special)) == [first]

        self.pass_time(store, 61)
        assert take(store, owner) == []
        self.pass_time(store, 600)
        (claim,) = take(store, owner)
        assert (claim.id, claim.payload) == (first, "2")


class ExpiryContract(Hooks):
    """Dead if not started in time."""

    def test_one_that_was_not_started_in_time_is_dead(self, store: Store) -> None:
        owner = joined(store)
        (job_id,) = put(store, draft(special=Special(expires_s=60)))
        self.pass_time(store, 61)

        assert take(store, owner) == []
        assert state_of(store, job_id) is State.DEAD
        assert one(store, job_id).errors[0].type == "Expired"

    def test_nobody_has_to_claim_it(self, store: Store) -> None:
        (job_id,) = put(store, draft(delay_s=3600, special=Special(expires_s=60)))
        self.pass_time(store, 61)

        tend(store)
        assert state_of(store, job_id) is State.DEAD

    def test_once_started_it_may_be_late(self, store: Store) -> None:
        owner = joined(store)
        (job_id,) = put(store, draft(special=Special(expires_s=60)))
        (claim,) = take(store, owner)
        self.pass_time(store, 61)
        step(store, acks=[ack(claim, State.PENDING, failures=1, delay_s=0)])

        assert ids_of(take(store, owner)) == [job_id]

    def test_one_that_expires_while_it_waits_for_a_retry_says_both(self, store: Store) -> None:
        """Why its last attempt failed, and why there is no other; by hand it is run again behind them."""
        owner = joined(store)
        (job_id,) = put(store, draft(special=Special(deadline_s=60)))
        step(store, acks=[self._failed(claim, delay_s=3600) for claim in take(store, owner)])
        self.pass_time(store, 61)
        tend(store)

        assert [(error.attempt, error.type) for error in one(store, job_id).errors] == [
            (1, "ValueError"),
            (2, "Expired"),
        ]
        store.edit([job_id], "retry")
        step(store, acks=[self._failed(claim, State.DEAD) for claim in take(store, owner)])
        assert state_of(store, job_id) is State.DEAD
        assert [(error.attempt, error.type) for error in one(store, job_id).errors] == [
            (1, "ValueError"),
            (2, "ValueError"),
        ]

    @staticmethod
    def _failed(claim: Claim, state: State = State.PENDING, **more: object) -> Ack:
        return ack(claim, state, failures=1, error=ErrorInfo("ValueError", "no"), **more)

    def test_a_deadline_ends_the_retries(self, store: Store) -> None:
        owner = joined(store)
        (job_id,) = put(store, draft(special=Special(deadline_s=60)))
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING, failures=1, delay_s=0)])
        self.pass_time(store, 61)

        assert take(store, owner) == []
        assert state_of(store, job_id) is State.DEAD


class AfterContract(Hooks):
    """Jobs that wait for others."""

    @pytest.mark.parametrize("plainly", [True, False])
    def test_it_runs_when_all_have_completed(self, store: Store, *, plainly: bool) -> None:
        owner = joined(store)
        parents = put(store, draft("1", "2"))
        (child,) = put(store, draft("3", special=Special(after=tuple(parents))))
        claims = take(store, owner)
        assert ids_of(claims) == parents
        assert state_of(store, child) is State.BLOCKED
        for claim in claims:
            assert take(store, owner) == []
            if plainly:
                step(store, completed=[(claim.id, claim.attempt)], keep_completed=False)
            else:
                step(store, acks=[ack(claim, result=f'"{claim.payload}"')])

        assert ids_of(take(store, owner)) == [child]

    def test_it_may_follow_one_that_runs_already(self, store: Store) -> None:
        owner = joined(store)
        (parent,) = put(store, draft())
        (claim,) = take(store, owner)
        (child,) = put(store, draft(special=Special(after=(parent,))))
        step(store, completed=[(claim.id, claim.attempt)], keep_completed=False)

        assert ids_of(take(store, owner)) == [child]

    def test_or_one_that_has_finished(self, store: Store) -> None:
        owner = joined(store)
        (parent,) = put(store, draft())
        step(store, acks=[ack(claim) for claim in take(store, owner)])

        (child,) = put(store, draft(special=Special(after=(parent,))))
        assert ids_of(take(store, owner)) == [child]

    @pytest.mark.parametrize(
        ("on_dead", "state"),
        [("cancel", State.CANCELLED), ("run", State.PENDING), ("wait", State.BLOCKED)],
    )
    def test_what_becomes_of_it_when_one_is_dead(self, store: Store, on_dead: str, state: State) -> None:
        owner = joined(store)
        (parent,) = put(store, draft())
        (child,) = put(store, draft(special=Special(after=(parent,), on_dead=on_dead)))  # type: ignore[arg-type]
        step(store, acks=[ack(claim, State.DEAD, failures=1) for claim in take(store, owner)])

        assert state_of(store, child) is state

    def test_one_that_waits_goes_on_when_the_dead_one_is_run_again(self, store: Store) -> None:
        owner = joined(store)
        (parent,) = put(store, draft())
        (child,) = put(store, draft(special=Special(after=(parent,), on_dead="wait")))
        step(store, acks=[ack(claim, State.DEAD, failures=1) for claim in take(store, owner)])
        store.edit([parent], "retry")
        step(store, acks=[ack(claim) for claim in take(store, owner)])

        assert ids_of(take(store, owner)) == [child]

    def test_one_that_was_cancelled_is_not_pruned_while_others_wait_for_it(self, store: Store) -> None:
        """Gone, it would count as completed."""
        owner = joined(store)
        (parent,) = put(store, draft())
        (child,) = put(store, draft(special=Special(after=(parent,), on_dead="wait")))
        store.edit([parent], "cancel")

        assert store.prune(Keep(count=0), limit=9) == 0
        assert state_of(store, child) is State.BLOCKED
        store.edit([parent], "retry")
        step(store, acks=[ack(claim) for claim in take(store, owner)])
        assert ids_of(take(store, owner)) == [child]

    def test_cancelling_one_cancels_those_that_follow_it_and_so_on(self, store: Store) -> None:
        (parent,) = put(store, draft())
        (child,) = put(store, draft(special=Special(after=(parent,))))
        (grandchild,) = put(store, draft(special=Special(after=(child,))))

        store.edit([parent], "cancel")

        assert state_of(store, child) is state_of(store, grandchild) is State.CANCELLED

    def test_a_job_that_follows_has_its_key_too(self, store: Store) -> None:
        owner = joined(store)
        (parent,) = put(store, draft())
        (child,) = put(store, draft(special=Special(after=(parent,), key="k")))
        (other,) = put(store, draft(special=keyed("k")))
        claims = take(store, owner)
        assert ids_of(claims) == [parent, other]
        step(store, acks=[ack(claims[0])])
        assert take(store, owner) == []
        step(store, acks=[ack(claims[1])])

        assert ids_of(take(store, owner)) == [child]


class SpecialContract(
    KeyContract,
    LimitContract,
    UniqueContract,
    ExpiryContract,
    AfterContract,
    GroupContract,
    ChainContract,
    OnceContract,
    ScheduleContract,
    PauseContract,
):
    """For a store that speaks SQL (see `contract.Sql`): it inherits all that special jobs ask for."""


class DurableKeys(Doors):
    """Keys, when several processes send."""

    def test_the_order_of_a_key_is_that_of_all_senders(self, store: Store) -> None:
        """Two processes send in turn, each with ids at hand from before."""
        other = self.another(store)
        sent: list[JobId] = []
        try:
            for door in (store, other):
                for _ in range(5):  # so that it takes some more ids than it needs
                    put(door, draft(queue="elsewhere"))
            for turn in range(6):
                sent += put((other, store)[turn % 2], draft(special=keyed()))
        finally:
            other.close()
        owner = joined(store)
        ran: list[JobId] = []
        while claims := take(store, owner):
            ran += ids_of(claims)
            step(store, acks=[ack(claim) for claim in claims])

        assert ran == sent
