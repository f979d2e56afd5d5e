"""The pooler: it is there, and it is in the mode in which sessions have no memory."""

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from tests.servers.pgbouncer import Pooler


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    with Pooler(database_url, size=2) as pooler:
        yield pooler


def test_many_clients_share_few_connections(pooler: Pooler):
    backends: set[object] = set()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(psycopg.connect(pooler.url(), autocommit=True, prepare_threshold=None))
            for _ in range(10)
        ]
        for client in clients:
            backends.add(client.execute("SELECT pg_backend_pid()").fetchone())

    assert len(backends) <= 2


def test_a_session_lock_is_not_the_clients_own(pooler: Pooler, database_url: str):
    """It stays with the server's connection when the client has gone: why a lease must do there."""
    with psycopg.connect(pooler.url(), autocommit=True, prepare_threshold=None) as client:
        assert client.execute("SELECT pg_try_advisory_lock(1)").fetchone() == (True,)

    with psycopg.connect(database_url) as direct:
        assert direct.execute("SELECT pg_try_advisory_lock(1)").fetchone() == (False,)


def test_a_stopped_pooler_throws_its_clients_out(pooler: Pooler):
    with psycopg.connect(pooler.url(), prepare_threshold=None) as client:
        pooler.stop()

        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
        pooler.start()
    with psycopg.connect(pooler.url(), prepare_threshold=None) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
