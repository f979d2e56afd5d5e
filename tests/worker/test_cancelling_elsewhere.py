"""A job is cancelled by one process, and waits or runs in another; on a file and on a server."""

from __future__ import annotations

import pytest

from dutiful import Limit, State
from tests.worker.tools import finished, result, script, until

WORKER = """
    store, folder = sys.argv[1:3]
    worker = Worker(store, queues=["q"], retry=Retry(backoff=Backoff(first_s=3600)))

    @worker.handler("async")
    async def coroutine(n):
        say("begun", n)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            say("cancelled", n)
            raise

    @worker.handler("checks")
    def checks(n, ctx: Context):
        say("begun", n)
        while True:
            ctx.check()
            time.sleep(0.01)

    @worker.handler("looks")
    def looks(n, ctx: Context):
        say("begun", n)
        while not ctx.cancelled:
            time.sleep(0.01)
        say("cancelled", n)
        return "tidied up"

    @worker.handler("process", process=True)
    def process(n):
        say("begun", n)
        time.sleep(600)

    @worker.handler("fails")
    def fails(n):
        raise ValueError("fails")

    @worker.handler("sleeps")
    def sleeps(n, ctx: Context):
        ctx.sleep("long", "3 days")

    @worker.handler("waits")
    def waits(n, ctx: Context):
        ctx.wait_event("never")

    worker.handlers["echo"] = lambda n: n

    if __name__ == "__main__":
        worker.start()
        say("ready")
        threading.Event().wait()
"""


@pytest.fixture
def elsewhere(shared, tmp_path):
    """A worker in a process of its own."""
    with script(tmp_path, WORKER, shared, tmp_path) as process:
        process.wait_for("ready")
        yield process


@pytest.fixture
def client(elsewhere, make, shared):
    return make(shared, queues=["q"])


@pytest.mark.parametrize("kind", ["async", "checks", "looks", "process"])
def test_a_running_job_stops_as_its_kind_allows(elsewhere, client, kind):
    """A thread that only looks may still complete: it could not be stopped."""
    job = client.send(1, task=kind)
    elsewhere.wait_for("begun 1")

    job.cancel()

    record = finished(job)
    assert record.state is (State.COMPLETED if kind == "looks" else State.CANCELLED)
    assert (record.attempt, record.failures) == (1, 0)
    if kind in ("async", "looks"):
        elsewhere.wait_for("cancelled 1")
    assert result(client.send(2, task="echo")) == 2  # its slot is free, and its worker well


@pytest.mark.parametrize("kind", ["fails", "sleeps", "waits"])
def test_a_job_between_two_attempts_ends_at_once(elsewhere, client, kind):
    job = client.send(1, task=kind)
    until(lambda: (now := job.refresh()).state is State.PENDING and now.attempt == 1)

    job.cancel()

    assert job.state is State.CANCELLED


def test_a_running_job_that_others_stand_behind(elsewhere, client):
    """The next of its key goes on, and the next in its limit; what follows it ends with it."""
    first = client.send(1, task="async", key="k")
    elsewhere.wait_for("begun 1")
    second = client.send(2, task="echo", key="k")
    after = client.send(3, task="echo", after=first)
    anyway = client.send(4, task="echo", after=first, on_dead="run")
    assert {job.state for job in (second, after, anyway)} == {State.BLOCKED}

    first.cancel()

    assert finished(first).state is State.CANCELLED
    assert result(second) == 2
    assert finished(after).state is State.CANCELLED
    assert result(anyway) == 4


def test_a_blocked_job_ends_at_once_and_the_others_keep_their_order(elsewhere, client):
    first = client.send(1, task="async", key="k")
    elsewhere.wait_for("begun 1")
    second, third = client.send(2, task="echo", key="k"), client.send(3, task="echo", key="k")

    second.cancel()
    assert second.state is State.CANCELLED
    assert third.state is State.BLOCKED
    first.cancel()

    assert result(third) == 3


def test_a_cancelled_job_gives_its_slot_of_a_limit_back(elsewhere, client, make, shared):
    limited = make(shared, queues=["q"])

    @limited.handler("async", limit=Limit(concurrency=1))
    async def coroutine(n): ...

    first = limited.send(1, task="async")
    elsewhere.wait_for("begun 1")
    second, third = limited.send(2, task="async"), limited.send(3, task="async")
    assert {second.state, third.state} == {State.BLOCKED}

    second.cancel()
    assert second.state is State.CANCELLED
    first.cancel()

    elsewhere.wait_for("begun 3")
    third.cancel()
    assert finished(third).state is State.CANCELLED


def test_a_job_that_is_due_and_not_taken_ends_at_once(client):
    job = client.send(1, task="echo", queue="nobodys")
    job.cancel()

    assert job.state is State.CANCELLED


def test_a_cancelled_job_stays_cancelled_when_its_worker_dies_before_it_has_heard(
    elsewhere, client, make, shared
):
    job = client.send(1, task="async")
    elsewhere.wait_for("begun 1")

    elsewhere.signal(19)  # SIGSTOP: it cannot hear
    job.cancel()
    elsewhere.kill()
    with make(shared, queues=["q"], handlers={"async": abs}):
        assert finished(job).state is State.CANCELLED
    assert job.attempt == 1
