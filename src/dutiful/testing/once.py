"""The contract: what is done once, however often a job is tried: sends with its end, steps, events."""

from msgspec.structs import replace

from dutiful.job import Claim, State
from dutiful.store.contract import Draft, Special, Store
from dutiful.store.special import events, steps
from dutiful.store.special.steps import Noted
from dutiful.testing.tools import HOUR_S, Hooks, ack, draft, ids_of, one, put, state_of, step, take

HOUR_MS = round(HOUR_S * 1000)


def running(store: Store, **options: object) -> tuple[Claim, int]:
    """Return the claim of a new job, and whose it is."""
    owner = store.join("w", ["default"], 8, None)
    put(store, draft(**options))  # type: ignore[arg-type]
    (claim,) = take(store, owner)
    return claim, owner


def sent(claim: Claim, *payloads: str, **options: object) -> Draft:
    """Return new jobs that are stored if this attempt's ack applies."""
    return replace(draft(*(payloads or ("1",)), **options), only_if=(claim.id, claim.attempt))  # type: ignore[arg-type]


def asked(store: Store, claim: Claim, timeout_ms: int = HOUR_MS, event: str = "paid") -> Noted | None:
    """Ask for an event as a handler does."""
    with store.sql() as sql:
        return events.ask(sql, claim, "wait", event, timeout_ms)


def told(store: Store, value: str = "1", event: str = "paid") -> int | None:
    """Send an event; return the job that it went to."""
    with store.sql() as sql:
        return events.send(sql, event, value)


def asleep(store: Store, claim: Claim, delay_s: float = HOUR_S) -> None:
    """End an attempt that waits for its event."""
    step(store, acks=[ack(claim, State.PENDING, delay_s=delay_s, special=True, awaits=("wait",))])


class SendContract(Hooks):
    """Jobs that are stored with an ack, or not at all."""

    def test_jobs_sent_with_an_ack_are_stored_with_it(self, store: Store) -> None:
        claim, owner = running(store)

        outcome = step(store, acks=[ack(claim)], drafts=[sent(claim, "1", "2"), draft("3")])

        assert [len(ids) for ids in outcome.stored] == [2, 1]
        assert ids_of(take(store, owner)) == [job_id for ids in outcome.stored for job_id in ids]

    def test_a_late_ack_does_not_store_them(self, store: Store) -> None:
        claim, owner = running(store)
        step(store, acks=[ack(claim)])

        outcome = step(
            store,
            acks=[ack(claim)],
            drafts=[sent(claim, "1"), sent(claim, special=Special(key="k")), draft("3")],
        )

        assert outcome.late == [(claim.id, claim.attempt)]
        assert [len(ids) for ids in outcome.stored] == [0, 0, 1]
        assert [record.payload for record in store.get(ids_of(take(store, owner)))] == ["3"]

    def test_nor_does_one_whose_job_has_another_attempt(self, store: Store) -> None:
        claim, owner = running(store)
        step(store, acks=[ack(claim, State.PENDING)])
        (again,) = take(store, owner)

        outcome = step(store, acks=[ack(claim), ack(again)], drafts=[sent(claim, "old"), sent(again, "new")])

        assert outcome.late == [(claim.id, claim.attempt)]
        assert [record.payload for record in store.get(ids_of(take(store, owner)))] == ["new"]

    def test_a_completion_without_result_will_do(self, store: Store) -> None:
        claim, owner = running(store)
        pair = (claim.id, claim.attempt)

        first = step(store, completed=[pair], drafts=[sent(claim, "1")])
        second = step(store, completed=[pair], drafts=[sent(claim, "2")])

        assert (first.late, second.late) == ([], [pair])
        assert [record.payload for record in store.get(ids_of(take(store, owner)))] == ["1"]

    def test_they_may_ask_for_more(self, store: Store) -> None:
        claim, owner = running(store)
        outcome = step(
            store, acks=[ack(claim)], drafts=[sent(claim, special=Special(key="k")) for _ in range(2)]
        )

        assert ids_of(take(store, owner)) == [outcome.stored[0].start]

    def test_a_bound_does_not_keep_them_out(self, store: Store) -> None:
        claim, _owner = running(store)

        outcome = step(
            store, acks=[ack(claim)], drafts=[sent(claim, "1", "2"), draft("3")], exempt=1, buffer=1
        )

        assert [len(ids) for ids in outcome.stored] == [2, 0]


