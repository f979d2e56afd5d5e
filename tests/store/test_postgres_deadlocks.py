"""Whoever locks several jobs of a PostgreSQL store does so in one order, or does it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import psycopg
import pytest

from dutiful.store.contract import Outcome, Work
from dutiful.store.postgres import PostgresStore
from dutiful.store.special import steps
from dutiful.testing.tools import draft, one, put, take
from tests.store import inside_postgres as inside
from tests.worker.tools import background, until


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    """A store whose sessions wait a while before they look for a circle: there is to be one by then."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(f"ALTER DATABASE {db.info.dbname} SET deadlock_timeout = '2s'")  # type: ignore[arg-type]
    with closing(inside.opened(database_url, busy_s=60)) as store:
        yield store


@pytest.fixture
def other(store: PostgresStore) -> Iterator[psycopg.Connection]:
    """Another session, in no transaction; if it waits in a circle, the store finds out first."""
    with closing(inside.other_connection(store)) as other:
        other.execute("SET deadlock_timeout = '1min'")
        yield other


def is_waiting(store: PostgresStore) -> bool:
    with closing(inside.other_connection(store)) as db:
        found = db.execute(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'dutiful%'"
        )
        return found.fetchone() is not None


def begun(store: PostgresStore, function: Callable[[], None]) -> Future[Any]:
    """Call it in a thread; return when the store waits for a lock."""
    future = background(function)
    until(lambda: future.done() or is_waiting(store))
    return future


def test_progress_is_written_in_the_order_of_ids(store: PostgresStore, other: psycopg.Connection) -> None:
    """As completions are, whatever slots the jobs are in: who waits for the first holds no other."""
    put(store, draft(*["1"] * 20))
    low, *others = take(store, store.join("w", ["default"], 20, None))

    def write() -> None:
        with store.sql() as sql:
            steps.write_progress(sql, [(claim, '"new"') for claim in (*others, low)])

    with other.transaction():
        other.execute("SELECT FROM dutiful.job WHERE id = %s FOR UPDATE", (low.id,))
        future = begun(store, write)
        other.execute("SELECT FROM dutiful.job FOR UPDATE NOWAIT")
    future.result(60)

    assert one(store, others[0].id).progress == '"new"'


def test_a_completion_that_waits_in_a_circle_is_done_again(
    store: PostgresStore, other: psycopg.Connection
) -> None:
    """By one statement, as the most frequent step is. The server rolls it back; nobody hears of it."""
    put(store, draft("1", "2"))
    low, high = take(store, store.join("w", ["default"], 2, None))
    outcome = Outcome()
    work = Work(completed=[(each.id, each.attempt) for each in (low, high)], drafts=[draft("3")])

    with other.transaction():
        other.execute("SELECT FROM dutiful.job WHERE id = %s FOR UPDATE", (high.id,))
        future = begun(store, lambda: store.exchange(work, outcome))
        other.execute("SELECT FROM dutiful.job WHERE id = %s FOR UPDATE", (low.id,))
    future.result(60)

    assert (outcome.committed, outcome.late) == (True, [])
    assert store.unfinished() == 1
