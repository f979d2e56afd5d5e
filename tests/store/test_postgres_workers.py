"""Workers of a PostgreSQL store: how they live, die, come back and wake; with the real server and network."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

import dutiful
from dutiful.job import Ack, Claim, State
from dutiful.store import postgres_hold, postgres_marks, postgres_pulse
from dutiful.store.contract import Outcome, Work
from dutiful.store.postgres import PostgresStore
from dutiful.store.postgres_marks import Local
from dutiful.store.postgres_worker_rows import Missing
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
        rows = db.execute(  # of this database: other tests have theirs
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
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
    until(lambda: len(held_backends(other)) == 1)


def test_a_worker_takes_its_lock_again_on_a_connection_that_is_there(store, other, monkeypatch):
    """One trip to the server, which may be far away; a new one takes eight, and others wait for 0.2 s."""
    owner = joined(store)
    put(store)  # leaves a connection

    def connect(*_args: Any) -> None:
        raise AssertionError("a new connection")

    monkeypatch.setattr(store._access, "connect", connect)
    terminate(other, held_backends(other))

    until(lambda: is_back(store, owner))
    with closing(inside.other_connection(store)) as db:
        names = db.execute(
            "SELECT application_name FROM pg_stat_activity WHERE pid = ANY (%s)", (held_backends(other),)
        )
        assert names.fetchall() == [("dutiful worker worker",)]


def test_nothing_is_dead_by_a_crash_before_the_lease_of_its_worker_is_over(
    store, other, elsewhere, monkeypatch
):
    """It may have lost no more than its connection: then it goes on. Its other jobs run elsewhere at once."""

    def strict(claim: Claim, was_running: bool) -> Ack:
        return ack(
            claim, State.DEAD if claim.id == last else State.PENDING, crashes=claim.crashes + was_running
        )

    owner = joined(store)
    first, last = put(store, draft("1", "2"))
    take(store, owner)
    inside.die(store, owner)

    ((info, acks),) = until(lambda: other.rescue(strict))
    assert (info.owner, [each.id for each in acks]) == (owner, [first])
    assert other.rescue(strict) == []
    assert [state_of(other, each) for each in (first, last)] == [State.PENDING, State.RUNNING]

    monkeypatch.setattr(postgres_pulse, "RESCUE_S", 0.0)
    ((info, acks),) = other.rescue(strict)
    assert (info.owner, [each.id for each in acks]) == (owner, [last])
    assert state_of(other, last) is State.DEAD
    assert other.workers() == []


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


def test_another_users_folder_of_marks_says_nothing(tmp_path):
    """Whoever may not look into it is as one who comes from elsewhere, and starts."""
    folder = postgres_marks.LocalFolder()
    folder.path = tmp_path / "theirs"
    folder.path.mkdir(mode=0)

    with as_somebody_else():
        assert folder.look_at("token", socket.gethostname(), "boot") == Local()
        assert folder.life() is None


def test_without_any_place_for_temporary_files_there_are_no_marks(monkeypatch):
    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr(postgres_marks.tempfile, "gettempdir", nowhere)

    with as_somebody_else():
        assert postgres_marks.LocalFolder().life() is None


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Be a user without any right, if the tests are run by one who has them all."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_whatever_goes_wrong_on_the_way_back_a_worker_tries_again(store, other, monkeypatch):
    """Not the server's errors alone: the thread that holds its lock must not end."""
    owner = joined(store)
    connect, failures = store._access.connect, iter([RuntimeError("a bug"), ValueError("another")])

    def connect_at_last(*args: Any, **options: Any) -> Any:
        for error in failures:
            raise error
        return connect(*args, **options)

    monkeypatch.setattr(store._access, "connect", connect_at_last)
    monkeypatch.setattr(store._access, "spare", lambda: None)
    terminate(other, held_backends(other))

    until(lambda: is_back(store, owner))
    assert next(failures, None) is None


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


def test_a_worker_far_from_its_server_comes_back_after_a_long_silence(database_url, monkeypatch):
    """What hung is broken off; what is being connected since then is let be, however slow it is."""
    monkeypatch.setattr(postgres_pulse, "LEASE_S", 1.0)
    with network(database_url) as (proxy, url), opened(url) as store:
        owner = joined(store)

        proxy.black_hole()
        until(lambda: store.pulse(owner).problem)
        proxy.heal()
        proxy.delay(50)

        until(lambda: is_back(store, owner))


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


