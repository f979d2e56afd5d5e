"""Several processes send and work on one file, by the books of tests/crash/harness.py."""

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from dutiful import State, StoreBusy
from tests.crash.harness import Books, Program
from tests.worker.tools import WAIT_S, Seen, background, result, script, until, within

APP = Path(__file__).parent.parent / "crash" / "programs" / "app.py"


@contextlib.contextmanager
def crew(books, *options, count=3, first=0):
    """Run some of the programs that send and work."""
    numbers = [str((first + n) * 1_000_000) for n in range(count)]
    members = [Program(APP, books.folder, "--first", number, *options) for number in numbers]
    try:
        yield members
    finally:
        for member in members:
            member.kill()


@pytest.mark.parametrize("batch", [1, 25])
def test_three_that_send_and_work_lose_nothing_and_run_nothing_twice(tmp_path, batch):
    books = Books(tmp_path)
    with crew(books, "--senders", "3", "--jobs", "150", "--batch", str(batch), "--job-s", "0.001") as members:
        for member in members:
            member.wait_for("sent")
        books.wait_until_finished()

        assert books.problems() == []
    assert len(books.acked()) == 3 * 3 * 150
    assert books.repeats() == 0
    assert len({run.pid for run in books.runs()}) == 3  # each had its share
    for member in members:
        assert [line for line in member.lines if line.startswith("failed")] == []
        assert "locked" not in member.errors
        assert "Traceback" not in member.errors


def test_workers_that_come_and_go_run_nothing_twice(tmp_path):
    books = Books(tmp_path)
    passing = ("--senders", "1", "--jobs", "50", "--stop")
    with crew(books, "--senders", "1", "--jobs", "400", "--pause-s", "0.002", count=1) as (steady,):
        for n in range(1, 4):
            with crew(books, *passing, first=10 * n) as few:
                for member in few:
                    assert member.wait() == 0, member.errors
        steady.wait_for("sent")
        books.wait_until_finished()

        assert books.problems() == []
    assert books.repeats() == 0


def lock_for(path, seconds):
    """Hold the write lock of the file in another process; return when it is held."""
    return script(
        path.parent,
        """
        import sqlite3
        db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
        db.execute("BEGIN IMMEDIATE")
        say("held")
        time.sleep(float(sys.argv[2]))
        db.execute("ROLLBACK")
        db.close()
        say("free")
        """,
        path,
        seconds,
    )


def test_a_strangers_transaction_is_waited_for(started, path):
    worker = started(path, handlers={"t": lambda n: n})
    worker.send(0, task="t")

    with lock_for(path, 0.7) as stranger:
        stranger.wait_for("held")
        jobs = [background(worker.send, n, task="t") for n in range(5)]

        assert [result(job.result(WAIT_S)) for job in jobs] == list(range(5))


def test_a_strangers_transaction_that_takes_too_long_is_a_clear_error(started, path, caplog):
    worker = started(path, handlers={"t": lambda n: n}, busy_s=0.3)
    result(worker.send(0, task="t"))

    with lock_for(path, 2) as stranger:
        stranger.wait_for("held")
        began = time.monotonic()
        with pytest.raises(StoreBusy, match="nothing was written"):
            worker.send(1, task="t")
        assert time.monotonic() - began < 1.5
        with pytest.raises(StoreBusy):
            worker.send_many([1, 2], task="t")
        assert len(worker.jobs()) == 1  # looking is not kept waiting
        stranger.wait_for("free")

    assert result(worker.send(2, task="t")) == 2
    assert [record.payload for record in worker.jobs()] == ["2", "0"]
    assert "database is locked" not in caplog.text


def test_outcomes_are_kept_while_the_store_is_busy(started, path, gate):
    worker = started(path, handlers={"hold": gate.hold}, busy_s=0.2)
    jobs = worker.send_many(range(8), task="hold")
    gate.entered.wait(8)

    with lock_for(path, 1) as stranger:
        stranger.wait_for("held")
        gate.open()
        with pytest.raises(StoreBusy):
            worker.send(1, task="hold")

        assert [result(job) for job in jobs] == list(range(8))
    assert [job.attempt for job in jobs] == [1] * 8


def test_a_stop_while_the_store_is_busy_writes_the_last_outcomes_when_it_can(make, path, gate):
    worker = make(path, handlers={"hold": gate.hold}, busy_s=0.2)
    worker.start()
    job = worker.send(1, task="hold")
    gate.entered.wait()

    with lock_for(path, 0.8) as stranger:
        stranger.wait_for("held")
        gate.open()
        within(WAIT_S, worker.stop, 10)

    record = make(path).job(job.id).refresh()
    assert (record.state, record.attempt) == (State.COMPLETED, 1)


def test_an_outcome_is_never_lost_to_a_busy_store(started, path):
    """A send that fails at the very moment when an outcome travels with it must not take it along."""
    worker, ended = started(path, busy_s=0.05), Seen()
    worker.handlers["t"] = ended.add
    ending = threading.Event()

    def pester():
        while not ending.is_set():
            db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)
            db.execute("BEGIN IMMEDIATE")
            ending.wait(0.1)
            db.execute("ROLLBACK")
            db.close()
            ending.wait(0.02)

    pest = background(pester)
    jobs = []
    for n in range(60):
        with contextlib.suppress(StoreBusy):
            jobs.append(worker.send(n, task="t"))
    ending.set()
    pest.result(WAIT_S)

    for job in jobs:
        until(lambda job=job: job.state is State.COMPLETED)
    assert len(ended.all) == len(set(ended.all)) == len(jobs)
