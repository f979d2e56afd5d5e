"""The contract: groups, whose members may be stored in many steps, and chains, stored in one."""

import pytest

from dutiful.config import Keep
from dutiful.job import JobId, State
from dutiful.store.contract import Draft, Special, Store
from dutiful.store.special import clockwork
from dutiful.store.special.release import FOLLOWERS_AT_ONCE
from dutiful.testing.tools import Hooks, ack, draft, ids_of, one, put, state_of, step, take

HOUR_S = 3600.0
CALLBACK = draft('"then"', special=Special(gathers=True))


def members(of: JobId, *payloads: str, **more: object) -> Draft:
    return draft(*payloads, special=Special(member_of=of, **more))  # type: ignore[arg-type]


def closing(of: JobId, **more: object) -> Draft:
    return Draft("task", "default", [], special=Special(closes=of, **more))  # type: ignore[arg-type]


def results(store: Store, job_id: JobId) -> list[tuple[str | None, str | None]]:
    with store.sql_look() as look:
        rows = look.rows("SELECT outcome, result FROM {after} WHERE job_id = ? ORDER BY place", job_id)
    return [(row[0], row[1]) for row in rows]


def _tend(store: Store) -> None:
    with store.sql_look() as look:
        found = clockwork.look(look, 0)
    clockwork.tend(store, found, "w")


