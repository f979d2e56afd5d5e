"""
One job at a time: one thread, 16 threads, 1,000 coroutines.

Each `send` returns when its job is on disk. The limit is a loop of single-row commits.
As a client nothing runs the jobs; with a started worker its handlers run beside the
sender, and what they came to is written as well.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench import raw
from bench.ours import TASK, fresh, noop
from bench.peers.peer import PAYLOAD
from bench.table import Figure, alternate, share_figure
from dutiful import Worker

THREADS = 16
COROUTINES = 1000

Send = Callable[[Worker, float], int]


def one_thread(worker: Worker, until: float) -> int:
    sent = 0
    while time.perf_counter() < until:
        worker.send(PAYLOAD, task=TASK)
        sent += 1
    return sent


def many_threads(worker: Worker, until: float) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda _: one_thread(worker, until), range(THREADS)))


async def _asend(worker: Worker, until: float) -> int:
    sent = 0
    while time.perf_counter() < until:
        await worker.asend(PAYLOAD, task=TASK)
        sent += 1
    return sent


async def _coroutines(worker: Worker, until: float) -> int:
    return sum(await asyncio.gather(*(_asend(worker, until) for _ in range(COROUTINES))))


def coroutines(worker: Worker, until: float) -> int:
    return asyncio.run(_coroutines(worker, until))


def rate(folder: Path, for_s: float, send: Send, *, started: bool) -> float:
    with fresh(folder) as path:
        worker = Worker(path, handlers={TASK: noop}, keep_completed=False)
        if started:
            worker.start()
        worker.send(PAYLOAD, task=TASK)  # opens the file
        began = time.perf_counter()
        sent = send(worker, began + for_s)
        took_s = time.perf_counter() - began
        worker.stop()
    return sent / took_s


def _figures(folder: Path, for_s: float, rounds: int, *, started: bool) -> list[Figure]:
    how = "worker started" if started else "client"
    one = partial(rate, folder, for_s, one_thread, started=started)

    def many(send: Send) -> list[tuple[float, float]]:
        return alternate(one, partial(rate, folder, for_s, send, started=started), rounds)

    commits = alternate(partial(raw.commits_per_s, folder, for_s), one, rounds)
    return [
        share_figure(f"send, one thread, {how}", commits, 0.75, "raw commits"),
        share_figure(f"send, {THREADS} threads, {how}", many(many_threads), 3.0, "one thread"),
        share_figure(f"asend, {COROUTINES:,} at once, {how}", many(coroutines), 3.0, "one thread"),
    ]


def run(folder: Path, *, quick: bool) -> list[Figure]:
    for_s, rounds = (0.3, 5) if quick else (0.7, 11)
    return [
        *_figures(folder, for_s, rounds, started=False),
        *_figures(folder, for_s, rounds, started=True),
    ]
