"""`send` and `send_many`: what they store, where, and what runs."""

import itertools
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dutiful import DutifulError, JobNotFound, Keep, State, Worker
from tests.worker.tools import WAIT_S, finished, result


@dataclass
class Note:
    text: str


def test_the_store_can_be_a_path_a_url_or_the_environments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUTIFUL_STORE", f"sqlite:///{tmp_path}/env.db")
    stores = [str(tmp_path / "a.db"), Path("b.db"), f"sqlite:///{tmp_path}/c.db", "sqlite:///d.db", None]
    for store in stores:
        worker = Worker(store)
        worker.send(1, task="t")
        worker.stop()
    monkeypatch.delenv("DUTIFUL_STORE")
    worker = Worker()
    worker.send(1, task="t")
    worker.stop()

    names = {path.name for path in tmp_path.glob("*.db")}
    assert names == {"a.db", "b.db", "c.db", "d.db", "env.db", "dutiful.db"}


def test_making_a_worker_does_not_touch_the_store(make, path):
    make(path)

    assert not path.exists()


def test_a_worker_that_is_never_started_is_a_client(make, started, seen):
    client = make()
    job = client.send("a", task="note", queue="mail", priority=3)
    record = job.refresh()
    assert (record.state, record.attempt, record.queue, record.priority) == (State.PENDING, 0, "mail", 3)

    started(handlers={"note": lambda text: text * 2}, queues="mail")

    assert result(job) == "aa"
    assert client.workers()[0].queues == ("mail",)


def test_a_worker_takes_only_from_its_queues(make, started):
    client = make()
    other, ours = client.send(1, task="t", queue="other"), client.send(2, task="t", queue="ours")

    started(handlers={"t": lambda n: n}, queues=("ours", "more"))

    assert result(ours) == 2
    assert result(client.send(3, task="t", queue="more")) == 3
    assert other.state is State.PENDING


def test_a_delay_and_an_instant_are_kept(make):
    worker = make()
    at = datetime.now(UTC) + timedelta(hours=2)

    delayed = worker.send(1, task="t", delay=90).refresh()
    longer = worker.send(1, task="t", delay=timedelta(minutes=3)).refresh()
    timed = worker.send(1, task="t", run_at=at).refresh()

    assert delayed.due_at - delayed.created_at == 90_000
    assert longer.due_at - longer.created_at == 180_000
    assert timed.due_at == round(at.timestamp() * 1000)


def test_a_delayed_job_runs_when_it_is_due_and_not_before(started, store, seen):
    worker = started(store, handlers={"t": seen.add})

    late = worker.send("late", task="t", delay=0.3)
    worker.send("past", task="t", run_at=datetime.now(UTC) - timedelta(days=1))
    worker.send("now", task="t")

    assert sorted(seen.wait(3)) == ["late", "now", "past"]
    assert seen.all[-1] == "late"
    record = finished(late)
    assert record.started_at >= record.due_at


def test_send_many_stores_all_in_order(started, store, seen):
    worker = started(store, handlers={"t": seen.add}, concurrency=1)

    jobs = worker.send_many((n for n in range(2500)), task="t")

    assert len(jobs) == 2500
    assert seen.wait(2500) == list(range(2500))
    assert jobs.ids == sorted(set(jobs.ids))
    assert [jobs[0].id, jobs[-1].id] == [jobs.ids[0], jobs.ids[-1]]
    assert [job.id for job in jobs[10:13]] == jobs.ids[10:13]
    assert finished(jobs[1234]).payload == "1234"


def test_send_many_of_nothing_is_nothing(make):
    worker = make()

    assert list(worker.send_many([], task="t")) == []
    assert worker.jobs() == []


def test_send_many_sends_each_type_to_its_own_handler(started, seen):
    worker = started(":memory:", handlers={Note: lambda it: seen.add(it.text), int: seen.add}, concurrency=1)

    worker.send_many(itertools.chain([Note("a"), 1, Note("b"), Note("c"), 2]))

    assert seen.wait(5) == ["a", 1, "b", "c", 2]


def test_a_bad_payload_in_send_many_leaves_the_earlier_chunks_and_says_so(make):
    worker = make()

    with pytest.raises(DutifulError) as caught:
        worker.send_many([*range(1500), {1, 2}], task="t")

    assert "1000 jobs" in " ".join(caught.value.__notes__)
    assert worker.counts().by_state[State.PENDING] == 1000


def test_a_generator_that_raises_passes_through_send_many(make):
    worker = make()

    def payloads():
        yield from range(1500)
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        worker.send_many(payloads(), task="t")
    assert worker.counts().by_state[State.PENDING] == 1000


def test_a_generator_may_send_by_itself(make):
    worker = make()

    worker.send_many((worker.send(n, task="inner").id for n in range(3)), task="outer")

    assert [record.task for record in worker.jobs()] == ["outer"] * 3 + ["inner"] * 3


def test_many_threads_send_at_once(started, store, seen):
    worker = started(store, handlers={"t": seen.add})
    ids: list[int] = []

    def send(base):
        ids.extend([worker.send(base + n, task="t").id for n in range(50)])

    threads = [threading.Thread(target=send, args=(1000 * k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert sorted(seen.wait(400)) == sorted(1000 * k + n for k in range(8) for n in range(50))
    assert len(set(ids)) == 400


def test_a_job_that_is_not_kept_is_gone_when_it_has_finished(started, store):
    worker = started(store, handlers={"t": lambda _: None}, keep_completed=Keep(count=0))

    with pytest.raises(JobNotFound, match="keep_completed"):
        finished(worker.send(1, task="t"))
