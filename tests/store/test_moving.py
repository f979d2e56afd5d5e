"""All jobs to another store: what arrives, who is in charge meanwhile, and what is refused."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

import dutiful
from dutiful import Backoff, Retry, State, StoreError, StoreMoved, Worker
from dutiful.store import mover, moving
from dutiful.store.mover import Mover
from dutiful.store.special import events
from tests.worker.tools import background, until

PAIRS = [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "sqlite"), ("postgres", "postgres")]
IDS = [" to ".join(pair) for pair in PAIRS]


class Places:
    """Names for stores: files, and schemas of one database."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self.url = url
        self._count = 0

    def new(self, kind: str) -> str:
        self._count += 1
        if kind == "sqlite":
            return str(self._folder / f"{self._count}.db")
        return f"{self.url}?dutiful_schema=s{self._count}"


@pytest.fixture
def places(tmp_path: Path, database_url: str) -> Places:
    return Places(tmp_path, database_url)


@pytest.fixture(params=PAIRS, ids=IDS)
def pair(request: pytest.FixtureRequest, places: Places) -> tuple[str, str]:
    return places.new(request.param[0]), places.new(request.param[1])


@pytest.fixture
def source(places: Places) -> str:
    return places.new("sqlite")


@pytest.fixture
def target(places: Places) -> str:
    return places.new("postgres")


def fail(payload: object) -> None:
    raise ValueError(f"no {payload}: \x00 ü")


def fill(store: str) -> None:
    """Leave jobs of each state: with results, errors, retries, due times, priorities, parked."""
    handlers = {"add": lambda numbers: {"sum": sum(numbers)}, "fail": fail}
    patient = Retry(max_attempts=3, backoff=Backoff(first_s=3600))
    with Worker(store, handlers=handlers, retry=patient) as worker:
        worker.send([1, 2], task="add").result(timeout=30)
        failing = [worker.send(text, task="fail") for text in ("ü\x00", "again")]
        worker.send_many(range(30), task="unknown", priority=-3)
        until(lambda: worker.counts().parked == 30)
        until(lambda: all(worker.job(job.id).attempt == 1 for job in failing))
    with Worker(store, handlers=handlers, retry=Retry(max_attempts=1)) as worker:
        worker.send("at once", task="fail").wait(timeout=30)
    worker = Worker(store)
    worker.send({"a": ["b", None, 1.5]}, task="later", delay=3600, priority=7, queue="other")
    worker.send(None, task="later", run_at=datetime(2040, 1, 1, tzinfo=UTC)).cancel()
    worker.stop()


def jobs_of(store: str) -> list[object]:
    """Return all jobs, then all their errors."""
    rows: list[moving.Row] = []
    errors: list[object] = []
    with closing(opened(store)) as ground:
        while (batch := ground.batch(rows[-1].id if rows else 0)).rows:
            rows += batch.rows
            errors += map(tuple, batch.errors)
    return [*rows, *errors]


def opened(store: str) -> moving.Ground:
    """Return a store open, whatever its note says."""
    from dutiful.config import Config
    from dutiful.front.base import store_for

    ground = store_for(store, Config(), create=True).ground()
    ground.open()
    return ground


def sent(store: str, count: int = 3) -> list[int]:
    worker = Worker(store)
    try:
        return worker.send_many(range(count), task="t").ids
    finally:
        worker.stop()


def count(store: str) -> int:
    worker = Worker(store, create=False)
    try:
        return sum(worker.counts().by_state.values())
    finally:
        worker.stop()


# --- what arrives ---------------------------------------------------------------------------------


def test_every_job_arrives_as_it_was(pair: tuple[str, str]) -> None:
    """Ids, states, payloads, results, due times, attempts, priorities, and the error history."""
    fill(pair[0])
    before = jobs_of(pair[0])

    moved = dutiful.move(*pair)

    assert jobs_of(pair[1]) == before
    assert {state for state, number in moved.by_state.items() if number} == {
        State.PENDING,
        State.COMPLETED,
        State.DEAD,
        State.CANCELLED,
    }
    assert (moved.errors, moved.damaged, moved.was_done) == (3, 0, False)


