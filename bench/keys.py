"""
Keys: a stuck one with many jobs behind it must not slow the others.

The same jobs, of many other keys, are worked off in a file of their own, and in one where STUCK more wait
behind a key whose first job is not due for a day; in turn, so that both see the same machine.
"""

from functools import partial
from pathlib import Path

from bench.ours import TASK, fresh, noop, wait_until_count
from bench.table import Figure, alternate, share_figure
from dutiful import Worker

STUCK = 100_000
KEYS = 500


def rate(folder: Path, jobs: int, stuck: int) -> float:
    """Return keyed jobs per second, from the start of the worker until all but the stuck have completed."""
    with fresh(folder) as path:
        client = Worker(path)
        if stuck:
            client.send_many(range(stuck), task="stuck", key="stuck", delay=86_400)
        client.send_many(map(str, range(jobs)), task=TASK, key=lambda n: f"k{int(n) % KEYS}")
        client.stop()
        with Worker(path, handlers={TASK: noop}, keep_completed=jobs) as worker:
            return jobs / wait_until_count(worker, jobs)


def run(folder: Path, *, quick: bool) -> list[Figure]:
    jobs, rounds, stuck = (5_000, 3, STUCK // 5) if quick else (20_000, 7, STUCK)
    pairs = alternate(partial(rate, folder, jobs, 0), partial(rate, folder, jobs, stuck), rounds)
    return [share_figure(f"keyed jobs, {stuck:,} waiting behind another key", pairs, 0.8, "none waiting")]
