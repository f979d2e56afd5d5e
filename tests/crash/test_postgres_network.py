"""
The network between processes and their server fails, at a chosen moment or at any.

`DUTIFUL_TEST_ROUNDS` sets how often each kind of failure comes (1 without it).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from dutiful import StoreUnavailable, Worker
from dutiful.store import postgres_access
from tests.crash.harness import Program, wait_until
from tests.crash.on_postgres import NUMBERS_EACH, PostgresBooks, app, end, finish
from tests.servers.proxy import Proxy, To, When

ROUNDS = int(os.environ.get("DUTIFUL_TEST_ROUNDS", "1"))
LEASE_S = 2.0
SHORT = ("--lease-s", str(LEASE_S), "--busy-s", "2")


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    server = urlsplit(database_url)
    with Proxy(server.port or 5432, server.hostname or "127.0.0.1") as proxy:
        yield proxy
        proxy.heal()


@pytest.fixture
def through(database_url: str, proxy: Proxy) -> str:
    """The URL of the way through the proxy."""
    parts = urlsplit(database_url)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()


@pytest.fixture
def books(tmp_path: Path, database_url: str) -> PostgresBooks:
    return PostgresBooks.new(tmp_path, database_url)


# --- a commit without an answer -------------------------------------------------------------------


def stored(url: str) -> list[str]:
    with psycopg.connect(url) as db:
        db.execute("LOCK TABLE dutiful.job IN ACCESS EXCLUSIVE MODE")  # nobody is in the middle of anything
        return [
            payload for (payload,) in db.execute("SELECT payload FROM dutiful.job ORDER BY id").fetchall()
        ]


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("many", [1, 500])
def test_a_send_without_an_answer_to_its_commit_says_the_truth(
    database_url: str,
    through: str,
    proxy: Proxy,
    when: When,
    many: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It returned: stored, once. It raised: not stored, and it can be sent again."""
    monkeypatch.setattr(postgres_access, "_SILENCE_S", 2)  # a silent server is given up sooner
    client = Worker(through, busy_s=1)
    client.send("before", task="work")
    for round_ in range(ROUNDS):
        payloads = [f"{round_}.{number}" for number in range(many)]
        trap = proxy.cut_at_commit(when)
        try:
            client.send_many(payloads, task="work")
        except StoreUnavailable:  # not StoreUnknown: the server was there to be asked
            has_returned = False
        else:
            has_returned = True
        trap.wait()
        proxy.heal()

        found = stored(database_url)
        assert [f'"{each}"' in found for each in payloads] == [has_returned] * many
        assert len(found) == len(set(found))
        if when is not When.WITH:
            assert has_returned == (when is not When.BEFORE)
    assert client.send("after", task="work").id
    client.stop()


def test_commits_without_an_answer_of_workers_and_senders(
    books: PostgresBooks, through: str, proxy: Proxy
) -> None:
    """Whatever commits, a send, a claim, an outcome, a handler's transaction: each is told the truth."""
    chance = random.Random()
    with ExitStack() as stack:
        crew = [app(books, "--senders", "2", *SHORT, first=number, url=through) for number in range(2)]
        for member in crew:
            stack.callback(member.kill)
        for member in crew:
            member.wait_for("ready")
        for when in (When.BEFORE, When.WITH, When.AFTER) * (10 * ROUNDS):
            proxy.cut_at_commit(when, skip=chance.randrange(20)).wait()
        for member in crew:
            end(member)
    finish(books)

    assert books.broken() == [], books.figures()
    assert not books.noted("UNKNOWN")


# --- a network that swallows, cuts and delays -------------------------------------------------------


def pids(books: PostgresBooks, what: str) -> list[int]:
    return [entry.pid for entry in books.entries() if entry.what == what]


