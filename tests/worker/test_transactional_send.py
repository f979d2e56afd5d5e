"""`send(transaction=connection)`: the job exists if and only if the user's transaction commits."""

import contextlib
import sqlite3
import sys

import pytest

from dutiful import ConfigError, State, StoreBusy, StoreError, WorkerStopped
from tests.worker.tools import Seen, finished, result, until


@pytest.fixture
def connect(path):
    """Open connections of the user's own to the file, which are closed in the end."""
    opened = []

    def connect(to=path, **options):
        opened.append(sqlite3.connect(to, **options))
        return opened[-1]

    yield connect
    for db in opened:
        db.close()


@pytest.fixture
def worker(started, path):
    return started(path, handlers={"t": lambda n: n})


def test_a_job_exists_and_runs_when_the_transaction_commits(worker, connect):
    db = connect()
    db.execute("CREATE TABLE orders (id INTEGER)")
    db.execute("INSERT INTO orders VALUES (1)")
    job = worker.send(5, task="t", transaction=db)
    assert worker.jobs() == []

    db.commit()

    assert result(job) == 5
    assert connect().execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_a_job_never_exists_when_the_transaction_rolls_back(worker, connect):
    db = connect()
    db.execute("CREATE TABLE orders (id INTEGER)")
    db.commit()
    with contextlib.suppress(KeyError), db:
        db.execute("INSERT INTO orders VALUES (1)")
        worker.send(5, task="t", transaction=db)
        worker.send_many(range(2000), task="t", transaction=db)
        raise KeyError

    assert result(worker.send(6, task="t")) == 6

    assert [record.payload for record in worker.jobs()] == ["6"]
    assert connect().execute("SELECT count(*) FROM orders").fetchone() == (0,)


def test_ids_stay_unique_whatever_is_rolled_back(worker, connect):
    db, ids = connect(), []
    for n in range(30):
        job = worker.send(n, task="t", transaction=db)
        if n % 3:
            db.rollback()
        else:
            db.commit()
            ids.append(job.id)
        ids.append(worker.send(-n, task="t").id)

    assert len(set(ids)) == len(ids)
    assert {worker.job(job_id).wait(20).state for job_id in ids} == {State.COMPLETED}
    assert len(worker.jobs(limit=1000)) == len(ids)


def test_the_other_options_hold_too(worker, connect, make, path):
    db = connect()
    job = worker.send(1, task="t", transaction=db, delay=3600, priority=4, queue="other")
    jobs = worker.send_many([1, 2], task="t", transaction=db)
    db.commit()

    record = job.refresh()
    assert (record.due_at - record.created_at, record.priority, record.queue) == (3_600_000, 4, "other")
    assert [result(each) for each in jobs] == [1, 2]


def test_it_works_with_begin_by_hand_and_with_odd_factories(worker, connect):
    by_hand = connect(isolation_level=None)
    by_hand.execute("BEGIN IMMEDIATE")
    one = worker.send(1, task="t", transaction=by_hand)
    by_hand.execute("COMMIT")
    odd = connect()
    odd.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}
    odd.text_factory = bytes
    two = worker.send(2, task="t", transaction=odd)
    odd.commit()
    named = connect()
    named.row_factory = sqlite3.Row
    three = worker.send(3, task="t", transaction=named)
    named.commit()

    assert [result(job) for job in (one, two, three)] == [1, 2, 3]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit= before 3.12")
def test_a_connection_in_autocommit_needs_a_transaction(worker, connect):
    db = connect(autocommit=True)
    with pytest.raises(ConfigError, match="BEGIN"):
        worker.send(1, task="t", transaction=db)
    assert worker.jobs() == []

    db.execute("BEGIN")
    job = worker.send(1, task="t", transaction=db)
    db.execute("COMMIT")

    assert result(job) == 1


@pytest.mark.parametrize(
    "wrong", ["other file", "memory", "no connection", "no transaction", "a path", "closed"]
)
def test_a_connection_that_cannot_do_it_stores_nothing(worker, connect, tmp_path, path, wrong):
    db = {
        "other file": lambda: connect(tmp_path / "other.db"),
        "memory": lambda: connect(":memory:"),
        "no connection": object,
        "no transaction": lambda: connect(isolation_level=None),
        "a path": lambda: str(path),
        "closed": connect,
    }[wrong]()
    if wrong == "closed":
        db.close()

    for send in (worker.send, lambda payload, **options: worker.send_many([payload], **options)):
        with pytest.raises((ConfigError, StoreError)) as caught:
            send(1, task="t", transaction=db)
        assert isinstance(caught.value, ConfigError) or wrong == "closed"

    assert worker.jobs() == []
    if wrong == "other file":
        assert connect(tmp_path / "other.db").execute("SELECT * FROM sqlite_master").fetchall() == []


def test_a_worker_in_memory_has_no_second_connection(started, connect):
    worker = started(":memory:")

    with pytest.raises(ConfigError):
        worker.send(1, task="t", transaction=connect())


def test_a_transaction_that_began_before_somebody_elses_commit_is_refused_clearly(worker, connect):
    """Its snapshot is old, so it cannot write any more; the user has to begin again."""
    db = connect(isolation_level=None, timeout=0.1)
    db.execute("BEGIN")
    db.execute("SELECT * FROM sqlite_master").fetchall()
    worker.send(1, task="t")

    with pytest.raises(StoreError):
        worker.send(2, task="t", transaction=db)
    db.execute("ROLLBACK")

    until(lambda: [record.payload for record in worker.jobs()] == ["1"])


def test_a_job_committed_while_nobody_works_runs_at_the_next_start(make, path, connect):
    worker, seen = make(path), Seen()
    worker.send(0, task="t").cancel()
    db = connect()
    worker.send(1, task="t", transaction=db)
    worker.stop()
    with pytest.raises(WorkerStopped):
        worker.send(2, task="t", transaction=db)
    db.commit()
    worker.handlers["t"] = seen.add

    worker.start()

    assert seen.wait() == [1]


def test_a_long_transaction_of_the_user_only_delays_the_others(worker, connect):
    running = worker.send(1, task="t")
    finished(running)
    db = connect()
    inside = worker.send(2, task="t", transaction=db)
    look = worker.job(running.id).refresh()
    assert look.state is State.COMPLETED

    db.commit()

    assert result(inside) == 2
    assert result(worker.send(3, task="t")) == 3


def test_a_store_that_cannot_be_made_beside_the_users_transaction_says_so(make, path, connect):
    worker = make(path, busy_s=0.1)
    db = connect()
    db.execute("CREATE TABLE orders (id INTEGER)")
    db.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusy) as caught:
        worker.send(1, task="t", transaction=db)

    assert "worker.counts()" in caught.value.__notes__[0]
    db.rollback()
    job = worker.send(1, task="t", transaction=db)
    db.commit()
    assert [record.id for record in worker.jobs()] == [job.id]
