"""
The user's tables and the jobs agree, however often the process is killed.

`DUTIFUL_TEST_KILLS` sets how many kills test_kill.py makes (60 without it); here each library has
a twentieth of that.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from dutiful import State, Worker
from tests.crash.harness import Program, program, wait_until

PROGRAM = Path(__file__).parent / "programs" / "own_transaction.py"
ROOT = Path(__file__).parents[2]
KILLS = max(2, int(os.environ.get("DUTIFUL_TEST_KILLS", "60")) // 20)
NUMBERS_EACH = 1_000_000
ON = {
    "sqlite": ["sqlite3", "SQLAlchemy Session", "Django"],
    "postgres": ["psycopg", "asyncpg", "SQLAlchemy Session", "SQLAlchemy AsyncSession asyncpg", "Django"],
}
ALL = [(database, library) for database, libraries in ON.items() for library in libraries]


@pytest.fixture
def url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return str(tmp_path / "jobs.db") if database == "sqlite" else request.getfixturevalue("database_url")


def on_database(url: str, sql: str) -> list[int]:
    """Run one statement; return the first column of what it gives."""
    if "://" in url:
        import psycopg

        with psycopg.connect(url, autocommit=True) as db:
            cursor = db.execute(sql)
            return [] if cursor.description is None else [row[0] for row in cursor.fetchall()]
    with closing(sqlite3.connect(url, timeout=30, isolation_level=None)) as db:
        return [row[0] for row in db.execute(sql).fetchall()]


def run(url: str, library: str, *args: object) -> Program:
    environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return Program(PROGRAM, url, library, *map(str, args), env=environment)


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize(("database", "library"), ALL, ids=[" ".join(each) for each in ALL])
def test_the_users_table_and_the_jobs_agree_after_any_number_of_kills(
    url: str, database: str, library: str
) -> None:
    """What committed with a row is a job, run once; what rolled back is neither."""
    chance = random.Random()
    worker = Worker(url)
    worker.counts()  # the store is there
    on_database(url, "CREATE TABLE orders (n BIGINT)")
    on_database(url, "CREATE TABLE done (n BIGINT)")
    for round_ in range(KILLS):
        victim = run(url, library, round_ * NUMBERS_EACH)
        try:
            victim.wait_for("ready")
            time.sleep(chance.uniform(0, 0.15))
        finally:
            victim.kill()
        assert "Traceback" not in victim.errors, victim.errors
    with program(PROGRAM, url, library, "0", "--no-send", env={"PYTHONPATH": str(ROOT)}) as last:
        last.wait_for("ready")
        states = (State.PENDING, State.RUNNING)
        # Each kill leaves some hundreds of jobs.
        wait_until(lambda: not any(worker.counts().by_state[state] for state in states), 30 + KILLS)
        last.signal(signal.SIGTERM)
        assert last.wait() == 0, last.errors

    orders = on_database(url, "SELECT n FROM orders ORDER BY n")
    jobs = worker.jobs(limit=1_000_000)
    worker.stop()
    assert sorted(int(job.payload) for job in jobs) == orders
    assert {job.state for job in jobs} == {State.COMPLETED}
    assert on_database(url, "SELECT n FROM done ORDER BY n") == orders
    assert len(orders) == len(set(orders)) >= KILLS
    assert all(number % 5 for number in orders)