def test_a_worker_that_is_cut_off_for_longer_than_a_lease_loses_its_jobs_and_comes_back(
    books: PostgresBooks, through: str, proxy: Proxy
) -> None:
    """It stops what it runs; others do it, once; after the network has healed it works again."""
    client = Worker(books.url)
    cut_off = app(books, *SHORT, "--job-s", "60", url=through)
    other: Program | None = None
    try:
        cut_off.wait_for("ready")
        client.send_many(range(4), task="work")
        wait_until(lambda: len(pids(books, "start")) == 4)
        proxy.black_hole()
        wait_until(lambda: len(pids(books, "end")) == 4)  # told to stop, long before their 60 s
        # What the server's kernel does when nothing answers its keepalives: this proxy's kernel answers them.
        backends_of(books, "app")
        other = app(books, *SHORT)
        books.wait_until_finished()
        assert books.ask("SELECT attempt FROM dutiful.job") == [(2,)] * 4
        end(other)
        proxy.heal()
        client.send_many(range(4, 8), task="work")
        wait_until(lambda: len(pids(books, "start")) == 12)
        cut_off.kill()  # with jobs of a minute in its hands
        books.died(cut_off)
    finally:
        client.stop()
        cut_off.kill()
        if other is not None:
            other.kill()
    finish(books)

    assert books.broken() == [], books.figures()


def backends_of(books: PostgresBooks, name: str) -> None:
    """End the server's processes that work for the worker of this name."""
    with psycopg.connect(books.url, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE %s",
            (f"dutiful {name} %",),
        )


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_a_network_that_swallows_cuts_half_closes_and_delays(
    books: PostgresBooks, through: str, proxy: Proxy
) -> None:
    """One worker and a client behind it, one worker beside it; each failure lasts a while, then it heals."""
    chance = random.Random()

    def fail(kind: str) -> None:
        match kind:
            case "swallows":
                proxy.black_hole()
                time.sleep(1.5 * LEASE_S)  # longer than a lease
            case "swallows answers":
                proxy.black_hole(To.CLIENT)
                time.sleep(chance.uniform(0, LEASE_S))
            case "refuses":
                proxy.refuse()
                proxy.cut()
                time.sleep(chance.uniform(0, LEASE_S))
            case "delays":
                proxy.delay(100)
                time.sleep(chance.uniform(0, LEASE_S))
            case "cuts":
                proxy.cut(reset=chance.random() < 0.5)
            case _:
                proxy.half_close(To.SERVER if kind == "half-closes to the server" else To.CLIENT)

    kinds = [
        "swallows",
        "swallows answers",
        "refuses",
        "delays",
        "cuts",
        "half-closes to the server",
        "half-closes to the client",
    ]
    with ExitStack() as stack:
        crew = [
            app(books, *SHORT, "--senders", "1", "--name", "behind", first=0, url=through),
            app(books, *SHORT, "--senders", "1", "--name", "beside", first=1),
            app(books, *SHORT, "--senders", "2", "--no-work", first=2, url=through),
        ]
        for member in crew:
            stack.callback(member.kill)
        for member in crew:
            member.wait_for("ready")
        for kind in chance.sample(kinds * ROUNDS, len(kinds) * ROUNDS):
            before = set(books.acked())
            fail(kind)
            proxy.heal()
            wait_until_behind_has_sent(books, before)
        for member in crew:
            end(member)
    finish(books)

    assert books.broken() == [], books.figures()
    print(books.figures())


def wait_until_behind_has_sent(books: PostgresBooks, before: set[int]) -> None:
    """Wait until both who are behind the proxy have sent something else."""
    wait_until(lambda: {0, 2} <= senders_of(books.acked().keys() - before, books), 60)


def senders_of(jobs: set[int], books: PostgresBooks) -> set[int]:
    acked = books.acked()
    return {acked[job] // NUMBERS_EACH for job in jobs}


def test_a_frozen_server_is_waited_for(books: PostgresBooks) -> None:
    """SIGSTOP of the process that serves a worker's own connection, for longer than a lease."""
    with ExitStack() as stack:
        crew = [
            app(books, *SHORT, "--senders", "1", "--name", f"w{number}", first=number) for number in range(2)
        ]
        for member in crew:
            stack.callback(member.kill)
        for member in crew:
            member.wait_for("ready")
        found = books.ask(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'dutiful w0 worker'"
        )
        (backend,) = found[0]
        os.kill(backend, signal.SIGSTOP)
        time.sleep(1.5 * LEASE_S)
        os.kill(backend, signal.SIGCONT)
        before = set(books.acked())
        wait_until(lambda: {0, 1} <= senders_of(books.acked().keys() - before, books))
        for member in crew:
            end(member)
    finish(books)

    assert books.broken() == [], books.figures()
