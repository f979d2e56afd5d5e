"""Starting a peer's processes, and measuring with them."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.ours import fresh
from bench.peers import environment
from bench.peers.peer import Durability

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60.0  # then a peer hangs: measurements are sized to a few seconds
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ENDING_S = 1.0  # for jobs on their way after the last send


class PeerFailed(Exception):
    """A peer's process ended, or did not answer in time; says what it last wrote to stderr."""


@dataclass
class Entrant:
    """
    One line of each table.

    Args:
        package: Its name in the index; the adapter's module is that without "-".
        durability: What is asked of it.
        failed: Why it is out, once it is.
    """

    package: str
    durability: Durability = "full"
    failed: str = ""
    says: str = ""
    jobs: dict[str, int] = field(default_factory=dict)  # way of sending → jobs of each measurement
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late_s: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        if self.package == "dutiful":
            return "dutiful"
        return f"{self.package} {environment.pinned(self.package)}"

    @property
    def command(self) -> list[str]:
        python = sys.executable if self.package == "dutiful" else str(environment.PYTHON)
        return [python, "-m", "bench.peers.process", self.package.replace("-", "")]


@contextmanager
def _process(entrant: Entrant, command: str, **arguments: Any) -> "Iterator[subprocess.Popen[str]]":
    """Start a peer's process in a session of its own; end it with all that it forked."""
    log = Path(arguments["path"]).with_name(f"{command}.log")
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [*entrant.command, command, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            cwd=environment.ROOT,
        ) as process,
    ):
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
                until = time.monotonic() + ENDING_S
                while time.monotonic() < until:  # what it forked may still have the files open
                    os.killpg(process.pid, 0)
                    process.poll()
                    time.sleep(0.01)


def _heard(process: "subprocess.Popen[str]", path: Path) -> dict[str, Any]:
    assert process.stdout is not None
    ready = select.select([process.stdout], [], [], PATIENCE_S)[0]
    line = process.stdout.readline() if ready else ""
    if line:
        found: dict[str, Any] = json.loads(line)
        return found
    logs = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in path.parent.glob("*.log"))
    said = (logs.strip().splitlines() or ["nothing on stderr"])[-1][:150]
    raise PeerFailed(f"{'ended' if ready else f'no answer in {PATIENCE_S:.0f} s'}: {said}")


def end_to_end(entrant: Entrant, folder: Path, how: str, jobs: int) -> float:
    """Return jobs per second."""
    with fresh(folder) as path:
        arguments = {"path": str(path), "durability": entrant.durability, "jobs": jobs, "how": how}
        with _process(entrant, "end_to_end", **arguments) as process:
            said = _heard(process, path)
    entrant.says = said["durability"]
    return jobs / float(said["took_s"])


def fitting(entrant: Entrant, folder: Path, how: str, for_s: float, jobs_max: int) -> int:
    """Return how many jobs take a peer about `for_s`; finding that out is its warm-up."""
    jobs = 100
    for share in (0.1, 0.3, 1.0):  # small numbers show the start more than the rate
        jobs = min(jobs_max, max(jobs, int(end_to_end(entrant, folder, how, jobs) * for_s * share)))
    return jobs


def latency(entrant: Entrant, folder: Path, count: int, idle_s: float) -> None:
    """Send from one process to a worker in another; keep the lateness, and the worker's CPU when idle."""
    with fresh(folder) as path:
        where = {"path": str(path), "durability": entrant.durability}
        with _process(entrant, "listen", **where) as listener:
            entrant.says = _heard(listener, path)["durability"]
            time.sleep(ENDING_S)  # to come to rest after its start
            before_s = _cpu_s(listener.pid)
            time.sleep(idle_s)
            entrant.idle.append((_cpu_s(listener.pid) - before_s) / idle_s)
            with _process(entrant, "ping", **where, count=count) as sender:
                _heard(sender, path)
            time.sleep(ENDING_S)
            assert listener.stdin is not None
            listener.stdin.close()
            late_s = _heard(listener, path)["late_s"]
    if len(late_s) != count:
        raise PeerFailed(f"{len(late_s)} of {count} jobs ran")
    entrant.late_s += late_s


def _cpu_s(session: int) -> float:
    """Return the CPU seconds of all processes of a session, dead children not counted."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S
