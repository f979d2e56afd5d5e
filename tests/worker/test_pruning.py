"""How long finished jobs stay, and that the file shrinks again."""

import time

import pytest

from dutiful import JobNotFound, Keep, Retry, State, WorkerStopped
from dutiful.runner import runner
from tests.worker.tools import Seen, finished, until


def completed(worker):
    return worker.counts().by_state[State.COMPLETED]


def test_by_default_completed_jobs_stay(started, store, seen):
    worker = started(store, handlers={"t": seen.add})
    jobs = worker.send_many(range(1500), task="t")
    seen.wait(1500)

    until(lambda: completed(worker) == 1500)
    assert finished(jobs[0]).state is State.COMPLETED
    assert Keep() == Keep(count=10_000, age_s=86_400)


def test_the_newest_stay_and_no_more(started, store, seen):
    worker = started(store, handlers={"t": seen.add}, keep_completed=10, concurrency=1)

    jobs = worker.send_many(range(2000), task="t")

    seen.wait(2000)
    until(lambda: completed(worker) == 10)
    assert [record.id for record in worker.jobs()] == sorted(jobs.ids, reverse=True)[:10]
    time.sleep(0.6)  # another look: it stays at that
    assert completed(worker) == 10


@pytest.mark.parametrize("setting", [False, Keep(count=0)])
def test_none_need_to_stay(started, store, setting, seen):
    worker = started(store, handlers={"t": seen.add, "value": lambda n: n}, keep_completed=setting)
    jobs = worker.send_many(range(500), task="t")
    valued = worker.send(1, task="value")

    seen.wait(500)

    until(lambda: not worker.jobs())
    for job in (*jobs[:3], valued):
        with pytest.raises(JobNotFound):
            job.refresh()


def test_age_is_a_bound_too(started, store, seen):
    worker = started(store, handlers={"t": seen.add}, keep_completed=Keep(age_s=0.5))
    worker.send_many(range(20), task="t")
    seen.wait(20)

    until(lambda: not worker.jobs())


def test_cancelled_jobs_are_pruned_and_dead_and_waiting_ones_never(started, store, seen):
    worker = started(
        store, handlers={"t": seen.add, "bad": lambda n: 1 / 0}, keep_completed=5, retry=Retry(max_attempts=1)
    )
    dead = worker.send_many(range(10), task="bad")
    waiting = worker.send_many(range(10), task="t", delay=3600)
    for job in worker.send_many(range(10), task="t", delay=3600):
        job.cancel()
    worker.send_many(range(10), task="t")
    seen.wait(10)
    for job in dead:
        assert finished(job).state is State.DEAD

    def kept():
        by_state = worker.counts().by_state
        return by_state[State.COMPLETED] + by_state[State.CANCELLED] == 5

    until(kept)
    assert [job.state for job in dead] == [State.DEAD] * 10
    assert [job.state for job in waiting] == [State.PENDING] * 10


def test_the_errors_of_a_pruned_job_go_with_it(started, store, seen):
    worker = started(store, keep_completed=0)

    @worker.handler("t", retry=Retry(decide=lambda *_: 0))
    def handle(n, ctx):
        if not ctx.failures:
            raise ValueError
        seen.add(n)

    job = worker.send(1, task="t")
    seen.wait()
    until(lambda: not worker.jobs())

    with pytest.raises(JobNotFound):
        _ = job.errors


def test_the_file_shrinks_after_a_burst(started, path, seen, monkeypatch):
    monkeypatch.setattr(runner, "TIDY_S", 0.3)
    worker = started(path, handlers={"t": lambda text: seen.add(len(text))}, keep_completed=0)

    def size():
        return sum(each.stat().st_size for each in path.parent.glob("jobs.db*") if each.is_file())

    client_jobs = worker.send_many(("x" * 4000 for _ in range(5000)), task="t", delay=0.3)
    until(lambda: size() > 15_000_000)

    seen.wait(len(client_jobs))

    until(lambda: size() < 5_000_000)


@pytest.mark.alone
def test_pruning_does_not_hold_up_a_send(make, path):
    """Batches of a few milliseconds: a send beside them takes less than 50 ms, however many go."""
    seen = Seen()
    worker = make(path, handlers={"t": seen.add})
    with worker:
        worker.send_many(range(9000), task="t")
        seen.wait(9000)
    pruning = make(path, keep_completed=1)
    pruning.start()
    slowest = 0.0
    while completed(pruning) > 10:
        began = time.perf_counter()
        pruning.send(0, task="later", delay=3600)
        slowest = max(slowest, time.perf_counter() - began)

    assert slowest < 0.05


def test_a_stop_does_not_wait_for_the_pruning(make, path, seen):
    with make(path, handlers={"t": seen.add}) as worker:
        worker.send_many(range(5000), task="t")
        seen.wait(5000)
    pruning = make(path, keep_completed=1)
    pruning.start()
    pruning.stop()

    with pytest.raises(WorkerStopped):
        pruning.send(1, task="t")
