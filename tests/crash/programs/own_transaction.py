"""
A process for the tests to kill: it sends in its own transactions, and handles in ctx.transaction().

`own_transaction.py URL LIBRARY FIRST [--no-send]`: in a loop, begin, insert a number into
`orders`, send it as a job, commit (or, every fifth time, roll back). The handler inserts the
number into `done`, in `ctx.transaction()`, or the odd ones in `ctx.transaction(own)`. It prints
"ready" after its first commit; with `--no-send` it handles what there is and stops at SIGTERM.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import sys
import threading
import time

from dutiful import Context, Keep, Worker
from tests.worker.lenders import ON_POSTGRES, ON_SQLITE, Lender

mine = threading.local()


def done(number: int, ctx: Context) -> None:
    sql = f"INSERT INTO done VALUES ({number})"
    if number % 2:
        if not hasattr(mine, "lender"):
            mine.lender = lender_of(sys.argv[1], sys.argv[2])
        mine.lender.write_in(ctx, sql)
    else:
        with ctx.transaction() as db:
            db.execute(sql)


def lender_of(url: str, library: str) -> Lender:
    return (ON_POSTGRES if "://" in url else ON_SQLITE)[library](url)


def main(url: str, library: str, first: int, *, sends: bool) -> None:
    faulthandler.register(signal.SIGUSR1)  # for the harness, when it waits in vain
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    worker = Worker(
        url,
        handlers={"done": done},
        concurrency=2,
        max_crashes=1_000_000,
        keep_completed=Keep(count=1_000_000, age_s=1e9),  # all of them are compared with the tables
    )
    worker.start()
    if sends:
        lender = lender_of(url, library)
        for number in itertools.count(first):
            lender.begin()
            lender.execute(f"INSERT INTO orders VALUES ({number})")
            lender.send(worker, number, task="done")
            lender.commit() if number % 5 else lender.rollback()
            if number == first + 1:
                os.write(1, b"ready\n")
    os.write(1, b"ready\n")
    while not stop.is_set():  # not `wait`: the handler would need the lock that it holds
        time.sleep(0.05)
    worker.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sends="--no-send" not in sys.argv)
