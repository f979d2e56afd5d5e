"""
Processes on PostgreSQL that work and send are killed or frozen, over and over.

`DUTIFUL_TEST_KILLS` sets how many kills (60 without it, of which a third is made here).
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psycopg
import pytest

from tests.crash.harness import Program, wait_until
from tests.crash.on_postgres import KILLS, PostgresBooks, app, end, finish

HERE = KILLS // 3
LEASE_S = 2.0
CREW = ("--senders", "1")


@pytest.fixture
def books(tmp_path: Path, database_url: str) -> PostgresBooks:
    return PostgresBooks.new(tmp_path, database_url)


def kill(books: PostgresBooks, victim: Program) -> None:
    victim.kill()
    books.died(victim)
    assert "Traceback" not in victim.errors, victim.errors


@pytest.mark.timeout(120 + 3 * KILLS)
def test_on_postgres_one_of_several_processes_is_killed_while_the_others_go_on(books: PostgresBooks) -> None:
    """Two workers that also send, and a client; in turn one of them dies and is replaced."""
    chance = random.Random()
    crew = [app(books, *CREW, first=0), app(books, *CREW, first=1), app(books, *CREW, "--no-work", first=2)]
    try:
        for round_ in range(HERE):
            place = chance.randrange(3)
            crew[place].wait_for("ready")
            time.sleep(chance.uniform(0, 0.1))
            kill(books, crew[place])
            idle = ["--no-work"] if place == 2 else []
            crew[place] = app(books, *CREW, *idle, first=3 + round_)
    finally:
        for member in crew:
            kill(books, member)
    finish(books)

    assert books.problems() == [], books.figures()
    assert len(books.acked()) > HERE
    print(books.figures())


def test_on_postgres_a_worker_that_is_frozen_for_longer_than_its_lease_keeps_its_job(
    books: PostgresBooks,
) -> None:
    """SIGSTOP: its kernel still answers for it, so the server keeps its lock and nobody runs its job."""
    short = ("--lease-s", str(LEASE_S))
    frozen = app(books, *short, "--senders", "1", "--jobs", "2", "--job-s", "1", "--deaf")
    other = app(books, *short)
    try:
        other.wait_for("ready")
        frozen.wait_for("sent")
        wait_until(lambda: len(books.entries()) == 2)
        owners = {entry.pid for entry in books.entries()}
        frozen.signal(signal.SIGSTOP)
        time.sleep(2 * LEASE_S)  # what must not happen leaves no fact to wait for
        frozen.signal(signal.SIGCONT)
        books.wait_until_finished()
        end(frozen)
        end(other)
    finally:
        frozen.kill()
        other.kill()

    assert books.problems() == []
    assert {entry.pid for entry in books.entries()} == owners


def test_on_postgres_what_a_worker_brings_after_others_took_over_changes_nothing(
    books: PostgresBooks,
) -> None:
    """Frozen, and given up by the server: its jobs are done elsewhere. Then it wakes and ends them."""
    short = ("--lease-s", str(LEASE_S))
    frozen = app(books, *short, "--senders", "1", "--jobs", "4", "--job-s", "0.5", "--deaf")
    other: Program | None = None
    try:
        wait_until(lambda: len(books.entries()) == 4)
        frozen.signal(signal.SIGSTOP)
        with psycopg.connect(books.url, autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        other = app(books, *short)
        books.wait_until_finished()
        done = books.ask("SELECT id, attempt, finished_at FROM dutiful.job ORDER BY id")
        frozen.signal(signal.SIGCONT)
        wait_until(lambda: sum(entry.pid == frozen.pid for entry in books.entries()) == 8)
        end(frozen)
        end(other)
    finally:
        frozen.kill()
        if other is not None:
            other.kill()

    assert books.broken() == []
    assert books.ask("SELECT id, attempt, finished_at FROM dutiful.job ORDER BY id") == done
    assert {attempt for _id, attempt, _at in done} == {2}
