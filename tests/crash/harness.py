"""
Start real processes, kill them, and keep the books outside the database.

A program's handler appends one line to the *ledger* at its start and one at its end; a sender
appends a line to the *acks* after each `send` that returned. Both are plain files opened with
O_APPEND and written with one `write` each, so a kill leaves whole lines, and nothing of what the
database says of itself is believed. `Books` then checks, sentence by sentence, what was promised:

- lost: a job that was acknowledged and is not stored as completed;
- stuck: one that is stored and was not finished in the end;
- doubled: a payload stored twice, or one that is not what was sent;
- overlap: two attempts of one job at the same time;
- repeated without need: a second run after a first whose process did not die before its result
  can have been stored;
- unrun: completed without a run.

A process is killed with its whole group, at a chosen time or at a crash point: with
`DUTIFUL_CRASHPOINT=<name>[:N]` in its environment the engine ends itself (`os._exit(137)`) when it
passes that point for the N-th time. A program tells facts by lines on its standard output;
`Program.wait_for` waits for such a line, with a bound, instead of sleeping.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

CRASHED = 137
CRASHPOINTS = (
    "send.before_commit",
    "send.after_commit",
    "handler.before",
    "handler.after",
    "ack.before_commit",
    "ack.after_commit",
    "claim.after_commit",
    "rescue.before_commit",
    "rescue.after_commit",
    "migrate.middle",
)
WAIT_S = 30.0  # a bound for facts that take milliseconds, on a machine that is busy with other tests
STORED_WITHIN_S = 1.0  # a result is stored a few ms after the handler's end; the same margin


class Silent(AssertionError):
    """A program did not say in time what was waited for."""


class Program:
    """A script in a process group of its own."""

    def __init__(
        self,
        script: Path,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        argv = [*wrapper, sys.executable, "-u", str(script), *map(str, args)]
        self._process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        self.pid = self._process.pid
        self.killed_at: float | None = None
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._said:
                    self.lines.append(line.rstrip("\n"))
                    self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            self._errors.extend(lines)

    @property
    def errors(self) -> str:
        """What it wrote to its standard error so far."""
        return "".join(self._errors)

    def wait_for(self, start: str, timeout_s: float = WAIT_S) -> str:
        """Return the first line that begins with `start`, once it is there."""
        with self._said:
            self._said.wait_for(lambda: self._line(start) or not self._readers[0].is_alive(), timeout_s)
            line = self._line(start)
        if line is None:
            raise Silent(f"no {start!r} within {timeout_s} s; it said {self.lines[-5:]}\n{self._stacks()}")
        return line

    def wait_until(self, fact: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait for a fact that this program should bring about."""
        try:
            wait_until(fact, timeout_s)
        except Silent as error:
            said = f"it said {self.lines[-5:]}\n{self._stacks()}"
            raise Silent(f"not so within {timeout_s} s; {said}") from error

    def _line(self, start: str) -> str | None:
        return next((line for line in self.lines if line.startswith(start)), None)

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for its end and return its exit status."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise Silent(f"not ended within {timeout_s} s\n{self._stacks()}") from error
        for reader in self._readers:
            reader.join(timeout_s)
        return status

    def _stacks(self) -> str:
        """Return what it wrote to its standard error, where each thread stands included."""
        if self.running:
            self.signal(signal.SIGUSR1)
            time.sleep(0.5)
        return self.errors[-20_000:]

    def kill(self) -> None:
        """SIGKILL the whole group, and reap it. Harmless if it has ended."""
        if self.running:
            self.killed_at = time.monotonic()
            self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.pid, number)


