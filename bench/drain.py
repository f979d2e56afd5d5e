"""
Draining: a backlog that another process sent, taken by a worker in a fresh process.

How many others wait, or lie finished or scheduled in the file, must not matter. For that
the same handler calls are timed in both files, from the first of a window to its last, in
turn. Both have LATER jobs behind the window: a worker claims ahead, so with none left it
would claim less in the same time. The many waiting are topped up after each turn.
"""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import children, raw
from bench.ours import fresh
from bench.table import Figure, alternate, below, share_figure

MB = 1_000_000
LATER = 10_000  # more than a worker holds and claims ahead at once (AHEAD_JOBS_MAX, 4,096)


def whole(folder: Path, jobs: int, *, keep: bool) -> float:
    """Drain a file of `jobs`, until all are completed and committed; return jobs per second."""
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=jobs)
        said = children.run("drain", path=str(path), keep=keep)
    return jobs / float(said["took_s"])


@dataclass(frozen=True, slots=True)
class Window:
    """`jobs` handler calls after the first `before`."""

    before: int
    jobs: int

    @property
    def name(self) -> str:
        return f"handler calls {self.before + 1:,} to {self.before + self.jobs:,}"

    @property
    def few(self) -> int:
        """Return the smallest number of jobs that holds it and all that a worker claims meanwhile."""
        return self.before + self.jobs + LATER

    def drained(self, path: Path, *, until: int, keep: bool = False) -> dict[str, Any]:
        window = (self.before + 1, self.before + self.jobs)
        return children.run("drain", path=str(path), window=window, until=until, keep=keep)

    def rate(self, said: dict[str, Any]) -> float:
        return (self.jobs - 1) / float(said["took_s"])

    def alone(self, folder: Path, *, keep: bool) -> float:
        """Measure in a file that holds few jobs."""
        with fresh(folder) as path:
            return self.beside(path, keep=keep)

    def beside(self, path: Path, *, keep: bool) -> float:
        """Put few jobs into a file that may be full of others, measure, and drain these."""
        children.run("send", path=str(path), jobs=self.few)
        return self.rate(self.drained(path, until=self.few, keep=keep))

    def of_many(self, path: Path, first_s: list[float]) -> float:
        """Measure in a file where many wait, stop, and send as many as were taken."""
        said = self.drained(path, until=self.before + self.jobs)
        children.run("send", path=str(path), jobs=said["handled"])
        first_s.append(said["first_s"])
        return self.rate(said)


def _against_many(folder: Path, many: int, windows: Sequence[Window], rounds: int) -> list[Figure]:
    figures: list[Figure] = []

    def add(window: Window, beside: Callable[[], float], what: str, *, keep: bool = False) -> None:
        pairs = alternate(partial(window.alone, folder, keep=keep), beside, rounds)
        name = f"drain, {window.name}, with {many:,} {what}"
        figures.append(share_figure(name, pairs, 0.9, f"{window.few:,} alone"))

    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=many)
        first_s: list[float] = []
        for window in windows:
            add(window, partial(window.of_many, path, first_s), "waiting")
        first = f"{1000 * statistics.median(first_s):.0f} ms"
        figures.append(Figure(f"from start() to the first handler, with {many:,} waiting", first))
        finished = path.with_name("finished.db")
        figures.append(_million(path, finished, many))
        for window in windows:
            # Kept: a worker that keeps none would be busy deleting the million.
            add(window, partial(window.beside, finished, keep=True), "completed", keep=True)
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=many, delay=86_400.0)
        for window in windows:
            add(window, partial(window.beside, path, keep=False), "scheduled")
    return figures


def _million(path: Path, finished: Path, many: int) -> Figure:
    """Drain the million, keeping all; leave the file for the next figure."""
    said = children.run("drain", path=str(path), keep=True)
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
    # The first thousand, and a stretch in the middle that holds many claims and commits of acks.
    windows = (Window(0, 1_000), Window(LATER, 50_000 if not quick else 10_000))
    return [*figures, *_against_many(folder, many, windows, rounds)]


def figure_rss(folder: Path, jobs: int) -> float:
    with fresh(folder) as path:
        children.run("send", path=str(path), jobs=jobs)
        return float(children.run("drain", path=str(path))["peak_rss_bytes"])
