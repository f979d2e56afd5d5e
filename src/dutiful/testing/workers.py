"""Workers: join, leave, beat, death and rescue; the handler's transaction; opening and closing; doorbells."""

import select

import pytest

from dutiful.errors import LeaseLost, StoreError
from dutiful.job import Ack, Claim, State
from dutiful.store.contract import Outcome, Owner, Store, Work
from dutiful.testing.tools import (
    OTHER,
    QUEUE,
    Doors,
    Hooks,
    ack,
    draft,
    ids_of,
    one,
    put,
    state_of,
    step,
    take,
)


class WorkerContract(Hooks):
    """What `Store` promises to workers."""

    # --- joining and leaving -------------------------------------------------------------

    def test_a_worker_is_listed_while_it_is_there(self, store: Store) -> None:
        owner = store.join("w", [QUEUE, OTHER], 7)

        (info,) = store.workers()
        store.leave(owner)

        assert (info.owner, info.name, info.concurrency) == (owner, "w", 7)
        assert QUEUE in info.queues
        assert OTHER in info.queues
        assert info.started_at <= info.seen_at
        assert store.workers() == []

    def test_two_workers_of_one_store_do_not_meet(self, store: Store) -> None:
        one_, two = store.join("w", [QUEUE], 1), store.join("w", [QUEUE], 1)
        put(store, draft("1", "2"))
        first, second = take(store, one_, 1) + take(store, two, 1)

        store.leave(one_)

        assert one_ != two
        assert [info.owner for info in store.workers()] == [two]
        assert (state_of(store, first.id), state_of(store, second.id)) == (State.PENDING, State.RUNNING)

    def test_an_owner_is_never_given_twice(self, store: Store) -> None:
        owners: list[Owner] = []
        for _ in range(4):
            owners.append(store.join("w", [QUEUE], 1))
            store.leave(owners[-1])

        assert len(set(owners)) == 4

    def test_leaving_gives_jobs_back_at_nobodys_fault(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft("1", "2"))
        places = [job.due_at for job in store.get(ids)]
        take(store, owner)

        store.leave(owner)

        jobs = store.get(ids)
        assert [(job.state, job.failures, job.crashes) for job in jobs] == [(State.PENDING, 0, 0)] * 2
        assert [job.due_at for job in jobs] == places
        next_owner = store.join("v", [QUEUE], 1)
        assert [(claim.id, claim.attempt) for claim in take(store, next_owner)] == [(ids[0], 2), (ids[1], 2)]

    def test_an_ack_after_leaving_is_late(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)
        store.leave(owner)

        assert step(store, acks=[ack(claim)]).late == [(claim.id, 1)]

    def test_a_beat_says_that_the_worker_lives(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        (before,) = store.workers()
        self.pass_time(store, 0.005)

        store.beat(owner)

        (after,) = store.workers()
        assert after.seen_at > before.seen_at
        assert after.started_at == before.started_at

    def test_marks_can_be_set_and_cleared(self, store: Store) -> None:
        marks = store.mark(store.join("w", [QUEUE], 2))

        marks[0] = 2**40
        marks[1] = 7
        marks[0] = 0

    # --- the handler's transaction --------------------------------------------------------

    def test_a_transaction_commits_the_completion_with_the_writes(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)

        with store.transaction(claim) as connection:
            self.write(connection, "here")

        assert self.written(store) == ["here"]
        assert state_of(store, claim.id) is State.COMPLETED
        assert step(store, completed=[(claim.id, claim.attempt)]).late == [(claim.id, 1)]

    def test_a_transaction_that_fails_writes_nothing(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)

        with pytest.raises(RuntimeError, match="no"), store.transaction(claim) as connection:  # noqa: PT012  # order matters and is seen
            self.write(connection, "here")
            raise RuntimeError("no")

        assert self.written(store) == []
        assert state_of(store, claim.id) is State.RUNNING
        assert step(store, completed=[(claim.id, claim.attempt)]).late == []

    def test_a_transaction_of_a_lost_job_is_refused(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING)])
        take(store, owner)

        with pytest.raises(LeaseLost), store.transaction(claim) as connection:
            self.write(connection, "never")

        assert self.written(store) == []
        assert (state_of(store, claim.id), one(store, claim.id).attempt) == (State.RUNNING, 2)

    def test_a_transaction_completes_all_of_a_batch(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store, draft("1", "2", "3"))
        first, second, third = take(store, owner)

        with store.transaction(first, third) as connection:
            self.write(connection, "here")

        assert self.written(store) == ["here"]
        states = [state_of(store, claim.id) for claim in (first, second, third)]
        assert states == [State.COMPLETED, State.RUNNING, State.COMPLETED]

    def test_if_one_of_a_batch_is_lost_none_is_completed(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store, draft("1", "2"))
        first, second = take(store, owner)
        step(store, acks=[ack(second, State.PENDING)])

        for claims in ((first, second), (second, first)):
            with pytest.raises(LeaseLost) as lost, store.transaction(*claims) as connection:
                self.write(connection, "never")
            assert lost.value.job_id == second.id

        assert self.written(store) == []
        assert state_of(store, first.id) is State.RUNNING

    def test_jobs_can_be_sent_in_the_handlers_transaction(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)

        with store.transaction(claim) as connection:
            (ids,) = store.insert_in(connection, [draft("1", "2")])

        assert ids_of(take(store, owner)) == list(ids)

    # --- opening and closing ---------------------------------------------------------------

    def test_opening_and_closing_twice_is_harmless(self, store: Store) -> None:
        put(store)

        store.open()
        assert store.unfinished() == 1
        store.close()
        store.close()

    def test_a_closed_store_says_so(self, store: Store) -> None:
        store.close()
        outcome = Outcome()

        with pytest.raises(StoreError):
            store.exchange(Work(drafts=[draft()]), outcome)
        with pytest.raises(StoreError):
            store.counts()

        assert not outcome.committed

    def test_a_closed_store_can_be_opened_again(self, store: Store) -> None:
        store.close()
        store.open()

        assert len(put(store)) == 1

    def test_a_store_has_a_name(self, store: Store) -> None:
        assert store.label
        assert isinstance(store, Store)

    def test_tidying_is_harmless(self, store: Store) -> None:
        ids = put(store, draft(*map(str, range(50))))

        store.tidy()

        assert len(store.get(ids)) == 50


