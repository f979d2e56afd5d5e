"""Taking by turns of the queues, and a share for those that have waited long."""

from dutiful.core.ageing import Level
from dutiful.core.turns import Turns
from dutiful.job import State
from dutiful.store.contract import Aged, Owner, Store
from dutiful.store.special.ageing import LEVELS_MAX, levels
from dutiful.testing.tools import (
    HOUR_S,
    OTHER,
    QUEUE,
    TASK,
    Hooks,
    ack,
    draft,
    ids_of,
    put,
    state_of,
    step,
    suspects,
    take,
    wish,
)

BOTH = (QUEUE, OTHER)
LONG_AGO = 1_000  # ms since 1970: due for long
ALWAYS = 2**60  # whatever is due, has been since before


class TurnContract(Hooks):
    """What `Take.turns` and `Take.aged` ask for."""

    def join(self, store: Store) -> Owner:
        """Become a worker of both queues."""
        return store.join("w", BOTH, 1)

    # --- turns --------------------------------------------------------------------------

    def test_queues_take_turns_by_their_weights(self, store: Store) -> None:
        """Whatever the priorities; and what was taken counts at the next take."""
        owner = self.join(store)
        put(store, draft(*"12345678", priority=9), draft(*"12345678", queue=OTHER))
        turns: Turns | None = Turns.by_weight({QUEUE: 1, OTHER: 3})
        queues: list[str] = []

        for _ in range(8):
            outcome = step(store, take=wish(owner, 1, queues=BOTH, turns=turns))
            turns = outcome.turns
            queues += [claim.queue for claim in outcome.claims]

        assert (queues.count(QUEUE), queues.count(OTHER)) == (2, 6)

    def test_one_take_is_as_good_as_several(self, store: Store) -> None:
        owner = self.join(store)
        put(store, draft(*"12345678"), draft(*"12345678", queue=OTHER))

        outcome = step(store, take=wish(owner, 8, queues=BOTH, turns=Turns.by_weight({QUEUE: 1, OTHER: 3})))

        assert [claim.queue for claim in outcome.claims].count(OTHER) == 6
        assert not outcome.drained

    def test_what_a_queue_leaves_goes_to_the_others(self, store: Store) -> None:
        owner = self.join(store)
        ids = put(store, draft(*"12345"))

        outcome = step(store, take=wish(owner, 9, queues=BOTH, turns=Turns.by_weight({QUEUE: 1, OTHER: 9})))

        assert ids_of(outcome.claims) == ids
        assert outcome.drained

    def test_strictly_one_queue_before_the_other(self, store: Store) -> None:
        owner = self.join(store)
        first = put(store, draft("1", "2", priority=-5))
        second = put(store, draft("1", "2", queue=OTHER, priority=5))
        turns = Turns.strictly(BOTH)

        outcome = step(store, take=wish(owner, 1, queues=BOTH, turns=turns))
        rest = step(store, take=wish(owner, 9, queues=BOTH, turns=turns))

        assert ids_of(outcome.claims) == first[:1]
        assert ids_of(rest.claims) == [first[1], *second]
        assert (outcome.drained, rest.drained) == (False, True)

    def test_within_a_queue_the_most_urgent_come_first(self, store: Store) -> None:
        owner = self.join(store)
        low, high, middle = put(store, draft(priority=-1), draft(priority=7), draft())

        claims = take(store, owner, queues=BOTH, turns=Turns.by_weight({QUEUE: 2, OTHER: 1}))

        assert ids_of(claims) == [high, middle, low]

    def test_a_queue_that_is_not_asked_for_has_no_turn(self, store: Store) -> None:
        """As while it is paused."""
        owner = self.join(store)
        put(store, draft("1", "2"))
        others = put(store, draft("1", "2", queue=OTHER))

        claims = take(store, owner, queues=(OTHER,), turns=Turns.by_weight({QUEUE: 9, OTHER: 1}))

        assert ids_of(claims) == others

    def test_suspects_come_before_the_turns(self, store: Store) -> None:
        """Whichever queue they are in, and within their limit."""
        owner = self.join(store)
        put(store, draft("1", "2", "3"))
        guilty = suspects(store, owner, 2, queue=OTHER)

        for turns in (Turns.strictly(BOTH), Turns.by_weight({QUEUE: 1, OTHER: 1})):
            claims = take(store, owner, 5, queues=BOTH, turns=turns, suspects=1)

            assert [claim.id for claim in claims if claim.crashes] == guilty[:1]
            assert claims[0].id == guilty[0]
            step(store, acks=[ack(claim, State.PENDING) for claim in claims])

    def test_unknown_jobs_do_not_lie_in_the_way_of_turns(self, store: Store) -> None:
        owner = self.join(store)
        put(store, draft(*map(str, range(50)), task="strange"))
        known = put(store, draft("1", "2"), draft("1", "2", queue=OTHER))

        outcome = step(store, take=wish(owner, 4, queues=BOTH, turns=Turns.strictly(BOTH), known={TASK}))

        assert ids_of(outcome.claims) == known
        assert outcome.unknown == {"strange"}

    def test_new_jobs_are_handed_over_when_all_queues_are_drained(self, store: Store) -> None:
        owner = self.join(store)
        (waiting,) = put(store, draft(queue=OTHER))
        turns = Turns.strictly(BOTH)

        outcome = step(
            store, take=wish(owner, 5, queues=BOTH, turns=turns, handoff=True), drafts=[draft("1", "2")]
        )

        assert ids_of(outcome.claims) == [waiting, *outcome.stored[0]]

    # --- age ------------------------------------------------------------------------------

    def aged(self, limit: int, *, queue: str = QUEUE, till: int = ALWAYS) -> Aged:
        """Return what to ask for: jobs of priority 0."""
        return Aged(((queue, 0),), till, limit)

    def test_old_jobs_come_first_as_far_as_wished(self, store: Store) -> None:
        owner = self.join(store)
        high = put(store, draft(*"12345", priority=5))
        low = put(store, draft(*"12345"))

        outcome = step(store, take=wish(owner, 4, aged=self.aged(1)))
        rest = step(store, take=wish(owner, 99, aged=self.aged(2)))

        assert (ids_of(outcome.claims), outcome.aged) == ([low[0], *high[:3]], 1)
        assert (ids_of(rest.claims), rest.aged) == ([*low[1:3], *high[3:], *low[3:]], 2)
        assert (outcome.drained, rest.drained) == (False, True)

    def test_only_those_that_have_been_due_for_so_long_count(self, store: Store) -> None:
        owner = self.join(store)
        high = put(store, draft(*"123", priority=5))
        (young,) = put(store, draft(run_at=LONG_AGO + 1))
        (old,) = put(store, draft(run_at=LONG_AGO))

        outcome = step(store, take=wish(owner, 3, aged=self.aged(9, till=LONG_AGO)))

        assert (ids_of(outcome.claims), outcome.aged) == ([old, *high[:2]], 1)
        assert state_of(store, young) is State.PENDING

    def test_no_old_job_is_taken_before_it_is_due(self, store: Store) -> None:
        """As the clock may have been set back since somebody looked."""
        owner = self.join(store)
        put(store, draft(delay_s=HOUR_S))

        assert take(store, owner, aged=self.aged(5)) == []

    def test_of_several_priorities_the_oldest_come_first(self, store: Store) -> None:
        owner = self.join(store)
        put(store, draft(*"12345", priority=9))
        ids = put(store, *(draft(priority=p, run_at=at) for p, at in ((3, 7), (3, 9), (-2, 8), (1, 6))))

        levels = ((QUEUE, 3), (QUEUE, -2), (QUEUE, 1))
        outcome = step(store, take=wish(owner, 4, aged=Aged(levels, ALWAYS, 3)))

        assert (ids_of(outcome.claims)[:3], outcome.aged) == ([ids[3], ids[0], ids[2]], 3)

    def test_an_old_job_is_taken_once(self, store: Store) -> None:
        """Though it is found as an old one and as one that is due."""
        owner = self.join(store)
        ids = put(store, draft("1", "2", "3"))

        claims = take(store, owner, aged=self.aged(2))

        assert ids_of(claims) == ids
        assert [claim.attempt for claim in claims] == [1, 1, 1]

    def test_old_jobs_of_unknown_tasks_are_left(self, store: Store) -> None:
        owner = self.join(store)
        put(store, draft("1", "2", task="strange"), draft("1", task="skipped"))
        (known,) = put(store)
        (high,) = put(store, draft(priority=5))

        outcome = step(store, take=wish(owner, 2, aged=self.aged(1), known={TASK}, skip={"skipped"}))

        assert sorted(ids_of(outcome.claims)) == [known, high]
        assert outcome.unknown <= {"strange"}

    def test_old_jobs_come_first_within_their_queues_turn(self, store: Store) -> None:
        owner = self.join(store)
        put(store, draft(*"12345", priority=5))
        put(store, draft(*"12345", queue=OTHER, priority=5))
        (low,) = put(store, draft(queue=OTHER))
        turns = Turns.by_weight({QUEUE: 1, OTHER: 1})

        outcome = step(store, take=wish(owner, 4, queues=BOTH, turns=turns, aged=self.aged(1, queue=OTHER)))

        assert [claim.queue for claim in outcome.claims].count(OTHER) == 2
        assert next(claim.id for claim in outcome.claims if claim.queue == OTHER) == low
        assert outcome.aged == 1

    def test_with_turns_the_share_is_that_of_a_queue_however_many_priorities(self, store: Store) -> None:
        owner = self.join(store)
        ids = [put(store, draft(priority=priority))[0] for priority in (-1, -2, 0, 0, 0)]
        aged = Aged(((QUEUE, -1), (QUEUE, -2)), ALWAYS, 1)

        outcome = step(store, take=wish(owner, 3, turns=Turns.strictly((QUEUE,)), aged=aged))

        assert (ids_of(outcome.claims), outcome.aged) == ([ids[0], ids[2], ids[3]], 1)

    # --- who has waited for how long --------------------------------------------------------

    def look(self, store: Store, *skip: str) -> list[Level]:
        """Return the priorities that have pending jobs."""
        with store.sql_look() as look:
            return levels(look, QUEUE, skip)[0]

    def test_the_first_of_each_priority_is_seen(self, store: Store) -> None:
        owner = self.join(store)
        put(store, draft(priority=3, run_at=7), draft(priority=3, run_at=5), draft(priority=-2, run_at=9))
        put(store, draft(queue=OTHER, priority=8))
        put(store, draft(priority=4))
        take(store, owner, 1)

        assert self.look(store) == [Level(QUEUE, 3, 5), Level(QUEUE, -2, 9)]

    def test_tasks_that_are_skipped_do_not_count(self, store: Store) -> None:
        put(store, draft(priority=3, run_at=5, task="strange"), draft(priority=3, run_at=7))
        put(store, draft(priority=2, task="strange"))

        assert self.look(store, "strange") == [Level(QUEUE, 3, 7)]

    def test_nobody_waits_in_an_empty_queue(self, store: Store) -> None:
        put(store, draft(queue=OTHER))

        assert self.look(store) == []

    def test_a_look_at_very_many_priorities_goes_on_from_where_the_last_one_ended(self, store: Store) -> None:
        put(store, *(draft(priority=priority, delay_s=HOUR_S) for priority in range(LEVELS_MAX + 3)))

        with store.sql_look() as look:
            first, below = levels(look, QUEUE)
            rest, end = levels(look, QUEUE, below=below)

        priorities = [level.priority for level in (*first, *rest)]
        assert priorities == list(range(LEVELS_MAX + 2, -1, -1))
        assert (len(rest), end) == (3, None)
