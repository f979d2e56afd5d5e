"""Starting, starting twice, and starting again."""

import gc
import threading
import weakref

import pytest

from dutiful import AlreadyStarted, ConfigError, State, StoreError, Worker, WorkerStopped
from tests.worker.tools import WAIT_S, finished, result, until, within


def double(n):
    return 2 * n


def test_with_starts_and_stops(make, store):
    worker = make(store, handlers={"double": double})

    with worker as same:
        assert same is worker
        assert result(worker.send(2, task="double")) == 4
        assert [info.name for info in worker.workers()] == ["worker"]

    with pytest.raises(WorkerStopped, match="nothing was stored"):
        worker.send(3, task="double")
    with pytest.raises(WorkerStopped):
        worker.send_many([3], task="double")


def test_an_error_inside_with_stops_the_worker_and_passes(make, store):
    worker = make(store)

    with pytest.raises(KeyError), worker:
        raise KeyError

    with pytest.raises(WorkerStopped):
        worker.send(3, task="double")


def test_starting_twice_is_an_error_and_changes_nothing(started, store):
    worker = started(store, handlers={"double": double}, name="one")

    with pytest.raises(AlreadyStarted, match="'one' is already started"):
        worker.start()
    with pytest.raises(AlreadyStarted), worker:
        pass

    assert result(worker.send(2, task="double")) == 4


def test_one_of_many_starts_at_once_wins(make, path):
    worker = make(path, handlers={"double": double})
    wins, losses = [], []

    def start():
        try:
            worker.start()
            wins.append(1)
        except AlreadyStarted:
            losses.append(1)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert (len(wins), len(losses)) == (1, 7)
    assert len(worker.workers()) == 1
    assert result(worker.send(2, task="double")) == 4


def test_a_worker_can_be_started_again_and_again(make, store):
    worker = make(store, handlers={"double": double})

    for n in range(5):
        with worker:
            assert result(worker.send(n, task="double")) == 2 * n


def test_what_was_left_in_a_file_runs_at_the_next_start(make, path, gate, seen):
    worker = make(path, handlers={"hold": gate.hold, "t": seen.add}, concurrency=1)
    worker.start()
    worker.send(0, task="hold")
    gate.entered.wait()
    left = worker.send_many([1, 2, 3], task="t")
    gate.open()
    worker.stop(timeout=WAIT_S)

    worker.start()

    assert seen.wait(3) == [1, 2, 3]
    assert all(finished(job).failures == 0 for job in left)


def test_a_worker_in_memory_begins_anew(make, seen):
    worker = make(":memory:", handlers={"t": seen.add})
    with worker:
        worker.send(1, task="t", delay=3600)

    with worker:
        assert worker.jobs() == []
        worker.send(2, task="t")

    assert seen.all == [2]


def test_a_start_that_fails_has_started_nothing(make, tmp_path, path):
    (tmp_path / "file").write_text("no directory")
    worker = make(tmp_path / "file" / "jobs.db")

    for _ in range(2):
        with pytest.raises(StoreError, match="file"):
            worker.start()
    assert "not started" in repr(worker)
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()

    worker.start()

    assert "started" in repr(worker)


def test_a_worker_with_a_thread_of_its_last_run_cannot_be_started(make, path, gate):
    worker = make(path, handlers={"hold": gate.hold, "double": double})
    worker.start()
    job = worker.send(1, task="hold")
    gate.entered.wait()
    within(WAIT_S, worker.stop, 0.1)

    with pytest.raises(AlreadyStarted):
        worker.start()
    gate.open()

    def start():
        try:
            worker.start()
        except AlreadyStarted:
            return False
        return True

    until(start)
    assert result(worker.send(2, task="double")) == 4
    assert finished(job).state is State.COMPLETED
    assert job.attempt == 1


def test_a_client_can_be_stopped_and_used_again_after_a_start(make, path):
    worker = make(path)
    job = worker.send(2, task="double")
    worker.stop()
    with pytest.raises(WorkerStopped):
        worker.send(3, task="double")
    worker.handlers["double"] = double

    with worker:
        assert result(worker.job(job.id)) == 4


def test_settings_can_be_replaced_before_the_start_and_not_after(make, path):
    worker = make(path, handlers={"double": double})
    worker.configure(concurrency=3, queues="mail")
    with pytest.raises(ConfigError):
        worker.configure(concurrency=0)
    worker.start()

    (info,) = worker.workers()
    assert (info.concurrency, info.queues) == (3, ("mail",))
    assert result(worker.send(2, task="double")) == 4
    with pytest.raises(AlreadyStarted):
        worker.configure(concurrency=4)


def test_repr_says_where_it_stands(make, path):
    worker = make(path, name="mailer")
    texts = [repr(worker)]
    worker.start()
    texts.append(repr(worker))
    worker.stop()
    texts.append(repr(worker))

    assert ["not started" in text for text in texts] == [True, False, False]
    assert "stopped" in texts[2]
    assert all("mailer" in text and str(path) in text for text in texts)


def test_a_started_worker_lives_though_nobody_holds_it(path, make, seen):
    def start():
        worker = Worker(path, handlers={"t": seen.add})
        worker.start()
        return weakref.ref(worker)

    held = start()
    gc.collect()

    make(path).send(1, task="t")
    assert seen.wait() == [1]
    held().stop()


def test_a_client_that_nobody_holds_gives_back_its_files(path):
    def use():
        Worker(path).send(1, task="t")

    before = set(threading.enumerate())
    use()
    gc.collect()

    assert set(threading.enumerate()) <= before
