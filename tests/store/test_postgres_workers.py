"""Workers of a PostgreSQL store: how they live, die, come back and wake; with the real server and network."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from dutiful.job import Ack, Claim, State
from dutiful.store import postgres_hold, postgres_marks, postgres_pulse
from dutiful.store.contract import Outcome, Work
from dutiful.store.postgres import PostgresStore
from dutiful.store.postgres_marks import Local
from dutiful.testing.tools import QUEUE, ack, draft, one, put, state_of, step, take
from tests.servers.pgbouncer import Pooler
from tests.servers.postgres import Server
from tests.servers.proxy import Proxy, To
from tests.store import inside_postgres as inside
from tests.worker.tools import until


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    with opened(database_url) as store:
        yield store


@pytest.fixture
def other(database_url: str) -> Iterator[PostgresStore]:
    """The same jobs, as another process has them."""
    with opened(database_url) as other:
        yield other


@contextmanager
def opened(url: str, **options: Any) -> Iterator[PostgresStore]:
    store = inside.opened(url, **options)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def network(url: str) -> Iterator[tuple[Proxy, str]]:
    """A network to the server that can be broken, and the URL through it."""
    parts = urlsplit(url)
    assert parts.port is not None
    with Proxy(parts.port) as proxy:
        login = parts.netloc.rpartition("@")[0]
        yield proxy, parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}").geturl()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is on a machine of his own: the server alone can tell who lives."""
    monkeypatch.setattr(postgres_marks.LocalFolder, "look_at", lambda *_args: Local())


def decide(claim: Claim, was_running: bool) -> Ack:
    return ack(claim, State.PENDING, crashes=claim.crashes + was_running)


def joined(store: PostgresStore) -> int:
    return store.join("w", [QUEUE], 2)


def held_backends(store: PostgresStore) -> list[int]:
    """The server processes that hold workers' locks."""
    with closing(inside.other_connection(store)) as db:
        rows = db.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted")
        return [row[0] for row in rows.fetchall()]


def terminate(store: PostgresStore, pids: list[int]) -> None:
    with closing(inside.other_connection(store)) as db:
        db.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pids (pid)", (pids,))


def is_back(store: PostgresStore, owner: int, incarnation: int = 2) -> bool:
    pulse = store.pulse(owner)
    return pulse.problem is None and pulse.incarnation >= incarnation


# --- the lock ------------------------------------------------------------------------------------


def test_a_worker_whose_connection_is_ended_comes_back_with_its_jobs(store, other):
    owner = joined(store)
    put(store, draft("1", "2"))
    claims = take(store, owner)

    terminate(other, held_backends(other))
    until(lambda: is_back(store, owner))

    assert store.held(owner) == {(claim.id, claim.attempt) for claim in claims}
    assert other.rescue(decide) == []
    assert step(store, completed=[(claim.id, claim.attempt) for claim in claims]).late == []
    assert len(held_backends(other)) == 1


def test_a_living_process_without_its_connection_is_waited_for(store, other, monkeypatch):
    """On the same machine it can be seen to live, lock or no lock."""
    monkeypatch.setattr(postgres_hold.Hold, "_come_back", lambda self: self._ending.wait())
    owner = joined(store)
    (job_id,) = put(store)
    take(store, owner)

    terminate(other, held_backends(other))
    until(lambda: store.pulse(owner).problem)

    assert held_backends(other) == []
    assert other.rescue(decide) == []
    assert state_of(other, job_id) is State.RUNNING


def test_a_worker_that_was_taken_for_dead_loses_its_jobs_for_good(database_url, other, elsewhere):
    """It comes back without them; nothing that it says of them counts."""
    with network(database_url) as (proxy, url), opened(url) as store:
        owner = joined(store)
        put(store)
        (claim,) = take(store, owner)
        store.mark(owner)[0] = claim.id

        proxy.refuse()
        proxy.cut()
        until(lambda: store.pulse(owner).problem)
        ((info, acks),) = until(lambda: other.rescue(decide))
        (again,) = take(other, joined(other), suspects=1)
        proxy.heal()
        until(lambda: is_back(store, owner))

        assert (info.owner, [(each.id, each.crashes) for each in acks]) == (owner, [(claim.id, 1)])
        assert store.held(owner) == set()
        assert step(store, completed=[(claim.id, claim.attempt)]).late == [(claim.id, 1)]
        assert (again.id, again.attempt) == (claim.id, 2)
        assert {each.owner for each in other.workers() if each.is_alive} >= {owner}


def test_a_lock_that_the_server_still_holds_for_a_lost_connection_is_taken_over(database_url, other):
    """The worker sees the end of its connection, the server does not."""
    with network(database_url) as (proxy, url), opened(url) as store:
        owner = joined(store)
        (before,) = held_backends(other)

        proxy.half_close(To.CLIENT)
        until(lambda: is_back(store, owner))

        (after,) = held_backends(other)
        assert after != before


