"""How long `import dutiful` and `dutiful --help` take, over an interpreter that does nothing."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench.table import Figure, below


def took_s(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def over_nothing(rounds: int, *arguments: str) -> list[float]:
    """Return the seconds of each run, less those of an empty program right before it."""
    took_s(*arguments)
    found: list[float] = []
    for _ in range(rounds):
        nothing_s = took_s("-c", "pass")
        found.append(took_s(*arguments) - nothing_s)
    return found


def run(folder: Path, *, quick: bool) -> list[Figure]:
    rounds = 5 if quick else 25
    figures = []
    for name, arguments, limit_s in (
        ("import dutiful", ("-c", "import dutiful"), 0.1),
        ("dutiful --help", ("-m", "dutiful", "--help"), None),
    ):
        try:
            found = over_nothing(rounds, *arguments)
        except subprocess.CalledProcessError as error:
            figures.append(Figure(name, f"does not run: exit code {error.returncode}", met=False))
            continue
        said = f"{1000 * median(found):.0f} ms (fastest {1000 * min(found):.0f} ms, n={rounds})"
        if limit_s is None:
            figures.append(Figure(name, said))
        else:
            figures.append(below(name, said, median(found), limit_s, f"< {1000 * limit_s:.0f} ms"))
    return figures