def test_what_arrived_is_worked_on_and_ids_go_on(pair: tuple[str, str]) -> None:
    ids = sent(pair[0], 5)
    dutiful.move(*pair)
    ran = []

    with Worker(pair[1], handlers={"t": ran.append}) as worker:
        new = worker.send(5, task="t")
        new.wait(timeout=30)
        worker.stop(drain=True)

    assert sorted(ran) == [0, 1, 2, 3, 4, 5]
    assert new.id > max(ids)


def test_there_and_back_is_the_same(places: Places) -> None:
    first, second, third = places.new("sqlite"), places.new("postgres"), places.new("sqlite")
    fill(first)
    before = jobs_of(first)

    dutiful.move(first, second)
    dutiful.move(second, third)

    assert jobs_of(third) == before


def test_large_payloads_and_many_jobs_travel_in_batches(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "BATCH_JOBS", 7)
    monkeypatch.setattr(moving, "BATCH_BYTES", 5000)
    worker = Worker(source)
    worker.send_many(["x" * (200 * number) for number in range(60)], task="t")
    worker.stop()
    told = []

    dutiful.move(source, target, progress=lambda done, total: told.append((done, total)))

    assert told[0] == (0, 60)
    assert told[-1] == (60, 60)
    steps = [after[0] - before[0] for before, after in itertools.pairwise(told)]
    assert max(steps) == 7
    assert min(steps) == 1  # larger than the limit, alone
    assert jobs_of(target) == jobs_of(source)


def test_an_empty_store_is_moved_too(pair: tuple[str, str]) -> None:
    Worker(pair[0]).counts()

    assert dutiful.move(*pair).jobs == 0
    assert count(pair[1]) == 0
    with pytest.raises(StoreMoved):
        sent(pair[0])


def test_damaged_payloads_are_told_and_their_jobs_are_dead_in_the_target(source: str, target: str) -> None:
    """Never are they altered until they can be read: that would run a job that nobody sent."""
    good, bad, nul = sent(source)
    with closing(sqlite3.connect(source, isolation_level=None)) as db:
        db.execute("UPDATE dutiful_job SET payload = CAST(? AS TEXT) WHERE id = ?", (b'"\xff"', bad))
        db.execute("UPDATE dutiful_job SET payload = CAST(? AS TEXT) WHERE id = ?", (b'"\x00"', nul))

    moved = dutiful.move(source, target)

    ran = []
    with Worker(target, handlers={"t": ran.append}) as worker:
        for job in (good, bad, nul):
            worker.job(job).wait(timeout=30)
        states = [worker.job(job).state for job in (good, bad, nul)]
    assert moved.damaged == 2
    assert states == [State.COMPLETED, State.DEAD, State.DEAD]
    assert ran == [0]


def test_a_key_or_a_name_that_postgresql_cannot_hold_does_not_keep_the_rest_from_moving(
    source: str, target: str
) -> None:
    worker = Worker(source)
    ids = [worker.send(number, task="t", key="k", delay=3600).id for number in range(2)]
    with worker.opened().sql() as sql:  # `send` takes no such name any more
        sql.change("UPDATE {job} SET lane = ?", "a\x00b")
        events.send(sql, "a\x00b", "1")
    worker.stop()

    assert dutiful.move(source, target).jobs == 2

    assert columns_of(target, "lane") == [(each, "a\\x00b") for each in ids]
    assert [row[0] for row in beside(target, "event")] == ["a\\x00b"]


def columns_of(store: str, *names: str) -> list[tuple[object, ...]]:
    with closing(opened(store)) as ground:
        return [(row.id, *(getattr(row, name) for name in names)) for row in ground.batch(0).rows]


# --- who is in charge --------------------------------------------------------------------------------


def test_afterwards_the_source_refuses_and_says_where_to(pair: tuple[str, str]) -> None:
    sent(pair[0])
    moved = dutiful.move(*pair)

    for use in (lambda: sent(pair[0]), Worker(pair[0]).start, lambda: count(pair[0])):
        with pytest.raises(StoreMoved) as caught:
            use()
        assert caught.value.to == moved.target
        assert moved.target in str(caught.value)


