"""The contract: schedules that fire once, whoever comes first, and what is paused."""

import threading

import pytest

from dutiful.core.schedule import Every, Missed, decide, read
from dutiful.job import JobId, State
from dutiful.store.contract import Store
from dutiful.store.special import pauses, schedules
from dutiful.store.special.schedules import Declared, Row
from dutiful.testing.tools import QUEUE, TASK, Doors, Hooks, draft, ids_of, one, put, step, take, wish

SPAN_S = 3600.0
NAMES = ("hourly",)


def hourly(missed: Missed = "latest", **more: str) -> Declared:
    return Declared(**{"name": "hourly", "spec": "every 3600", "missed": missed, "task": TASK, **more})  # type: ignore[arg-type]


def declared(store: Store, each: Declared) -> Row:
    with store.sql() as sql:
        schedules.declare(sql, each, read(each.spec).after(sql.now), queue=QUEUE)
    return row(store)


def row(store: Store) -> Row:
    with store.sql_look() as look:
        found = schedules.named(look, "hourly")
    assert found is not None
    return found


def due(store: Store) -> list[Row]:
    with store.sql_look() as look:
        return schedules.due(look, NAMES)


def fire(store: Store, found: Row) -> list[JobId]:
    with store.sql() as sql:
        return schedules.fire(
            sql,
            found,
            lambda row, now: decide(read(row.spec), row.missed, row.next_at, now),  # type: ignore[arg-type]
        )


def _fire_and_fail(store: Store, found: Row) -> None:
    with store.sql() as sql:
        schedules.fire(sql, found, lambda row, now: decide(read(row.spec), "all", row.next_at, now))
        raise ZeroDivisionError


class ScheduleContract(Hooks):
    """Exactly one job for each firing."""

    def test_a_schedule_is_due_when_its_time_has_come(self, store: Store) -> None:
        declared(store, hourly())
        assert due(store) == []

        self.pass_time(store, SPAN_S)

        assert [each.name for each in due(store)] == ["hourly"]

    def test_a_firing_is_a_job_with_the_payload_and_the_instant_of_the_schedule(self, store: Store) -> None:
        declared(store, hourly(payload='{"n": 1}'))
        self.pass_time(store, SPAN_S)
        (found,) = due(store)

        (job_id,) = fire(store, found)

        job = one(store, job_id)
        assert (job.state, job.task, job.queue, job.payload) == (State.PENDING, TASK, QUEUE, '{"n": 1}')
        assert job.due_at == found.next_at
        after = row(store)
        assert (after.last_at, after.last_job) == (found.next_at, job_id)
        assert after.next_at == Every(3_600_000).after(found.next_at)

    def test_its_jobs_are_taken_like_any_other_with_ids_of_their_own(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 8, None)
        (before,) = put(store, draft())
        declared(store, hourly())
        self.pass_time(store, SPAN_S)
        (job_id,) = fire(store, due(store)[0])
        (later,) = put(store, draft())

        assert sorted(ids_of(take(store, owner))) == sorted({before, job_id, later})

    def test_whoever_comes_second_fires_nothing(self, store: Store) -> None:
        declared(store, hourly())
        self.pass_time(store, SPAN_S)
        (found,) = due(store)

        assert len(fire(store, found)) == 1
        assert fire(store, found) == []
        assert due(store) == []

    def test_a_firing_that_fails_has_done_nothing(self, store: Store) -> None:
        declared(store, hourly())
        self.pass_time(store, SPAN_S)
        (found,) = due(store)

        with pytest.raises(ZeroDivisionError):
            _fire_and_fail(store, found)

        assert row(store) == found
        assert len(fire(store, found)) == 1

    @pytest.mark.parametrize(("missed", "count"), [("latest", 1), ("all", 3)])
    def test_what_was_missed_is_made_up_for_as_declared(
        self, store: Store, missed: Missed, count: int
    ) -> None:
        declared(store, hourly(missed))
        self.pass_time(store, 3 * SPAN_S)

        assert len(fire(store, due(store)[0])) == count

    def test_a_schedule_that_is_declared_again_keeps_its_place(self, store: Store) -> None:
        first = declared(store, hourly())
        self.pass_time(store, 2 * SPAN_S)
        found = declared(store, hourly(payload="2"))

        assert found.payload == "2"
        assert found.next_at <= first.next_at  # or moved into the past, as all else
        assert len(due(store)) == 1

    def test_a_schedule_that_is_declared_for_other_times_begins_anew(self, store: Store) -> None:
        declared(store, hourly())
        self.pass_time(store, 2 * SPAN_S)

        declared(store, hourly(spec="every 1800"))

        assert due(store) == []

    def test_a_paused_schedule_does_not_fire_and_makes_up_for_nothing(self, store: Store) -> None:
        declared(store, hourly("all"))
        self.pass_time(store, SPAN_S)
        (found,) = due(store)
        with store.sql() as sql:
            assert schedules.pause(sql, "hourly")

        assert due(store) == []
        assert fire(store, found) == []
        self.pass_time(store, 5 * SPAN_S)
        with store.sql() as sql:
            assert schedules.resume(sql, "hourly", read(found.spec).after(sql.now))
        assert due(store) == []
        self.pass_time(store, SPAN_S)
        assert len(fire(store, due(store)[0])) == 1

    def test_a_schedule_that_runs_now_fires_no_less_later(self, store: Store) -> None:
        before = declared(store, hourly())

        with store.sql() as sql:
            job_id = schedules.run(sql, before)

        assert one(store, job_id).state is State.PENDING
        assert row(store).next_at == before.next_at
        assert row(store).last_job == job_id

    def test_a_schedule_that_is_forgotten_is_gone(self, store: Store) -> None:
        declared(store, hourly())
        with store.sql() as sql:
            assert schedules.forget(sql, "hourly")
            assert not schedules.forget(sql, "hourly")

        with store.sql_look() as look:
            assert schedules.listed(look) == []


class PauseContract(Hooks):
    """What is paused stands in the store."""

    def test_what_is_paused_is_listed_until_it_is_resumed(self, store: Store) -> None:
        with store.sql() as sql:
            assert pauses.pause(sql, "queue", "a")
            assert pauses.pause(sql, "task", "b")
            assert not pauses.pause(sql, "task", "b")

        with store.sql_look() as look:
            assert [(each.kind, each.name) for each in pauses.listed(look)] == [("queue", "a"), ("task", "b")]
        with store.sql() as sql:
            assert pauses.resume(sql, "queue", "a")
            assert not pauses.resume(sql, "queue", "a")
            assert [each.name for each in pauses.listed(sql)] == ["b"]

    def test_a_new_job_of_a_task_that_is_passed_over_is_not_handed_off(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 8, None)
        outcome = step(store, drafts=[draft()], take=wish(owner, skip={TASK}, handoff=True, look=False))

        assert outcome.claims == []
        assert take(store, owner, skip={TASK}) == []
        assert len(take(store, owner)) == 1


class DurableSchedules(Doors):
    """Several processes, one firing."""

    def test_of_many_who_fire_at_once_one_does(self, store: Store) -> None:
        declared(store, hourly())
        self.pass_time(store, SPAN_S)
        (found,) = due(store)
        others = [self.another(store) for _ in range(3)]
        fired: list[JobId] = []
        begin = threading.Barrier(len(others) + 1)

        def race(mine: Store) -> None:
            begin.wait()
            fired.extend(fire(mine, found))

        threads = [threading.Thread(target=race, args=(each,)) for each in (store, *others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in others:
            each.close()

        assert len(fired) == 1
