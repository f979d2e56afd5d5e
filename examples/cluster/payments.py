"""
What the cluster works on: payments, each booked once in a table of our own.

    python payments.py work URL               a worker, until its standard input is closed
    python payments.py produce URL RATE       sends RATE payments a second, until then; prints the number of
                                              each once it is stored
"""

import logging
import sys
import threading
import time
from dataclasses import dataclass

from dutiful import Context, Worker

WORK_S = 0.05  # what a payment takes before it is booked: long enough for a kill to come in between

TABLE = """
CREATE TABLE IF NOT EXISTS booked (
    number  bigint  NOT NULL,  -- deliberately not unique: booking one twice must be possible, to be seen
    attempt integer NOT NULL   -- above 1: a worker died in an earlier one, or was told to stop
)
"""
INDEX = "CREATE INDEX IF NOT EXISTS booked_number ON booked (number)"


@dataclass
class Payment:
    number: int


def book(job: Payment, ctx: Context) -> None:
    time.sleep(WORK_S)
    # Our row and the job's completion commit together: both, or neither.
    with ctx.transaction() as db:
        db.execute("INSERT INTO booked (number, attempt) VALUES (%s, %s)", (job.number, ctx.attempt))


def work(url: str) -> None:
    with Worker(url, name="booker", handlers={Payment: book}, concurrency=8):
        sys.stdin.read()


def produce(url: str, rate: float) -> None:
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    client = Worker(url, name="producer", handlers={Payment: book})  # never started: it only sends
    number, due_s = 0, time.monotonic()
    while not stop.wait(max(0.0, due_s - time.monotonic())):
        number += 1
        due_s += 1 / rate
        client.send(Payment(number))
        print(number, flush=True)  # send has returned: from here on it may not be lost
    client.stop()


if __name__ == "__main__":
    # What the workers say of a dead one takes the place of the live line, which is drawn again below it.
    logging.basicConfig(format="\r\033[K%(message)s" if sys.stderr.isatty() else "%(message)s")
    command, url, *rest = sys.argv[1:]
    if command == "work":
        work(url)
    else:
        produce(url, float(rest[0]))
