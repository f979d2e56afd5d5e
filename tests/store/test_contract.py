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
    "test_the_limit_on_suspects_holds_when_jobs_are_parked": "take's second look forgets the suspects it has",
    "test_drained_is_true_of_several_queues_together[2-2]": "_due: the cut over all queues does not count as full",
    "test_an_error_text_comes_back_as_it_was[a\\x00b]": "SQLite 3.40 ends a JSON string at \\u0000",
    "test_jobs_handed_over_come_most_urgent_first": "the hand-off goes by the order of the drafts",
    "test_prune_keeps_as_many_of_those_that_finished_at_once": "prune_before goes by the instant, not by (instant, id)",
    "test_late_acks_make_no_room": "_in_parts counts late acks among those that ended",
    "test_whatever_ends_a_job_makes_room[a plain completion]": "a step without a buffer does not keep the count",
    "test_suspects_count_as_due": "_COUNTS: oldest_due_s looks at crashes = 0 only",
    "test_a_store_that_closed_without_leaving_is_rescued_at_once": "close removes the lock file of a worker in the store",
}
KNOWN_BUGS_IN_MEMORY = {
    "test_two_workers_of_one_store_do_not_meet": "join: every worker has the token 'memory'",
    "test_cancelling_a_running_job_asks_its_worker": "join: every worker has the token 'memory'",
    "test_no_job_is_claimed_twice_by_threads_that_do_all_at_once": "join: every worker has the token 'memory'",
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
