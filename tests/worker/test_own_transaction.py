"""`ctx.transaction()`: the handler's writes and the job's completion, together and once."""

import sqlite3
import threading

import pytest

from dutiful import Backoff, Retry, State, StoreBusy
from tests.worker.tools import WAIT_S, Seen, finished, ran, result, script, until

AT_ONCE = Retry(backoff=Backoff(first_s=0))
ONCE = Retry(max_attempts=1)


def balance(path):
    db = sqlite3.connect(path)
    try:
        return db.execute("SELECT total FROM account").fetchone()[0]
    finally:
        db.close()


@pytest.fixture
def account(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE account (total INTEGER)")
    db.execute("INSERT INTO account VALUES (0)")
    db.commit()
    db.close()
    return path


def test_writes_and_completion_become_true_together(started, account):
    worker = started(account)
    states = Seen()

    @worker.handler("pay")
    def pay(amount, ctx):
        with ctx.transaction() as db:
            db.execute("UPDATE account SET total = total + ?", (amount,))
            states.add((balance(account), worker.job(ctx.id).state))
        states.add((balance(account), worker.job(ctx.id).state))

    record = finished(worker.send(5, task="pay"))

    assert states.wait(2) == [(0, State.RUNNING), (5, State.COMPLETED)]
    assert (record.state, record.attempt, record.failures) == (State.COMPLETED, 1, 0)


def test_an_error_inside_undoes_both(started, account):
    worker = started(account)

    @worker.handler("pay", retry=AT_ONCE)
    def pay(amount, ctx):
        with ctx.transaction() as db:
            db.execute("UPDATE account SET total = total + ?", (amount,))
            if ctx.failures < 2:
                raise ValueError

    record = finished(worker.send(5, task="pay"))

    assert (balance(account), record.failures, record.attempt) == (5, 2, 3)


def test_an_error_after_it_changes_nothing(started, account, caplog):
    worker = started(account)

    @worker.handler("pay", retry=AT_ONCE)
    def pay(amount, ctx):
        with ctx.transaction() as db:
            db.execute("UPDATE account SET total = total + ?", (amount,))
        raise ValueError("after the block")

    job = worker.send(5, task="pay")

    assert finished(job).state is State.COMPLETED
    worker.stop()
    assert balance(account) == 5
    assert "dead" not in caplog.text


def test_it_works_in_memory_and_from_a_coroutine(started, store, seen):
    worker = started(store)

    @worker.handler("t")
    async def handle(n, ctx):
        with ctx.transaction() as db:
            db.execute("CREATE TABLE mine (n INTEGER)")
            db.execute("INSERT INTO mine VALUES (?)", (n,))
            seen.add(db.execute("SELECT n FROM mine").fetchone()[0])

    assert finished(worker.send(5, task="t")).state is State.COMPLETED
    assert seen.all == [5]


def test_sending_inside_it_says_how_to_do_it(started, store):
    worker = started(store, handlers={"other": lambda n: n})

    @worker.handler("t", retry=ONCE)
    def handle(n, ctx):
        with ctx.transaction():
            worker.send(1, task="other")

    (error,) = finished(worker.send(0, task="t")).errors

    assert error.type == "ConfigError"
    assert "transaction=" in error.message
    assert [record.task for record in worker.jobs()] == ["t"]
    assert result(worker.send(7, task="other")) == 7


def test_a_job_sent_with_its_connection_exists_if_it_commits(started, store):
    worker = started(store, handlers={"other": lambda n: n})
    sent = Seen()

    @worker.handler("t", retry=AT_ONCE)
    def handle(n, ctx):
        with ctx.transaction() as db:
            job = worker.send(ctx.attempt, task="other", transaction=db)
            if ctx.attempt == 1:
                raise ValueError
        sent.add(job)

    worker.send(0, task="t")

    assert sent.wait()[0].result(timeout=5) == 2
    assert [record.payload for record in worker.jobs(task="other")] == ["2"]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_ending_it_by_hand_is_an_error(started, account, end):
    worker = started(account, handlers={"other": lambda n: n})

    @worker.handler("t", retry=ONCE)
    def handle(n, ctx):
        with ctx.transaction() as db:
            db.execute(end)

    (error,) = finished(worker.send(0, task="t")).errors

    assert error.type == "ConfigError"
    assert result(worker.send(7, task="other")) == 7


def test_only_the_attempt_that_owns_the_job_gets_it(started, account, gate, seen):
    worker = started(account, concurrency=1, lease_s=0.2)

    @worker.handler("pay", timeout=0.1, retry=AT_ONCE)
    def pay(amount, ctx):
        if ctx.attempt == 1:
            gate.hold(amount)
        try:
            with ctx.transaction() as db:
                db.execute("UPDATE account SET total = total + ?", (amount,))
        except BaseException as error:
            seen.add((ctx.attempt, type(error).__name__))
            raise

    job = worker.send(5, task="pay")
    assert finished(job).attempt == 2

    gate.open()

    assert seen.wait() == [(1, "LeaseLost")]
    assert balance(account) == 5


def test_a_lock_that_is_not_free_in_time_is_store_busy(started, account):
    worker = started(account, busy_s=0.2)
    begun, locked = threading.Event(), threading.Event()

    @worker.handler("t", retry=ONCE)
    def handle(n, ctx):
        begun.set()
        assert locked.wait(WAIT_S)
        try:
            with ctx.transaction():
                pass
        finally:
            ended.set()

    ended = threading.Event()
    job = worker.send(0, task="t")
    assert begun.wait(WAIT_S)
    db = sqlite3.connect(account, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    locked.set()
    assert ended.wait(WAIT_S)
    db.execute("ROLLBACK")
    db.close()

    (error,) = finished(job).errors
    assert error.type == StoreBusy.__name__
    assert "database is locked" not in error.message


PAY = """
    path, count = sys.argv[1], int(sys.argv[2])
    worker = Worker(path, max_crashes=10**6, concurrency=2)

    @worker.handler("pay")
    def pay(amount, ctx):
        with ctx.transaction() as db:
            db.execute("UPDATE account SET total = total + ?", (amount,))

    if count:
        worker.send_many([1] * count, task="pay")
    worker.start()
    say("started")
    while any(worker.counts().by_state[s] for s in ("pending", "running")):
        time.sleep(0.002)
    worker.stop()
"""


@pytest.mark.parametrize("point", ["transaction.before_commit", "transaction.after_commit"])
def test_it_is_once_though_the_process_dies_right_beside_the_commit(tmp_path, account, point):
    count = 12
    for n in (1, 2, 5):
        env = {"DUTIFUL_CRASHPOINT": f"{point}:{n}"}
        with script(tmp_path, PAY, account, count if n == 1 else 0, env=env) as dying:
            assert dying.wait() == 137
    ran(tmp_path, PAY, account, 0)

    assert balance(account) == count


def test_it_is_once_however_often_the_process_is_killed(tmp_path, account, make):
    count = 600
    client = make(account)
    client.send_many([1] * count, task="pay")
    for n in range(8):
        with script(tmp_path, PAY, account, 0) as victim:
            victim.wait_for("started")
            if n % 2:  # else right at the start
                paid = balance(account)
                until(lambda paid=paid, victim=victim: balance(account) > paid or not victim.running)
            victim.kill()
    ran(tmp_path, PAY, account, 0)

    assert balance(account) == count
    assert client.counts().by_state[State.COMPLETED] == count
