"""
Idle latency: from the call of `send` until the handler begins, with nothing else to do.

Measured in one process and across two; beside it, what a single commit costs on the same
disk after the same pause. And what an idle worker takes of a CPU.
"""

import time
from pathlib import Path
from statistics import median

from bench import children, raw
from bench.ours import TASK, fresh
from bench.table import Figure, below, percentile
from dutiful import Worker

PAUSE_S = 0.004
PART = 50


def within(worker: Worker, began_at: list[float], count: int) -> list[float]:
    """Send one by one to a worker in this process; return the seconds until each handler began."""
    late_s: list[float] = []
    for _ in range(count):
        time.sleep(PAUSE_S)
        sent_at = time.perf_counter()
        worker.send(0, task=TASK)
        while not began_at:
            time.sleep(0.0002)
        late_s.append(began_at.pop() - sent_at)
    return late_s


def _within(folder: Path, parts: int) -> list[Figure]:
    began_at: list[float] = []
    late_s: list[float] = []
    commits_s: list[float] = []
    handlers = {TASK: lambda _payload: began_at.append(time.perf_counter())}
    with fresh(folder) as path, Worker(path, handlers=handlers) as worker:
        within(worker, began_at, PART)
        for _ in range(parts):
            commits_s += raw.commit_s(folder, PART, PAUSE_S)
            late_s += within(worker, began_at, PART)
    commits, middle, high = median(commits_s), median(late_s), percentile(late_s, 0.99)
    ratio = f"{middle / commits:.2f} commits of {1000 * commits:.2f} ms"
    return [
        Figure(
            "latency in one process, median",
            f"{1000 * middle:.2f} ms",
            ratio,
            "< 2 commits",
            middle < 2 * commits,
        ),
        below(
            "latency in one process, p99",
            f"{1000 * high:.2f} ms (a commit's p99: {1000 * percentile(commits_s, 0.99):.2f} ms)",
            high,
            0.010,
            "< 10 ms",
        ),
    ]


def _across(folder: Path, count: int, idle_s: float) -> list[Figure]:
    with fresh(folder) as path:
        child = children.start("listen", path=str(path))
        children.heard(child)
        client = Worker(path)
        client.handlers[TASK] = print  # known here, run there
        for _ in range(count):
            client.send(time.monotonic(), task=TASK)
            time.sleep(PAUSE_S + 0.02)
        time.sleep(1.0)
        children.tell(child, "cpu")
        before = children.heard(child)["cpu_s"]
        time.sleep(idle_s)
        children.tell(child, "cpu")
        share = (children.heard(child)["cpu_s"] - before) / idle_s
        assert child.stdin is not None
        child.stdin.close()
        late_s = children.heard(child)["late_s"]
        child.wait()
        client.stop()
    middle, high = median(late_s), percentile(late_s, 0.99)
    return [
        below("latency across processes, median", f"{1000 * middle:.2f} ms", middle, 0.002, "< 2 ms"),
        Figure("latency across processes, p99", f"{1000 * high:.2f} ms"),
        below("CPU of an idle worker", f"{100 * share:.2f} %", share, 0.01, "< 1 %"),
    ]


def run(folder: Path, *, quick: bool) -> list[Figure]:
    parts, idle_s = (2, 3.0) if quick else (20, 20.0)
    return [*_within(folder, parts), *_across(folder, parts * PART, idle_s)]
