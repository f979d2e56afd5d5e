"""
Thousands of real jobs, a `kill -9` in the middle, and none lost.

Every file of Python's standard library is sent as a job. A worker process hashes them, is
killed when 40 % are done, is started again, and finishes. Then all files are read once more,
here, without dutiful, and each result is compared. Ends with 1 if anything is missing or wrong.
"""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from files import Facts, File, make_worker

from dutiful import State, Worker

KILL_AT = 0.4  # of all jobs completed
GIVE_UP_S = 120.0
STDLIB = Path(sysconfig.get_path("stdlib"))
# Nobody may write compiled files into the folder that is being counted.
sys.dont_write_bytecode = True
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

Show = Callable[[int], None]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="dutiful-demo-") as name:
        folder = Path(name)
        client = make_worker(folder)  # never started here: it only sends and looks
        try:
            return run(folder, client)
        finally:
            client.stop()


def run(folder: Path, client: Worker) -> int:
    paths = sorted(stdlib_files())
    began = time.perf_counter()
    jobs = client.send_many(File(path) for path in paths)
    sent_s = time.perf_counter() - began
    print(f"{len(jobs):,} files of {STDLIB} sent as jobs in {sent_s:.2f} s; each is on disk now.")

    began = time.perf_counter()
    with progress(len(jobs)) as show:
        first = start(folder)
        wait_for(client, int(len(jobs) * KILL_AT), show, first)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        left = client.counts().by_state
    done = left.get(State.COMPLETED, 0)
    print(
        f"kill -9 of process {first.pid}: {done:,} completed, {left.get(State.RUNNING, 0):,} in its hands, "
        f"{left.get(State.PENDING, 0):,} waiting."
    )
    if done == len(jobs):
        print("The kill came too late: all were done.")
        return 1

    started_at = time.monotonic()
    with progress(len(jobs)) as show:
        second = start(folder)
        wait_for(client, len(jobs), show, second)
    took_s = time.perf_counter() - began
    second.communicate(timeout=GIVE_UP_S)  # closes its input: it stops, and ends

    ledger = Ledger.read(folder / "ledger")
    rescues = [at for at, pid, attempt in ledger.runs if pid == second.pid and attempt > 1]
    if not rescues:
        print("The kill hit a worker with empty hands: there was nothing to rescue.")
        return 1
    called_at = ledger.started_at[second.pid]
    print(f"process {second.pid} finished the rest: {len(jobs):,} jobs in {took_s:.1f} s, ", end="")
    print(f"{len(jobs) / took_s:,.0f} jobs/s, the kill and both starts of Python included.")
    print(
        f"rescue: the first job of the dead process ran {min(rescues) - started_at:.3f} s after the new "
        f"process was launched, {min(rescues) - called_at:.3f} s after that began to start its worker."
    )
    print(
        f"ran twice: {ledger.twice} of {len(jobs):,} (running at the kill, or done and not yet recorded); "
        f"more often: {ledger.oftener}."
    )
    return proof(paths, results(client))


def stdlib_files() -> Iterator[str]:
    for base, folders, names in os.walk(STDLIB):
        folders[:] = [each for each in folders if each not in ("site-packages", "dist-packages")]
        for name in names:
            path = Path(base, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield str(path)


def start(folder: Path) -> "subprocess.Popen[bytes]":
    program = Path(__file__).with_name("files.py")
    return subprocess.Popen([sys.executable, program, folder], stdin=subprocess.PIPE, env=ENVIRONMENT)


def wait_for(client: Worker, wanted: int, show: Show, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + GIVE_UP_S
    while (done := client.counts().by_state.get(State.COMPLETED, 0)) < wanted:
        show(done)
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            sys.exit(f"process {process.pid} stands at {done} of {wanted} jobs; its exit: {process.poll()}")
        time.sleep(0.01)
    show(done)


@dataclass
class Ledger:
    """What the handlers wrote themselves, when they ran."""

    started_at: dict[int, float]
    runs: list[tuple[float, int, int]]
    twice: int
    oftener: int

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        lines = [line.split() for line in path.read_text().splitlines()]
        runs = [(float(at), int(pid), int(attempt)) for at, pid, what, _id, attempt in lines if what == "run"]
        often = Counter(job_id for _at, _pid, what, job_id, _attempt in lines if what == "run")
        times = Counter(often.values())
        return cls(
            started_at={int(pid): float(at) for at, pid, what, *_ in lines if what == "start"},
            runs=runs,
            twice=times[2],
            oftener=sum(count for runs_of_one, count in times.items() if runs_of_one > 2),
        )


def results(client: Worker) -> dict[str, Facts]:
    """Read all completed jobs back from the store, page by page."""
    found: dict[str, Facts] = {}
    before = None
    while page := client.jobs(state=State.COMPLETED, before=before, limit=1000):
        for record in page:
            found[json.loads(record.payload or "")["path"]] = Facts(**json.loads(record.result or ""))
        before = page[-1].id
    return found


def proof(paths: list[str], found: dict[str, Facts]) -> int:
    """Count again, with nothing of dutiful's: another walk, hashlib, and the bytes themselves."""
    wrong = lost = 0
    there = set(stdlib_files())
    for path in there:
        if path not in found:
            lost += 1
            continue
        content = Path(path).read_bytes()
        right = Facts(hashlib.sha256(content).hexdigest(), len(content), content.count(b"\n"))
        wrong += found[path] != right
    print(f"counted again: {len(there):,} files, {len(found):,} results; lost: {lost}, wrong: {wrong}.")
    if lost or wrong or there != set(paths) or len(found) != len(paths):
        print("NOT all files were processed." if there == set(paths) else "The folder changed meanwhile.")
        return 1
    print("Every file was processed, none was lost.")
    return 0


@contextmanager
def progress(total: int) -> Iterator[Show]:
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            line = bar.add_task("hashing", total=total)
            yield lambda done: bar.update(line, completed=done)
        return
    said = -1

    def show(done: int) -> None:
        nonlocal said
        tenth = 10 * done // total
        if tenth != said:
            said = tenth
            print(f"  {done:,} of {total:,}", flush=True)

    yield show


if __name__ == "__main__":
    sys.exit(main())
