"""Workers that die: their jobs run elsewhere or after a restart, within the stated times."""

import logging
import signal
import time
from pathlib import Path

import pytest

from dutiful import State
from tests.worker.tools import WAIT_S, Seen, finished, result, script, until

# Starts a worker whose handler says when it begins; the first attempt never ends.
WORK = """
    path, name = sys.argv[1:3]
    worker = Worker(path, name=name, concurrency=4, max_crashes=100)

    @worker.handler("hold")
    def hold(n, ctx):
        say("begun", ctx.id, ctx.attempt, time.monotonic())
        time.sleep(1000 if ctx.attempt == 1 else 0)

    worker.start()
    say("ready")
    signal.pause()
"""


def begun_at(program, job) -> float:
    return float(program.wait_for(f"begun {job.id} 2 ").split()[-1])


@pytest.mark.alone
def test_the_job_of_a_killed_worker_runs_in_the_other_within_a_second(tmp_path, make, path):
    client = make(path)
    with script(tmp_path, WORK, path, "one") as one:
        one.wait_for("ready")
        job = client.send(0, task="hold")
        one.wait_for("begun")
        with script(tmp_path, WORK, path, "two") as two:
            two.wait_for("ready")
            killed_at = time.monotonic()
            one.kill()

            assert begun_at(two, job) - killed_at < 1.0
    record = job.refresh()
    assert (record.attempt, record.failures, record.crashes) == (2, 0, 1)
    assert record.errors[0].worker == "one"
    assert "worker died while running the job" in record.errors[0].message


@pytest.mark.alone
def test_after_a_restart_the_job_of_the_killed_one_runs_within_300_ms(tmp_path, make, started, path, seen):
    with script(tmp_path, WORK, path, "one") as one:
        one.wait_for("ready")
        job = make(path).send(0, task="hold")
        one.wait_for("begun")
        one.kill()
    began = time.monotonic()
    worker = started(path, handlers={"hold": lambda n: seen.add(time.monotonic())})
    started_at = time.monotonic()

    assert seen.wait()[0] - started_at < 0.3
    assert started_at - began < 1.0
    assert finished(worker.job(job.id)).attempt == 2


def test_a_rescue_is_logged_and_every_job_of_the_dead_runs_once_more(tmp_path, make, started, path, caplog):
    seen = Seen()
    with script(tmp_path, WORK, path, "one") as one:
        one.wait_for("ready")
        jobs = make(path).send_many(range(4), task="hold")
        for job in jobs:
            one.wait_for(f"begun {job.id} ")
        pid = one.pid
        one.kill()

    with caplog.at_level(logging.WARNING, "dutiful"):
        worker = started(path, handlers={"hold": seen.add})
        assert sorted(seen.wait(4)) == [0, 1, 2, 3]

    assert any(f"worker one (pid {pid}) died" in line for line in caplog.messages)
    assert [finished(worker.job(job.id)).attempt for job in jobs] == [2] * 4
    assert [info.name for info in worker.workers()] == ["worker"]


def test_several_live_workers_rescue_each_job_once(tmp_path, make, path):
    client = make(path)
    with script(tmp_path, WORK, path, "victim") as victim:
        victim.wait_for("ready")
        jobs = client.send_many(range(4), task="hold")
        for job in jobs:
            victim.wait_for(f"begun {job.id} ")
        with script(tmp_path, WORK, path, "a") as a, script(tmp_path, WORK, path, "b") as b:
            for other in (a, b):
                other.wait_for("ready")
            victim.kill()

            assert [finished(job).attempt for job in jobs] == [2] * 4
            until(lambda: sum(line.startswith("begun") for line in (*a.lines, *b.lines)) >= len(jobs))
            assert sum(line.startswith("begun") for line in (*a.lines, *b.lines)) == len(jobs)


def test_jobs_that_only_waited_in_the_dead_workers_memory_are_no_suspects(tmp_path, make, path):
    source = """
        worker = Worker(sys.argv[1], concurrency=1)

        @worker.handler("t")
        def handle(n):
            if n == 500:
                say("holding")
                os.kill(os.getpid(), signal.SIGKILL) if len(sys.argv) > 2 else time.sleep(1000)

        worker.send_many(range(1000), task="t")
        worker.start()
        signal.pause()
    """
    with script(tmp_path, source, path) as one:
        one.wait_for("holding")
        one.kill()
    seen = Seen()
    worker = make(path, handlers={"t": seen.add}, concurrency=1)
    worker.start()

    seen.wait(499)
    until(lambda: not worker.counts().due)
    blamed = [(r.payload, r.crashes) for r in worker.jobs(limit=1000) if finished(worker.job(r.id)).errors]
    assert [payload for payload, _crashes in blamed] == ["500"]


def test_a_handler_that_holds_the_gil_does_not_make_its_worker_look_dead(tmp_path, make, started, path):
    source = """
        import ctypes
        worker = Worker(sys.argv[1], name="hog")

        @worker.handler("hog")
        def hog(n, ctx):
            say("begun", ctx.attempt)
            ctypes.PyDLL(None).sleep(8)  # unlike CDLL, it keeps the GIL
            return ctx.attempt

        worker.start()
        say("ready")
        signal.pause()
    """
    with script(tmp_path, source, path) as hog:
        hog.wait_for("ready")
        job = make(path).send(0, task="hog")
        hog.wait_for("begun")

        other = started(path, handlers={"hog": lambda n: "stolen", "fine": lambda n: n})
        for n in range(20):  # it is alive, and has looked for dead ones
            assert result(other.send(n, task="fine")) == n
        assert job.state is State.RUNNING

        assert result(job) == 1
        assert [line for line in hog.lines if line.startswith("begun")] == ["begun 1"]


def test_a_stopped_process_is_not_dead(tmp_path, make, started, path):
    with script(tmp_path, WORK, path, "paused") as paused:
        paused.wait_for("ready")
        job = make(path).send(0, task="hold")
        paused.wait_for("begun")
        paused.signal(signal.SIGSTOP)
        other = started(path, handlers={"hold": lambda n: "stolen", "fine": lambda n: n})

        for n in range(50):
            assert result(other.send(n, task="fine")) == n
        time.sleep(1.2)  # two looks for dead workers
        assert job.refresh().attempt == 1
        paused.signal(signal.SIGCONT)


def test_sigterm_without_a_handler_loses_nothing(tmp_path, make, started, path, seen):
    with script(tmp_path, WORK, path, "one") as one:
        one.wait_for("ready")
        job = make(path).send(0, task="hold")
        one.wait_for("begun")
        one.signal(signal.SIGTERM)
        assert one.wait() == -signal.SIGTERM

    started(path, handlers={"hold": seen.add})

    assert seen.wait(1, WAIT_S) == [0]
    assert finished(job).attempt == 2


def test_what_a_dead_worker_kept_beside_the_file_is_removed(tmp_path, started, path):
    with script(tmp_path, WORK, path, "one") as one:
        one.wait_for("ready")
        folder = Path(f"{path}-dutiful")
        before = set(folder.iterdir())
        one.kill()

    worker = started(path)

    assert len(worker.workers()) == 1
    assert not {each for each in before if each.name != "write.lock"} & set(folder.iterdir())
