"""One suite, every store: a file and memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dutiful.store.contract import Store
from dutiful.store.sqlite import MEMORY, SqliteStore
from dutiful.testing import StoreContract
from tests.store import inside

# Known to fail: name of the test -> what is wrong. Strict: a fix shows up here.
KNOWN_BUGS: dict[str, str] = {
    "test_the_limit_on_suspects_holds_when_unknown_jobs_are_met": "a second look forgets the suspects it has",
    "test_drained_is_true_of_several_queues_together[2-2]": "_due: the cut over all is not seen",
    "test_an_error_text_comes_back_as_it_was[a\\x00b]": "SQLite's JSON ends at \\u0000",
    "test_jobs_handed_over_come_most_urgent_first": "the hand-off goes by the order of the drafts",
    "test_late_acks_make_no_room": "_in_parts counts late acks among those that ended",
    "test_whatever_ends_a_job_makes_room[a plain completion]": "without a buffer no count is kept",
    "test_suspects_count_as_due": "_COUNTS: oldest_due_s looks at crashes = 0 only",
}
KNOWN_BUGS_IN_MEMORY = {
    "test_jobs_that_some_worker_lists_are_not_parked": "join: every worker has the token 'memory'",
    "test_two_workers_of_one_store_do_not_meet": "join: every worker has the token 'memory'",
    "test_cancelling_a_running_job_asks_its_worker": "join: every worker has the token 'memory'",
    "test_no_job_is_claimed_twice_by_threads_that_do_all_at_once": "join: the token 'memory'",
}


class SqliteContract(StoreContract):
    @pytest.fixture(autouse=True)
    def known_bug(self, request, store):
        known = KNOWN_BUGS | (KNOWN_BUGS_IN_MEMORY if store.in_memory else {})
        if reason := known.get(request.node.name):
            request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))

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


class TestFile(SqliteContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SqliteStore]:
        store = inside.opened(tmp_path / "jobs.db", busy_s=5)
        yield store
        store.close()

    def reopened(self, store: SqliteStore) -> Store:
        store.close()
        return self.another(store)

    def another(self, store: SqliteStore) -> Store:
        return inside.opened(inside.path_of(store), busy_s=5)

    def die(self, store: SqliteStore, owner: int) -> None:
        inside.die(store, owner)

    @contextmanager
    def users_transaction(self, store: SqliteStore) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(inside.path_of(store))) as connection, connection:
            yield connection


class TestMemory(SqliteContract):
    @pytest.fixture
    def store(self) -> Iterator[SqliteStore]:
        store = inside.opened(MEMORY, busy_s=5)
        yield store
        store.close()


def _str(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
