"""The suite for every store, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from dutiful.store.contract import Store
from dutiful.store.postgres import PostgresStore
from dutiful.testing import (
    DoorbellContract,
    DurableContract,
    SpecialContract,
    StoreContract,
    UsersTransactionContract,
)
from dutiful.testing.drafts import DurableDrafts
from dutiful.testing.steps import DurableSteps
from tests.servers.pgbouncer import Pooler
from tests.store import inside_postgres as inside


@pytest.fixture(scope="module")
def pooler(postgres_url: str) -> Iterator[Pooler]:
    with Pooler(postgres_url, size=3) as pooler:
        yield pooler


class PostgresContract(StoreContract, SpecialContract, UsersTransactionContract):
    @pytest.fixture
    def store(self, database_url: str) -> Iterator[PostgresStore]:
        store = inside.opened(database_url)
        yield store
        store.close()

    def another(self, store: PostgresStore) -> Store:
        return inside.opened(inside.url_of(store))

    def die(self, store: PostgresStore, owner: int) -> None:
        inside.die(store, owner)

    def pass_time(self, store: PostgresStore, seconds: float) -> None:
        inside.pass_time(store, seconds)

    def write(self, connection: psycopg.Connection, name: str) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS users_own (name text)")
        connection.execute("INSERT INTO users_own VALUES (%s)", (name,))

    def written(self, store: PostgresStore) -> list[str]:
        with closing(inside.other_connection(store)) as db:
            if db.execute("SELECT to_regclass('users_own')").fetchone() == (None,):
                return []
            return [name for (name,) in db.execute("SELECT name FROM users_own").fetchall()]

    def spoil(self, store: PostgresStore, job_id: int, payload: bytes, *, as_text: bool) -> None:
        """A text that is none cannot be stored here: what comes closest is none at all."""
        with closing(inside.other_connection(store)) as db:
            db.execute("UPDATE dutiful.job SET payload = NULL WHERE id = %s", (job_id,))

    @contextmanager
    def users_transaction(self, store: PostgresStore) -> Iterator[psycopg.Connection]:
        with closing(inside.other_connection(store)) as connection, connection.transaction():
            yield connection


class TestPostgres(PostgresContract, DurableContract, DoorbellContract):
    """Straight to the server."""


class TestPooled(PostgresContract, DurableSteps, DurableDrafts):
    """Behind a pooler that gives each transaction another session. Who is dead shows there only by and by."""

    @pytest.fixture
    def store(self, database_url: str, pooler: Pooler) -> Iterator[PostgresStore]:
        store = inside.opened(pooler.url(urlsplit(database_url).path.lstrip("/")))
        yield store
        store.close()
