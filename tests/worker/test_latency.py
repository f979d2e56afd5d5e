"""The times that the issue states, measured with nothing else running."""

import sqlite3
import statistics
import time

import pytest

from tests.worker.tools import Seen, finished, script

WORK = """
    worker = Worker(sys.argv[1])
    ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @worker.handler("t")
    def handle(n):
        os.write(ledger, f"{n} {time.monotonic()}\\n".encode())

    worker.start()
    say("ready")
    if len(sys.argv) > 3:
        time.sleep(3)
        used = time.process_time()
        began = time.monotonic()
        time.sleep(3)
        say("load", (time.process_time() - used) / (time.monotonic() - began))
    signal.pause()
"""

pytestmark = pytest.mark.alone


def noted(path, count):
    """Return when each job began, once all have."""
    deadline = time.monotonic() + 20
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return {int(n): float(at) for n, at in map(str.split, lines)}
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_wakes_an_idle_other_process(tmp_path, make, path):
    client, sent = make(path), {}
    with script(tmp_path, WORK, path, tmp_path / "ledger") as worker:
        worker.wait_for("ready")
        for n in range(100):
            sent[n] = time.monotonic()
            client.send(n, task="t")
            began = noted(tmp_path / "ledger", n + 1)  # idle again

        waits = [began[n] - sent[n] for n in sent]
    assert statistics.median(waits) < 0.1  # woken, not found at the next look; bench/latency.py measures


def test_the_commit_of_a_users_own_transaction_wakes_an_idle_other_process(tmp_path, make, path):
    client, committed = make(path), {}
    client.counts()
    db = sqlite3.connect(path)
    with script(tmp_path, WORK, path, tmp_path / "ledger") as worker:
        worker.wait_for("ready")
        for n in range(40):
            client.send(n, task="t", transaction=db)
            db.commit()
            committed[n] = time.monotonic()
            began = noted(tmp_path / "ledger", n + 1)
    db.close()

    waits = sorted(began[n] - committed[n] for n in committed)
    assert statistics.median(waits) < 0.1


def test_so_it_does_in_the_same_process(started, path):
    seen, waits = Seen(), []
    worker = started(path, handlers={"t": lambda n: seen.add(time.monotonic())})
    db = sqlite3.connect(path)
    for n in range(40):
        job = worker.send(n, task="t", transaction=db)
        db.commit()
        committed = time.monotonic()
        waits.append(seen.wait(n + 1)[-1] - committed)
        finished(job)
        time.sleep(0.01)
    db.close()

    assert statistics.median(waits) < 0.1


def test_an_idle_worker_rests(tmp_path, path):
    with script(tmp_path, WORK, path, tmp_path / "ledger", "idle") as worker:
        assert float(worker.wait_for("load").split()[1]) < 0.1  # it does not spin; bench/latency.py measures


def test_a_cancel_reaches_a_running_coroutine_within_a_second(started, path):
    import asyncio

    seen = Seen()
    worker = started(path)

    @worker.handler("t")
    async def handle(n):
        seen.add(n)
        await asyncio.sleep(20)

    job = worker.send(1, task="t")
    seen.wait()
    began = time.monotonic()
    job.cancel()
    finished(job)

    assert time.monotonic() - began < 1.0
