"""Workers on PostgreSQL whose process, server or network fails: what becomes of what they run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from dutiful import State, StoreUnknown
from dutiful.events import ConnectionBack, ConnectionLost, Event, LeaseOver, StorePolled, StoreTrouble
from dutiful.job import Ack
from dutiful.store import postgres_marks, postgres_pulse
from dutiful.store.postgres import PostgresStore
from dutiful.store.postgres_marks import Local
from tests.servers.pgbouncer import Pooler
from tests.servers.postgres import Server
from tests.servers.proxy import Proxy, When
from tests.store import inside_postgres as inside
from tests.worker.test_rescue import WORK
from tests.worker.tools import Gate, Seen, finished, result, script, until


@contextmanager
def network(url: str) -> Iterator[tuple[Proxy, str]]:
    parts = urlsplit(url)
    assert parts.port is not None
    with Proxy(parts.port) as proxy:
        login = parts.netloc.rpartition("@")[0]
        yield proxy, parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}").geturl()


class Told(Seen):
    """The events of a worker, from its start on."""

    def of(self, worker):
        worker._events.add(self.add)
        return worker

    def all_of(self, kind: type[Event]) -> list[Event]:
        return [event for event in list(self.all) if isinstance(event, kind)]

    def wait_for(self, kind: type[Event]) -> Event:
        return until(lambda: self.all_of(kind))[0]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is on a machine of his own: the server alone can tell who lives."""
    monkeypatch.setattr(postgres_marks.LocalFolder, "look_at", lambda *_args: Local())


def test_the_job_of_a_killed_worker_runs_in_the_other(database_url, tmp_path, make):
    client = make(database_url)
    with script(tmp_path, WORK, database_url, "one") as one:
        one.wait_for("ready")
        job = client.send(0, task="hold")
        one.wait_for("begun")
        with script(tmp_path, WORK, database_url, "two") as two:
            two.wait_for("ready")
            one.kill()

            two.wait_for(f"begun {job.id} 2 ")
    record = job.refresh()
    assert (record.attempt, record.failures, record.crashes) == (2, 0, 1)
    assert record.errors[0].worker == "one"


def test_a_killed_worker_with_a_child_process_is_rescued(database_url, tmp_path, make, started):
    source = """
        worker = Worker(sys.argv[1], name="one")

        @worker.handler("nap", process=True)
        def nap(n):
            print("napping", flush=True)
            time.sleep(1000)

        if __name__ == "__main__":
            worker.start()
            signal.pause()
    """
    job = make(database_url).send(1, task="nap")
    with script(tmp_path, source, database_url) as one:
        one.wait_for("napping")
        one.kill()

    started(database_url, handlers={"nap": lambda n: n})

    assert finished(job).attempt == 2


def test_a_restarted_server_costs_no_job_of_living_workers_an_attempt(make, gate, told):
    with Server.create() as server:
        server.start()
        workers = [make(server.url(), name=name, handlers={"hold": gate.hold}) for name in ("one", "two")]
        for worker in workers:
            told.of(worker).start()
        jobs = [worker.send(number, task="hold") for number, worker in enumerate(workers)]
        assert sorted(gate.entered.wait(2)) == [0, 1]

        server.restart("immediate")
        until(lambda: len(told.all_of(ConnectionBack)) == 2)
        gate.open()

        assert [(record.attempt, record.crashes) for record in map(finished, jobs)] == [(1, 0)] * 2
        assert [back.lost for back in told.all_of(ConnectionBack)] == [0, 0]
        assert result(workers[0].send("after", task="hold")) == "after"
        for worker in workers:
            worker.stop(5)


def test_a_handler_whose_job_others_took_over_is_told(database_url, make, elsewhere, told, seen):
    """A coroutine is cancelled, a thread's context says so; what they come to changes nothing."""
    with network(database_url) as (proxy, url):
        worker = told.of(make(url, name="lost"))
        begun = Seen()

        @worker.handler("thread")
        def thread(n, ctx):
            begun.add(n)
            if ctx.attempt == 1:
                ctx.wait(40)
                seen.add(("thread", ctx.cancelled))

        @worker.handler("coroutine")
        async def coroutine(n, ctx):
            begun.add(n)
            if ctx.attempt == 1:
                try:
                    await asyncio.sleep(40)
                except asyncio.CancelledError:
                    seen.add(("coroutine", True))
                    raise

        worker.start()
        jobs = [worker.send(1, task="thread"), worker.send(2, task="coroutine")]
        begun.wait(2)
        other = PostgresStore(database_url)
        other.open()

        proxy.refuse()
        proxy.cut()
        told.wait_for(ConnectionLost)
        until(lambda: other.rescue(lambda claim, ran: Ack(claim.id, claim.attempt, State.PENDING, 0, 0)))
        proxy.heal()

        assert sorted(seen.wait(2)) == [("coroutine", True), ("thread", True)]
        assert told.wait_for(ConnectionBack).lost == 2
        assert [(record.state, record.attempt) for record in map(finished, jobs)] == [
            (State.COMPLETED, 2)
        ] * 2
        other.close()
        worker.stop(5)