def test_a_client_that_was_open_is_refused_too(pair: tuple[str, str]) -> None:
    """Nothing that it sends can end where nobody looks."""
    client = Worker(pair[0])
    client.send(0, task="t")
    jobs = client.send_many(range(3), task="t")
    moved = dutiful.move(*pair)

    for use in (
        lambda: client.send(1, task="t"),
        lambda: client.send_many(range(5), task="t"),
        lambda: client.cancel(jobs.ids),
        lambda: client.delete(jobs.ids),
        client.start,
    ):
        with pytest.raises(StoreMoved) as caught:
            use()
        assert caught.value.to == moved.target
    client.stop()
    assert count(pair[1]) == 4


def test_nothing_else_that_an_open_client_does_is_accepted_and_lost(pair: tuple[str, str]) -> None:
    """Events, pauses and schedules: refused, whether there is such a one or not, and nothing is written."""
    client = Worker(pair[0])
    client.pause(queue="paused")
    client.send_event("kept", {"n": 1})
    with Worker(pair[0], handlers={"t": print}) as worker:
        worker.cron("0 3 * * *", name="nightly")(lambda: None)
    before = {table: beside(pair[0], table) for table in moving.BESIDE}
    moved = dutiful.move(*pair)

    for use in (
        lambda: client.send_event("approved", {"ok": 1}),
        lambda: client.pause(queue="q"),
        lambda: client.pause(queue="paused"),
        lambda: client.resume(queue="paused"),
        lambda: client.resume(task="never_paused"),
        lambda: client.schedules.pause("nightly"),
        lambda: client.schedules.resume("nightly"),
        lambda: client.schedules.run("nightly"),
        lambda: client.schedules.forget("nightly"),
        lambda: client.send(1, task="t", key="k"),
        lambda: client.send(1, task="t", unique=True),
    ):
        with pytest.raises(StoreMoved) as caught:
            use()
        assert caught.value.to == moved.target
    client.stop()
    for store in pair:
        assert {table: beside(store, table) for table in moving.BESIDE} == before


def beside(store: str, table: str) -> list[tuple[object, ...]]:
    with closing(opened(store)) as ground:
        return ground.beside(table)


def test_a_move_gives_way_to_who_writes_in_another_order(places: Places) -> None:
    """The server would end one of the two that wait for each other, after a second."""
    import psycopg

    store = places.new("postgres")
    sent(store)
    schema = store.rpartition("=")[2]
    with psycopg.connect(places.url) as db, psycopg.connect(places.url, autocommit=True) as looking:
        db.execute(f"INSERT INTO {schema}.event (name, at) VALUES ('e', 1)")
        moves = background(dutiful.move, store, places.new("sqlite"))
        waits = (
            "SELECT FROM pg_locks AS waiting JOIN pg_locks AS held USING (pid)"
            f" WHERE waiting.relation = '{schema}.event'::regclass AND NOT waiting.granted"
            f" AND held.relation = '{schema}.job'::regclass AND held.granted"
        )
        until(lambda: looking.execute(waits).fetchall())
        db.execute(f"UPDATE {schema}.job SET due_at = 0")
        db.commit()

        assert moves.result(20).jobs == 3


def test_every_table_is_guarded_and_moved_or_known_to_be_neither(places: Places) -> None:
    """One that is new is in these lists, or this fails; and so does a new column that would not travel."""
    file = places.new("sqlite")
    for store in (file, places.url):
        Worker(store).counts()
    guarded, unguarded = set(moving.GUARDED), set(moving.UNGUARDED)
    travels = {
        "job": {*moving.Row.__struct_fields__, "owner"},  # none is running
        "error": set(moving.ERROR_COLUMNS.split(", ")),
        **{table: set(columns.split(", ")) for table, columns in moving.BESIDE.items()},
    }
    travels["event"].add("id")  # only an order, which is kept
    for tables in (columns_in_a_file(file), columns_in_a_database(places.url)):
        assert set(tables) == guarded | unguarded
        assert not guarded & unguarded
        assert {table: tables[table] for table in tables.keys() - {"worker", "meta"}} == travels


def columns_in_a_file(path: str) -> dict[str, set[str]]:
    with closing(sqlite3.connect(path)) as db:
        names = db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'dutiful\\_%' ESCAPE '\\'"
        )
        return {
            name.removeprefix("dutiful_"): {row[1] for row in db.execute(f"PRAGMA table_info({name})")}
            for (name,) in names.fetchall()
        }


