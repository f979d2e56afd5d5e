"""Starting a peer's processes, and measuring with them."""

import contextlib
import json
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from bench import postgres_server
from bench.ours import wait_until_done
from bench.peers_postgres import environment
from bench.peers_postgres.process import WARM_JOBS
from dutiful import Worker
from tests.servers.postgres import Server

PATIENCE_S = 60.0  # then a peer hangs: measurements are sized to a few seconds
LOOK_S = 0.0005  # how often the counts are looked at
REST_S = 1.0  # for workers to come to rest after their start, and for jobs on their way after the last send
WORKERS_MAX = 8


class PeerFailed(Exception):
    """A peer's process ended, or did not answer in time; says what it last wrote to stderr."""


@dataclass
class Entrant:
    """
    One line of each table.

    Args:
        package: Its name in the index, and its adapter's.
        failed: Why it is out, once it is.
    """

    package: str
    failed: str = ""
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sends: list[float] = field(default_factory=list)  # of its producer, a second
    late_s: list[float] = field(default_factory=list)
    backlog: int = 0

    @property
    def is_ours(self) -> bool:
        return self.package == "dutiful"

    @property
    def name(self) -> str:
        return self.package if self.is_ours else f"{self.package} {environment.pinned(self.package)}"

    @property
    def workers(self) -> int:
        """How many processes its adapter asks for; read, not imported: its package is not here."""
        text = Path(__file__).with_name(f"{self.package}.py").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("WORKERS = ")]
        return int(lines[0].partition("=")[2]) if lines else 1


class Stage:
    """A fresh database with a peer's tables, and its processes."""

    def __init__(self, entrant: Entrant, url: str, folder: Path, stack: ExitStack) -> None:
        self._entrant, self._url, self._folder, self._stack = entrant, url, folder, stack
        self._counts_file = folder / "counts"
        self._counts_file.write_bytes(bytes(8 * WORKERS_MAX))
        with self._counts_file.open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._working: list[subprocess.Popen[str]] = []

    def run(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.heard(self.start(command, **arguments))

    def start(self, command: str, **arguments: Any) -> "subprocess.Popen[str]":
        python = sys.executable if self._entrant.is_ours else str(environment.PYTHON)
        told = json.dumps({"url": self._url, **arguments})
        log = self._stack.enter_context((self._folder / f"{command}.log").open("a"))
        process = subprocess.Popen(
            [python, "-m", "bench.peers_postgres.process", self._entrant.package, command, told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            cwd=environment.ROOT,
        )
        self._stack.callback(_end, process)
        return process

    def heard(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        assert process.stdout is not None
        ready = select.select([process.stdout], [], [], PATIENCE_S)[0]
        line = process.stdout.readline() if ready else ""
        if not line:
            raise self.failure("ended" if ready else f"no answer in {PATIENCE_S:.0f} s")
        found: dict[str, Any] = json.loads(line)
        return found

    def failure(self, what: str) -> PeerFailed:
        logs = "\n".join(log.read_text(errors="replace") for log in self._folder.glob("*.log"))
        said = (logs.strip().splitlines() or ["nothing on stderr"])[-1][:150]
        return PeerFailed(f"{what}: {said}")

    def start_workers(self, command: str) -> None:
        for place in range(self._entrant.workers):
            arguments = {"counts": str(self._counts_file), "place": place}
            self._working.append(self.start(command, **arguments))

    def analyze(self) -> None:
        """Do what autovacuum would have done in time: some peers' plans need it (procrastinate's)."""
        with psycopg.connect(self._url, autocommit=True) as db:
            db.execute("VACUUM (ANALYZE)")

    def count(self) -> int:
        return sum(self._counts)

    def wait_for(self, count: int) -> float:
        """Wait until handlers have been called so often; return when, by the monotonic clock."""
        until = time.monotonic() + PATIENCE_S
        while self.count() < count:
            if time.monotonic() > until:
                raise self.failure(f"{self.count()} of {count} jobs ran in {PATIENCE_S:.0f} s")
            if any(process.poll() is not None for process in self._working):
                raise self.failure("a worker ended")
            time.sleep(LOOK_S)
        return time.monotonic()

    def wait_for_all(self, count: int) -> float:
        """Wait for the last handler; of dutiful, for the last commit too."""
        at = self.wait_for(count)
        if self._entrant.is_ours:
            looker = Worker(self._url)
            wait_until_done(looker)
            looker.stop()
            at = time.monotonic()
        return at

    def late_s(self) -> list[float]:
        lines = [line for file in self._folder.glob("counts.*") for line in file.read_text().split()]
        return [int(line) / 1_000_000 for line in lines]


@contextmanager
def stage(entrant: Entrant, server: Server) -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="dutiful-peers-"))
    try:
        with postgres_server.fresh(server) as url, ExitStack() as stack:
            made = Stage(entrant, url, folder, stack)
            made.run("install")
            yield made
    finally:
        shutil.rmtree(folder)


def one_by_one(entrant: Entrant, server: Server, for_s: float) -> None:
    """Send one by one to running workers for some time; keep the rates, end to end and of sending."""
    with stage(entrant, server) as on:
        on.start_workers("work")
        producer = on.start("produce", for_s=for_s)
        on.heard(producer)
        on.wait_for(WARM_JOBS)
        time.sleep(REST_S)
        assert producer.stdin is not None
        producer.stdin.write("go\n")
        producer.stdin.flush()
        said = on.heard(producer)
        ended_at = on.wait_for_all(WARM_JOBS + said["sent"])
    entrant.rates["single"].append(said["sent"] / (ended_at - said["began_at"]))
    entrant.sends.append(said["sent"] / said["took_s"])


def drained(entrant: Entrant, server: Server, jobs: int) -> float:
    """Return jobs per second of a backlog, from the tenth part of it on."""
    with stage(entrant, server) as on:
        on.run("fill", jobs=jobs)
        on.analyze()
        on.start_workers("work")
        began_at = on.wait_for(jobs // 10)
        before = on.count()
        return (jobs - before) / (on.wait_for_all(jobs) - began_at)


def fitting(entrant: Entrant, server: Server, for_s: float, jobs_max: int) -> int:
    """Return the backlog that takes a peer about `for_s`; finding that out is its warm-up."""
    jobs = 1000
    for _ in range(2):  # small numbers show the start more than the rate
        jobs = min(jobs_max, max(1000, int(drained(entrant, server, jobs) * for_s)))
    return jobs


def latency(entrant: Entrant, server: Server, count: int) -> None:
    """Send with pauses to idle workers; keep how late the handlers began."""
    with stage(entrant, server) as on:
        on.start_workers("listen")
        on.run("ping", count=WARM_JOBS)  # also seen by whoever has started first
        time.sleep(REST_S)
        warm = len(on.late_s())
        on.run("ping", count=count)
        time.sleep(REST_S)
        late_s = on.late_s()[warm:]
    if len(late_s) != count:
        raise PeerFailed(f"{len(late_s)} of {count} jobs ran")
    entrant.late_s += late_s


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
