"""What is done once stays done once, when the process is killed at the worst moment."""

import pytest

from dutiful import State, Worker
from tests.worker.tools import ran, script

STEPS = """
    worker = Worker("jobs.db")

    @worker.handler("pay")
    def pay(ctx):
        ctx.step("charge", say, "charged")
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ctx.sleep("nap", 0.01)
        ctx.step("mail", say, "mailed")

    with worker:
        job = worker.send(None, task="pay") if sys.argv[1] == "first" else worker.job(1)
        job.wait(30)
"""
SENDS = """
    worker = Worker("jobs.db", handlers={"next": lambda: None})

    @worker.handler("first")
    def first(ctx):
        for _ in range(3):
            ctx.send(None, task="next", delay=3600)

    with worker:
        job = worker.send(None, task="first") if sys.argv[1] == "first" else worker.job(1)
        job.wait(30)
"""


def test_a_step_is_not_done_again_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with script(tmp_path, STEPS, "first") as killed:
        killed.wait(30)
        assert killed.lines == ["charged"]

    again = ran(tmp_path, STEPS, "again")

    assert again.lines == ["mailed"]


@pytest.mark.parametrize(("point", "stored"), [("ack.before_commit", 0), ("ack.after_commit", 3)])
def test_what_a_handler_sends_is_stored_with_its_end_or_not_at_all(tmp_path, monkeypatch, point, stored):
    monkeypatch.chdir(tmp_path)
    with script(tmp_path, SENDS, "first", env={"DUTIFUL_CRASHPOINT": point}) as killed:
        assert killed.wait(30) != 0
    with Worker("jobs.db", queues=("none",)) as worker:
        assert len(worker.jobs(task="next")) == stored
        assert (worker.job(1).state is State.COMPLETED) == bool(stored)

    ran(tmp_path, SENDS, "again")

    with Worker("jobs.db", queues=("none",)) as worker:
        assert len(worker.jobs(task="next")) == 3
