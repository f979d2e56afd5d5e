"""The end of the interpreter without a `stop()`: work that runs gets its time, the rest stays stored."""

import time

import pytest

from dutiful import State
from tests.worker.tools import WAIT_S, is_dead, ran, result, script, until

ENDS = {
    "returns": """
    """,
    "exits": """
    sys.exit(0)
    """,
    "exits in a thread": """
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()
    """,
    "leaves a thread": """
    threading.Thread(target=time.sleep, args=(0.3,)).start()
    """,
    "leaves a thread that sends": """
    def send():
        while True:
            try: worker.send(0, task="quick")
            except WorkerStopped: return
    threading.Thread(target=send).start()
    threading.Timer(0.3, worker.stop).start()
    """,
    "leaves a daemon that sends": """
    def send():
        while True:
            try: worker.send(0, task="quick")
            except DutifulError: return
    threading.Thread(target=send, daemon=True).start()
    """,
    "leaves a daemon that waits": """
    threading.Thread(target=job.wait, daemon=True).start()
    """,
    "has used a loop": """
    asyncio.run(worker.asend(0, task="quick"))
    """,
}

START = """
    path = sys.argv[1]
    worker = Worker(path, concurrency=4, grace_s=15)
    begun = threading.Event()

    @worker.handler("slow")
    def slow(n):
        begun.set()
        time.sleep(0.3)
        return n

    @worker.handler("quick")
    def quick(n):
        return n

    @worker.handler("async")
    async def handle(n):
        begun.set()
        await asyncio.sleep(0.5)
        return n

    worker.start()
"""


@pytest.mark.parametrize(
    ("end", "task"), [*((end, "slow") for end in ENDS), ("returns", "async"), ("has used a loop", "async")]
)
def test_a_running_job_is_finished_and_nothing_is_said(tmp_path, make, path, end, task):
    source = START + f'    job = worker.send(7, task="{task}")\n    begun.wait()\n' + ENDS[end]

    ran(tmp_path, source, path)

    client = make(path)
    record = client.job(1).refresh()
    assert (record.state, record.result, record.attempt) == (State.COMPLETED, "7", 1)
    assert client.workers() == []
    assert client.counts().by_state[State.RUNNING] == 0


@pytest.mark.parametrize(("raises", "status"), [("raise ValueError('mine')", 1), ("sys.exit(5)", 5)])
def test_the_programs_own_error_is_the_only_one(tmp_path, make, path, raises, status):
    source = START + f'    worker.send(7, task="slow")\n    begun.wait()\n    {raises}\n'

    with script(tmp_path, source, path) as program:
        assert program.wait() == status

    assert program.errors.count("Traceback") == raises.startswith("raise")
    assert "dutiful" not in program.errors
    assert make(path).job(1).result(timeout=0) == 7


def test_a_job_that_takes_too_long_is_left_for_the_next_start(tmp_path, started, path):
    source = """
    worker = Worker(sys.argv[1], grace_s=0.2)
    begun = threading.Event()
    @worker.handler("t")
    def handle(n):
        begun.set()
        time.sleep(100)
    worker.start()
    worker.send(7, task="t")
    begun.wait()
    say("ends")
    """
    with script(tmp_path, source, path) as program:
        program.wait_for("ends")
        began = time.monotonic()
        assert program.wait() == 0
        assert time.monotonic() - began < WAIT_S / 2
    assert program.errors == ""

    worker = started(path, handlers={"t": lambda n: n})

    assert result(worker.job(1)) == 7


def test_waiting_jobs_stay_stored(tmp_path, started, path, seen):
    source = """
    worker = Worker(sys.argv[1], concurrency=1, grace_s=15)
    @worker.handler("t")
    def handle(n):
        time.sleep(0.05)
    worker.start()
    worker.send_many(range(100), task="t")
    """
    ran(tmp_path, source, path)
    worker = started(path, handlers={"t": seen.add}, concurrency=1)
    left = 100 - worker.counts().by_state[State.COMPLETED]

    assert seen.wait(min(left, 50))[-1] <= 99
    assert all(not record.failures and not record.crashes for record in worker.jobs())


def test_in_memory_what_was_accepted_is_finished(tmp_path):
    source = """
    worker = Worker(":memory:", concurrency=1)
    @worker.handler("t")
    def handle(n):
        time.sleep(0.005)
        say("done", n)
    worker.start()
    worker.send_many(range(50), task="t")
    """
    assert ran(tmp_path, source).lines == [f"done {n}" for n in range(50)]


@pytest.mark.parametrize("store", ["file", ":memory:"])
def test_exit_functions_of_the_program_can_still_use_the_worker(tmp_path, path, store):
    source = """
    import atexit
    worker = Worker(sys.argv[1], handlers={"t": lambda n: n})
    def last():
        try:
            worker.send(1, task="t")
            say("sent")
        except WorkerStopped:
            say("refused")
        worker.stop()
        say("stopped")
    if random.random() < 0.5:
        atexit.register(last)
        worker.start()
    else:
        worker.start()
        atexit.register(last)
    worker.send(0, task="t").wait(10)
    """
    for _ in range(3):
        lines = ran(tmp_path, source, path if store == "file" else store).lines
        assert lines[0] in ("sent", "refused")
        assert lines[1:] == ["stopped"]


def test_child_processes_end_too(tmp_path, path):
    source = """
    def handle(n):
        say("pid", os.getpid())
        time.sleep(1000)
    if __name__ == "__main__":
        worker = Worker(sys.argv[1], grace_s=0.3)
        worker.handler("t", process=True)(handle)
        worker.start()
        worker.send(0, task="t")
        time.sleep(1.5)
    """
    with script(tmp_path, source, path) as program:
        pid = int(program.wait_for("pid").split()[1])
        assert program.wait() == 0
    assert program.errors == ""
    until(lambda: is_dead(pid))


def test_a_worker_that_was_made_and_not_used_does_not_matter(tmp_path, path):
    ran(tmp_path, "worker = Worker(sys.argv[1])\nmemory = Worker(':memory:')", path)
    ran(tmp_path, "worker = Worker(sys.argv[1]); worker.send(1, task='t')", path)
    ran(tmp_path, "worker = Worker(':memory:'); worker.counts()", path)
