"""Batches whose process is killed: before they run, in the middle, at their end, at random."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from dutiful import State, Worker
from tests.worker.tools import ran, script, until

KILLS = int(os.environ.get("DUTIFUL_TEST_KILLS", "60")) // 6


@pytest.fixture(params=["file", "postgres"])
def store(request, tmp_path):
    return str(tmp_path / "jobs.db") if request.param == "file" else request.getfixturevalue("database_url")


@pytest.fixture
def client(store):
    client = Worker(store)
    yield client
    client.stop()


@pytest.fixture
def rescuer(store):
    """A worker that has no handlers: it rescues, and runs nothing."""
    worker = Worker(store, name="rescuer")
    yield worker
    worker.stop()


HANGS = """
    worker = Worker(sys.argv[1])

    @worker.handler("t", batch=int(sys.argv[2]), wait=60)
    def handle(numbers):
        say("running", len(numbers))
        time.sleep(600)

    with worker:
        say("started")
        time.sleep(600)
"""
RUNS = """
    worker = Worker(sys.argv[1])

    @worker.handler("t", batch=20, wait=0.2)
    def handle(numbers):
        say(*numbers)

    with worker:
        while worker.counts().by_state.get(State.COMPLETED, 0) < int(sys.argv[2]):
            time.sleep(0.01)
"""


def test_all_of_a_batch_that_was_running_are_run_again_each_on_its_own(client, store, tmp_path):
    client.send_many(range(20), task="t")
    with script(tmp_path, HANGS, store, 20) as victim:
        victim.wait_for("running 20")
        victim.kill()
    client.send_many(range(20, 40), task="t")

    again = ran(tmp_path, RUNS, store, 40)

    lines = [line.split() for line in again.lines]
    alone = {line[0] for line in lines if len(line) == 1}
    assert alone >= set(map(str, range(20))), "a suspect is alone, so that the guilty one is found"
    assert sorted(int(n) for line in lines for n in line) == list(range(40))
    assert any(len(line) > 1 for line in lines), "the others are not held up by that"


def test_what_was_only_gathered_is_nobodys_fault(client, rescuer, store, tmp_path):
    jobs = client.send_many(range(5), task="t")
    with script(tmp_path, HANGS, store, 20) as victim:
        victim.wait_until(lambda: [job.state for job in jobs] == [State.RUNNING] * 5)
        victim.kill()

    rescuer.start()

    until(lambda: [job.state for job in jobs] == [State.PENDING] * 5)
    assert [(job.refresh().crashes, job.refresh().failures) for job in jobs] == [(0, 0)] * 5


def test_more_than_can_be_marked_are_all_suspects(client, rescuer, store, tmp_path):
    """4,096 numbers are there to mark what runs; a batch of more is one that nobody is acquitted of."""
    jobs = client.send_many(range(5000), task="t")
    with script(tmp_path, HANGS, store, 5000) as victim:
        victim.wait_for("running 5000")
        victim.kill()

    rescuer.start()

    until(lambda: client.counts().by_state.get(State.RUNNING, 0) == 0)
    assert {jobs[at].refresh().crashes for at in (0, 1, 2500, 4999)} == {1}


def test_the_one_that_kills_is_found_and_the_others_are_done(client, store, tmp_path):
    source = """
        worker = Worker(sys.argv[1])

        @worker.handler("t", batch=10, wait=0.05)
        def handle(numbers):
            if 3 in numbers:
                os.kill(os.getpid(), signal.SIGKILL)

        with worker:
            while worker.counts().due or worker.counts().by_state.get(State.RUNNING, 0):
                time.sleep(0.01)
    """
    jobs = client.send_many(range(10), task="t")
    deaths = 0
    for _ in range(8):
        with script(tmp_path, source, store) as program:
            if program.wait(60) == 0:
                break
            deaths += 1

    assert deaths == 3  # as many as max_crashes
    records = [job.refresh() for job in jobs]
    assert [each.state for each in records] == [State.DEAD if n == 3 else State.COMPLETED for n in range(10)]
    assert "worker died" in records[3].errors[-1].message


ONCE = """
    worker = Worker(sys.argv[1], max_crashes=1000)

    @worker.handler("t", batch=10, wait=0.01)
    def handle(numbers, ctx):
        with ctx.transaction() as db:
            for number in numbers:
                db.execute(f"INSERT INTO done VALUES ({int(number)})")
                time.sleep(0.0005)

    worker.start()
    say("started")
    time.sleep(600)
"""


def test_a_batch_in_a_transaction_is_done_once_whoever_is_killed(client, store, tmp_path):
    total = 600
    with client.opened().sql() as sql:
        sql.change("CREATE TABLE done (n integer)")
    client.send_many(range(total), task="t")
    chance = random.Random(9)

    with ExitStack() as programs:

        def begin():
            made = programs.enter_context(script(tmp_path, ONCE, store))
            made.wait_for("started")
            return made

        alive = [begin(), begin()]
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.01, 0.2))  # no fact to wait for: any moment will do
            alive.pop(chance.randrange(2)).kill()
            alive.append(begin())
        alive[0].wait_until(lambda: client.counts().by_state.get(State.COMPLETED, 0) == total, 60)

    with client.opened().sql_look() as look:
        done = Counter(row[0] for row in look.rows("SELECT n FROM done"))
    assert done == dict.fromkeys(range(total), 1)
