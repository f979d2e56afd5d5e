"""Taking: the order, the limits, suspects, parking, hand-off, and what a step says of what is left."""

import pytest

from dutiful.job import State
from dutiful.store.contract import Store
from dutiful.testing.tools import (
    HOUR_S,
    OTHER,
    QUEUE,
    TASK,
    Hooks,
    ack,
    draft,
    ids_of,
    one,
    put,
    state_of,
    step,
    suspects,
    take,
    wish,
)


class ClaimContract(Hooks):
    """What `Take` asks for and `Outcome` tells."""

    # --- order and limits ---------------------------------------------------------------

    def test_claims_come_most_urgent_first(self, store: Store) -> None:
        """Priority, then time, then id."""
        owner = store.join("w", [QUEUE], 1)
        wanted = [(3, 1), (3, 2), (3, 2), (0, 1), (0, 3), (-2, 0), (-2, 5)]
        mixed = [wanted[at] for at in (4, 1, 6, 0, 3, 2, 5)]
        ids = put(store, *(draft(f"[{p},{t}]", priority=p, run_at=t) for p, t in mixed))

        claims = take(store, owner)

        assert [(claim.priority, claim.due_at) for claim in claims] == wanted
        assert [claim.id for claim in claims if claim.due_at == 2] == [ids[1], ids[5]]

    def test_the_limit_takes_the_most_urgent(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        low, high, middle = put(store, draft(priority=-1), draft(priority=7), draft())

        assert ids_of(take(store, owner, 2)) == [high, middle]
        assert ids_of(take(store, owner, 2)) == [low]

    def test_several_queues_are_one_line(self, store: Store) -> None:
        owner = store.join("w", [QUEUE, OTHER], 1)
        a, b, c, d = put(
            store, draft(priority=1), draft(queue=OTHER, priority=2), draft(priority=3), draft(queue=OTHER)
        )
        put(store, draft(queue="third", priority=9))

        first = take(store, owner, 3, queues=(QUEUE, OTHER))
        rest = take(store, owner, 3, queues=(QUEUE, OTHER))

        assert (ids_of(first), ids_of(rest)) == ([c, b, a], [d])

    def test_a_claim_holds_the_job(self, store: Store) -> None:
        owner = store.join("w", [OTHER], 1)
        (job_id,) = put(store, draft('{"a":1}', queue=OTHER, task="t", priority=4, run_at=77))

        (claim,) = take(store, owner, queues=(OTHER,))

        assert (claim.id, claim.attempt, claim.failures, claim.crashes) == (job_id, 1, 0, 0)
        assert (claim.task, claim.queue, claim.payload, claim.priority, claim.due_at) == (
            "t",
            OTHER,
            '{"a":1}',
            4,
            77,
        )
        job = one(store, job_id)
        assert (job.state, job.attempt, job.worker) == (State.RUNNING, 1, "w")

    def test_each_claim_raises_the_attempt(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        attempts: list[int] = []
        for _ in range(4):
            (claim,) = take(store, owner)
            attempts.append(claim.attempt)
            step(store, acks=[ack(claim, State.PENDING, failures=claim.failures + 1)])

        (last,) = take(store, owner)

        assert attempts == [1, 2, 3, 4]
        assert (last.attempt, last.failures) == (5, 4)

    def test_jobs_that_are_not_due_are_left(self, store: Store) -> None:
        """However many and urgent they are, they do not lie in the way."""
        owner = store.join("w", [QUEUE], 1)
        put(store, draft(*map(str, range(500)), priority=9, delay_s=HOUR_S))
        (due,) = put(store)

        assert ids_of(take(store, owner, 5)) == [due]

    # --- suspects ------------------------------------------------------------------------

    @pytest.mark.parametrize("wished", [0, 1, 2])
    def test_only_as_many_suspects_are_taken_as_wished(self, store: Store, wished: int) -> None:
        owner = store.join("w", [QUEUE], 1)
        guilty = suspects(store, owner, 3)
        innocent = put(store, draft("1", "2"))

        claims = take(store, owner, suspects=wished)

        assert [claim.id for claim in claims if claim.crashes] == guilty[:wished]
        assert [claim.id for claim in claims if not claim.crashes] == innocent

    def test_the_limit_on_suspects_holds_over_several_queues(self, store: Store) -> None:
        owner = store.join("w", [QUEUE, OTHER], 1)
        suspects(store, owner, 2)
        suspects(store, owner, 2, queue=OTHER)

        claims = take(store, owner, queues=(QUEUE, OTHER), suspects=1)

        assert len(claims) == 1

    def test_the_limit_on_suspects_holds_when_unknown_jobs_are_met(self, store: Store) -> None:
        """To look further is no second helping."""
        owner = store.join("w", [QUEUE], 1)
        suspects(store, owner, 3)
        put(store, draft("1", "2", "3", task="strange"))

        claims = take(store, owner, 2, suspects=1, known={TASK})

        assert len(claims) == 1

    def test_a_suspect_counts_towards_the_limit(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        suspects(store, owner, 2)
        put(store, draft("1", "2", "3"))

        assert len(take(store, owner, 2, suspects=2)) == 2

    # --- unknown tasks -----------------------------------------------------------------------

    def test_jobs_of_unknown_tasks_are_left_for_others(self, store: Store) -> None:
        """Pending, where they are, their attempt not counted; the step says which tasks it met."""
        owner = store.join("w", [QUEUE], 1)
        strange = put(store, draft("1", "2", task="strange"), draft(task="odd"))
        (known,) = put(store)
        before = store.get(strange)

        outcome = step(store, take=wish(owner, known={TASK}))

        assert ids_of(outcome.claims) == [known]
        assert outcome.unknown == {"strange", "odd"}
        assert store.get(strange) == before
        assert ids_of(take(store, owner)) == strange

    def test_unknown_jobs_do_not_lie_in_the_way(self, store: Store) -> None:
        """However many there are before the known ones, and whether they are skipped or met."""
        owner = store.join("w", [QUEUE], 1)
        put(store, draft(*map(str, range(300)), task="strange", priority=1))
        known = put(store, draft("1", "2", "3"))

        assert ids_of(take(store, owner, 2, known={TASK})) == known[:2]
        assert ids_of(take(store, owner, 2, known={TASK}, skip={"strange"})) == known[2:]

    def test_known_and_unknown_jobs_may_stand_in_turn(self, store: Store) -> None:
        """However often a step has to look further, it takes each known job once."""
        owner = store.join("w", [QUEUE], 1)
        line = put(store, *(draft(task=f"strange {n}" if n % 3 == 1 else TASK) for n in range(12)))
        known = [job_id for n, job_id in enumerate(line) if n % 3 != 1]

        outcome = step(store, take=wish(owner, 7, known={TASK}))

        assert ids_of(outcome.claims) == known[:7]
        assert outcome.unknown <= {f"strange {n}" for n in range(12)}
        assert ids_of(take(store, owner, known={TASK})) == known[7:]

    def test_drained_is_about_what_is_known(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store, draft("1", "2", task="strange"))
        put(store)

        assert step(store, take=wish(owner, 5, known={TASK})).drained

    def test_tasks_in_skip_are_passed_over_without_a_look(self, store: Store) -> None:
        """They are not even met; and they do not count as due."""
        owner = store.join("w", [QUEUE], 1)
        put(store, draft(task="strange"))

        outcome = step(store, take=wish(owner, known={TASK}, skip={"strange"}))

        assert (outcome.claims, outcome.unknown, outcome.drained) == ([], set(), True)
        assert store.next_due_s([QUEUE]) == 0.0
        assert store.next_due_s([QUEUE], {"strange"}) is None

    # --- parking -----------------------------------------------------------------------------

    def park(self, store: Store, *tasks: str, after_s: float = 0.0) -> dict[str, int]:
        """Park jobs of these tasks for an hour."""
        return store.park(set(tasks), [QUEUE], after_s=after_s, park_s=HOUR_S)

    def test_parked_jobs_are_out_of_the_way(self, store: Store) -> None:
        """Due again much later, pending, no attempt counted; told how many of what."""
        strange = put(store, draft("1", "2", task="strange"), draft(task="odd"))
        (known,) = put(store)

        assert self.park(store, "strange", "odd") == {"strange": 2, "odd": 1}

        assert [(job.state, job.attempt) for job in store.get(strange)] == [(State.PENDING, 0)] * 3
        assert ids_of(take(store, store.join("w", [QUEUE], 1))) == [known]
        due_s = store.next_due_s([QUEUE])
        assert due_s is not None
        assert HOUR_S - 60 < due_s <= HOUR_S

    def test_jobs_that_have_just_become_due_are_not_parked(self, store: Store) -> None:
        put(store, draft(task="strange"))

        assert self.park(store, "strange", after_s=HOUR_S) == {}

    def test_jobs_that_some_worker_lists_are_not_parked(self, store: Store) -> None:
        """Of one that serves these queues, that is; one that takes any task lists them all."""
        put(store, draft(task="strange"))
        elsewhere = store.join("e", [OTHER], 1, ["strange"])
        able = store.join("a", [QUEUE], 1, ["strange"])
        assert self.park(store, "strange") == {}

        store.beat(able, ["something"])
        assert self.park(store, "strange") == {"strange": 1}
        assert store.unpark(None) == 1
        store.leave(elsewhere)
        store.leave(able)
        store.join("any", [QUEUE], 1)
        assert self.park(store, "strange") == {}

    def test_jobs_that_workers_list_are_parked_if_asked(self, store: Store) -> None:
        """As those of a paused task are."""
        store.join("w", [QUEUE], 1, ["strange"])
        put(store, draft("1", task="strange"), draft("2"))

        parked = store.park({"strange"}, [QUEUE], after_s=0, park_s=HOUR_S, listed=True)

        assert parked == {"strange": 1}
        assert store.park({"strange"}, [QUEUE], after_s=0, park_s=HOUR_S, listed=True) == {}

    def test_unpark_puts_jobs_back_at_their_old_place(self, store: Store) -> None:
        """Of known tasks only; jobs that came meanwhile are behind them."""
        first, second, odd = put(store, draft("1", "2", task="strange"), draft(task="odd"))
        places = [job.due_at for job in store.get([first, second])]
        self.park(store, "strange", "odd")
        (later,) = put(store)

        assert store.unpark({"strange", TASK}) == 2

        assert [job.due_at for job in store.get([first, second])] == places
        assert ids_of(take(store, store.join("w", [QUEUE], 1))) == [first, second, later]
        assert state_of(store, odd) is State.PENDING

    def test_unpark_again_does_nothing(self, store: Store) -> None:
        put(store, draft("1", task="strange"), draft(task="odd"))
        self.park(store, "strange", "odd")

        assert [store.unpark(None), store.unpark(None), store.unpark({TASK})] == [2, 0, 0]

    # --- the hand-off ------------------------------------------------------------------------

    def test_new_jobs_can_be_handed_over_as_claimed(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)

        outcome = step(store, take=wish(owner, handoff=True), drafts=[draft('"a"', '"b"'), draft(priority=3)])

        stored = [job_id for ids in outcome.stored for job_id in ids]
        assert sorted(ids_of(outcome.claims)) == stored
        assert all((claim.attempt, claim.crashes, claim.failures) == (1, 0, 0) for claim in outcome.claims)
        assert {claim.payload for claim in outcome.claims} == {'"a"', '"b"', "1"}
        assert [(job.state, job.attempt, job.worker) for job in store.get(stored)] == [
            (State.RUNNING, 1, "w")
        ] * 3
        assert not outcome.left_pending
        assert step(store, completed=[(claim.id, claim.attempt) for claim in outcome.claims]).late == []

    def test_without_the_wish_nothing_is_handed_over(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)

        outcome = step(store, take=wish(owner), drafts=[draft()])

        assert outcome.claims == []
        assert outcome.left_pending

    def test_the_handoff_ends_with_the_room(self, store: Store) -> None:
        """Over drafts of different kinds too; the rest waits, in order."""
        owner = store.join("w", [QUEUE], 1)

        outcome = step(
            store,
            take=wish(owner, 3, handoff=True),
            drafts=[draft("1", "2"), draft("3", "4", task="other"), draft("5")],
        )

        stored = [job_id for ids in outcome.stored for job_id in ids]
        assert ids_of(outcome.claims) == stored[:3]
        assert [claim.payload for claim in outcome.claims] == ["1", "2", "3"]
        assert outcome.left_pending
        assert ids_of(take(store, owner)) == stored[3:]

    def test_what_was_taken_uses_the_room_of_the_handoff(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        old = put(store, draft("1", "2"))

        outcome = step(store, take=wish(owner, 3, handoff=True), drafts=[draft("3", "4")])

        assert ids_of(outcome.claims) == [*old, outcome.stored[0][0]]

    def test_nothing_is_handed_over_before_what_was_due_earlier(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        old = put(store, draft("1", "2", "3"))

        outcome = step(store, take=wish(owner, 2, handoff=True), drafts=[draft(priority=5)])

        assert ids_of(outcome.claims) == old[:2]
        assert outcome.left_pending

    def test_with_room_and_nothing_to_look_for_jobs_are_handed_over(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)

        outcome = step(store, take=wish(owner, look=False, handoff=True), drafts=[draft()])

        assert ids_of(outcome.claims) == list(outcome.stored[0])

    @pytest.mark.parametrize(
        "other",
        [
            draft(queue=OTHER),
            draft(task="strange"),
            draft(delay_s=HOUR_S),
            draft(delay_s=0.0),
            draft(run_at=1),
        ],
        ids=["queue", "task", "delay", "delay-0", "run_at"],
    )
    def test_the_handoff_respects_queue_task_and_time(self, store: Store, other: object) -> None:
        """What this worker could not take, or what is given a time, waits."""
        owner = store.join("w", [QUEUE], 1)

        outcome = step(store, take=wish(owner, known={TASK}, handoff=True), drafts=[other, draft()])

        assert ids_of(outcome.claims) == list(outcome.stored[1])
        assert state_of(store, outcome.stored[0][0]) is State.PENDING

    def test_jobs_handed_over_come_most_urgent_first(self, store: Store) -> None:
        """When the room ends, it is the urgent ones that have it."""
        owner = store.join("w", [QUEUE], 1)

        outcome = step(
            store, take=wish(owner, 2, handoff=True), drafts=[draft("1", "2"), draft("3", "4", priority=5)]
        )

        assert ids_of(outcome.claims) == list(outcome.stored[1])

    # --- what is left ---------------------------------------------------------------------------

    def test_drained_says_that_nothing_due_was_left(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store, draft("1", "2", "3"))
        put(store, draft(queue=OTHER))
        put(store, draft(delay_s=HOUR_S))

        assert not step(store, take=wish(owner, 2)).drained
        assert step(store, take=wish(owner, 2)).drained
        assert step(store, take=wish(owner, 2)).drained

    @pytest.mark.parametrize(("here", "there"), [(2, 2), (1, 2), (2, 1), (1, 5), (5, 1)])
    def test_drained_is_true_of_several_queues_together(self, store: Store, here: int, there: int) -> None:
        """Whatever the limit cuts off is left, though no queue alone had more than that."""
        owner = store.join("w", [QUEUE, OTHER], 1)
        put(store, draft(*map(str, range(here))), draft(*map(str, range(there)), queue=OTHER))

        outcome = step(store, take=wish(owner, 3, queues=(QUEUE, OTHER)))

        assert len(outcome.claims) == 3
        left = store.counts().due
        assert left == here + there - 3
        assert not (outcome.drained and left)

    def test_nothing_is_handed_over_before_what_several_queues_left(self, store: Store) -> None:
        """A step that takes all its limit allows has no room, and leaves the new job."""
        owner = store.join("w", [QUEUE, OTHER], 1)
        put(store, draft("1", "2"), draft("1", "2", queue=OTHER))

        outcome = step(store, take=wish(owner, 3, queues=(QUEUE, OTHER), handoff=True), drafts=[draft()])

        assert len(outcome.claims) == 3
        assert state_of(store, outcome.stored[0][0]) is State.PENDING

    def test_left_pending_is_about_new_jobs_that_are_due(self, store: Store) -> None:
        put(store)

        assert not step(store).left_pending
        assert not step(store, drafts=[draft(delay_s=HOUR_S)]).left_pending
        assert step(store, drafts=[draft(delay_s=HOUR_S), draft()]).left_pending

    def test_next_delay_is_the_soonest_of_the_new_jobs(self, store: Store) -> None:
        assert step(store, drafts=[draft()]).next_delay_s is None
        assert step(store, drafts=[draft(delay_s=9.0), draft(delay_s=5.0), draft()]).next_delay_s == 5.0
