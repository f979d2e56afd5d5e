"""
Several hosts, each with its own clock, on one server; one is cut off and comes back.

`DUTIFUL_TEST_ROUNDS` sets how often (1 without it); with more than one the leases are the real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.crash.harness import Program, wait_until
from tests.crash.hosts import Host, Lan
from tests.crash.on_postgres import NUMBERS_EACH, PostgresBooks, app, end, finish
from tests.servers.postgres import Server
from tests.servers.shared import fresh_database

ROUNDS = int(os.environ.get("DUTIFUL_TEST_ROUNDS", "1"))
LEASE_S = 2.0 if ROUNDS == 1 else 0.0
SILENCE_S = 20.0 if ROUNDS > 1 else 2.5 * LEASE_S  # longer than the server waits for who is silent
OFFSETS_S = {"ahead": 600.0, "behind": -600.0, "right": 0.0}
MINUTES_MS = 300_000  # far more than anything takes here, far less than the clocks are off
WORKING = (
    "--lease-s",
    str(LEASE_S),
    "--busy-s",
    "3",
    "--senders",
    "1",
    "--job-s",
    "0.05",
    "--pause-s",
    "0.02",
)


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Lan(tmp_path) as lan:
        yield lan


@pytest.fixture
def books(lan: Lan, tmp_path: Path) -> Iterator[PostgresBooks]:
    with Server.create(listen=lan.address) as server:
        server.start()
        with fresh_database(server.url()) as url:
            yield PostgresBooks.new(tmp_path, url)


@pytest.fixture
def hosts(lan: Lan) -> list[Host]:
    return [lan.host(name, clock_s=offset_s) for name, offset_s in OFFSETS_S.items()]


def senders_since(books: PostgresBooks, before: Collection[int]) -> set[int]:
    return {number // NUMBERS_EACH for job, number in books.acked().items() if job not in before}


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_a_host_is_cut_off_and_comes_back(books: PostgresBooks, hosts: list[Host]) -> None:
    """The others do its jobs, once each, whatever the clocks say; then it works and sends again."""
    with ExitStack() as stack:
        crew: list[Program] = []
        for number, host in enumerate(hosts):
            crew.append(app(books, *WORKING, "--name", host.name, first=number, on=host))
            stack.callback(crew[-1].kill)
        for member, host in zip(crew, hosts, strict=True):
            wrong_s = float(member.wait_for("ready").split()[1]) - time.time()
            assert round(wrong_s / 300) == OFFSETS_S[host.name] / 300  # its clock is off indeed
        for round_ in range(ROUNDS):
            place = round_ % len(hosts)
            interrupt(books, hosts[place], crew[place], place)
        for member in crew:
            end(member)
    finish(books)

    assert books.broken() == [], books.figures()
    assert by_the_servers_clock(books)
    print(books.figures())


def interrupt(books: PostgresBooks, host: Host, member: Program, place: int) -> None:
    """Cut one host off for longer than the server waits for it, and heal it; return when it works again."""
    everybody = {0, 1, 2}
    wait_until_sent(books, everybody)
    host.cut_off()
    time.sleep(SILENCE_S)
    wait_until_sent(books, everybody - {place})
    wait_until(lambda: not held_by(books, host))
    host.heal()
    wait_until_sent(books, everybody)
    so_far = len(by(books, member))
    wait_until(lambda: len(by(books, member)) > so_far)


def wait_until_sent(books: PostgresBooks, senders: set[int]) -> None:
    """Wait until each of these has sent something after this call."""
    before = books.acked().keys()
    wait_until(lambda: senders_since(books, before) >= senders, 60)


def held_by(books: PostgresBooks, host: Host) -> int:
    """Return how many jobs the worker on this host owns."""
    running = books.ask(
        "SELECT w.name FROM dutiful.job AS j JOIN dutiful.worker AS w ON w.id = j.owner"
        " WHERE j.state = 'running'"
    )
    return sum(name == host.name for (name,) in running)


def by(books: PostgresBooks, member: Program) -> list[int]:
    """Return the jobs that a process began."""
    return [entry.job_id for entry in books.entries() if entry.pid == member.pid and entry.what == "start"]


def by_the_servers_clock(books: PostgresBooks) -> bool:
    """Tell whether no instant that is stored is a host's own."""
    now_ms = time.time() * 1000  # the server runs here
    rows = books.ask("SELECT created_at, due_at, started_at, finished_at FROM dutiful.job")
    return all(abs(at - now_ms) < MINUTES_MS for row in rows for at in row)


def test_a_job_is_due_by_the_servers_clock(books: PostgresBooks, hosts: list[Host]) -> None:
    """Each host sends jobs with a delay, and all of them work: none is early, none is minutes late."""
    options = ("--lease-s", str(LEASE_S), "--senders", "1", "--jobs", "10", "--delay-s", "1")
    with ExitStack() as stack:
        crew: list[Program] = []
        for number, host in enumerate(hosts):
            crew.append(app(books, *options, "--name", host.name, first=number, on=host))
            stack.callback(crew[-1].kill)
        for member in crew:
            member.wait_for("sent")
        books.wait_until_finished()
        for member in crew:
            end(member)

    assert books.problems() == []
    assert len(books.acked()) == 30
    assert by_the_servers_clock(books)
    rows = books.ask("SELECT created_at, due_at, started_at FROM dutiful.job")
    assert all(
        due_at - created_at == 1000 and started_at >= due_at for created_at, due_at, started_at in rows
    )