def columns_in_a_database(url: str) -> dict[str, set[str]]:
    import psycopg

    with psycopg.connect(url) as db:
        rows = db.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'dutiful'"
        ).fetchall()
    return {table: {column for other, column in rows if other == table} for table, _column in rows}


@pytest.mark.parametrize("kept", ["event", "schedule", "pause"])
def test_a_target_that_has_events_schedules_or_pauses_of_its_own_is_refused(
    pair: tuple[str, str], kept: str
) -> None:
    """They would be lost without a word."""
    sent(pair[0])
    with Worker(pair[1], handlers={"t": print}) as other:
        match kept:
            case "event":
                other.send_event("approved")
            case "schedule":
                other.cron("0 3 * * *", name="nightly")(lambda: None)
            case _:
                other.pause(queue="q")

    with pytest.raises(StoreError, match=f"it has .*{kept}s?"):
        dutiful.move(*pair)

    assert len(beside(pair[1], kept)) == 1
    assert len(sent(pair[0])) == 3


def test_a_send_in_ones_own_transaction_is_refused_too(places: Places) -> None:
    import psycopg

    file, schema = places.new("sqlite"), places.new("postgres")
    clients = {name: Worker(name) for name in (file, schema)}
    for client in clients.values():
        client.send(0, task="t")
    dutiful.move(file, places.new("sqlite"))
    dutiful.move(schema, places.new("postgres"))

    with closing(sqlite3.connect(file)) as db:
        db.execute("BEGIN")
        with pytest.raises(StoreMoved):
            clients[file].send(1, task="t", transaction=db)
    with psycopg.connect(places.url) as db:
        db.execute("SELECT 1")
        with pytest.raises(StoreMoved):
            clients[schema].send(1, task="t", transaction=db)
        db.rollback()
    for client in clients.values():
        client.stop()


def test_no_password_is_told(places: Places, source: str) -> None:
    target = places.new("postgres")
    sent(source)
    dutiful.move(source, target)

    with pytest.raises(StoreMoved) as caught:
        sent(source)

    password = places.url.partition("@")[0].rpartition(":")[2]
    assert password
    assert password not in str(caught.value)
    with closing(sqlite3.connect(source)) as db:
        assert password not in str(db.execute("SELECT * FROM dutiful_meta").fetchall())


def test_a_move_is_refused_while_workers_run_on_either_store(pair: tuple[str, str]) -> None:
    ids = sent(pair[0])
    for busy in pair:
        with Worker(busy, name="busybody"), pytest.raises(StoreError, match="worker"):
            dutiful.move(*pair)

    assert sent(pair[0], 1)[0] > ids[-1]
    assert dutiful.move(*pair).jobs == 4


def test_a_job_of_a_dead_worker_goes_back_in_line_first(pair: tuple[str, str], tmp_path: Path) -> None:
    """Its crash is counted, as it would be by any rescue; no move makes it dead."""
    import subprocess
    import sys

    program = """
import sys, time
from dutiful import Worker
worker = Worker(sys.argv[1], handlers={"t": lambda number: (print(number, flush=True), time.sleep(60))})
worker.start()
worker.send(1, task="t")
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program, pair[0]], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"1\n"
        victim.kill()

    dutiful.move(*pair)

    worker = Worker(pair[1])
    (job,) = worker.jobs()
    worker.stop()
    assert (job.state, job.attempt, job.crashes) == (State.PENDING, 1, 1)


def test_the_target_must_be_empty(pair: tuple[str, str]) -> None:
    sent(pair[0])
    sent(pair[1])

    with pytest.raises(StoreError, match="it has jobs already"):
        dutiful.move(*pair)

    assert len(sent(pair[0])) == len(sent(pair[1])) == 3  # both go on


def test_a_store_that_was_moved_is_no_target(places: Places) -> None:
    first, second, third = places.new("sqlite"), places.new("sqlite"), places.new("postgres")
    sent(first)
    dutiful.move(first, second)

    with pytest.raises(StoreError, match="it cannot be the target"):
        dutiful.move(second, first)

    assert dutiful.move(second, third).jobs == 3


def test_a_move_that_is_done_may_be_repeated(pair: tuple[str, str]) -> None:
    sent(pair[0])
    dutiful.move(*pair)
    with Worker(pair[1], handlers={"t": print}) as worker:
        worker.stop(drain=True)

    assert dutiful.move(*pair).was_done


def test_a_file_that_is_not_there_and_memory_cannot_be_moved(source: str, target: str) -> None:
    with pytest.raises(dutiful.StoreUnavailable):
        dutiful.move(source, target)
    with pytest.raises(dutiful.ConfigError):
        dutiful.move(":memory:", target)
    sent(source)
    with pytest.raises(dutiful.ConfigError):
        dutiful.move(source, source)
    assert len(sent(source)) == 3


# --- in the middle -------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.fixture
def in_the_middle(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A move of 20 jobs that was stopped after 10."""
    monkeypatch.setattr(moving, "BATCH_JOBS", 5)
    sent(pair[0], 20)

    def stop(done: int, total: int) -> None:
        if done == 10:
            raise Stopped

    with pytest.raises(Stopped):
        dutiful.move(*pair, progress=stop)
    return pair


