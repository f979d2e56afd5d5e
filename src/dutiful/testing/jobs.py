"""Jobs as people see and edit them: get, find, counts, edit, prune."""

import pytest

from dutiful.config import Keep
from dutiful.job import JobId, State
from dutiful.store.contract import Edit, Query, Store
from dutiful.testing.tools import (
    BOOM,
    HOUR_S,
    OTHER,
    QUEUE,
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
)


def in_all_states(store: Store) -> dict[State, JobId]:
    """Store a job in each state."""
    owner = store.join("w", [QUEUE], 1)
    put(store, draft("1", "2", "3", "4", "5"))
    claims = take(store, owner, 4)
    ends = [State.COMPLETED, State.DEAD, State.CANCELLED]
    step(store, acks=[ack(claim, end, failures=2) for claim, end in zip(claims, ends, strict=False)])
    states = [*ends, State.RUNNING, State.PENDING]
    return dict(zip(states, [*ids_of(claims), claims[-1].id + 1], strict=True))


class JobContract(Hooks):
    """Looking, editing, pruning."""

    # --- looking -----------------------------------------------------------------------------

    def test_get_answers_in_the_order_asked(self, store: Store) -> None:
        """What does not exist is left out."""
        a, b, c = put(store, draft("1", "2", "3"))

        assert [job.id for job in store.get([c, 9999, a, b])] == [c, a, b]
        assert store.get([]) == []

    def test_get_answers_many(self, store: Store) -> None:
        ids = put(store, draft(*map(str, range(2000))))

        assert [job.payload for job in store.get(ids[::-1])] == [str(n) for n in reversed(range(2000))]

    def test_find_lists_the_newest_first(self, store: Store) -> None:
        ids = put(store, draft("1", "2", "3", priority=5), draft("4"))

        assert [job.id for job in store.find(Query())] == ids[::-1]

    def test_find_leaves_the_errors_out(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        step(store, acks=[ack(claim, State.DEAD, error=BOOM) for claim in take(store, owner)])

        (job,) = store.find(Query())

        assert (job.state, job.errors) == (State.DEAD, ())

    def test_find_filters(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        a, b, c, d = put(store, draft(task="x"), draft(queue=OTHER), draft(task="x", queue=OTHER), draft())
        (claim, *_rest) = take(store, owner, 1)

        def found(**query: object) -> list[JobId]:
            return [job.id for job in store.find(Query(**query))]  # type: ignore[arg-type]

        assert claim.id == a
        assert found(task="x") == [c, a]
        assert found(queue=OTHER) == [c, b]
        assert found(task="x", queue=OTHER) == [c]
        assert found(states=(State.RUNNING,)) == [a]
        assert found(states=(State.RUNNING, State.PENDING), queue=QUEUE) == [d, a]
        assert found(states=(State.DEAD,)) == []
        assert found(task="x' OR '1'='1") == []

    def test_find_pages(self, store: Store) -> None:
        ids = put(store, draft(*map(str, range(7))))
        pages: list[list[JobId]] = []
        before = None
        while page := store.find(Query(before=before, limit=3)):
            pages.append([job.id for job in page])
            before = page[-1].id

        assert [len(page) for page in pages] == [3, 3, 1]
        assert [job_id for page in pages for job_id in page] == ids[::-1]

    def test_counts_are_by_state(self, store: Store) -> None:
        in_all_states(store)
        put(store, draft("1", "2", delay_s=HOUR_S))

        counts = store.counts()

        assert counts.by_state == {
            State.PENDING: 3,
            State.BLOCKED: 0,
            State.RUNNING: 1,
            State.COMPLETED: 1,
            State.DEAD: 1,
            State.CANCELLED: 1,
        }
        assert counts.due == 1
        assert counts.oldest_due_s is not None
        assert 0 <= counts.oldest_due_s < 60
        assert store.unfinished() == 4

    def test_counts_of_nothing(self, store: Store) -> None:
        counts = store.counts()

        assert set(counts.by_state.values()) == {0}
        assert (counts.due, counts.oldest_due_s, store.unfinished()) == (0, None, 0)

    def test_suspects_count_as_due(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        suspects(store, owner, 2)

        counts = store.counts()

        assert (counts.by_state[State.PENDING], counts.due, store.unfinished()) == (2, 2, 2)
        assert counts.oldest_due_s is not None

    # --- editing --------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("edit", "becomes"),
        [
            ("retry", dict.fromkeys((State.DEAD, State.CANCELLED, State.COMPLETED), State.PENDING)),
            ("cancel", {State.PENDING: State.CANCELLED, State.RUNNING: State.RUNNING}),
            ("delete", dict.fromkeys((State.PENDING, State.COMPLETED, State.DEAD, State.CANCELLED))),
        ],
    )
    def test_an_edit_is_done_where_the_state_allows_it(
        self, store: Store, edit: Edit, becomes: dict[State, State | None]
    ) -> None:
        jobs = in_all_states(store)

        done = store.edit([*jobs.values(), 9999], edit)

        assert sorted(done) == sorted(jobs[state] for state in becomes)
        for state, job_id in jobs.items():
            wanted = becomes.get(state, state)
            assert [job.state for job in store.get([job_id])] == ([] if wanted is None else [wanted])

    def test_an_edit_of_nothing_does_nothing(self, store: Store) -> None:
        jobs = in_all_states(store)

        assert store.edit([], "delete") == []
        assert len(store.get(list(jobs.values()))) == 5

    def test_a_retried_job_begins_anew(self, store: Store) -> None:
        """Due now, counts at 0; its attempts go on counting, and its errors stay."""
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store, draft(run_at=1))
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.DEAD, failures=3, crashes=2, error=BOOM, result="1")])

        assert store.edit([job_id], "retry") == [job_id]

        job = one(store, job_id)
        assert (job.state, job.failures, job.crashes, job.attempt) == (State.PENDING, 0, 0, 1)
        assert (job.finished_at, job.cancel_at, job.result) == (None, None, None)
        assert job.due_at >= job.created_at
        assert len(job.errors) == 1
        assert [again.attempt for again in take(store, owner)] == [2]

    def test_a_retried_job_of_the_future_is_due_now(self, store: Store) -> None:
        (job_id,) = put(store, draft(delay_s=HOUR_S))
        store.edit([job_id], "cancel")

        store.edit([job_id], "retry")

        assert store.next_due_s([QUEUE]) == 0.0

    def test_cancelling_a_running_job_asks_its_worker(self, store: Store) -> None:
        owner, other = store.join("w", [QUEUE], 1), store.join("v", [OTHER], 1)
        put(store, draft("1", "2"))
        claim, _quiet = take(store, owner)
        assert store.cancelled(owner) == []

        assert store.edit([claim.id], "cancel") == [claim.id]

        assert (store.cancelled(owner), store.cancelled(other)) == ([claim.id], [])
        assert one(store, claim.id).cancel_at is not None
        step(store, acks=[ack(claim, State.CANCELLED)])
        assert store.cancelled(owner) == []
        assert one(store, claim.id).cancel_at is None

    def test_a_cancelled_job_is_not_taken(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        gone, left = put(store, draft("1", "2"))
        store.edit([gone], "cancel")

        assert ids_of(take(store, owner)) == [left]
        assert one(store, gone).finished_at is not None

    def test_a_deleted_job_goes_with_its_errors(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        gone, left = put(store, draft("1", "2"))
        step(store, acks=[ack(claim, State.DEAD, error=BOOM) for claim in take(store, owner)])

        store.edit([gone], "delete")

        assert [(job.id, len(job.errors)) for job in store.get([gone, left])] == [(left, 1)]

    def test_a_parked_job_can_be_cancelled_and_retried(self, store: Store) -> None:
        """And is then parked no more: `unpark` leaves it where it is."""
        (job_id,) = put(store, draft(task="strange"))
        assert store.park({"strange"}, [OTHER, QUEUE], after_s=0, park_s=HOUR_S) == {"strange": 1}
        store.edit([job_id], "cancel")

        assert store.unpark(None) == 0
        store.edit([job_id], "retry")
        assert ids_of(take(store, store.join("w", [QUEUE], 1))) == [job_id]

    # --- pruning ---------------------------------------------------------------------------------

    def finished(self, store: Store, count: int, *, apart: bool = True) -> list[JobId]:
        """Store completed jobs, one after the other or in one step; return their ids, oldest first."""
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft(*map(str, range(count))))
        claims = take(store, owner)
        if not apart:
            step(store, acks=[ack(claim) for claim in claims])
            return ids
        for claim in claims:
            step(store, acks=[ack(claim, error=BOOM)])
            self.pass_time(store, 0.002)
        return ids

    def test_prune_keeps_the_newest(self, store: Store) -> None:
        ids = self.finished(store, 6)

        assert store.prune(Keep(count=4, age_s=HOUR_S), limit=100) == 2

        assert [job.id for job in store.get(ids)] == ids[2:]
        assert store.prune(Keep(count=4, age_s=HOUR_S), limit=100) == 0

    def test_prune_keeps_as_many_of_those_that_finished_at_once(self, store: Store) -> None:
        """Jobs of one step have one finishing time; the count is kept all the same."""
        self.finished(store, 20, apart=False)

        assert store.prune(Keep(count=15, age_s=HOUR_S), limit=100) == 5
        assert store.counts().by_state[State.COMPLETED] == 15

    def test_prune_goes_by_age(self, store: Store) -> None:
        ids = self.finished(store, 3)
        self.pass_time(store, HOUR_S)
        (owner,) = (info.owner for info in store.workers())
        (young,) = put(store)
        step(store, acks=[ack(claim) for claim in take(store, owner)])

        assert store.prune(Keep(age_s=HOUR_S), limit=100) == 3

        assert [job.id for job in store.get([*ids, young])] == [young]

    def test_prune_stops_at_its_limit_with_the_oldest(self, store: Store) -> None:
        ids = self.finished(store, 5)

        assert [store.prune(Keep(count=0), limit=2) for _ in range(4)] == [2, 2, 1, 0]
        assert store.get(ids) == []

    def test_prune_takes_the_oldest_first(self, store: Store) -> None:
        ids = self.finished(store, 5)

        store.prune(Keep(count=0), limit=2)

        assert [job.id for job in store.get(ids)] == ids[2:]

    def test_prune_leaves_the_dead_and_the_unfinished(self, store: Store) -> None:
        jobs = in_all_states(store)

        assert store.prune(Keep(count=0, age_s=0), limit=100) == 2

        left = {job.state for job in store.get(list(jobs.values()))}
        assert left == {State.PENDING, State.RUNNING, State.DEAD}

    def test_prune_of_nothing(self, store: Store) -> None:
        put(store)

        assert store.prune(Keep(count=0), limit=100) == 0
        assert state_of(store, 1) is State.PENDING
