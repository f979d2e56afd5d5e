"""
A real process on PostgreSQL for the tests to kill, freeze and cut off: it works, sends, and keeps the ledger.

`postgres_app.py FOLDER URL [options]`: the ledger and the acks stand in FOLDER (see harness.py). A job with
an odd number inserts it into the user's table `done` in `ctx.transaction()`; one with an even number just
completes. It prints "ready" and its clock when it works and sends, "sent" when all is sent, and "stopped"
after SIGTERM.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import signal
import threading
import time
from pathlib import Path

from dutiful import Backoff, Context, DutifulError, Keep, Retry, StoreUnknown, Worker
from dutiful.store import postgres_hold, postgres_pulse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("--name", default="app")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--busy-s", type=float, default=10.0)
    parser.add_argument("--no-work", action="store_true", help="send only")
    parser.add_argument("--senders", type=int, default=0, help="threads that send, until SIGTERM")
    parser.add_argument("--jobs", type=int, default=0, help="of each sender; 0: until SIGTERM")
    parser.add_argument("--first", type=int, default=0, help="number of the first payload")
    parser.add_argument("--pause-s", type=float, default=0.002, help="between a sender's sends")
    parser.add_argument("--delay-s", type=float, default=0.0, help="of each send")
    parser.add_argument("--job-s", type=float, default=0.002, help="how long each job takes")
    parser.add_argument("--deaf", action="store_true", help="handlers go on though they should stop")
    parser.add_argument("--lease-s", type=float, default=0.0, help="a shorter lease; 0: as it is")
    return parser.parse_args()


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def shorten(lease_s: float) -> None:
    """Make a lease shorter, and in proportion how long the server waits for who is silent."""
    postgres_pulse.LEASE_S = lease_s
    postgres_pulse.RESCUE_S = 1.25 * lease_s
    postgres_hold.PATIENCE = (
        ("tcp_keepalives_idle", "1"),
        ("tcp_keepalives_interval", "1"),
        ("tcp_keepalives_count", str(round(lease_s))),
        ("tcp_user_timeout", str(round(1500 * lease_s))),
    )


class App:
    """One process's worker, with its books."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stopping = threading.Event()
        self._ledger = opened(options.folder / "ledger")
        self._acks = opened(options.folder / "acks")
        self._numbers = itertools.count(options.first)
        self.worker = Worker(
            options.url,
            name=options.name,
            handlers={"work": self.work},
            concurrency=options.concurrency,
            max_crashes=1_000_000,
            busy_s=options.busy_s,
            # A handler's transaction fails while there is no server.
            retry=Retry(max_attempts=1_000_000, backoff=Backoff(first_s=0.1, factor=1.0)),
            keep_completed=Keep(count=1_000_000, age_s=1e9),  # the books are compared with all of them
        )

    def work(self, payload: int, ctx: Context) -> int:
        """Do a job: what is written here is all that the tests believe."""
        self._enter("start", ctx)
        try:
            if self.options.deaf:
                time.sleep(self.options.job_s)
            elif ctx.wait(self.options.job_s):
                ctx.check()
            if payload % 2:
                with ctx.transaction() as db:
                    db.execute(f"INSERT INTO done VALUES ({payload}, {ctx.id}, {ctx.attempt})")
                    self._enter("end", ctx)  # within: what has committed has ended
        finally:
            self._enter("end", ctx)
        return 1

    def _enter(self, what: str, ctx: Context) -> None:
        line = f"{what} {os.getpid()} {ctx.id} {ctx.attempt} {time.monotonic()}\n"
        os.write(self._ledger, line.encode())

    def send(self) -> None:
        """Send until the number of jobs is reached, or until the end."""
        for _ in range(self.options.jobs) if self.options.jobs else itertools.count():
            if self.stopping.is_set():
                return
            self._send_one(next(self._numbers))
            self.stopping.wait(self.options.pause_s)

    def _send_one(self, number: int) -> None:
        try:
            job = self.worker.send(number, task="work", delay=self.options.delay_s or None)
        except StoreUnknown:
            self._note("UNKNOWN", 0, number)
        except DutifulError:
            self._note("REFUSED", 0, number)
        else:
            self._note("ACK", job.id, number)

    def _note(self, word: str, job_id: int, number: int) -> None:
        os.write(self._acks, f"{word} {job_id} {number}\n".encode())


def main() -> None:
    """Work and send until SIGTERM, or a kill."""
    faulthandler.register(signal.SIGUSR1)  # for the harness, when it waits in vain
    options = arguments()
    if options.lease_s:
        shorten(options.lease_s)
    app = App(options)
    signal.signal(signal.SIGTERM, lambda *_: app.stopping.set())
    if not options.no_work:
        app.worker.start()
    print(f"ready {time.time()}", flush=True)
    senders = [threading.Thread(target=app.send) for _ in range(options.senders)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    print("sent", flush=True)
    while not app.stopping.is_set():  # not `wait`: the handler would need the lock that it holds
        time.sleep(0.05)
    app.worker.stop()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
