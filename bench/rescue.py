"""
Rescue: `kill -9`, until the job that was running runs again.

In another worker that lives, counted from the kill; and after a restart, counted from the
call of `start()`.
"""

import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import children
from bench.ours import TASK, fresh
from bench.peers.peer import PAYLOAD
from bench.table import Figure, below
from dutiful import Worker

if TYPE_CHECKING:
    import subprocess


def _send_one(path: Path) -> None:
    client = Worker(path)
    client.send(PAYLOAD, task=TASK)
    client.stop()


def _holder(path: Path) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
    child = children.start("hold", path=str(path))
    return child, _until(child, "started_at")


def _until(child: "subprocess.Popen[str]", word: str) -> dict[str, Any]:
    while word not in (said := children.heard(child)):
        pass
    return said


def _kill(child: "subprocess.Popen[str]") -> float:
    at = time.monotonic()
    child.kill()
    child.wait()
    return at


def by_another(folder: Path) -> float:
    """Kill the one of two workers that runs a job; return the seconds until the other runs it."""
    with fresh(folder) as path:
        first, _said = _holder(path)
        _send_one(path)
        _until(first, "at")
        second, _said = _holder(path)
        time.sleep(0.3)
        killed_at = _kill(first)
        took_s = float(_until(second, "at")["at"]) - killed_at
        _kill(second)
    return took_s


def after_restart(folder: Path) -> float:
    """Kill the only worker; return the seconds from the next one's `start()` until it runs the job."""
    with fresh(folder) as path:
        first, _said = _holder(path)
        _send_one(path)
        _until(first, "at")
        _kill(first)
        second = children.start("hold", path=str(path))
        said: dict[str, Any] = {}
        while not {"at", "called_at"} <= said.keys():
            said |= children.heard(second)
        _kill(second)
    return float(said["at"]) - float(said["called_at"])


def run(folder: Path, *, quick: bool) -> list[Figure]:
    rounds = 3 if quick else 20
    others = [by_another(folder) for _ in range(rounds)]
    restarts = [after_restart(folder) for _ in range(rounds)]
    return [
        below("rescue by another process, slowest", _said(others), max(others), 1.0, "< 1 s"),
        below(
            "rescue after a restart, slowest", _said(restarts), max(restarts), 0.3, "< 0.3 s after start()"
        ),
    ]


def _said(took_s: list[float]) -> str:
    return f"{max(took_s):.3f} s (median {median(took_s):.3f} s, n={len(took_s)})"