def test_a_worker_that_is_cut_off_stops_what_it_runs_when_its_lease_is_over(
    database_url, make, monkeypatch, told, seen
):
    """At nobody's fault: when the network is back, the job is tried again."""
    monkeypatch.setattr(postgres_pulse, "LEASE_S", 2.0)
    with network(database_url) as (proxy, url):
        worker = told.of(make(url))

        @worker.handler("wait")
        async def wait(n, ctx):
            seen.add(ctx.attempt)
            if ctx.attempt == 1:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    seen.add("stopped")
                    raise

        worker.start()
        job = worker.send(1, task="wait")
        seen.wait(1)

        proxy.black_hole()
        assert seen.wait(2) == [1, "stopped"]
        assert told.wait_for(LeaseOver).running == 1
        proxy.heal()

        record = finished(job)
        assert (record.state, record.attempt, record.failures) == (State.COMPLETED, 2, 0)
        worker.stop(5)


@pytest.mark.parametrize("kind", ["claimed", "handed off"])
def test_a_job_that_was_taken_in_a_step_of_which_nobody_knew_is_given_back(database_url, make, told, kind):
    """Its COMMIT got no answer, and the server could not be asked in time: it had committed."""
    client = make(database_url)
    client.counts()
    with network(database_url) as (proxy, url):
        worker = told.of(make(url, handlers={"t": abs}, busy_s=0.3))
        worker.start()
        result(worker.send(0, task="t"))
        inside.keep_one_connection(worker.opened())  # which will be lost
        trap = proxy.cut_at_commit(When.AFTER)
        proxy.refuse()
        if kind == "claimed":
            job = client.send(-7, task="t")
        else:
            with pytest.raises(StoreUnknown):
                worker.send(-7, task="t")
        trap.wait()
        told.wait_for(StoreTrouble)

        proxy.heal()

        if kind == "handed off":
            (record,) = [record for record in client.jobs() if record.state is not State.COMPLETED]
            job = client.job(record.id)
        assert (result(job), job.attempt, job.refresh().crashes) == (7, 2, 0)


def test_a_job_is_cancelled_from_another_process(database_url, make, started, seen):
    worker = started(database_url)

    @worker.handler("wait")
    async def wait(n):
        seen.add(n)
        await asyncio.sleep(1000)

    client = make(database_url)
    job = client.send(1, task="wait")
    seen.wait()

    client.job(job.id).cancel()

    assert finished(job).state is State.CANCELLED


def test_a_worker_behind_a_pooler_says_that_it_polls_and_works(database_url, make, told, caplog):
    with Pooler(database_url) as pooler, caplog.at_level(logging.WARNING, "dutiful"):
        worker = told.of(make(pooler.url(), handlers={"double": lambda n: 2 * n}))
        worker.start()

        assert result(worker.send(1, task="double")) == 2
        assert result(make(database_url).send(2, task="double")) == 4
        worker.stop(5)

    assert len(told.all_of(StorePolled)) == 1
    assert sum("through a pooler" in line for line in caplog.messages) == 1


def test_a_worker_behind_a_pooler_that_is_killed_is_rescued(database_url, tmp_path, make):
    """On its own machine at once, all the same: its file of marks is unlocked."""
    with Pooler(database_url) as pooler, script(tmp_path, WORK, pooler.url(), "one") as one:
        one.wait_for("ready")
        job = make(database_url).send(0, task="hold")
        one.wait_for("begun")
        with script(tmp_path, WORK, pooler.url(), "two") as two:
            two.wait_for("ready")
            one.kill()

            two.wait_for(f"begun {job.id} 2 ")


@pytest.fixture
def gate(make) -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()
