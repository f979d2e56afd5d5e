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

from bench.ours import KEEP_ALL, TASK, noop, payloads, wait_until_done
from dutiful import Worker


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def send(path: str, jobs: int, delay: float | None = None) -> None:
    """Fill a file and end."""
    Worker(path, handlers={TASK: noop}, keep_completed=False).send_many(
        payloads(jobs), task=TASK, delay=delay
    )
    say(sent=jobs)


def drain(path: str, jobs: int | None, *, keep: bool = False) -> None:
    """Take what is there: all of it until it is committed, or stop after the first `jobs` handlers."""
    count = 0
    enough = threading.Event()
    times = [0.0, 0.0]

    def counted(payload: str) -> None:
        nonlocal count
        count += 1
        if count == jobs:
            times[1] = time.perf_counter()
            enough.set()

    # One handler at a time counts without a lock; with handlers that do nothing one thread serves all anyway.
    worker = Worker(path, handlers={TASK: counted}, concurrency=1, keep_completed=KEEP_ALL if keep else False)
    times[0] = time.perf_counter()
    worker.start()
    started = time.perf_counter()
    if jobs is None:
        wait_until_done(worker)
        times[1] = time.perf_counter()
    elif not enough.wait(600):
        raise TimeoutError
    worker.stop()
    say(
        took_s=times[1] - times[0], start_s=started - times[0], handled=count, peak_rss_bytes=peak_rss_bytes()
    )


def peak_rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


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


COMMANDS: dict[str, Callable[..., None]] = {"send": send, "drain": drain, "listen": listen, "hold": hold}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](**json.loads(sys.argv[2]))
