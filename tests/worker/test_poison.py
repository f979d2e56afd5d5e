"""Jobs that kill their process: found, and put away; the innocent beside them go on."""

import pytest

from dutiful import JobFailed, State
from tests.worker.tools import Seen, ran, result, script, until

# A worker that ends when nothing is left, and is to be started again when it dies.
LIFE = """
    path, concurrency = sys.argv[1], int(sys.argv[2])
    worker = Worker(path, concurrency=concurrency, queues=("default", "other"))
    poisoned = threading.Event()

    @worker.handler("poison")
    def poison(how):
        poisoned.set()
        time.sleep(0.02)  # so that those beside it have begun
        os._exit(9) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)

    @worker.handler("innocent")
    def innocent(n):
        poisoned.wait(0.1)  # beside the poison, if there is any
        time.sleep(0.05)
        return n

    @worker.handler("alone")
    def alone(folder, ctx):
        me = os.path.join(folder, str(ctx.id))
        open(me, "w").close()
        count = len(os.listdir(folder))
        time.sleep(0.1)
        os.unlink(me)
        return count

    worker.start()
    say("started")
    while any(worker.counts().by_state[s] for s in ("pending", "running")):
        time.sleep(0.002)
    worker.stop()
"""


def supervise(tmp_path, path, concurrency, lives_max):
    """Start it again until it ends by itself; return how often it died."""
    for deaths in range(lives_max):
        with script(tmp_path, LIFE, path, concurrency) as life:
            if life.wait() == 0:
                assert "Traceback" not in life.errors
                return deaths
    raise AssertionError(f"still dying after {lives_max} lives")


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_poison_job_is_dead_after_three_crashes_and_those_beside_it_complete(tmp_path, make, path, how):
    client = make(path)
    before = client.send_many(range(7), task="innocent")
    poison = client.send(how, task="poison")
    after = client.send_many(range(7, 20), task="innocent")

    deaths = supervise(tmp_path, path, 8, lives_max=6)

    record = poison.refresh()
    assert (record.state, record.crashes, record.failures) == (State.DEAD, 3, 0)
    assert deaths == 3
    assert len(record.errors) == 3
    assert all("worker died while running the job" in error.message for error in record.errors)
    with pytest.raises(JobFailed, match="worker died"):
        poison.result()
    assert [result(job) for job in (*before, *after)] == list(range(20))
    assert all(job.refresh().failures == 0 for job in (*before, *after))
    assert all(job.refresh().crashes <= 1 for job in (*before, *after))


def test_several_poison_jobs_are_told_from_the_innocent_too(tmp_path, make, path):
    client = make(path)
    poisons = [client.send("exit", task="poison") for _ in range(2)]
    innocents = client.send_many(range(10), task="innocent")

    deaths = supervise(tmp_path, path, 4, lives_max=12)

    assert deaths <= 6
    assert [job.refresh().state for job in poisons] == [State.DEAD] * 2
    assert [result(job) for job in innocents] == list(range(10))


def test_a_poison_job_can_be_retried_by_hand_and_begins_anew(tmp_path, make, path, started):
    client = make(path)
    poison = client.send("exit", task="poison")
    supervise(tmp_path, path, 2, lives_max=5)
    client.job(poison.id).retry()
    assert poison.refresh().crashes == 0

    started(path, handlers={"poison": lambda how: "cured"})

    assert result(poison) == "cured"


def test_crashes_are_counted_in_a_row(tmp_path, make, path, started):
    client = make(path)
    job = client.send("exit", task="poison")
    for _ in range(2):
        with script(tmp_path, LIFE, path, 2) as life:
            assert life.wait() == 9
    worker = started(path, handlers={"poison": lambda how: "fine"})

    assert result(job) == "fine"
    assert worker.job(job.id).refresh().crashes == 0


def test_suspects_run_one_at_a_time_whatever_their_queue(tmp_path, make, path):
    client, folder = make(path), tmp_path / "alone"
    folder.mkdir()
    jobs = [client.send(str(folder), task="alone", queue=queue) for queue in ("default", "other") * 3]
    source = LIFE.replace("time.sleep(0.1)\n        os.unlink(me)", 'say("in", count); time.sleep(1000)')
    with script(tmp_path, source, path, 6) as life:
        life.wait_for("in 6")
        life.kill()
    for leftover in folder.iterdir():
        leftover.unlink()

    ran(tmp_path, LIFE, path, 6)

    assert [result(job) for job in jobs] == [1] * 6


def test_other_jobs_run_beside_a_first_time_suspect(tmp_path, make, path, gate):
    client = make(path)
    client.send("exit", task="poison")
    with script(tmp_path, LIFE, path, 2) as life:
        assert life.wait() == 9
    seen = Seen()
    worker = make(path, handlers={"poison": gate.hold, "t": seen.add}, concurrency=2)
    worker.start()
    gate.entered.wait()

    worker.send(1, task="t")

    assert seen.wait() == [1]


def test_a_suspect_that_is_stuck_does_not_hold_back_the_others_for_ever(tmp_path, make, path, gate):
    client = make(path)
    job = client.send("exit", task="poison")
    for _ in range(2):
        with script(tmp_path, LIFE, path, 2) as life:
            assert life.wait() == 9
    worker = make(path, lease_s=0.3, handlers={"t": lambda n: n})

    @worker.handler("poison", timeout=0.2)
    def stuck(how):
        gate.hold(how)

    worker.start()
    gate.entered.wait()

    assert result(worker.send(7, task="t")) == 7
    assert until(lambda: job.refresh().failures) == 1


def test_a_job_that_fails_after_its_crashes_is_an_ordinary_failure(tmp_path, make, path, started):
    client = make(path)
    job = client.send("exit", task="poison")
    with script(tmp_path, LIFE, path, 2) as life:
        assert life.wait() == 9

    started(path, handlers={"poison": lambda how: 1 / 0})

    record = until(lambda: (it := job.refresh()).failures and it)
    assert (record.state, record.failures, record.crashes) == (State.PENDING, 1, 0)
    assert [error.type for error in record.errors] == ["WorkerDied", "ZeroDivisionError"]
