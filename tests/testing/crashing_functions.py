"""What the tests of `crash_at` run in another process; imported there by name."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dutiful import Context, Worker
from dutiful.testing import crashpoint

OWN = "CREATE TABLE IF NOT EXISTS paid (id INTEGER)"


def make(folder: Path) -> Worker:
    worker = Worker(folder / "jobs.db")

    @worker.handler("note")
    def note(number: int, ctx: Context) -> None:
        with (folder / "ledger").open("a") as ledger:
            ledger.write(f"{number} attempt {ctx.attempt}\n")
        crashpoint("noted")

    @worker.handler("pay")
    def pay(number: int, ctx: Context) -> None:
        with ctx.transaction() as db:
            db.execute(OWN)
            db.execute("INSERT INTO paid VALUES (?)", (number,))

    return worker


def ledger(folder: Path) -> list[str]:
    path = folder / "ledger"
    return path.read_text().splitlines() if path.exists() else []


def send_and_run(folder: Path, task: str = "note", jobs: int = 1) -> None:
    with make(folder) as worker:
        print("sending", flush=True)
        for number in range(jobs):
            worker.send(number, task=task)
        worker.drain()


def send_only(folder: Path) -> None:
    make(folder).send(1, task="note")


def start_only(folder: Path) -> None:
    with make(folder) as worker:
        worker.drain()


def fail() -> None:
    raise ValueError("no good")


def leave() -> None:
    sys.exit(3)


def hang() -> None:
    print("hanging", flush=True)
    time.sleep(3600)
