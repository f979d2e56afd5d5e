"""
One job at a time: one thread, 16 threads, 1,000 coroutines.

Each `send` returns when its job is on disk. The limit is a loop of single-row commits.
As a client nothing runs the jobs; with a started worker its handlers run beside the
sender, and what they came to is written as well.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import raw
from bench.ours import TASK, fresh, noop
from bench.raw import PAYLOAD
from bench.table import Figure, alternate, share_figure
from dutiful import Worker

THREADS = 16
COROUTINES = 1000

Send = Callable[[Worker, int], None]


def one_thread(worker: Worker, jobs: int) -> None:
    for _ in range(jobs):
        worker.send(PAYLOAD, task=TASK)


def many_threads(worker: Worker, jobs: int) -> None:
    threads = [threading.Thread(target=one_thread, args=(worker, jobs // THREADS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _asend(worker: Worker, jobs: int) -> None:
    for _ in range(jobs):
        await worker.asend(PAYLOAD, task=TASK)


async def _coroutines(worker: Worker, jobs: int) -> None:
    await asyncio.gather(*(_asend(worker, jobs // COROUTINES) for _ in range(COROUTINES)))


def coroutines(worker: Worker, jobs: int) -> None:
    asyncio.run(_coroutines(worker, jobs))


def rate(folder: Path, jobs: int, send: Send, *, started: bool) -> float:
    with fresh(folder) as path:
        worker = Worker(path, handlers={TASK: noop}, keep_completed=False)
        if started:
            worker.start()
        worker.send(PAYLOAD, task=TASK)  # opens the file
        began = time.perf_counter()
        send(worker, jobs)
        took_s = time.perf_counter() - began
        worker.stop()
    return jobs / took_s


def _figures(folder: Path, jobs: int, rounds: int, *, started: bool) -> list[Figure]:
    how = "worker started" if started else "client"

    def one() -> float:
        return rate(folder, jobs, one_thread, started=started)

    def many(send: Send) -> list[tuple[float, float]]:
        return alternate(one, lambda: rate(folder, 5 * jobs, send, started=started), rounds)

    commits = alternate(lambda: raw.commits_per_s(folder, jobs), one, rounds)
    return [
        share_figure(f"send, one thread, {how}", commits, 0.75, "raw commits"),
        share_figure(f"send, {THREADS} threads, {how}", many(many_threads), 3.0, "one thread"),
        share_figure(f"asend, {COROUTINES:,} at once, {how}", many(coroutines), 3.0, "one thread"),
    ]


def run(folder: Path, *, quick: bool) -> list[Figure]:
    jobs, rounds = (2_000, 3) if quick else (8_000, 9)
    return [
        *_figures(folder, jobs, rounds, started=False),
        *_figures(folder, jobs, rounds, started=True),
    ]
