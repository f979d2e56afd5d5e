"""
What runs in processes of its own: `python -m bench.child COMMAND JSON` prints one line of JSON.

Each stands for a user's program: it makes a Worker, starts or sends, and reports.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.ours import KEEP_ALL, TASK, WAIT_S, noop, payloads, wait_until_done
from dutiful import Worker


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def send(path: str, jobs: int, delay: float | None = None, task: str = TASK) -> None:
    """Fill a file and end."""
    client = Worker(path, handlers={task: noop}, keep_completed=False)
    client.send_many(payloads(jobs), task=task, delay=delay)
    say(sent=jobs)


def drain(
    path: str, *, window: tuple[int, int] | None = None, until: int | None = None, keep: bool = False
) -> None:
    """
    Take what is there, until all is completed and committed, or the first `until` handlers have run.

    `window` is (first, last) of the handler calls, counted from 1, between which the time is
    taken; without one it is taken from the call of `start()` until all is committed.
    """
    first, last = window or (1, 0)
    count = 0
    enough = threading.Event()
    at = {"first": 0.0, "began": 0.0, "ended": 0.0}

    def counted(payload: str) -> None:
        nonlocal count
        count += 1
        if count == 1:
            at["first"] = time.perf_counter()
        if count == first:
            at["began"] = time.perf_counter()
        if count == last:
            at["ended"] = time.perf_counter()
        if count == until:
            enough.set()

    # One handler at a time counts without a lock; with handlers that do nothing one thread serves all anyway.
    worker = Worker(path, handlers={TASK: counted}, concurrency=1, keep_completed=KEEP_ALL if keep else False)
    called_at = time.perf_counter()
    worker.start()
    if until is None:
        wait_until_done(worker)
    elif not enough.wait(WAIT_S):
        raise TimeoutError(f"{count} of {until} handlers have run after {WAIT_S} s")
    if window is None:
        at["began"], at["ended"] = called_at, time.perf_counter()
    worker.stop()
    say(
        took_s=at["ended"] - at["began"],
        first_s=at["first"] - called_at,
        handled=count,
        peak_rss_bytes=peak_rss_bytes(),
    )


def peak_rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def produce(path: str, jobs: int) -> None:
    """Be ready; when told, send to the worker of `consume`."""
    client = Worker(path, handlers={TASK: noop}, keep_completed=False)
    client.counts()  # opens the store
    say(ready=True)
    sys.stdin.readline()
    began_at = time.monotonic()
    client.send_many(payloads(jobs), task=TASK)
    say(began_at=began_at, sent_at=time.monotonic())


def consume(path: str, jobs: int) -> None:
    """Run until `jobs` handlers have run, and all is committed."""
    count = 0
    enough = threading.Event()

    def counted(payload: str) -> None:
        nonlocal count
        count += 1
        if count == jobs:
            enough.set()

    with Worker(path, handlers={TASK: counted}, concurrency=1, keep_completed=False) as worker:
        say(ready=True)
        if not enough.wait(WAIT_S):
            raise TimeoutError(f"{count} of {jobs} handlers have run after {WAIT_S} s")
        wait_until_done(worker)
        say(ended_at=time.monotonic(), cpu_s=time.process_time())


def listen(path: str) -> None:
    """Run until stdin closes; then say how long after its sending each job's handler began."""
    late_s: list[float] = []
    worker = Worker(path, handlers={TASK: lambda sent_at: late_s.append(time.monotonic() - sent_at)})
    with worker:
        say(pid=os.getpid(), started=True)
        for line in sys.stdin:
            if line.strip() == "cpu":
                say(cpu_s=time.process_time())
    say(late_s=late_s)


def hold(path: str) -> None:
    """Say when a handler begins, and stay in it."""

    def held(payload: str) -> None:
        say(pid=os.getpid(), at=time.monotonic())
        time.sleep(600)

    worker = Worker(path, handlers={TASK: held}, concurrency=1)
    called_at = time.monotonic()
    worker.start()
    say(called_at=called_at, started_at=time.monotonic())
    sys.stdin.read()
    os._exit(0)


COMMANDS: dict[str, Callable[..., None]] = {
    "send": send,
    "drain": drain,
    "produce": produce,
    "consume": consume,
    "listen": listen,
    "hold": hold,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](**json.loads(sys.argv[2]))
