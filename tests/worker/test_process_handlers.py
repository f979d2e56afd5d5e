"""Handlers with process=True, through the worker: what they return, and how they are ended."""

import os
from pathlib import Path

import pytest

from dutiful import Backoff, ConfigError, Handler, JobFailed, Retry, State
from tests.worker import handlers
from tests.worker.tools import WAIT_S, finished, is_dead, result, script, until

ONCE = Retry(max_attempts=1)
AT_ONCE = Retry(backoff=Backoff(first_s=0))


def in_child(fn, **options):
    return Handler(fn, process=True, **options)


def pid_in(path: Path) -> int:
    return until(lambda: path.exists() and int(path.read_text()))


def test_it_runs_in_another_process_and_returns_its_result(started, store):
    worker = started(store, handlers={"pid": in_child(handlers.pid), "double": in_child(handlers.double)})

    assert result(worker.send(0, task="pid")) != os.getpid()
    assert [result(job) for job in worker.send_many(range(20), task="double")] == [2 * n for n in range(20)]


def test_its_failures_are_like_those_of_others(started, store):
    worker = started(
        store,
        handlers={
            "fail": in_child(handlers.fail, retry=Retry(max_attempts=2, backoff=Backoff(first_s=0))),
            "leave": in_child(handlers.leave, retry=ONCE),
            "double": in_child(handlers.double, retry=ONCE),
        },
    )

    failed = finished(worker.send("why", task="fail"))
    assert (failed.state, failed.failures) == (State.DEAD, 2)
    assert [(error.type, error.message) for error in failed.errors] == [("ValueError", "why")] * 2
    assert "in fail" in failed.errors[0].traceback
    assert finished(worker.send(3, task="leave")).errors[0].type == "SystemExit"
    undecodable = finished(worker.send("text", task="double"))
    assert (undecodable.state, undecodable.errors[0].type) == (State.DEAD, "NotDecodable")


def test_it_can_snooze_cancel_and_discard(started):
    worker = started(":memory:", handlers={"t": in_child(handlers.outcome)})
    jobs = worker.send_many(["snooze", "cancel", "discard"], task="t")

    assert [finished(job).state for job in jobs[1:]] == [State.CANCELLED, State.DEAD]
    until(lambda: jobs[0].attempt > 2)
    jobs[0].cancel()
    assert finished(jobs[0]).failures == 0


def test_odd_outcomes_and_results_are_seen_through(started):
    worker = started(
        ":memory:",
        handlers={
            "odd": in_child(handlers.odd_snooze, retry=ONCE),
            "none": in_child(handlers.no_json),
            "never": in_child(handlers.forgets_to_await, retry=ONCE),
        },
    )

    assert "Snooze" in finished(worker.send(0, task="odd")).errors[0].message
    assert finished(worker.send(0, task="none")).state is State.COMPLETED
    assert "never ran; make it async def" in finished(worker.send(0, task="never")).errors[0].message


def test_it_sees_its_headers_and_what_it_has_waited_for(started, store):
    worker = started(
        store,
        handlers={"first": in_child(handlers.double), "then": in_child(handlers.headers_and_after)},
    )
    first = worker.send(4, task="first")

    job = worker.send(None, task="then", after=first, headers={"trace": "1"})

    assert result(job) == [{"trace": "1"}, [8]]
    assert result(worker.send(None, task="then")) == [{}, []]


@pytest.mark.parametrize("fn", [handlers.spin, handlers.sleep])
def test_a_timeout_kills_it(started, store, tmp_path, fn):
    worker = started(store, handlers={"t": in_child(fn, timeout=0.5, retry=ONCE)})

    record = finished(worker.send(str(tmp_path / "pid"), task="t"))

    assert (record.state, record.errors[0].type) == (State.DEAD, "TimeoutError")
    until(lambda: is_dead(pid_in(tmp_path / "pid")))


def test_a_cancel_kills_it(started, store, tmp_path):
    worker = started(store, handlers={"t": in_child(handlers.spin)})
    job = worker.send(str(tmp_path / "pid"), task="t")
    pid = pid_in(tmp_path / "pid")

    job.cancel()

    assert finished(job).state is State.CANCELLED
    until(lambda: is_dead(pid))


def test_a_stop_kills_it_after_its_time_and_gives_the_job_back(started, make, path, tmp_path):
    worker = started(path, handlers={"t": in_child(handlers.spin)})
    job = worker.send(str(tmp_path / "pid"), task="t")
    pid = pid_in(tmp_path / "pid")

    worker.stop(timeout=0.2)

    record = make(path).job(job.id).refresh()
    assert (record.state, record.failures, record.crashes, record.errors) == (State.PENDING, 0, 0, ())
    until(lambda: is_dead(pid))


@pytest.mark.parametrize(("fn", "how"), [(handlers.vanish, "code 3"), (handlers.kill_itself, "SIGKILL")])
def test_a_job_that_kills_its_child_is_dead_after_some_crashes_and_the_worker_lives(started, store, fn, how):
    worker = started(store, handlers={"bad": in_child(fn, retry=AT_ONCE), "fine": lambda n: n}, concurrency=2)

    job = worker.send(3, task="bad")

    record = finished(job)
    assert (record.state, record.failures, record.attempt) == (State.DEAD, 0, 3)
    with pytest.raises(JobFailed, match=how):
        job.result()
    assert result(worker.send(7, task="fine")) == 7


def test_a_policy_that_raises_does_not_take_the_slot_along(started):
    def decide(error, failures):
        raise KeyError("mine")

    policy = Retry(max_attempts=1, decide=decide)
    worker = started(
        ":memory:",
        handlers={"bad": in_child(handlers.fail, retry=policy), "fine": lambda n: n},
        concurrency=1,
    )

    assert finished(worker.send("x", task="bad")).state is State.DEAD
    assert result(worker.send(7, task="fine")) == 7


@pytest.mark.parametrize("fn", [lambda n: n, handlers.acrowd], ids=["lambda", "coroutine"])
def test_what_cannot_run_in_a_child_is_refused_when_it_is_registered(make, fn):
    worker = make(":memory:")

    with pytest.raises(ConfigError):
        worker.handler("t", process=True)(fn)
    with pytest.raises(ConfigError):
        worker.handlers["t"] = in_child(fn)


def test_many_at_once_share_the_slots(started, store, tmp_path):
    (tmp_path / "crowd").mkdir()
    worker = started(store, handlers={"t": in_child(handlers.crowd)}, concurrency=2)

    jobs = worker.send_many([str(tmp_path / "crowd")] * 12, task="t")

    assert max(job.result(timeout=2 * WAIT_S) for job in jobs) <= 2


def test_a_main_module_without_its_guard_is_named_in_the_jobs_error(tmp_path, path):
    source = """
    def f(payload): pass
    worker = Worker(sys.argv[1], handlers={"t": Handler(f, process=True)}, max_crashes=1)
    worker.start()
    job = worker.send(1, task="t")
    say(job.wait(30).errors[0].message)
    worker.stop()
    """
    with script(tmp_path, source, path) as program:
        assert program.wait(60) == 0

    assert any('if __name__ == "__main__":' in line for line in program.lines)