class GroupContract(Hooks):
    """A job that waits for many others."""

    def test_a_callback_waits_for_the_members_of_all_steps(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        (callback,) = put(store, CALLBACK)
        first = put(store, members(callback, "1", "2"))
        last = put(store, members(callback, "3"))
        step(store, drafts=[closing(callback)])
        claims = take(store, owner)
        assert ids_of(claims) == [*first, *last]
        for claim in claims:
            assert state_of(store, callback) is State.BLOCKED
            step(store, acks=[ack(claim, result=claim.payload)])

        assert ids_of(take(store, owner)) == [callback]
        assert results(store, callback) == [("completed", n) for n in "123"]

    @pytest.mark.parametrize("keep_completed", [True, False])
    def test_it_never_runs_before_its_group_is_closed(self, store: Store, *, keep_completed: bool) -> None:
        owner = store.join("w", ["default"], 8, None)
        (callback,) = put(store, CALLBACK)
        put(store, members(callback, "1", "2"))
        claims = take(store, owner)
        pairs = [(claim.id, claim.attempt) for claim in claims]
        step(store, completed=pairs, keep_completed=keep_completed)
        assert take(store, owner) == []
        assert one(store, callback).held == "group"

        step(store, drafts=[closing(callback)])

        assert ids_of(take(store, owner)) == [callback]

    def test_all_in_one_step(self, store: Store) -> None:
        """The group is named by its place in the step, as no id is known yet."""
        owner = store.join("w", ["default"], 8, None)
        other, callback, *its = put(store, draft(), CALLBACK, members(-1, "1", "2"), closing(-2))
        claims = take(store, owner)
        assert ids_of(claims) == [other, *its]
        step(store, acks=[ack(claim) for claim in claims])

        assert ids_of(take(store, owner)) == [callback]

    def test_one_without_members_runs_at_once(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        (callback,) = put(store, CALLBACK, closing(-1))

        assert ids_of(take(store, owner)) == [callback]

    def test_members_that_ask_for_nothing_are_plain_jobs(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        put(store, CALLBACK, members(-1, "1"), members(-2, "2", key="k"), closing(-3))

        assert [claim.extra is None for claim in take(store, owner)] == [True, False]

    def test_one_that_is_never_closed_is_dead_after_an_hour(self, store: Store) -> None:
        """Its sender died; the members run all the same."""
        owner = store.join("w", ["default"], 8, None)
        (callback,) = put(store, CALLBACK)
        self.pass_time(store, HOUR_S / 2)
        (member,) = put(store, members(callback, "1"))
        self.pass_time(store, HOUR_S - 10)  # since the last of its members
        _tend(store)
        assert state_of(store, callback) is State.BLOCKED
        self.pass_time(store, 11)

        _tend(store)

        assert state_of(store, callback) is State.DEAD
        assert one(store, callback).errors[0].type == "NeverSent"
        assert ids_of(take(store, owner)) == [member]

    def test_one_that_is_gone_takes_no_more(self, store: Store) -> None:
        (callback,) = put(store, CALLBACK)
        store.edit([callback], "cancel")

        outcome = step(store, drafts=[draft(), members(callback, "1"), closing(callback)])

        assert outcome.found == {1, 2}
        assert store.get([outcome.stored[1].start]) == []
        assert state_of(store, outcome.stored[0].start) is State.PENDING

    @pytest.mark.parametrize(
        ("on_dead", "state"),
        [("cancel", State.CANCELLED), ("run", State.PENDING), ("wait", State.BLOCKED)],
    )
    @pytest.mark.parametrize("early", [True, False])
    def test_what_becomes_of_it_when_a_member_is_dead(
        self, store: Store, on_dead: str, state: State, *, early: bool
    ) -> None:
        """Also of one that died while the others were still being sent, and of who follows the callback."""
        owner = store.join("w", ["default"], 8, None)
        special = Special(gathers=True, on_dead=on_dead)  # type: ignore[arg-type]
        (callback,) = put(store, draft(special=special))
        (next_one,) = put(store, draft(special=Special(after=(callback,))))
        put(store, members(callback, "1"))
        (claim,) = take(store, owner)
        if not early:
            step(store, drafts=[closing(callback, on_dead=on_dead)])
        step(store, acks=[ack(claim, State.DEAD, failures=1)])
        if early:
            second = put(store, members(callback, "2"))
            step(store, drafts=[closing(callback, on_dead=on_dead)])
            claims = take(store, owner)
            assert ids_of(claims)[-1:] == second  # it is sent to its end, whatever became of a member
            step(store, acks=[ack(claim) for claim in claims if claim.id in second])

        assert state_of(store, callback) is state
        assert state_of(store, next_one) is (State.CANCELLED if on_dead == "cancel" else State.BLOCKED)

    def test_the_results_of_members_outlive_them(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        (callback,) = put(store, CALLBACK)
        put(store, members(callback, "1", "2"))
        step(store, acks=[ack(claim, result=claim.payload) for claim in take(store, owner)])
        self.pass_time(store, 1)
        assert store.prune(Keep(count=0), limit=9) == 2
        step(store, drafts=[closing(callback)])

        assert ids_of(take(store, owner)) == [callback]
        assert results(store, callback) == [("completed", "1"), ("completed", "2")]

    def test_members_that_end_all_at_once_are_not_pruned_before_their_results_are_told(
        self, store: Store
    ) -> None:
        owner = store.join("w", ["default"], 8, None)
        count = FOLLOWERS_AT_ONCE + 10
        (callback,) = put(store, CALLBACK)
        put(store, members(callback, *["1"] * count))
        step(store, drafts=[closing(callback)])
        claims = take(store, owner, count)
        assert len(claims) == count
        step(store, acks=[ack(claim, result=claim.payload) for claim in claims])
        self.pass_time(store, 1)

        assert store.prune(Keep(count=0), limit=count) == FOLLOWERS_AT_ONCE
        _tend(store)

        assert results(store, callback) == [("completed", "1")] * count
        assert ids_of(take(store, owner)) == [callback]

    def test_members_of_a_cancelled_predecessor_are_cancelled_with_their_callback(self, store: Store) -> None:
        (parent,) = put(store, draft())
        store.edit([parent], "cancel")
        callback, *its = put(store, CALLBACK, members(-1, "1", "2", after=(parent,)), closing(-2))

        assert [state_of(store, each) for each in (callback, *its)] == [State.CANCELLED] * 3

    def test_its_delay_and_its_expiry_count_from_the_closing(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        (callback,) = put(store, draft(delay_s=60, special=Special(gathers=True, expires_s=90)))
        self.pass_time(store, 120)
        drafted = Draft("task", "default", [], delay_s=60, special=Special(closes=callback, expires_s=90))
        step(store, drafts=[drafted])
        assert take(store, owner) == []

        self.pass_time(store, 61)
        assert ids_of(take(store, owner)) == [callback]

    def test_it_goes_through_its_key_and_its_limit(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        special = Special(key="k", pool="p", pool_size=1)
        (held,) = put(store, draft(special=special))
        (claim,) = take(store, owner)
        callback, member = put(
            store,
            draft(special=Special(gathers=True, key="k", pool="p", pool_size=1)),
            members(-1, "1"),
            closing(-2, key="k", pool="p", pool_size=1),
        )
        (its,) = take(store, owner)
        assert its.id == member
        step(store, acks=[ack(its)])
        assert take(store, owner) == []
        assert claim.id == held
        step(store, acks=[ack(claim)])

        assert ids_of(take(store, owner)) == [callback]


class ChainContract(Hooks):
    """Jobs that follow each other, stored in one step."""

    def test_each_follows_the_one_before(self, store: Store) -> None:
        owner = store.join("w", ["default"], 8, None)
        follows = Special(after=(-1,))
        ids = put(
            store, draft("1", special=Special()), draft("2", special=follows), draft("3", special=follows)
        )
        ran: list[JobId] = []
        for _ in ids:
            (claim,) = take(store, owner)
            ran.append(claim.id)
            step(store, acks=[ack(claim, result=claim.payload)])

        assert ran == ids
        assert results(store, ids[2]) == [("completed", "2")]

    def test_what_is_bound_is_stored_together_or_not_at_all(self, store: Store) -> None:
        bound = [
            draft("1", special=Special()),
            Draft("task", "default", ["2"], special=Special(after=(-1,)), bound=True),
        ]

        outcome = step(store, drafts=[draft("0", "0"), *bound, draft("3")], buffer=3)
        assert [len(ids) for ids in outcome.stored] == [2, 0, 0, 0]
        outcome = step(store, drafts=[*bound, draft("3")], buffer=4)
        assert [len(ids) for ids in outcome.stored] == [1, 1, 0]

    @pytest.mark.parametrize("keep_completed", [True, False])
    def test_one_job_can_be_followed_by_many(self, store: Store, *, keep_completed: bool) -> None:
        """More than one step has room for: the rest is told as soon as somebody looks."""
        owner = store.join("w", ["default"], 8, None)
        count = 2 * FOLLOWERS_AT_ONCE + 1
        _first, *rest = put(
            store, draft(special=Special()), draft(*map(str, range(count)), special=Special(after=(-1,)))
        )
        (claim,) = take(store, owner)
        outcome = step(store, completed=[(claim.id, claim.attempt)], keep_completed=keep_completed)
        assert outcome.left_ends == keep_completed
        looks = 0
        while outcome.left_ends and store.counts().by_state[State.BLOCKED]:
            _tend(store)
            looks += 1

        assert looks == (2 if keep_completed else 0)
        assert ids_of(take(store, owner, 2 * count)) == rest
