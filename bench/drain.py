"""
Draining: a backlog that another process sent, taken by a worker in a fresh process.

Rates are of the same number of jobs, from the call of `start()`: how many others wait, or
lie finished or scheduled in the file, must not matter.
"""

import shutil
import statistics
from functools import partial
from pathlib import Path

from bench import children, raw
from bench.ours import fresh
from bench.table import Figure, alternate, below, share_figure

MB = 1_000_000


def whole(folder: Path, jobs: int, *, keep: bool) -> float:
    """Drain a file of `jobs`, until all are completed and committed; return jobs per second."""
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=jobs)
        said = children.run("drain", path=str(path), jobs=None, keep=keep)
    return jobs / float(said["took_s"])


def part(folder: Path, jobs: int) -> float:
    """Drain a file that holds just `jobs`, until the last handler has run."""
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=jobs)
        return jobs / float(children.run("drain", path=str(path), jobs=jobs)["took_s"])


def part_of(path: Path, jobs: int) -> float:
    """Take the first `jobs` of what is in a file that holds many more; then stop."""
    return jobs / float(children.run("drain", path=str(path), jobs=jobs)["took_s"])


def beside(path: Path, jobs: int) -> float:
    """Put `jobs` into a file that is full of others, and drain these."""
    children.run("send", path=str(path), jobs=jobs)
    return jobs / float(children.run("drain", path=str(path), jobs=jobs)["took_s"])


def _against_many(folder: Path, many: int, jobs: int, rounds: int) -> list[Figure]:
    name = f"drain {jobs:,} jobs"
    few = partial(part, folder, jobs)
    figures: list[Figure] = []
    of = f"{jobs:,} alone"
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=many)
        pairs = alternate(few, partial(part_of, path, jobs), rounds)
        figures.append(share_figure(f"{name} with {many:,} waiting", pairs, 0.9, of))
        finished = path.with_name("finished.db")
        figures.append(_million(path, finished, many))
        pairs = alternate(few, partial(beside, finished, jobs), rounds)
        figures.append(share_figure(f"{name} with {many:,} completed", pairs, 0.9, of))
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=many, delay=86_400.0)
        pairs = alternate(few, partial(beside, path, jobs), rounds)
        figures.append(share_figure(f"{name} with {many:,} scheduled", pairs, 0.9, of))
    return figures


def _million(path: Path, finished: Path, many: int) -> Figure:
    """Drain what is left of the million, keeping all; leave the file for the next figure."""
    said = children.run("drain", path=str(path), jobs=None, keep=True)
    shutil.move(path, finished)
    peak, rate = said["peak_rss_bytes"], said["handled"] / said["took_s"]
    return below(
        f"memory (peak RSS) draining {many:,}",
        f"{peak / MB:.0f} MB ({rate:,.0f}/s)",
        peak,
        100 * MB,
        "< 100 MB",
    )


def run(folder: Path, *, quick: bool) -> list[Figure]:
    jobs, many, rounds = (20_000, 60_000, 3) if quick else (100_000, 1_000_000, 7)
    limit = partial(raw.batches_per_s, folder, jobs)
    figures = [
        share_figure(
            f"drain, {kept}",
            alternate(limit, partial(whole, folder, jobs, keep=keep), rounds),
            0.35 if not keep else None,
            "raw",
        )
        for kept, keep in (("completed not kept", False), ("all completed kept", True))
    ]
    memory = [statistics.median([figure_rss(folder, jobs) for _ in range(3)])]
    figures.append(Figure(f"memory (peak RSS) draining {jobs:,}", f"{memory[0] / MB:.0f} MB"))
    for count in (1_000, 50_000 if not quick else 5_000):
        figures += _against_many(folder, many, count, rounds)
    return figures


def figure_rss(folder: Path, jobs: int) -> float:
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=jobs)
        return float(children.run("drain", path=str(path), jobs=None)["peak_rss_bytes"])
