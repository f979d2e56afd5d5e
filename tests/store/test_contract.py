"""One suite, every store: a file and memory."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dutiful.store.contract import Store
from dutiful.store.sqlite import MEMORY, SqliteStore
from dutiful.testing import (
    Clock,
    DoorbellContract,
    DurableContract,
    SpecialContract,
    StoreContract,
    UsersTransactionContract,
)
from tests.store import inside


class SqliteContract(StoreContract):
    @pytest.fixture(autouse=True)
    def stopped_clock(self):
        self.clock = Clock()

    def pass_time(self, store, seconds):
        self.clock.jump(math.ceil(seconds * 1000) / 1000)

    def write(self, connection, name):
        connection.execute("CREATE TABLE IF NOT EXISTS users_own (name TEXT)")
        connection.execute("INSERT INTO users_own VALUES (?)", (name,))

    def written(self, store):
        with inside.looking(store) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'users_own'").fetchall():
                return []
            return [_str(row[0]) for row in db.execute("SELECT name FROM users_own").fetchall()]

    def spoil(self, store, job_id, payload, *, as_text):
        value = "CAST(? AS TEXT)" if as_text else "?"
        with inside.writing(store):
            inside.writer(store).execute(
                f"UPDATE dutiful_job SET payload = {value} WHERE id = ?", (payload, job_id)
            )


class TestFile(SqliteContract, SpecialContract, DurableContract, UsersTransactionContract, DoorbellContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SqliteStore]:
        store = inside.opened(tmp_path / "jobs.db", busy_s=5, clock=self.clock)
        yield store
        store.close()

    def another(self, store: SqliteStore) -> Store:
        return inside.opened(inside.path_of(store), busy_s=5, clock=self.clock)

    def die(self, store: SqliteStore, owner: int) -> None:
        inside.die(store, owner)

    @contextmanager
    def users_transaction(self, store: SqliteStore) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(inside.path_of(store))) as connection, connection:
            yield connection


class TestMemory(SqliteContract, SpecialContract):
    @pytest.fixture
    def store(self) -> Iterator[SqliteStore]:
        store = inside.opened(MEMORY, busy_s=5, clock=self.clock)
        yield store
        store.close()


def _str(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