class StepsContract(Hooks):
    """What a job has noted, and how far it has come."""

    def test_what_was_noted_is_found_by_the_next_attempt(self, store: Store) -> None:
        claim, owner = running(store)
        with store.sql() as sql:
            assert steps.owns(sql, claim)
            steps.note(sql, claim.id, "charge", Noted("step", sql.now, None, '"ok"'))
        step(store, acks=[ack(claim, State.PENDING, failures=1, special=True)])

        (again,) = take(store, owner)
        assert again.extra is not None
        with store.sql_look() as look:
            assert steps.noted(look, claim.id)["charge"].value == '"ok"'

    def test_an_attempt_that_is_over_owns_nothing(self, store: Store) -> None:
        claim, _owner = running(store)
        step(store, acks=[ack(claim)])

        with store.sql() as sql:
            assert not steps.owns(sql, claim)
        assert asked(store, claim) is None

    def test_it_goes_with_the_job(self, store: Store) -> None:
        claim, _owner = running(store)
        with store.sql() as sql:
            steps.note(sql, claim.id, "charge", Noted("step", sql.now, None, "1"))
        step(store, acks=[ack(claim, special=True)])

        assert store.edit([claim.id], "delete") == [claim.id]
        with store.sql_look() as look:
            assert steps.noted(look, claim.id) == {}

    def test_progress_is_that_of_the_attempt_that_owns_the_job(self, store: Store) -> None:
        claim, _owner = running(store)
        with store.sql() as sql:
            steps.write_progress(sql, [(claim, '{"done":1}')])
        assert one(store, claim.id).progress == '{"done":1}'
        step(store, acks=[ack(claim, special=True, progress='{"done":2}')])

        with store.sql() as sql:
            steps.write_progress(sql, [(claim, '{"done":3}')])
        assert one(store, claim.id).progress == '{"done":2}'

    def test_progress_of_many_is_written_for_each(self, store: Store) -> None:
        put(store, draft(*["1"] * 70))
        claims = take(store, store.join("w", ["default"], 70, None))
        *mine, over = claims
        step(store, acks=[ack(over)])

        with store.sql() as sql:
            steps.write_progress(sql, [(claim, f'{{"done":{claim.id}}}') for claim in reversed(claims)])

        assert [one(store, claim.id).progress for claim in mine] == [f'{{"done":{each.id}}}' for each in mine]
        assert one(store, over.id).progress is None


class EventContract(Hooks):
    """An event and its waiter, in any order."""

    def test_an_event_wakes_the_job_that_waits(self, store: Store) -> None:
        claim, owner = running(store)
        wait = asked(store, claim)
        assert wait is not None
        assert wait.event == "paid"
        asleep(store, claim)
        assert take(store, owner) == []

        assert told(store, "7") == claim.id
        (again,) = take(store, owner)
        assert (again.id, again.failures) == (claim.id, 0)
        assert asked(store, again) == Noted("event", self.at(store, claim), None, "7")

    def test_one_that_comes_while_the_attempt_ends_is_not_lost(self, store: Store) -> None:
        claim, owner = running(store)
        asked(store, claim)
        assert told(store) == claim.id

        asleep(store, claim)

        assert ids_of(take(store, owner)) == [claim.id]

    def test_one_that_was_sent_before_is_kept_for_the_first_who_asks(self, store: Store) -> None:
        claim, _owner = running(store)
        assert told(store, "1") is None
        assert told(store, "2") is None

        wait = asked(store, claim)

        assert wait is not None
        assert (wait.event, wait.value) == (None, "1")
        other, _owner = running(store)
        wait = asked(store, other)
        assert wait is not None
        assert wait.value == "2"

    def test_it_goes_to_the_oldest_that_waits_and_has_not_ended(self, store: Store) -> None:
        ended, _owner = running(store)
        asked(store, ended)
        asleep(store, ended)
        store.edit([ended.id], "cancel")
        first, _owner = running(store)
        second, _owner = running(store)
        asked(store, second)
        asked(store, first)

        assert [told(store), told(store), told(store)] == [first.id, second.id, None]

    def test_a_wait_is_over_in_time_and_stays_so(self, store: Store) -> None:
        claim, owner = running(store)
        asked(store, claim, 60_000)
        asleep(store, claim, 60)
        self.pass_time(store, 61)
        (again,) = take(store, owner)

        wait = asked(store, again)
        assert wait is not None
        assert (wait.event, wait.value) == (None, None)
        assert told(store) is None
        assert asked(store, again) == wait

    def test_a_job_of_a_limit_that_waits_takes_no_slot(self, store: Store) -> None:
        claim, owner = running(store, special=Special(pool="p", pool_size=1))
        (other,) = put(store, draft(special=Special(pool="p", pool_size=1)))
        asked(store, claim)
        asleep(store, claim)

        assert ids_of(take(store, owner)) == [other]
        assert told(store) == claim.id
        assert state_of(store, claim.id) is State.BLOCKED

    def at(self, store: Store, claim: Claim) -> int:
        """Return the instant that is noted of the wait."""
        with store.sql_look() as look:
            return steps.noted(look, claim.id)["wait"].at


class OnceContract(SendContract, StepsContract, EventContract):
    """For a store that speaks SQL (see `contract.Sql`)."""