def test_a_restarted_server_gives_the_living_time_to_come_back(elsewhere):
    with Server.create() as server:
        server.start()
        with (
            opened(server.url(), durability="full") as store,
            opened(server.url(), durability="full") as other,
        ):
            owner, second = joined(store), joined(other)
            put(store, draft("1", "2"))
            claims = take(store, owner)

            server.restart("immediate")
            with opened(server.url(), durability="full") as newcomer:
                assert newcomer.rescue(decide) == []
            until(lambda: is_back(store, owner) and is_back(other, second))

            assert other.rescue(decide) == []
            assert store.held(owner) == {(claim.id, claim.attempt) for claim in claims}
            assert all(info.is_alive for info in other.workers())


def test_who_does_not_come_back_after_a_restart_is_dead_when_a_lease_is_over(elsewhere, monkeypatch):
    with Server.create() as server:
        server.start()
        with (
            opened(server.url(), durability="full") as store,
            opened(server.url(), durability="full") as other,
        ):
            owner = joined(store)
            (job_id,) = put(store)
            take(store, owner)
            inside.die(store, owner)
            server.restart("immediate")

            assert other.rescue(decide) == []
            monkeypatch.setattr(postgres_pulse, "RESCUE_S", 0.0)
            ((info, _acks),) = until(lambda: other.rescue(decide))

            assert info.owner == owner
            assert state_of(other, job_id) is State.PENDING


def test_a_dead_worker_of_another_machine_is_seen_by_its_lock_alone(store, other, elsewhere):
    """What it had begun is not known there: all that it had claimed counts."""
    owner = joined(store)
    put(store, draft("1", "2"))
    take(store, owner)
    inside.die(store, owner)

    ((_info, acks),) = other.rescue(decide)

    assert [each.crashes for each in acks] == [1, 1]


def test_a_worker_is_told_at_once_of_a_death_that_its_pulse_shows(store, other):
    owner, watching = joined(store), joined(other)
    bell = other.doorbell()

    inside.die(store, owner)

    assert select.select([bell], [], [], 20)[0]
    assert other.pulse(watching).dead


def test_a_worker_that_somebody_removed_registers_again(store, other):
    owner = joined(store)
    with closing(inside.other_connection(store)) as db:
        db.execute("DELETE FROM dutiful.worker")

    store.beat(owner)

    assert [info.owner for info in other.workers()] == [owner]
    assert store.pulse(owner).incarnation == 2


def test_jobs_of_an_owner_that_nobody_knows_go_back_in_line(store, other, monkeypatch):
    monkeypatch.setattr(postgres_pulse, "ORPHAN_S", 0.0)
    owner = joined(store)
    (job_id,) = put(store)
    take(store, owner)
    with closing(inside.other_connection(store)) as db:
        db.execute("UPDATE dutiful.job SET owner = 1")

    other.rescue(decide)

    job = one(other, job_id)
    assert (job.state, job.crashes) == (State.PENDING, 0)


def test_only_one_of_those_who_rescue_at_once_does_it(store, database_url):
    owner = joined(store)
    put(store, draft("1", "2", "3"))
    take(store, owner)
    inside.die(store, owner)

    with opened(database_url) as a, opened(database_url) as b:

        def both(claim: Claim, was_running: bool) -> Ack:
            """In the middle of one's rescue the other tries."""
            assert b.rescue(decide) == []
            return decide(claim, was_running)

        ((info, acks),) = a.rescue(both)

    assert (info.owner, len(acks)) == (owner, 3)


# --- out of reach --------------------------------------------------------------------------------


def test_a_worker_that_is_cut_off_knows_when_its_lease_is_over(database_url, monkeypatch):
    monkeypatch.setattr(postgres_pulse, "LEASE_S", 2.0)
    with network(database_url) as (proxy, url), opened(url) as store:
        owner = joined(store)
        assert (store.pulse(owner).may_start, store.pulse(owner).may_run) == (True, True)

        proxy.black_hole()
        until(lambda: not store.pulse(owner).may_start)
        assert store.pulse(owner).may_run
        until(lambda: not store.pulse(owner).may_run)
        proxy.heal()

        until(lambda: store.pulse(owner).may_run and store.pulse(owner).may_start)


def test_closing_a_store_that_is_cut_off_ends_its_threads(database_url):
    """`no_thread_is_left_behind` looks."""
    with network(database_url) as (proxy, url):
        store = inside.opened(url)
        joined(store)
        proxy.black_hole()

        store.close()


# --- behind a pooler -----------------------------------------------------------------------------