class DurableWorkers(Doors):
    """Death and rescue, and what is seen of another's commits."""

    def decide(self, claim: Claim, was_running: bool) -> Ack:
        """Count a crash for what was running."""
        return ack(claim, State.PENDING, crashes=claim.crashes + was_running)

    def test_the_living_are_not_rescued(self, store: Store) -> None:
        other = self.another(store)
        try:
            owner = other.join("w", [QUEUE], 1)
            put(store)
            (claim,) = take(other, owner)

            assert store.rescue(self.decide) == []
            assert other.rescue(self.decide) == []
            assert state_of(store, claim.id) is State.RUNNING
        finally:
            other.close()

    def test_the_jobs_of_a_dead_worker_go_back_in_line_once(self, store: Store) -> None:
        """What it ran is told apart from what it held, by its marks."""
        put(store, draft("1", "2", "3"))
        owner = store.join("w", [QUEUE], 1)
        ran, held, done = take(store, owner)
        step(store, completed=[(done.id, done.attempt)])
        store.mark(owner)[0] = ran.id
        other = self.another(store)
        try:
            self.die(store, owner)

            ((info, acks),) = other.rescue(self.decide)

            assert (info.owner, info.name) == (owner, "w")
            assert sorted((a.id, a.crashes) for a in acks) == [(ran.id, 1), (held.id, 0)]
            assert (other.rescue(self.decide), store.rescue(self.decide), other.workers()) == ([], [], [])
            assert [(job.state, job.crashes) for job in store.get([ran.id, held.id])] == [
                (State.PENDING, 1),
                (State.PENDING, 0),
            ]
            assert step(store, acks=[ack(ran)]).late == [(ran.id, 1)]
        finally:
            other.close()

    def test_a_rescue_that_fails_leaves_the_dead_to_the_next(self, store: Store) -> None:
        put(store)
        owner = store.join("w", [QUEUE], 1)
        (claim,) = take(store, owner)
        self.die(store, owner)

        def fail(_claim: Claim, _was_running: bool) -> Ack:
            raise RuntimeError("undecided")

        with pytest.raises(RuntimeError, match="undecided"):
            store.rescue(fail)

        assert state_of(store, claim.id) is State.RUNNING
        assert [info.owner for info, _acks in store.rescue(self.decide)] == [owner]
        assert state_of(store, claim.id) is State.PENDING

    def test_a_store_that_closed_without_leaving_is_rescued_at_once(self, store: Store) -> None:
        """As after a full disk, which kept it from leaving."""
        other = self.another(store)
        owner = other.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        take(other, owner)
        other.close()

        assert [info.owner for info, _acks in store.rescue(self.decide)] == [owner]
        assert state_of(store, job_id) is State.PENDING

    def test_a_commit_at_the_other_door_is_seen(self, store: Store) -> None:
        other = self.another(store)
        try:
            store.changed()
            put(other)

            assert store.changed()
            assert not store.changed()
        finally:
            other.close()


class DoorbellContract(Doors):
    """What `ring` and `doorbell` promise; for stores that have one."""

    def test_a_ring_is_heard_at_the_other_door(self, store: Store) -> None:
        """Until it is hushed; one's own ring is not."""
        other = self.another(store)
        try:
            owner = other.join("w", [QUEUE], 1)
            bell = other.doorbell()
            assert bell is not None

            other.ring()
            assert not select.select([bell], [], [], 0)[0]
            store.ring()
            assert select.select([bell], [], [], 5)[0]
            other.hush()
            assert not select.select([bell], [], [], 0)[0]
            other.leave(owner)
            store.ring()
        finally:
            other.close()
