"""New jobs: ids, payloads, delays, the bound on unfinished jobs, the user's own transaction."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import pytest

from dutiful.errors import ConfigError
from dutiful.job import State
from dutiful.store.contract import Draft, Store
from dutiful.testing.tools import (
    HOUR_S,
    OTHER,
    QUEUE,
    TASK,
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
    wish,
)

EMPTY = Draft(TASK, QUEUE, [])
# JSON texts that have gone wrong in somebody's store.
PAYLOADS = [
    "null",
    '""',
    '"\\u0000"',
    '"a\\u0000b"',
    '"\\ud83d\\ude00"',
    '"😀 ñ é \u2028 \u2029"',
    '"\\"\\\\\\/"',
    '{"a":[1,2.5,true,null,{"b":"\'; DROP TABLE dutiful_job; --"}]}',
    "1e308",
    "123456789012345678901234567890",
    '"\x7f"',
    " \t\n1\r ",
    "not json at all",
    "",
]


class DraftContract(Hooks):
    """What becomes of `Draft`s."""

    def test_ids_are_given_in_order_and_per_draft(self, store: Store) -> None:
        outcome = step(store, drafts=[draft("1", "2"), draft("3", priority=1), draft("4", "5")])

        ids = [list(ids) for ids in outcome.stored]
        assert [len(part) for part in ids] == [2, 1, 2]
        flat = [job_id for part in ids for job_id in part]
        assert flat == sorted(set(flat))
        assert [job.payload for job in store.get(flat)] == ["1", "2", "3", "4", "5"]

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("hands", [True, False])
    def test_new_jobs_alone_are_a_step(self, store: Store, keep: bool, hands: bool) -> None:
        """Whether or not completed ones would be kept, and a worker has room."""
        owner = store.join("w", [QUEUE], 1)
        room = wish(owner, look=False, handoff=True) if hands else None

        outcome = step(store, drafts=[draft("1", "2")], take=room, keep_completed=keep)

        assert ids_of(outcome.claims) == (list(outcome.stored[0]) if hands else [])
        assert store.unfinished() == 2

    def test_a_draft_without_payloads_is_harmless(self, store: Store) -> None:
        outcome = step(store, drafts=[EMPTY, draft("1"), EMPTY])

        assert [len(ids) for ids in outcome.stored] == [0, 1, 0]
        assert store.unfinished() == 1

    def test_a_new_job_is_written_in_full(self, store: Store) -> None:
        (job_id,) = put(store, draft('{"n":1}', queue=OTHER, task="t", priority=-3, run_at=1234))

        job = one(store, job_id)

        assert (job.task, job.queue, job.state, job.priority) == ("t", OTHER, State.PENDING, -3)
        assert (job.due_at, job.payload, job.result) == (1234, '{"n":1}', None)
        assert (job.attempt, job.failures, job.crashes) == (0, 0, 0)
        assert (job.started_at, job.finished_at, job.cancel_at, job.worker) == (None, None, None, None)
        assert job.errors == ()

    def test_ids_are_never_used_twice(self, store: Store) -> None:
        """Not after deletion, not of completed jobs that were not kept."""
        owner = store.join("w", [QUEUE], 1)
        seen = put(store, draft("1", "2", "3"))
        store.edit(seen[1:], "delete")
        (claim,) = take(store, owner)
        step(store, completed=[(claim.id, claim.attempt)], keep_completed=False)

        more = put(store, draft("4", "5"))

        assert min(more) > max(seen)

    # --- payloads ---------------------------------------------------------------------------

    @pytest.mark.parametrize("together", [True, False])
    def test_a_payload_comes_back_as_it_was(self, store: Store, together: bool) -> None:
        """One by one or many in a statement: not a byte is changed."""
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft(*PAYLOADS)) if together else [put(store, draft(text))[0] for text in PAYLOADS]

        claims = take(store, owner)

        assert [claim.payload for claim in claims] == PAYLOADS
        assert [job.payload for job in store.get(ids)] == PAYLOADS

    def test_a_large_payload_comes_back_as_it_was(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        large = '"' + "é" * 1_000_000 + '"'
        put(store, draft(large), draft("1", large))

        assert [claim.payload for claim in take(store, owner)] == [large, "1", large]

    @pytest.mark.parametrize(
        ("payload", "as_text"),
        [
            (b'"caf\xe9"', True),
            (b"\xff\xfe", True),
            (b"\xed\xa0\x80", True),
            (b"\xe2", True),
            (b"\x80abc", False),
        ],
    )
    def test_a_spoiled_payload_is_claimed_as_none_and_blocks_nobody(
        self, store: Store, payload: bytes, as_text: bool
    ) -> None:
        """Its job can be ended like any other; those beside it have their payloads."""
        owner = store.join("w", [QUEUE], 1)
        ids = put(store, draft('"a"', '"b"', '"ü"'))
        self.spoil(store, ids[1], payload, as_text=as_text)

        claims = take(store, owner)

        assert [(claim.id, claim.payload) for claim in claims] == [
            (ids[0], '"a"'),
            (ids[1], None),
            (ids[2], '"ü"'),
        ]
        assert len(store.get(ids)) == 3
        assert step(store, acks=[ack(claim, State.DEAD) for claim in claims]).late == []
        assert store.edit([ids[1]], "delete") == [ids[1]]

    # --- time -----------------------------------------------------------------------------------

    def test_a_delay_is_waited_for(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        job_id, _later = put(store, draft(delay_s=0.03), draft(delay_s=HOUR_S))

        self.wait_until_due(store)

        assert ids_of(take(store, owner)) == [job_id]

    def test_run_at_is_an_instant(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        (now,) = put(store)
        instant = one(store, now).created_at
        past, future = put(store, draft(run_at=instant - 5), draft(run_at=instant + 3_600_000))

        assert ids_of(take(store, owner)) == [past, now]
        assert one(store, future).due_at == instant + 3_600_000

    def test_next_due_is_the_soonest_of_all_priorities(self, store: Store) -> None:
        """Many priorities and future jobs: the soonest counts, not the most urgent."""
        owner = store.join("w", [QUEUE], 1)
        assert store.next_due_s([QUEUE]) is None
        put(store, *(draft(priority=p, delay_s=HOUR_S * (abs(p - 3) + 1)) for p in range(-10, 11)))
        put(store, draft(queue=OTHER, delay_s=60.0))

        due_s, other_s = store.next_due_s([QUEUE]), store.next_due_s([QUEUE, OTHER])
        put(store)
        now_s = store.next_due_s([OTHER, QUEUE])

        assert due_s is not None
        assert other_s is not None
        assert HOUR_S - 30 < due_s <= HOUR_S
        assert 30 < other_s <= 60
        assert now_s == 0.0
        assert store.next_due_s(["nobody's"]) is None
        take(store, owner)
        assert store.next_due_s([QUEUE]) != 0.0

    def test_next_due_sees_suspects(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store)
        (claim,) = take(store, owner)
        step(store, acks=[ack(claim, State.PENDING, crashes=1)])

        assert store.next_due_s([QUEUE]) == 0.0

    # --- the bound -----------------------------------------------------------------------------------

    def test_a_buffer_takes_what_it_has_room_for(self, store: Store) -> None:
        """In order; the rest is not stored, and `stored` shows it."""
        outcome = step(store, drafts=[draft("1", "2"), draft("3", "4"), draft("5")], buffer=3)

        assert [len(ids) for ids in outcome.stored] == [2, 1, 0]
        assert store.unfinished() == 3
        assert [job.payload for job in store.get([*outcome.stored[0], *outcome.stored[1]])] == ["1", "2", "3"]

    def test_a_full_buffer_takes_nothing(self, store: Store) -> None:
        put(store, draft("1", "2"), buffer=2)

        outcome = step(store, drafts=[draft("3")], buffer=2)

        assert [len(ids) for ids in outcome.stored] == [0]
        assert not outcome.left_pending
        assert store.unfinished() == 2

    def test_acks_of_the_same_step_make_room(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        put(store, draft("1", "2"), buffer=2)
        done, again = take(store, owner)

        outcome = step(
            store,
            completed=[(done.id, done.attempt)],
            acks=[ack(again, State.PENDING)],
            drafts=[draft("3", "4")],
            buffer=2,
        )

        assert [len(ids) for ids in outcome.stored] == [1]
        assert store.unfinished() == 2

    def test_late_acks_make_no_room(self, store: Store) -> None:
        put(store, draft("1", "2"), buffer=2)

        outcome = step(store, completed=[(9999, 1)], drafts=[draft("3")], buffer=2)

        assert outcome.late == [(9999, 1)]
        assert [len(ids) for ids in outcome.stored] == [0]

    def test_exempt_drafts_are_stored_whatever_the_buffer_says(self, store: Store) -> None:
        """The first ones; they count, and the others find as much less room."""
        put(store, draft("1"), buffer=3)

        outcome = step(store, drafts=[draft("2", "3", "4"), draft("5"), draft("6")], exempt=2, buffer=3)

        assert [len(ids) for ids in outcome.stored] == [3, 1, 0]
        assert store.unfinished() == 5

    @pytest.mark.parametrize("freed_by", ["completed", "dead", "a plain completion", "cancel", "delete"])
    def test_whatever_ends_a_job_makes_room(self, store: Store, freed_by: str) -> None:
        """The count stays right over any number of steps and edits."""
        owner = store.join("w", [QUEUE], 1)
        (job_id,) = put(store, buffer=1)
        assert put(store, buffer=1) == []
        if freed_by in ("completed", "dead"):
            (claim,) = take(store, owner)
            step(store, acks=[ack(claim, State(freed_by))])
        elif freed_by == "a plain completion":
            (claim,) = take(store, owner)
            step(store, completed=[(claim.id, claim.attempt)])
        else:
            store.edit([job_id], "cancel" if freed_by == "cancel" else "delete")

        assert len(put(store, buffer=1)) == 1
        assert put(store, buffer=1) == []

    def test_a_buffer_stays_exact_over_many_mixed_steps(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        for turn in range(40):
            claims = take(store, owner, turn % 4)
            step(
                store,
                drafts=[draft(*"1" * (turn % 5 + 1))],
                completed=[(claim.id, claim.attempt + (claim.id + turn) % 3 // 2) for claim in claims],
                take=wish(owner, turn % 3, handoff=True),
                buffer=6,
            )
            assert store.unfinished() <= 6
        assert store.unfinished() == 6

    def test_a_transaction_of_something_else_is_refused(self, store: Store) -> None:
        with pytest.raises(ConfigError):
            store.insert_in(object(), [draft()])

        assert store.unfinished() == 0


class DurableDrafts(Doors):
    """What becomes of `Draft`s when the store is closed, or has two doors."""

    def test_ids_are_never_used_twice_after_a_reopening(self, store: Store) -> None:
        seen = put(store, draft("1", "2", "3"))
        store.edit(seen, "delete")

        again = self.reopened(store)
        more = put(again)
        again.close()

        assert min(more) > max(seen)

    def test_two_doors_give_no_id_twice(self, store: Store) -> None:
        other = self.another(store)
        try:
            ids = [
                job_id for n in range(30) for job_id in put((store, other)[n % 2], draft(*"1" * (n % 4 + 1)))
            ]
        finally:
            other.close()

        assert len(ids) == len(set(ids))
        assert store.unfinished() == len(ids)

    def test_jobs_are_there_after_a_reopening(self, store: Store) -> None:
        ids = put(store, draft("1", "2", priority=2), draft(delay_s=HOUR_S))
        before = store.get(ids)

        again = self.reopened(store)
        found = again.get(ids)
        again.close()

        assert found == before

    def test_what_is_deleted_through_another_door_makes_room(self, store: Store) -> None:
        (job_id,) = put(store, buffer=1)
        assert put(store, buffer=1) == []
        other = self.another(store)
        other.edit([job_id], "delete")
        other.close()

        assert len(put(store, buffer=1)) == 1
        assert put(store, buffer=1) == []


class UsersTransactionContract(Hooks):
    """What `insert_in` promises; for stores that share a database with their user."""

    @abstractmethod
    def users_transaction(self, store: Store) -> AbstractContextManager[Any]:
        """Return a transaction of the user's own, for `insert_in`; it rolls back on an exception."""

    def test_jobs_inserted_in_a_users_transaction_exist_if_it_commits(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1)
        with self.users_transaction(store) as connection:
            (ids, more) = store.insert_in(connection, [draft("1", "2"), draft("3", priority=1)])

        assert ids_of(take(store, owner)) == [*more, *ids]
        assert min(put(store)) not in {*ids, *more}

    def test_jobs_inserted_in_a_users_transaction_vanish_with_it(self, store: Store) -> None:
        with pytest.raises(RuntimeError, match="no"), self.users_transaction(store) as connection:  # noqa: PT012  # order matters and is seen
            store.insert_in(connection, [draft("1", "2")])
            raise RuntimeError("no")

        assert store.unfinished() == 0
        assert len(put(store, draft("1"))) == 1

    def test_jobs_inserted_in_a_users_transaction_count_for_the_buffer(self, store: Store) -> None:
        put(store, buffer=3)
        with self.users_transaction(store) as connection:
            store.insert_in(connection, [draft("1", "2")])

        assert put(store, buffer=3) == []

    def test_a_job_of_a_users_transaction_can_be_seen_coming(self, store: Store) -> None:
        """`changed` tells of the commit of another's."""
        store.changed()
        assert not store.changed()
        with self.users_transaction(store) as connection:
            (ids,) = store.insert_in(connection, [draft()])

        assert store.changed()
        assert not store.changed()
        assert state_of(store, ids[0]) is State.PENDING