def test_in_the_middle_neither_store_can_be_used(in_the_middle: tuple[str, str]) -> None:
    for store in in_the_middle:
        for use in (lambda name=store: sent(name), Worker(store).start, lambda name=store: count(name)):
            with pytest.raises(StoreMoved, match="dutiful move"):
                use()


def test_it_goes_on_where_it_ended(in_the_middle: tuple[str, str]) -> None:
    told = []

    moved = dutiful.move(*in_the_middle, progress=lambda done, total: told.append((done, total)))

    assert told[0] == (10, 20)
    assert moved.jobs == count(in_the_middle[1]) == 20


def test_it_can_be_given_up_and_begun_anew(in_the_middle: tuple[str, str]) -> None:
    """What the target had is out of date by then, and is replaced."""
    source, target = in_the_middle

    assert dutiful.give_up_move(source)
    assert not dutiful.give_up_move(source)

    worker = Worker(source)
    worker.cancel([job.id for job in worker.jobs()][:4])
    worker.stop()
    sent(source, 1)
    with pytest.raises(StoreMoved):
        sent(target)
    before = jobs_of(source)
    assert dutiful.move(source, target).by_state[State.CANCELLED] == 4
    assert jobs_of(target) == before


def test_it_cannot_be_given_up_any_more_when_it_is_done(pair: tuple[str, str]) -> None:
    sent(pair[0])
    dutiful.move(*pair)

    with pytest.raises(StoreMoved):
        dutiful.give_up_move(pair[0])


def test_another_target_is_refused_in_the_middle_and_not_made(
    in_the_middle: tuple[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other.db"

    with pytest.raises(StoreMoved, match="being moved to"):
        dutiful.move(in_the_middle[0], other)

    assert not other.exists()


def test_another_source_is_refused_in_the_middle(in_the_middle: tuple[str, str], places: Places) -> None:
    other = places.new("sqlite")
    sent(other)

    with pytest.raises(StoreError, match="it is the unfinished target of a move from"):
        dutiful.move(other, in_the_middle[1])

    assert len(sent(other)) == 3
    assert dutiful.move(*in_the_middle).jobs == 20


def test_if_the_counts_differ_the_source_stays_in_charge(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(pair[0])
    real = mover.Mover._check

    def lose_one(self: Mover, note: moving.Note) -> None:
        with self._target.change() as hand:
            hand.clear()
            hand.add(moving.Batch(self._source.batch(0).rows[1:], []))
        real(self, note)

    monkeypatch.setattr(Mover, "_check", lose_one)
    with pytest.raises(StoreError, match=r"it holds 2 pending .* 3 pending .*stays in charge"):
        dutiful.move(*pair)
    monkeypatch.undo()

    assert len(sent(pair[0])) == 3
    with pytest.raises(StoreMoved):
        count(pair[1])
    assert dutiful.move(*pair).jobs == 6


def test_two_moves_at_once_lose_and_double_nothing(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "BATCH_JOBS", 3)
    sent(pair[0], 100)
    before = jobs_of(pair[0])
    together = threading.Barrier(2)
    ends: list[object] = []

    def run() -> None:
        together.wait()
        try:
            ends.append(dutiful.move(*pair))
        except StoreError as error:
            ends.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ends) == 2
    dutiful.move(*pair)
    assert jobs_of(pair[1]) == before