@contextmanager
def program(script: Path, *args: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Run a script; whatever happens, it is dead in the end."""
    started = Program(script, *args, env=env)
    try:
        yield started
    finally:
        started.kill()


def wait_until(fact: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait for a fact outside this process that nothing would wake us for."""
    deadline = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline:
            raise Silent(f"not so within {timeout_s} s")
        time.sleep(0.005)


def crashing(point: str, nth: int = 1) -> dict[str, str]:
    """Return the environment in which the engine ends itself at this point."""
    assert point in CRASHPOINTS, point
    return {"DUTIFUL_CRASHPOINT": f"{point}:{nth}"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    what: str  # "start" or "end"
    pid: int
    job_id: int
    attempt: int
    at: float  # monotonic, one clock for all processes of a boot


@dataclass(slots=True)
class Run:
    """One attempt as the ledger tells it; a run without an end was cut off."""

    job_id: int
    attempt: int
    pid: int
    start: float
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What the database says of a job."""

    id: int
    state: str
    number: int


@dataclass(slots=True)
class Books:
    """The ledger, the acks and the deaths of one test, in one folder."""

    folder: Path
    elsewhere: Path | None = None  # the database, if it is not in the folder
    deaths: dict[int, float | None] = field(default_factory=dict)  # pid → earliest time of death

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def acks(self) -> Path:
        return self.folder / "acks"

    @property
    def db(self) -> Path:
        return self.elsewhere or self.folder / "jobs.db"

    def died(self, gone: Program) -> None:
        """Note that a program was killed, or ended itself at a crash point."""
        self.deaths[gone.pid] = gone.killed_at

    def acked(self) -> dict[int, int]:
        """Return what senders were promised: job id → number in the payload."""
        fields = (line.split() for line in _lines(self.acks))
        return {int(job_id): int(number) for word, job_id, number in fields if word == "ACK"}

    def entries(self) -> list[Entry]:
        """Return the ledger."""
        fields = (line.split() for line in _lines(self.ledger))
        return [
            Entry(what, int(pid), int(job), int(attempt), float(at)) for what, pid, job, attempt, at in fields
        ]

    def rows(self) -> list[Row]:
        """Return the stored jobs, read with plain sqlite3."""
        with closing(sqlite3.connect(self.db, timeout=WAIT_S)) as connection:
            found = connection.execute("SELECT id, state, payload FROM dutiful_job ORDER BY id").fetchall()
        return [Row(job_id, state, json.loads(payload)["n"]) for job_id, state, payload in found]

    def unfinished(self) -> int:
        """Return how many stored jobs still wait or run."""
        with closing(sqlite3.connect(self.db, timeout=WAIT_S)) as connection:
            query = "SELECT count(*) FROM dutiful_job WHERE state IN ('pending', 'running')"
            count: int = connection.execute(query).fetchone()[0]
        return count

    def wait_until_finished(self, timeout_s: float = WAIT_S) -> None:
        """Wait until nothing waits or runs any more; return also if that does not come to pass."""
        with suppress(Silent):
            wait_until(lambda: not self.unfinished(), timeout_s)

    def problems(self) -> list[str]:
        """Return every promise that was broken."""
        rows, runs = self.rows(), self.runs()
        return [
            *_lost(self.acked(), rows),
            *_stuck(rows),
            *_doubled(rows),
            *_unrun(rows, runs),
            *self._overlaps(runs),
            *self._needless(runs),
            *self.damage(),
        ]

    def damage(self) -> list[str]:
        """Return what is wrong with the database itself."""
        return _integrity(self.db)

    def runs(self) -> list[Run]:
        """Return the attempts, by job and start."""
        runs: dict[tuple[int, int, int], Run] = {}
        for entry in self.entries():
            key = (entry.pid, entry.job_id, entry.attempt)
            if entry.what == "start":
                assert key not in runs, f"attempt {entry.attempt} of job {entry.job_id} was run twice"
                runs[key] = Run(entry.job_id, entry.attempt, entry.pid, entry.at)
            else:
                runs[key].end = entry.at
        return sorted(runs.values(), key=lambda run: (run.job_id, run.start))

    def repeats(self) -> int:
        """Return how many runs came after a first one."""
        runs = self.runs()
        return len(runs) - len({run.job_id for run in runs})

    def _overlaps(self, runs: Sequence[Run]) -> Iterator[str]:
        for first, second in _neighbours(runs):
            if second.start < self._over(first, runs):
                yield f"overlap: {first} and {second}"

    def _over(self, run: Run, runs: Sequence[Run]) -> float:
        """Return the time until which this run surely went on."""
        if run.end is not None:
            return run.end
        if run.pid not in self.deaths:
            return float("inf")
        killed_at = self.deaths[run.pid]
        if killed_at is not None:
            return killed_at
        return max(other.end or other.start for other in runs if other.pid == run.pid)

    def _needless(self, runs: Sequence[Run]) -> Iterator[str]:
        for first, second in _neighbours(runs):
            if first.pid not in self.deaths:
                yield f"repeated, though its process lived: {first} and {second}"
                continue
            killed_at = self.deaths[first.pid]
            if first.end and killed_at and killed_at - first.end > STORED_WITHIN_S:
                yield f"repeated, {killed_at - first.end:.1f} s after its end: {first} and {second}"


def _neighbours(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    for _, group in groupby(runs, key=lambda run: run.job_id):
        yield from pairwise(group)


def _lost(acked: Mapping[int, int], rows: Sequence[Row]) -> Iterator[str]:
    stored = {row.id: row for row in rows}
    for job_id, number in acked.items():
        row = stored.get(job_id)
        if row is None or row.state != "completed":
            yield f"lost: job {job_id} was acknowledged and is {row.state if row else 'not there'}"
        elif row.number != number:
            yield f"lost: job {job_id} was sent with n={number} and is stored with n={row.number}"


def _stuck(rows: Sequence[Row]) -> list[str]:
    return [f"stuck: {row}" for row in rows if row.state in ("pending", "running")]


def _doubled(rows: Sequence[Row]) -> list[str]:
    numbers = sorted(row.number for row in rows)
    return [f"doubled: n={first} is stored twice" for first, second in pairwise(numbers) if first == second]


def _unrun(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    ran = {run.job_id for run in runs if run.end is not None}
    return [f"unrun: {row}" for row in rows if row.state == "completed" and row.id not in ran]


def _integrity(db: Path) -> list[str]:
    with closing(sqlite3.connect(db, timeout=WAIT_S)) as connection:
        found: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return [] if found == "ok" else [f"integrity_check: {found}"]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
