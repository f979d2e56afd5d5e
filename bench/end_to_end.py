"""
End to end: `send_many`, a handler that does nothing, all completed and committed.

From the call of `send_many` until the store, asked through the public API, has no
unfinished job: encoding, storing, decoding and calling the handler are all within.
"""

import time
from functools import partial
from pathlib import Path

from bench import raw
from bench.ours import KEEP_ALL, TASK, fresh, noop, payloads, wait_until_done
from bench.table import Figure, alternate, share_figure
from dutiful import Keep, Worker


def rate(folder: Path, jobs: int, keep: "Keep | bool | None") -> float:
    with fresh(folder) as path, Worker(path, handlers={TASK: noop}, keep_completed=keep) as worker:
        began = time.perf_counter()
        worker.send_many(payloads(jobs), task=TASK)
        wait_until_done(worker)
        return jobs / (time.perf_counter() - began)


def run(folder: Path, *, quick: bool) -> list[Figure]:
    jobs, rounds = (20_000, 3) if quick else (100_000, 9)
    kinds: list[tuple[str, Keep | bool | None, float | None]] = [
        ("end to end, completed not kept", False, 0.50),
        ("end to end, all completed kept", KEEP_ALL, 0.35),
        ("end to end, default (newest 10,000 kept)", None, None),
    ]
    limit = partial(raw.batches_per_s, folder, jobs)
    figures = [
        share_figure(name, alternate(limit, partial(rate, folder, jobs, keep), rounds), at_least, "raw")
        for name, keep, at_least in kinds
    ]
    cheapest = alternate(
        partial(raw.batches_per_s, folder, jobs, raw.CHEAPEST),
        partial(rate, folder, jobs, keep=False),
        rounds,
    )
    return [
        *figures,
        share_figure(f"{kinds[0][0]}, against the cheapest row", cheapest, None, "cheapest row"),
    ]
