"""
The server's side fails: its processes are ended one by one, it falls and comes back, another takes its place.

`DUTIFUL_TEST_KILLS` sets how many backends are ended (60 without it), `DUTIFUL_TEST_ROUNDS` in how many
rounds the server is restarted ten times (1 without it).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from dutiful import StoreUnavailable, Worker
from dutiful.store import drafting
from dutiful.store.contract import Work
from dutiful.store.special import schedules
from dutiful.store.special.schedules import Declared
from tests.crash.harness import Program, wait_until
from tests.crash.on_postgres import FINISH_S, KILLS, PostgresBooks, app, end, finish
from tests.servers.postgres import Server
from tests.servers.proxy import Proxy
from tests.servers.shared import fresh_database

ROUNDS = int(os.environ.get("DUTIFUL_TEST_ROUNDS", "1"))
RESTARTS = 10
SENDERS = ("--senders", "4", "--no-work")


@contextmanager
def at_work(books: PostgresBooks, *, url: str = "") -> Generator[list[Program]]:
    """Run two workers that send and a client; afterwards stop them, and let one worker do what is left."""
    with ExitStack() as stack:
        crew = [app(books, "--senders", "1", first=number, url=url) for number in range(2)]
        crew.append(app(books, *SENDERS, first=2, url=url))
        for member in crew:
            stack.callback(member.kill)
        for member in crew:
            member.wait_for("ready")
        yield crew
        for member in crew:
            end(member)


def goes_on(books: PostgresBooks) -> None:
    """Wait until something has been acknowledged, and something completed, after this call."""
    acked, entries = len(books.acked()), len(books.entries())
    wait_until(lambda: len(books.acked()) > acked and len(books.entries()) > entries + 1, FINISH_S)


@pytest.mark.timeout(120 + KILLS)
def test_any_of_our_backends_is_ended_at_any_moment(tmp_path: Path, database_url: str) -> None:
    """pg_terminate_backend: of senders, workers, handlers' transactions, listeners."""
    books, chance = PostgresBooks.new(tmp_path, database_url), random.Random()
    ended = 0
    with at_work(books), psycopg.connect(database_url, autocommit=True) as db:
        while ended < KILLS:
            time.sleep(chance.uniform(0, 0.05))
            row = db.execute(
                "SELECT application_name, pg_terminate_backend(pid) FROM"
                " (SELECT * FROM pg_stat_activity WHERE datname = current_database()"
                "     AND application_name LIKE 'dutiful%' ORDER BY random() LIMIT 1) AS one"
            ).fetchone()
            ended += row is not None
        goes_on(books)
    finish(books)

    assert books.broken() == [], books.figures()
    print(books.figures())


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_the_server_is_restarted_ten_times_without_a_goodbye(tmp_path: Path) -> None:
    """Each time all that is in flight is lost: what was acknowledged is there, what was refused is not."""
    chance = random.Random()
    with Server.create() as server:
        server.start()
        for round_ in range(ROUNDS):
            folder = tmp_path / str(round_)
            folder.mkdir()
            with fresh_database(server.url()) as url:
                books = PostgresBooks.new(folder, url)
                with at_work(books):
                    for _ in range(RESTARTS):
                        goes_on(books)
                        time.sleep(chance.uniform(0, 0.3))
                        server.restart("immediate")
                    goes_on(books)
                finish(books)

                assert books.broken() == [], books.figures()
                print(books.figures())


# --- another server takes over ---------------------------------------------------------------------


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_standby_takes_over(tmp_path: Path, is_behind: bool) -> None:
    """What it had heard of is there, nothing is stuck, and no id is given twice; what it had not is lost."""
    with ExitStack() as stack:
        primary = stack.enter_context(Server.create())
        primary.start()
        proxy = stack.enter_context(Proxy(primary.port))
        books = PostgresBooks.new(tmp_path, primary.url(port=proxy.port))
        standby = stack.enter_context(Server.standby_of(primary))
        standby.start()
        with at_work(books):
            goes_on(books)
            known = books.acked()
            standby.catch_up(primary)
            if is_behind:
                standby.pause()
                for _ in range(3):
                    goes_on(books)
            primary.kill9()
            if is_behind:
                standby.resume()
            standby.promote()
            proxy.retarget(standby.port)
            proxy.cut()
            goes_on(books)
        finish(books)

        lost = [each for each in books.broken() if each.startswith("lost")]
        assert set(books.broken()) == set(lost), books.figures()
        assert not known.keys() & {int(each.split()[2]) for each in lost}
        assert given_twice(books) == []