def test_a_pooler_in_session_mode_counts_as_one_in_transaction_mode(database_url):
    """Nobody can tell from our side, and the wrong guess would leave a lock with a session of others."""
    with Pooler(database_url, mode="session") as pooler, opened(pooler.url()) as pooled:
        assert pooled.pulse(joined(pooled)).is_polling


def test_behind_a_pooler_new_jobs_are_seen(pooled, store):
    joined(pooled)
    changes = pooled.changes()
    assert changes is not None
    pooled.changed()

    put(store)

    assert select.select([changes], [], [], 20)[0]
    assert pooled.changed()


def test_behind_a_pooler_the_heartbeat_is_what_tells(pooled, store, elsewhere, monkeypatch):
    monkeypatch.setattr(postgres_pulse, "RESCUE_S", 1.0)
    owner = joined(pooled)
    (job_id,) = put(store)
    take(pooled, owner)
    inside.die(pooled, owner)
    assert store.rescue(decide) == []

    ((info, _acks),) = until(lambda: store.rescue(decide))

    assert info.owner == owner
    assert state_of(store, job_id) is State.PENDING


def test_behind_a_pooler_nobody_is_dead_because_the_servers_clock_was_set(pooled, store, elsewhere):
    """An hour ahead: until its next beat a worker seems to have been silent for as long."""
    owner = joined(pooled)
    (job_id,) = put(store)
    take(pooled, owner)
    assert store.rescue(decide) == []

    inside.pass_time(store, 3600)
    (before,) = [info.seen_at for info in store.workers()]
    assert store.rescue(decide) == []
    until(lambda: store.rescue(decide) or store.workers()[0].seen_at > before)

    assert store.rescue(decide) == []
    assert state_of(store, job_id) is State.RUNNING


def test_a_store_whose_worker_died_behind_a_pooler_can_be_moved(
    pooled, store, elsewhere, database_url, tmp_path, monkeypatch
):
    """Only its silence tells that it is dead: the move listens for as long as that takes."""
    monkeypatch.setattr(postgres_pulse, "RESCUE_S", 1.0)
    owner = joined(pooled)
    put(store)
    take(pooled, owner)
    inside.die(pooled, owner)
    inside.pass_time(store, 3600)

    assert dutiful.move(database_url, tmp_path / "jobs.db").jobs == 1


def test_silence_counts_only_while_somebody_listens(monkeypatch, elsewhere):
    """While the server is away for all, nobody can be heard."""
    clock = Clock()
    monkeypatch.setattr(postgres_pulse, "time", clock)
    watch = postgres_pulse.Watch(postgres_marks.LocalFolder())
    one = Missing(7, "w", "host", "boot", 1, "t", 0, 0, (QUEUE,), 1, 1, has_just_gone=False, is_due=True)

    def after(seconds: float) -> list[Missing]:
        clock.now += seconds
        return [dead.worker for dead in watch.judge([one])[0]]

    assert after(0) == []
    assert after(3600) == []
    for _ in range(12):
        assert after(0.7) == []
    assert after(2) == [one]


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_behind_a_pooler_our_transactions_see_what_was_committed_before_their_locks(database_url):
    """Whatever the role's default; that one holds for a handler's own transaction."""
    name = urlsplit(database_url).path[1:]
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO 'repeatable read'")
    with Pooler(database_url) as pooler, opened(pooler.url()) as pooled:
        owner = joined(pooled)
        put(pooled)
        (claim,) = take(pooled, owner)

        with pooled.sql() as sql:
            ours = sql.rows("SELECT current_setting('transaction_isolation')")
        with pooled.transaction(claim) as db:
            his = db.execute("SELECT current_setting('transaction_isolation')").fetchall()

        assert (ours, his) == ([("read committed",)], [("repeatable read",)])
        many_at_once(lambda: put(pooled, draft("1")))  # ids are given under a lock of their own


def many_at_once(do: Callable[[], object]) -> None:
    """Do it ten times in each of some threads; raise what any of them raises."""
    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(lambda: [do() for _ in range(10)]) for _ in range(6)]:
            done.result()


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