@pytest.fixture
def pooled(database_url: str) -> Iterator[PostgresStore]:
    with Pooler(database_url) as pooler, opened(pooler.url()) as store:
        yield store


def test_behind_a_pooler_a_worker_polls_and_holds_no_lock(pooled, store):
    owner = joined(pooled)

    assert pooled.pulse(owner).is_polling
    assert held_backends(store) == []
    assert [info.is_alive for info in store.workers()] == [True]
    assert store.rescue(decide) == []


def test_behind_a_pooler_new_jobs_are_seen(pooled, store):
    joined(pooled)
    changes = pooled.changes()
    assert changes is not None
    pooled.changed()

    put(store)

    assert select.select([changes], [], [], 20)[0]
    assert pooled.changed()


def test_behind_a_pooler_the_heartbeat_is_what_tells(pooled, store, elsewhere, monkeypatch):
    owner = joined(pooled)
    (job_id,) = put(store)
    take(pooled, owner)
    inside.die(pooled, owner)
    assert store.rescue(decide) == []

    inside.pass_time(store, postgres_pulse.RESCUE_S)
    ((info, _acks),) = until(lambda: store.rescue(decide))

    assert info.owner == owner
    assert state_of(store, job_id) is State.PENDING


def test_behind_a_pooler_a_worker_that_was_taken_for_dead_registers_again(pooled, store):
    owner = joined(pooled)
    with closing(inside.other_connection(store)) as db:
        db.execute("DELETE FROM dutiful.worker")

    until(lambda: is_back(pooled, owner))

    assert [info.owner for info in store.workers()] == [owner]


def test_a_ring_from_behind_a_pooler_is_heard(pooled, store):
    joined(store)
    bell = store.doorbell()

    pooled.ring()

    assert select.select([bell], [], [], 20)[0]


# --- waking --------------------------------------------------------------------------------------


def test_a_cancel_is_told_to_the_worker_of_another_process(store, other):
    owner = joined(store)
    put(store)
    (claim,) = take(store, owner)
    assert not store.pulse(owner).cancelled

    other.edit([claim.id], "cancel")

    assert select.select([store.doorbell()], [], [], 20)[0]
    assert store.pulse(owner).cancelled
    assert store.cancelled(owner) == [claim.id]


def test_a_delayed_job_is_told_of_when_it_falls_due(store, other):
    joined(store)
    changes = store.changes()
    assert changes is not None
    put(other, draft("1", delay_s=0.3))

    until(lambda: bool(select.select([changes], [], [], 20)[0]) and store.changed())

    assert store.next_due_s([QUEUE]) == 0.0


def test_a_job_of_another_process_rings_with_its_commit(store, other):
    joined(store)
    store.hush()

    outcome = Outcome()
    other.exchange(Work(drafts=[draft("1")]), outcome)

    assert outcome.has_rung
    assert select.select([store.doorbell()], [], [], 20)[0]


def test_the_last_ring_is_sent_when_the_store_is_closed(store, database_url):
    joined(store)
    store.hush()
    with opened(database_url) as leaving:
        leaving.ring()

    assert select.select([store.doorbell()], [], [], 20)[0]


def test_any_notification_of_a_users_own_wakes(store):
    joined(store)
    store.hush()

    with closing(inside.other_connection(store)) as db:
        db.execute("NOTIFY dutiful")

    assert select.select([store.doorbell()], [], [], 20)[0]


def test_a_worker_that_lost_its_connection_looks_for_what_rang_meanwhile(store, other):
    owner = joined(store)
    bell = store.doorbell()
    terminate(other, held_backends(other))

    until(lambda: is_back(store, owner))

    assert select.select([bell], [], [], 20)[0]
    until(store.changed)


def test_each_schema_has_a_channel_of_its_own(database_url):
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("LISTEN dutiful")
        db.execute("LISTEN second")
        with opened(f"{database_url}?dutiful_schema=second") as second:
            second.ring()

        assert [each.channel for each in db.notifies(timeout=20, stop_after=1)] == ["second"]


# --- fork and death ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_its_dead_parent_alive(store, database_url):
    """The parent's connection ends with the parent, though the child had a copy of the socket."""
    ready_in, ready_out = os.pipe()
    parent = os.fork()
    if not parent:
        try:
            mine = inside.opened(database_url)
            mine.join("parent", [QUEUE], 1)
            child = os.fork()
            if not child:
                signal.pause()
            os.write(ready_out, b"%d\n" % child)
            signal.pause()
        finally:
            os._exit(1)
    child = int(os.read(ready_in, 64))
    os.close(ready_in)
    os.close(ready_out)
    try:
        assert [info.name for info in store.workers()] == ["parent"]

        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)

        until(lambda: [info.name for info, _acks in store.rescue(decide)] == ["parent"])
    finally:
        os.kill(child, signal.SIGKILL)
