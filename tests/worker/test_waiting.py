"""Waiting for jobs that another process runs: what comes back, and that nobody has to look all the time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from dutiful import JobFailed, JobNotFound, JobTimeout, Retry, State
from tests.worker.tools import WAIT_S, background, result, script, until

WORKER = """
    from dataclasses import dataclass

    @dataclass
    class Receipt:
        amount: int

    worker = Worker(sys.argv[1], retry=Retry(max_attempts=1))

    @worker.handler("charge")
    def charge(amount: int) -> Receipt:
        return Receipt(amount)

    @worker.handler("boom")
    async def boom(text: str):
        raise ValueError(text)

    worker.start()
    say("ready")
    threading.Event().wait()
"""


@dataclass
class Receipt:
    amount: int


@pytest.fixture
def elsewhere(shared, tmp_path):
    """A worker in a process of its own; the store."""
    with script(tmp_path, WORKER, shared) as process:
        process.wait_for("ready")
        yield shared


@pytest.fixture
def never_looks(monkeypatch):
    """Nobody looks by himself again: who is not told waits too long for the test."""
    for name in ("handle.BACKSTOP_S", "handle.LOOK_MAX_S", "listening.FIRST_S", "listening.BACKSTOP_S"):
        monkeypatch.setattr(f"dutiful.{name}", 10 * WAIT_S)


def is_heard(client, worker, job):
    """Whether the job's end will be told: the client listens, and on a server the worker has been asked."""
    if client._listening._ear is None:
        return False
    workers = worker._store._workers
    return (
        not hasattr(workers, "_ringer")
        or not hasattr(workers._ringer, "asked")
        or (workers._ringer.asked.has_any([job.id]))
    )


def test_a_result_comes_back_as_its_handler_is_annotated(elsewhere, make):
    """Where the handler is known; else as plain values."""

    def charge(amount: int) -> Receipt:
        raise AssertionError

    knows, stranger = make(elsewhere, handlers={"charge": charge}), make(elsewhere)
    job = knows.send(5, task="charge")

    assert result(job) == Receipt(5)
    assert result(stranger.job(job.id)) == {"amount": 5}


def test_a_failure_brings_the_remote_traceback(elsewhere, make):
    job = make(elsewhere).send("out of money", task="boom")

    with pytest.raises(JobFailed) as caught:
        result(job)

    text = str(caught.value)
    assert "ValueError: out of money" in text
    assert "script" in text
    assert "in boom" in text
    assert "raise ValueError(text)" in text


def test_it_can_be_awaited(elsewhere, make):
    async def use():
        client = make(elsewhere)
        jobs = [await client.asend(n, task="charge") for n in range(50)]
        done = await asyncio.wait_for(asyncio.gather(*jobs), WAIT_S)
        failing = await client.asend("no", task="boom")
        with pytest.raises(JobFailed, match="ValueError: no"):
            await failing
        return done

    assert asyncio.run(use()) == [{"amount": n} for n in range(50)]


def test_who_waits_is_woken(make, started, shared, gate, never_looks):
    worker = started(shared, handlers={"t": gate.hold})
    client = make(shared)
    job = client.send(7, task="t")
    waiting = background(job.result, WAIT_S)
    until(lambda: is_heard(client, worker, job))

    gate.open()

    assert waiting.result(WAIT_S) == 7


def test_who_awaits_is_woken(make, started, shared, gate, never_looks):
    worker = started(shared, handlers={"t": gate.hold})
    client = make(shared)
    jobs = client.send_many(range(20), task="t")

    async def use():
        return await asyncio.gather(*jobs)

    waiting = background(asyncio.run, use())
    until(lambda: len(client._listening._waiting) == 20)
    until(lambda: all(is_heard(client, worker, job) for job in jobs))

    gate.open()

    assert waiting.result(WAIT_S) == list(range(20))


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_who_waits_hears_of_a_job_that_is_cancelled_or_deleted(make, shared, how, never_looks):
    client, other = make(shared), make(shared)
    job = client.send(1, task="t", delay=3600)
    waiting = background(job.wait, WAIT_S)
    until(lambda: client._listening._ear is not None and getattr(client._listening._ear, "_db", 1))

    getattr(other.job(job.id), how)()

    if how == "cancel":
        assert waiting.result(WAIT_S).state is State.CANCELLED
    else:
        with pytest.raises(JobNotFound):
            waiting.result(WAIT_S)


def test_who_waits_hears_of_a_completion_in_a_transaction(make, started, shared, gate, never_looks):
    worker = started(shared)

    @worker.handler("t")
    def handle(n, ctx):
        gate.hold(n)
        with ctx.transaction():
            pass

    client = make(shared)
    job = client.send(1, task="t")
    waiting = background(job.wait, WAIT_S)
    until(lambda: is_heard(client, worker, job))

    gate.open()

    assert waiting.result(WAIT_S).state is State.COMPLETED


def test_waiting_has_an_end(make, shared):
    client = make(shared)
    job = client.send(1, task="t", delay=3600)

    with pytest.raises(JobTimeout):
        job.wait(timeout=0.2)
    with pytest.raises(JobTimeout):
        asyncio.run(job.aresult(timeout=0.2))
    assert client._listening._waiting == {}


def test_a_worker_that_comes_later_is_asked_too(make, started, shared, gate):
    client = make(shared)
    job = client.send(7, task="t")
    waiting = background(job.result, WAIT_S)
    until(lambda: client._listening._ear is not None)
    gate.open()

    started(shared, handlers={"t": gate.hold})

    assert waiting.result(WAIT_S) == 7


def test_a_lost_connection_costs_no_result(make, started, database_url, gate):
    worker = started(database_url, handlers={"t": gate.hold})
    client = make(database_url)
    job = client.send(7, task="t")
    waiting = background(job.result, WAIT_S)
    until(lambda: is_heard(client, worker, job))

    with worker._store._access.borrowed() as db:
        db.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%%pg_notify%%' AND pid <> pg_backend_pid()"
        )
    gate.open()

    assert waiting.result(WAIT_S) == 7


def test_jobs_that_fail_and_are_run_again_by_hand_are_waited_for_anew(make, started, shared):
    tries = []

    def once(n):
        tries.append(n)
        if len(tries) == 1:
            raise ValueError("the first time")
        return n

    started(shared, handlers={"t": once}, retry=Retry(max_attempts=1))
    client = make(shared)
    job = client.send(3, task="t")
    with pytest.raises(JobFailed):
        result(job)

    job.retry()

    assert result(job) == 3
