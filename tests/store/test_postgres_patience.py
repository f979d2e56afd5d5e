"""
Nobody waits for ever for a server that does not answer, though something acknowledges what is sent.

So it is with a frozen server, a load balancer without one behind it, and this proxy's black hole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from dutiful.config import Keep
from dutiful.errors import StoreBusy, StoreUnavailable
from dutiful.job import Claim, State
from dutiful.store import postgres, postgres_access
from dutiful.store.contract import Query
from dutiful.store.postgres import PostgresStore
from dutiful.testing.tools import ack, draft, put, step, take
from tests.servers.proxy import Proxy
from tests.store import inside_postgres as inside

BUSY_S, ANSWER_S = 0.2, 0.3


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    server = urlsplit(database_url)
    with Proxy(server.port or 5432, server.hostname or "127.0.0.1") as proxy:
        yield proxy


@pytest.fixture
def store(database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresStore]:
    """An impatient store behind the proxy."""
    monkeypatch.setattr(postgres_access, "ANSWER_S", ANSWER_S)
    monkeypatch.setattr(postgres, "READ_S", BUSY_S + ANSWER_S)
    parts = urlsplit(database_url)
    through = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()
    with closing(inside.opened(through, busy_s=BUSY_S)) as store:
        yield store
        proxy.heal()


def running(store: PostgresStore) -> Claim:
    """The claim of a job; connections of both kinds are at hand."""
    put(store, draft("1", "2"))
    before, claim = take(store, 7)
    complete_in_a_transaction(store, before)
    return claim


def send_many(store: PostgresStore) -> None:
    """So many that ids must be had first."""
    put(store, draft(*["1"] * 1000))


def send_much(store: PostgresStore) -> None:
    """More than the kernel takes at once."""
    put(store, draft('"' + 8_000_000 * "x" + '"'))


def complete_in_a_transaction(store: PostgresStore, claim: Claim) -> None:
    with store.transaction(claim):
        pass


CALLS: dict[str, Callable[[PostgresStore, Claim], object]] = {
    "send": lambda store, _claim: put(store, draft("1")),
    "send two kinds": lambda store, _claim: put(store, draft("1"), draft("1", task="other")),
    "send many": lambda store, _claim: send_many(store),
    "send much": lambda store, _claim: send_much(store),
    "send with a bound": lambda store, _claim: put(store, draft("1"), buffer=1000),
    "take": lambda store, _claim: take(store, 7),
    "complete": lambda store, claim: step(store, completed=[(claim.id, claim.attempt)]),
    "fail": lambda store, claim: step(store, acks=[ack(claim, State.DEAD)]),
    "cancel": lambda store, claim: store.edit([claim.id], "cancel"),
    "get": lambda store, claim: store.get([claim.id]),
    "find": lambda store, _claim: store.find(Query()),
    "counts": lambda store, _claim: store.counts(),
    "when due": lambda store, _claim: store.next_due_s(["default"]),
    "prune": lambda store, _claim: store.prune(Keep(count=0, age_s=0), limit=10),
    "rescue": lambda store, _claim: store.rescue(lambda claim, _was_running: ack(claim)),
    "transaction": complete_in_a_transaction,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_does_not_answer_is_unavailable(
    store: PostgresStore, proxy: Proxy, call: Callable[[PostgresStore, Claim], object]
) -> None:
    claim = running(store)

    proxy.black_hole()
    with pytest.raises(StoreUnavailable, match="has not answered"):
        call(store, claim)
    proxy.heal()

    call(store, claim)  # and it goes on, with nothing done before


def test_a_lock_is_waited_for_as_long_as_before(store: PostgresStore, proxy: Proxy) -> None:
    """The server, that answers in time, tells of it; and the connection is not to blame."""
    claim = running(store)
    with closing(inside.other_connection(store)) as other, other.transaction():
        other.execute("SELECT FROM dutiful.job FOR UPDATE")

        with pytest.raises(StoreBusy):
            store.edit([claim.id], "cancel")


def test_a_handlers_own_statements_take_as_long_as_they_take(store: PostgresStore) -> None:
    claim = running(store)

    with store.transaction(claim) as db:
        db.execute("SELECT pg_sleep(%s)", (2 * (BUSY_S + ANSWER_S),))

    assert store.unfinished() == 0


def test_a_long_answer_that_keeps_coming_is_waited_for(store: PostgresStore) -> None:
    """Patience is with silence, not with work: all of this takes longer than it may be silent."""
    with store._access.looking() as db:
        rows = db.run("SELECT repeat('x', 100000), pg_sleep(0.05) FROM generate_series(1, 40)").fetchall()

    assert len(rows) == 40
