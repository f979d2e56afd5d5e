"""Figures, their targets, and the table that is printed and kept."""

import os
import platform
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One line of the table.

    Args:
        name: What was measured.
        measured: In its own unit, for people.
        ratio: The median, lowest and highest of the pairwise ratios, or nothing.
        target: What the issue asks, for people.
        met: None where nothing is asked.
    """

    name: str
    measured: str
    ratio: str = ""
    target: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        said = {None: "", True: "yes", False: "**NO**"}[self.met]
        return (self.name, self.measured, self.ratio, self.target, said)


HEAD = ("figure", "measured", "ratio: median (min to max)", "target", "met")


def alternate(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> list[tuple[float, float]]:
    """Measure two things in turn, A B A B …, after one unmeasured warm-up of each."""
    first()
    second()
    return [(first(), second()) for _ in range(rounds)]


def shares(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Return second / first of each pair."""
    return [second / first for first, second in pairs]


def share_figure(name: str, pairs: Sequence[tuple[float, float]], at_least: float | None, of: str) -> Figure:
    """Return the line of a rate as a share of another: pairs are (limit, ours) per second."""
    ratios = shares(pairs)
    limit, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    middle = statistics.median(ratios)
    return Figure(
        name,
        f"{ours:,.0f}/s; {of} {limit:,.0f}/s",
        spread(ratios),
        "" if at_least is None else f"≥ {at_least:g} of {of}",
        None if at_least is None else middle >= at_least,
    )


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}…{max(ratios):.2f}, n={len(ratios)})"


def below(name: str, measured: str, value: float, limit: float, target: str) -> Figure:
    """Return the line of a value that has to stay below a limit."""
    return Figure(name, measured, "", target, value < limit)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def as_markdown(figures: Sequence[Figure]) -> str:
    rows = [HEAD, *(figure.cells() for figure in figures)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine(folder: Path) -> list[str]:
    """Say where this was measured."""
    system = f"{os.cpu_count()} CPUs ({_cpu()}), {platform.system()} {platform.release()}"
    load = f"load at the start {os.getloadavg()[0]:.1f}"
    return [
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- Command: `{' '.join(['python -m bench', *sys.argv[1:]])}`",
        f"- Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {system}",
        f"- Files on {file_system(folder)}; WAL, synchronous=FULL; {load}",
        f"- dutiful at {_commit()}",
    ]


def file_system(folder: Path) -> str:
    """Return the kind of file system, as the kernel calls it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        device, place, name, *_rest = line.split()
        if (str(folder) + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, f"{name} ({device})"
    return kind


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "an unknown commit"


def save(what: str, head: Sequence[str], figures: Sequence[Figure]) -> Path:
    """Write the table to bench/results/<date>-<what>.md."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{what}.md"
    path.write_text(
        f"# {what}\n\n" + "\n".join(head) + "\n\n" + as_markdown(figures) + "\n", encoding="utf-8"
    )
    return path