def given_twice(books: PostgresBooks) -> list[int]:
    """Return the ids that two sends were told."""
    lines = [line.split() for line in books.acks.read_text().splitlines()]
    ids = Counter(int(job_id) for word, job_id, _number in lines if word == "ACK")
    return [job_id for job_id, times in ids.items() if times > 1]


def test_ids_that_the_new_server_has_not_heard_of_are_not_given_again() -> None:
    """A late result of a job that is lost must not be taken for another's."""
    with ExitStack() as stack:
        primary = stack.enter_context(Server.create())
        primary.start()
        proxy = stack.enter_context(Proxy(primary.port))
        standby = stack.enter_context(Server.standby_of(primary))
        standby.start()
        client, other = (Worker(primary.url(port=proxy.port)) for _ in range(2))
        other.counts()
        kept = {job.id for job in client.send_many(range(100), task="work")}
        with other._store.sql() as sql:
            schedules.declare(
                sql, Declared("nightly", "every 86400", "latest", "work"), sql.now + 86_400_000, queue="q"
            )
        standby.catch_up(primary)
        standby.stop("immediate")
        given = kept | {client.send(number, task="work").id for number in range(100)}
        primary.kill9()
        standby.start()
        standby.promote()
        proxy.retarget(standby.port)
        proxy.cut()

        with other._store.sql() as sql:  # the first of all to take one
            again = {schedules.run(sql, found) for found in [schedules.named(sql, "nightly")] if found}
        again |= {worker.send(number, task="work").id for number in range(100) for worker in (other, client)}

        assert len(again) == 201
        assert not given & again
        assert {job.id for job in client.jobs(limit=10_000)} == kept | again
        client.stop()
        other.stop()


# --- what a crash forgets --------------------------------------------------------------------------


@pytest.fixture
def forgetful() -> Iterator[Server]:
    """A server that loses in a crash what is not committed: it stays out of the log's file until then."""
    with Server.create(settings={"wal_writer_delay": "10s"}) as server:
        server.start()
        yield server


@contextmanager
def crashing_before_commit(server: Server, how: Callable[[], object]) -> Generator[None]:
    """Let it crash once in the next step, and others have the numbers of the transactions that it lost."""
    moments = [how]

    def crash(_work: Work) -> None:
        if moments:
            moments.pop()()
            wait_until(lambda: answers(server))
            with psycopg.connect(server.url(), autocommit=True) as db:
                for _ in range(20):
                    db.execute("SELECT pg_current_xact_id()")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "before_commit", crash)
        yield
    assert not moments


def answers(server: Server) -> bool:
    try:
        psycopg.connect(server.url()).close()
    except psycopg.OperationalError:
        return False
    return True


def kill_and_start(server: Server) -> None:
    server.kill9()
    server.start()


def kill_a_backend(server: Server) -> None:
    """Kill one of its processes, so that it ends all others and recovers."""
    with psycopg.connect(server.url(), autocommit=True) as db:
        os.kill(db.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            db.execute("SELECT pg_sleep(60)")


@pytest.mark.parametrize("how", [kill_and_start, kill_a_backend])
def test_a_transactions_number_that_a_crash_gives_away_again_misleads_nobody(
    forgetful: Server, how: Callable[[Server], object]
) -> None:
    """The send is lost in the crash; its number is given to another, which commits before the sender asks."""
    client = Worker(forgetful.url())
    client.send(0, task="work")

    with crashing_before_commit(forgetful, lambda: how(forgetful)), pytest.raises(StoreUnavailable):
        client.send(1, task="work")

    assert [job.payload for job in client.jobs()] == ["0"]
    client.send(2, task="work")
    client.stop()


def test_ids_that_a_crash_has_forgotten_are_not_given_twice(forgetful: Server) -> None:
    """What one client has at hand is not given to another, though the crash came right after it was taken."""
    client, other = Worker(forgetful.url()), Worker(forgetful.url())
    client.send_many(range(100), task="work")
    with (
        crashing_before_commit(forgetful, lambda: kill_and_start(forgetful)),
        pytest.raises(StoreUnavailable),
    ):
        client.send(1, task="work")

    ids = [worker.send(2, task="work").id for _ in range(20) for worker in (client, other)]

    assert len(set(ids)) == 40
    client.stop()
    other.stop()


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_the_id_of_a_job_with_a_key_is_not_given_twice(
    forgetful: Server, durability: Literal["full", "normal"]
) -> None:
    """With "normal" a crash may lose the job, but never gives its id, which its sender has, to another."""
    client = Worker(forgetful.url(), durability=durability)
    first = client.send(1, task="work", key="k").id

    kill_and_start(forgetful)

    assert first not in [client.send(2, task="work", key="k").id for _ in range(3)]
    assert len(client.jobs()) == (4 if durability == "full" else 3)
    client.stop()
