"""The step: acks, then the take, then the drafts; all of it or nothing; late acks change nothing."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from dutiful.job import Ack, ErrorInfo, State
from dutiful.store.contract import Outcome, Store, Work
from dutiful.testing.tools import (
    BOOM,
    HOUR_S,
    OTHER,
    QUEUE,
    Doors,
    Exploding,
    Hooks,
    ack,
    brief,
    draft,
    ids_of,
    one,
    put,
    state_of,
    step,
    take,
    wish,
)


class StepContract(Hooks):
    """`Store.exchange` as a whole, and its acks."""

    def test_an_empty_step_commits_and_does_nothing(self, store: Store) -> None:
        outcome = step(store)

        assert (outcome.claims, outcome.stored, outcome.late, outcome.unknown) == ([], [], [], set())
        assert store.unfinished() == 0

    def test_acks_come_before_the_take(self, store: Store) -> None:
        """A job given back by a step can be claimed by the same step."""
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)

        outcome = step(store, acks=[ack(claim, State.PENDING)], take=wish(owner))

        assert [(again.id, again.attempt) for again in outcome.claims] == [(job_id, 2)]

    def test_the_take_comes_before_the_drafts(self, store: Store) -> None:
        """A step takes what was there before; its own new jobs wait, and it says so."""
        owner = store.join("w", [QUEUE], 1)
        (old,) = put(store)

        outcome = step(store, take=wish(owner), drafts=[draft(priority=9)])

        assert ids_of(outcome.claims) == [old]
        assert outcome.left_pending
        assert state_of(store, outcome.stored[0][0]) is State.PENDING

    @pytest.mark.parametrize("look", [True, False])
    def test_acks_and_drafts_share_a_step_with_and_without_a_look(self, store: Store, look: bool) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)
        (waiting,) = put(store)

        outcome = step(store, acks=[ack(claim)], take=wish(owner, look=look), drafts=[draft()])

        assert ids_of(outcome.claims) == ([waiting] if look else [])
        assert state_of(store, claim.id) is State.COMPLETED

    def test_a_step_that_fails_leaves_nothing(self, store: Store) -> None:
        """Its acks come first and fit; the take fails; neither they nor the drafts are there afterwards."""
        owner = store.join("w", [QUEUE], 1)
        put(store, draft("1", "2", "3"))
        failed, done = take(store, owner, 2)
        work = Work(
            acks=[ack(failed, State.DEAD, failures=1, error=BOOM)],
            completed=[(done.id, done.attempt)],
            take=wish(owner, known=Exploding()),
            drafts=[draft("4")],
        )
        before = store.counts(), store.get(range(1, 9))
        outcome = Outcome()

        with pytest.raises(RuntimeError, match="exploding"):
            store.exchange(work, outcome)

        assert not outcome.committed
        after = store.counts()
        assert (after.by_state, after.due) == (before[0].by_state, before[0].due)
        assert store.get(range(1, 9)) == before[1]

    def test_a_step_works_after_one_that_failed(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        with pytest.raises(RuntimeError):
            store.exchange(Work(take=wish(owner, known=Exploding()), drafts=[draft()]), Outcome())

        outcome = step(store, take=wish(owner), drafts=[draft()])

        assert [(claim.id, claim.attempt) for claim in outcome.claims] == [(job_id, 1)]
        assert outcome.stored[0][0] > job_id

    # --- what an ack writes ------------------------------------------------------------

    @pytest.mark.parametrize("state", [State.COMPLETED, State.DEAD, State.CANCELLED])
    def test_a_finished_job_has_its_end_written(self, store: Store, state: State) -> None:
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)
        assert one(store, job_id).worker == "w"

        step(
            store,
            acks=[ack(claim, state, failures=2, result='{"a":1}' if state is State.COMPLETED else None)],
        )

        job = one(store, job_id)
        assert (job.state, job.failures, job.crashes, job.attempt) == (state, 2, 0, 1)
        assert job.result == ('{"a":1}' if state is State.COMPLETED else None)
        assert job.worker is None
        assert job.started_at is not None
        assert job.finished_at is not None
        assert job.created_at <= job.started_at <= job.finished_at

    def test_completed_is_an_ack_without_result(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft(*map(str, range(9))))
        claims = take(store, owner)

        outcome = step(store, completed=[(claim.id, claim.attempt) for claim in claims])

        assert outcome.late == []
        assert [(job.state, job.result) for job in store.get(ids)] == [(State.COMPLETED, None)] * 9

    def test_an_ack_without_a_delay_keeps_the_place_in_line(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        first, second = put(store, draft("1", "2"))
        due_at = one(store, first).due_at
        (claim,) = take(store, owner, 1)

        step(store, acks=[ack(claim, State.PENDING)])

        assert one(store, first).due_at == due_at
        assert one(store, first).finished_at is None
        assert ids_of(take(store, owner)) == [first, second]

    def test_an_ack_with_a_delay_is_due_that_much_later(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)

        outcome = step(store, acks=[ack(claim, State.PENDING, delay_s=HOUR_S)])

        due_s = store.next_due_s([QUEUE])
        assert outcome.next_delay_s == HOUR_S
        assert due_s is not None
        assert HOUR_S - 60 < due_s <= HOUR_S
        assert take(store, owner) == []
        assert state_of(store, job_id) is State.PENDING

    def test_a_delay_ends(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING, delay_s=0.02)])

        self.wait_until_due(store)

        assert ids_of(take(store, owner)) == [job_id]

    @pytest.mark.parametrize("delay_s", [None, HOUR_S])
    def test_a_job_that_was_asked_to_stop_is_not_tried_again(
        self, store: Store, delay_s: float | None
    ) -> None:
        """However its attempt ended; and once it was retried by hand, nothing is left of the wish."""
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)
        store.edit([job_id], "cancel")

        step(store, acks=[ack(claim, State.PENDING, failures=1, delay_s=delay_s)])

        job = one(store, job_id)
        assert (job.state, job.failures, job.cancel_at) == (State.CANCELLED, 1, None)
        assert job.finished_at is not None
        store.edit([job_id], "retry")
        assert ids_of(take(store, owner)) == [job_id]
        assert store.cancelled(owner) == []

    # --- late acks -----------------------------------------------------------------------

    def test_a_late_ack_changes_nothing(self, store: Store) -> None:
        """An attempt that lost its job cannot undo its successor; it is reported, of either kind."""
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (slow,) = take(store, owner)
        step(store, acks=[ack(slow, State.PENDING)])
        (fast,) = take(store, owner)

        works: list[dict[str, Any]] = [
            {"acks": [ack(slow, State.DEAD, error=BOOM)]},
            {"completed": [(job_id, slow.attempt)]},
        ]
        for work in works:
            assert step(store, **work).late == [(job_id, 1)]
            assert (state_of(store, job_id), one(store, job_id).errors) == (State.RUNNING, ())
        assert step(store, completed=[(job_id, fast.attempt)]).late == []

    @pytest.mark.parametrize("kind", ["acks", "completed"])
    def test_an_ack_of_a_job_that_does_not_run_is_late(self, store: Store, kind: str) -> None:
        """Waiting, finished, deleted or never there: it makes no difference."""
        owner = store.join("w", [QUEUE], 1)
        finished, gone, waiting = put(store, draft("1", "2", "3"))
        claims = take(store, owner, 2)
        step(store, acks=[ack(claim, State.DEAD) for claim in claims])
        store.edit([gone], "delete")
        pairs = [(finished, 1), (gone, 1), (waiting, 0), (waiting, 1), (waiting + 1000, 1)]
        acks = [Ack(job_id, attempt, State.COMPLETED, 0, 0) for job_id, attempt in pairs]

        outcome = step(store, **{kind: acks if kind == "acks" else pairs})

        assert sorted(outcome.late) == sorted(pairs)
        assert [job.state for job in store.get([finished, gone, waiting])] == [State.DEAD, State.PENDING]

    @pytest.mark.parametrize("keep", [True, False])
    def test_of_a_mixed_batch_only_the_late_ones_are_refused(self, store: Store, keep: bool) -> None:
        """And the rest of the step happens as if they had not been there, once."""
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft(*map(str, range(8))))
        claims = take(store, owner)
        step(store, acks=[ack(claims[2], State.DEAD), ack(claims[5], State.CANCELLED)])
        by_ack, by_pair = claims[:4], claims[4:]

        outcome = step(
            store,
            acks=[ack(claim, State.DEAD, failures=1, error=BOOM) for claim in by_ack],
            completed=[(claim.id, claim.attempt) for claim in by_pair],
            keep_completed=keep,
            take=wish(owner, handoff=True),
            drafts=[draft("new")],
        )

        assert sorted(outcome.late) == [(ids[2], 1), (ids[5], 1)]
        assert [ids_of(outcome.claims)] == [list(ids) for ids in outcome.stored]
        dead = [job for job in store.get(ids) if job.failures == 1]
        assert [job.id for job in dead] == [ids[0], ids[1], ids[3]]
        assert all(brief(job.errors) == [(1, "ValueError", "boom", "Traceback: boom")] for job in dead)
        left = {job.id: job.state for job in store.get(ids[4:])}
        assert left == (
            {ids[5]: State.CANCELLED} | (dict.fromkeys([ids[4], *ids[6:]], State.COMPLETED) if keep else {})
        )

    @pytest.mark.parametrize("kind", ["acks", "completed", "both"])
    def test_the_same_ack_twice_in_a_step_applies_once(self, store: Store, kind: str) -> None:
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)
        acks, pair = [ack(claim)], [(claim.id, claim.attempt)]
        works: dict[str, dict[str, Any]] = {
            "acks": {"acks": acks * 2},
            "completed": {"completed": pair * 2},
            "both": {"acks": acks, "completed": pair},
        }

        outcome = step(store, **works[kind])

        assert outcome.late == [(job_id, 1)]
        assert state_of(store, job_id) is State.COMPLETED

    # --- errors ------------------------------------------------------------------------------

    def test_the_errors_of_all_attempts_are_kept_in_order(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        for attempt in (1, 2, 3):
            (claim,) = take(store, owner)
            error = ErrorInfo(f"E{attempt}", "no ✗", "line\nline")
            step(store, acks=[ack(claim, State.PENDING, failures=attempt, error=error)])

        job = one(store, job_id)

        assert brief(job.errors) == [(n, f"E{n}", "no ✗", "line\nline") for n in (1, 2, 3)]
        assert all(error.worker and error.at >= job.created_at for error in job.errors)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            '"\\',
            "\x01\x1f\x7f",
            "\u2028 \U0001f600",
            "'; DROP TABLE dutiful_job; --",
            "x" * 50_000,
        ],
    )
    def test_an_error_text_comes_back_as_it_was(self, store: Store, text: str) -> None:
        """Any text but one with a NUL, which a store need not keep: the runner has escaped it by then."""
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store)
        (claim,) = take(store, owner)

        step(store, acks=[ack(claim, State.DEAD, error=ErrorInfo("E", text, text))])

        assert brief(one(store, job_id).errors) == [(1, "E", text, text)]

    def test_completed_jobs_that_are_not_kept_go_with_their_errors(self, store: Store) -> None:
        """A later job never shows them, and neighbours keep theirs."""
        owner = store.join("w", [QUEUE], 1)
        gone, kept = put(store, draft("1", "2"))
        step(store, acks=[ack(claim, State.PENDING, failures=1, error=BOOM) for claim in take(store, owner)])
        claims = {claim.id: claim for claim in take(store, owner)}

        step(store, completed=[(gone, claims[gone].attempt)], keep_completed=False)

        assert [job.id for job in store.get([gone, kept])] == [kept]
        assert len(one(store, kept).errors) == 1
        assert store.counts().by_state[State.COMPLETED] == 0

    @pytest.mark.parametrize("keep", [True, False])
    def test_completions_in_any_pattern_hit_exactly_their_jobs(self, store: Store, keep: bool) -> None:
        """Runs of ids, gaps, several attempts: no neighbour is touched."""
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft(*map(str, range(60))))
        again = [ack(claim, State.PENDING) for claim in take(store, owner) if claim.id % 7 == 0]
        step(store, acks=again)
        take(store, owner)
        chosen = [job for job in store.get(ids) if job.id % 3 or job.id > ids[40]]

        outcome = step(
            store, completed=[(job.id, job.attempt) for job in reversed(chosen)], keep_completed=keep
        )

        assert outcome.late == []
        left = {job.id for job in store.get(ids) if job.state is State.RUNNING}
        assert left == set(ids) - {job.id for job in chosen}
        assert len(store.get(ids)) == (60 if keep else len(left))

    # --- many at once ---------------------------------------------------------------------------

    def test_no_job_is_claimed_twice_by_threads_that_do_all_at_once(self, store: Store) -> None:
        """Four threads send, take and complete through one store: each attempt is somebody's alone."""
        owners = [store.join(f"w{n}", [QUEUE, OTHER], 1) for n in range(4)]
        claimed: list[list[tuple[int, int]]] = [[] for _ in owners]

        def work(n: int) -> None:
            for turn in range(25):
                outcome = step(
                    store,
                    drafts=[draft("1", "2", queue=(QUEUE, OTHER)[turn % 2])],
                    take=wish(owners[n], 3, queues=(QUEUE, OTHER), handoff=turn % 3 == 0),
                )
                claimed[n] += [(claim.id, claim.attempt) for claim in outcome.claims]
                step(store, completed=[(claim.id, claim.attempt) for claim in outcome.claims])
                store.get(ids_of(outcome.claims))
                store.counts()

        at_once([lambda n=n: work(n) for n in range(4)])  # type: ignore[misc]

        all_claims = [pair for pairs in claimed for pair in pairs]
        assert len(all_claims) == len(set(all_claims))
        assert store.counts().by_state[State.COMPLETED] == len(all_claims)
        assert sum(store.counts().by_state.values()) == 4 * 25 * 2


class DurableSteps(Doors):
    """Steps through two doors."""

    def test_no_job_is_claimed_twice_through_two_doors(self, store: Store) -> None:
        """Two stores on the same jobs, as two processes have, take from one line."""
        put(store, draft(*map(str, range(200))))
        other = self.another(store)
        claimed: list[list[int]] = [[], []]

        def work(n: int, door: Store) -> None:
            owner = door.join(f"w{n}", [QUEUE], 1)
            while claims := take(door, owner, 3):
                claimed[n] += ids_of(claims)
                step(door, completed=[(claim.id, claim.attempt) for claim in claims])
            door.leave(owner)

        try:
            at_once([lambda: work(0, store), lambda: work(1, other)])
        finally:
            other.close()

        assert sorted(claimed[0] + claimed[1]) == list(range(1, 201))
        assert store.counts().by_state[State.COMPLETED] == 200


def at_once(works: list[Callable[[], None]]) -> None:
    """Run functions in threads that start together; raise what any of them raised."""
    start = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(10)
            work()
        except BaseException as error:  # noqa: BLE001  # told to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
