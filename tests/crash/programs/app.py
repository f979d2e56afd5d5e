"""
A real worker process for the tests to kill: it works, it sends, and it keeps the ledger.

`app.py FOLDER [options]`: the database is FOLDER/jobs.db unless `--db` says otherwise, the ledger
and the acks stand in FOLDER. It prints "ready" when it works and sends, "sent" when all senders are
done, "failed N …" for a send that raised, and "stopped" after SIGTERM.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dutiful import Context, DutifulError, Keep, Worker
from dutiful.store import sqlite_access


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--name", default="app")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--max-crashes", type=int, default=1_000_000)
    parser.add_argument("--busy-s", type=float, default=10.0)
    parser.add_argument("--grace-s", type=float, default=30.0)
    parser.add_argument("--no-work", action="store_true", help="send only")
    parser.add_argument("--senders", type=int, default=0, help="threads that send")
    parser.add_argument("--jobs", type=int, default=0, help="of each sender; 0: without end")
    parser.add_argument("--batch", type=int, default=1, help="more than one: by send_many")
    parser.add_argument("--first", type=int, default=0, help="number of the first payload")
    parser.add_argument("--job-s", type=float, default=0.0, help="how long each job takes")
    parser.add_argument("--pad", type=int, default=0, help="more bytes in each payload")
    parser.add_argument("--delay-s", type=float, default=0.0, help="of each send")
    parser.add_argument("--pause-s", type=float, default=0.0, help="between a sender's sends")
    parser.add_argument("--wait", action="store_true", help="senders wait for each job's result")
    parser.add_argument("--checkpoint-bytes", type=int, help="checkpoint the log this often")
    parser.add_argument("--stop", action="store_true", help="when all is sent, not at SIGTERM")
    parser.add_argument("--die", action="store_true", help="by SIGKILL, when a send raises")
    return parser.parse_args()


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class App:
    """One process's worker, with its books."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._ledger = opened(options.folder / "ledger")
        self._acks = opened(options.folder / "acks")
        self._numbers = itertools.count(options.first)
        if options.checkpoint_bytes:
            sqlite_access.CHECKPOINT_BYTES = options.checkpoint_bytes
        self.worker = Worker(
            options.db or options.folder / "jobs.db",
            name=options.name,
            handlers={"work": self.work},
            concurrency=options.concurrency,
            max_crashes=options.max_crashes,
            busy_s=options.busy_s,
            grace_s=options.grace_s,
            keep_completed=Keep(count=1_000_000, age_s=1e9),  # the books are compared with all of them
        )

    def work(self, payload: dict[str, Any], ctx: Context) -> int:
        """Do a job: what is written here is all that the tests believe."""
        self._enter("start", ctx)
        time.sleep(self.options.job_s)
        self._enter("end", ctx)
        return 1

    def _enter(self, what: str, ctx: Context) -> None:
        line = f"{what} {os.getpid()} {ctx.id} {ctx.attempt} {time.monotonic()}\n"
        os.write(self._ledger, line.encode())

    def send(self) -> None:
        """Send until the number of jobs is reached, or for ever."""
        rounds = self.options.jobs // self.options.batch
        for _ in range(rounds) if rounds else itertools.count():
            self._send_one() if self.options.batch == 1 else self._send_batch()
            time.sleep(self.options.pause_s)

    def _send_one(self) -> None:
        payload = next(self._payloads())
        try:
            job = self.worker.send(payload, task="work", delay=self.options.delay_s or None)
        except DutifulError as error:
            self._failed(payload, error)
            return
        self._ack("ACK", job.id, payload)
        if self.options.wait:
            job.wait(timeout=60)
            self._ack("DONE", job.id, payload)

    def _failed(self, payload: dict[str, Any], error: DutifulError) -> None:
        print(f"failed {payload['n']} {type(error).__name__} {error}", flush=True)
        if self.options.die:
            os.kill(os.getpid(), signal.SIGKILL)

    def _send_batch(self) -> None:
        payloads = list(itertools.islice(self._payloads(), self.options.batch))
        jobs = self.worker.send_many(payloads, task="work")
        for job, payload in zip(jobs, payloads, strict=True):
            self._ack("ACK", job.id, payload)

    def _payloads(self) -> Iterator[dict[str, Any]]:
        pad = "x" * self.options.pad
        return ({"n": number, "pad": pad} for number in self._numbers)

    def _ack(self, word: str, job_id: int, payload: dict[str, Any]) -> None:
        os.write(self._acks, f"{word} {job_id} {payload['n']}\n".encode())


def main() -> None:
    """Work and send until SIGTERM or the end of all senders, or a kill."""
    faulthandler.register(signal.SIGUSR1)  # for the harness, when it waits in vain
    app = App(arguments())
    told: list[int] = []  # an Event's lock may be held by the very wait that the handler has struck
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    if not app.options.no_work:
        app.worker.start()
    print(f"ready {time.monotonic()}", flush=True)
    senders = [threading.Thread(target=app.send) for _ in range(app.options.senders)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    print("sent", flush=True)
    if not (app.options.no_work or app.options.stop):
        while not told:  # a signal that comes to another thread does not end this wait
            time.sleep(0.05)
    app.worker.stop()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
