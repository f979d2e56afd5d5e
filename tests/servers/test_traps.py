"""The broken network, when a certain statement passes: against a real server, with psycopg."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.servers.proxy import Proxy, To, When

PATIENCE_S = 10.0
PROTOCOLS = ("simple", "pipeline", "prepared")


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    server = urlsplit(database_url)
    with psycopg.connect(database_url) as direct:
        direct.execute("CREATE TABLE mark (id int)")
    with Proxy(server.port or 5432, server.hostname or "127.0.0.1") as proxy:
        yield proxy


@pytest.fixture
def url(database_url: str, proxy: Proxy) -> str:
    """The database's, through the proxy."""
    parts = urlsplit(database_url)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()


def wait_for_the_last(database_url: str) -> None:
    """Wait until the server has done with all its clients, also those that are gone."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND client_port IS NOT NULL"
    )
    deadline = time.monotonic() + PATIENCE_S
    with psycopg.connect(database_url, autocommit=True) as direct:
        while direct.execute(others).fetchone() != (1,):
            assert time.monotonic() < deadline


def marks(database_url: str) -> int:
    with psycopg.connect(database_url) as direct:
        # Whoever has not ended yet holds a lock on the table; then its outcome is seen.
        direct.execute("LOCK TABLE mark IN ACCESS EXCLUSIVE MODE")
        row = direct.execute("SELECT count(*) FROM mark").fetchone()
        return 0 if row is None else int(row[0])


def insert_and_commit(connection: psycopg.Connection, protocol: str) -> None:
    """Commit a row, by the ways in which a COMMIT can be said."""
    if protocol == "pipeline":
        with connection.pipeline():
            connection.execute("INSERT INTO mark VALUES (1)")
            connection.execute("COMMIT")
    elif protocol == "prepared":
        connection.execute("INSERT INTO mark VALUES (1)")
        connection.execute("COMMIT", prepare=True)
    else:
        connection.execute("INSERT INTO mark VALUES (1)")
        connection.commit()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("when", "stored"), [(When.BEFORE, 1), (When.WITH, 2), (When.AFTER, 2)])
def test_the_client_cannot_know_what_became_of_its_commit(
    proxy: Proxy, url: str, database_url: str, protocol: str, when: When, stored: int
):
    """The second COMMIT of the connection: when it is prepared, its text has passed with the first."""
    with psycopg.connect(url) as connection:
        insert_and_commit(connection, protocol)
        trap = proxy.cut_at_commit(when)

        with pytest.raises(psycopg.OperationalError):
            insert_and_commit(connection, protocol)

        trap.wait()
        assert connection.broken
    wait_for_the_last(database_url)
    assert marks(database_url) == stored


def test_a_silent_server_has_committed_and_its_answer_comes_late(proxy: Proxy, url: str, database_url: str):
    trap = proxy.cut_at_commit(When.SILENT)
    with psycopg.connect(url) as connection, ThreadPoolExecutor(1) as another:
        connection.execute("INSERT INTO mark VALUES (1)")
        commit = another.submit(connection.commit)

        trap.wait()

        assert marks(database_url) == 1
        assert not commit.done()
        proxy.heal()
        commit.result(PATIENCE_S)
        assert connection.execute("SELECT 7").fetchone() == (7,)


def test_a_trap_lets_others_pass_and_springs_once(proxy: Proxy, url: str):
    trap = proxy.cut_at_commit(When.BEFORE, skip=2)
    with psycopg.connect(url) as connection:
        insert_and_commit(connection, "simple")
        insert_and_commit(connection, "pipeline")
        assert not trap.sprung

        with pytest.raises(psycopg.OperationalError):
            insert_and_commit(connection, "simple")

    trap.wait()
    with psycopg.connect(url) as connection:
        insert_and_commit(connection, "simple")


def test_any_statement_can_be_waited_for(proxy: Proxy, url: str, database_url: str):
    """A statement that commits by itself: no COMMIT is ever said."""
    trap = proxy.cut_at("INSERT INTO mark", When.AFTER)
    with (
        psycopg.connect(url, autocommit=True) as connection,
        pytest.raises(psycopg.OperationalError),
    ):
        connection.execute("INSERT INTO mark SELECT generate_series(1, %s)", [5])

    trap.wait()
    assert marks(database_url) == 5


def test_only_the_connection_of_the_statement_is_cut(proxy: Proxy, url: str):
    with psycopg.connect(url) as bystander, psycopg.connect(url) as connection:
        trap = proxy.cut_at_commit(When.AFTER)
        with pytest.raises(psycopg.OperationalError):
            insert_and_commit(connection, "simple")

        trap.wait()
        assert bystander.execute("SELECT 1").fetchone() == (1,)


def test_statements_are_counted(proxy: Proxy, url: str):
    with psycopg.connect(url, autocommit=True) as connection:
        before = proxy.statements

        for number in range(10):  # psycopg prepares it on the way
            connection.execute("SELECT %s::int", [number])
        connection.execute("SELECT 1; SELECT 2")

        assert proxy.statements - before == 11
    assert proxy.statements - before == 11, "an ended connection's count as well"


def test_what_is_large_passes(proxy: Proxy, url: str):
    with psycopg.connect(url) as connection:
        text = "x" * 5_000_000
        assert connection.execute("SELECT %s::text", [text]).fetchone() == (text,)
        with connection.cursor().copy("COPY mark FROM STDIN") as copy:
            for number in range(100_000):
                copy.write_row([number])
        connection.commit()


def test_a_server_that_hears_the_end_ends_the_session(proxy: Proxy, url: str):
    with psycopg.connect(url) as connection:
        proxy.half_close(To.SERVER)

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_request_to_cancel_passes(proxy: Proxy, url: str):
    with psycopg.connect(url, autocommit=True) as connection, ThreadPoolExecutor(1) as another:
        sleeping = another.submit(connection.execute, "SELECT pg_sleep(60)")
        while not sleeping.done():  # a request that comes before the statement is none
            connection.cancel_safe(timeout=PATIENCE_S)

        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result()
