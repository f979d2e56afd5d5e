"""A connection that is lost in COMMIT: the store finds out what became of it, and says the truth."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from dutiful.errors import StoreError, StoreUnknown
from dutiful.job import Ack, State
from dutiful.store.contract import Draft, Outcome, Take, Work
from dutiful.store.postgres import PostgresStore
from tests.servers.proxy import Proxy, When
from tests.store import inside_postgres as inside

CUTS = (When.BEFORE, When.WITH, When.AFTER)


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    server = urlsplit(database_url)
    with Proxy(server.port or 5432, server.hostname or "127.0.0.1") as proxy:
        yield proxy


@pytest.fixture
def store(database_url: str, proxy: Proxy) -> Iterator[PostgresStore]:
    """A store behind the proxy."""
    parts = urlsplit(database_url)
    through = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()
    store = inside.opened(through)
    yield store
    proxy.heal()
    store.close()


def step(store: PostgresStore, **wishes) -> Outcome:
    outcome = Outcome()
    store.exchange(Work(**wishes), outcome)
    return outcome


def put(store: PostgresStore, count: int) -> list[int]:
    return list(step(store, drafts=[Draft("t", "q", ["1"] * count)]).stored[0])


def states(database_url: str) -> dict[int, str]:
    """Return what is committed, when nobody is in the middle of anything."""
    with psycopg.connect(database_url) as direct:
        direct.execute("LOCK TABLE dutiful.job IN ACCESS EXCLUSIVE MODE")
        return dict(direct.execute("SELECT id, state FROM dutiful.job").fetchall())


@pytest.mark.parametrize("when", CUTS)
@pytest.mark.parametrize("kind", ["one statement", "several"])
def test_a_step_says_whether_it_has_committed(
    store: PostgresStore, proxy: Proxy, database_url: str, kind: str, when: When
) -> None:
    """A send alone, or an ack, a claim and a send together: all or nothing, and the answer is true."""
    owner = store.join("w", ["q"], 1)
    ended, waiting = put(store, 2)
    step(store, take=Take(owner, ("q",), 1))
    wishes: dict[str, object] = {"drafts": [Draft("t", "q", ["new"])]}
    if kind == "several":
        wishes |= {"acks": [Ack(ended, 1, State.DEAD, 1, 0)], "take": Take(owner, ("q",), 1)}
    before = states(database_url)
    trap = proxy.cut_at_commit(when)
    outcome = Outcome()

    error = None
    try:
        store.exchange(Work(**wishes), outcome)
    except StoreError as raised:
        error = raised

    trap.wait()
    assert (error is None) == outcome.committed
    assert not isinstance(error, StoreUnknown)
    after = states(database_url)
    assert (after != before) == outcome.committed
    if when is not When.WITH:
        assert outcome.committed == (when is When.AFTER)
    if outcome.committed:
        several = kind == "several"
        assert after == {
            ended: "dead" if several else "running",
            waiting: "running" if several else "pending",
            outcome.stored[0][0]: "pending",
        }
    assert put(store, 1)  # and it goes on


@pytest.mark.parametrize("when", CUTS)
def test_a_ring_that_is_lost_behind_its_commit_changes_nothing(
    store: PostgresStore, proxy: Proxy, database_url: str, when: When
) -> None:
    put(store, 1)
    inside.pass_ring_pause(store)
    trap = proxy.cut_at("pg_notify", when)

    outcome = step(store, drafts=[Draft("t", "q", ["new"])])

    trap.wait()
    assert outcome.committed
    assert not outcome.has_rung  # so that another is sent
    assert list(states(database_url).values()) == ["pending", "pending"]
    assert put(store, 1)  # and it goes on


@pytest.mark.parametrize("when", CUTS)
def test_a_handlers_transaction_says_whether_it_has_committed(
    store: PostgresStore, proxy: Proxy, database_url: str, when: When
) -> None:
    owner = store.join("w", ["q"], 1)
    put(store, 1)
    (claim,) = step(store, take=Take(owner, ("q",), 1)).claims
    proxy.cut_at_commit(when)

    try:
        with store.transaction(claim) as db:
            db.execute("CREATE TABLE mine ()")
    except StoreError:
        has_committed = False
    else:
        has_committed = True

    assert states(database_url) == {claim.id: "completed" if has_committed else "running"}
    with psycopg.connect(database_url) as direct:
        assert direct.execute("SELECT to_regclass('mine') IS NOT NULL").fetchone() == (has_committed,)
    if when is not When.WITH:
        assert has_committed == (when is When.AFTER)


def test_a_commit_that_nobody_can_tell_of_is_unknown(
    database_url: str, store: PostgresStore, proxy: Proxy
) -> None:
    """The connection is lost in COMMIT, and then the server cannot be reached."""
    put(store, 1)
    store._access.busy_s = 0.2
    trap = proxy.cut_at_commit(When.AFTER)
    proxy.refuse()
    outcome = Outcome()

    with pytest.raises(StoreUnknown, match="may be there"):
        store.exchange(Work(drafts=[Draft("t", "q", ["1"])]), outcome)

    trap.wait()
    assert not outcome.committed
    assert len(states(database_url)) == 2
