"""
One peer in a process of its own: `python -m bench.peers_postgres.process ADAPTER COMMAND JSON`.

It answers with lines of JSON on what was its stdout; whatever the peer prints goes to stderr. Workers count
their handler calls in a file that all of them and the measuring process have mapped: a number for each.
"""

import importlib
import itertools
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from bench.peers.peer import PAYLOAD
from bench.peers_postgres.peer import Peer

PAUSE_S = (0.015, 0.035)  # by chance between the two, so that no polling interval falls into step
WARM_JOBS = 20  # before the clock starts: connections, prepared statements
BULK = 10_000  # payloads at once: no peer has to hold all


class Process:
    def __init__(self, adapter: str, answers: int) -> None:
        self._adapter = importlib.import_module(f"bench.peers_postgres.{adapter}").Adapter
        self._answers = os.fdopen(answers, "w")

    def _peer(self, url: str, handle: Callable[[str], None] = print) -> Peer:
        return cast("Peer", self._adapter(url, handle))

    def _say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self._answers, flush=True)

    def install(self, url: str) -> None:
        self._peer(url).install()
        self._say(installed=True)

    def fill(self, url: str, jobs: int) -> None:
        peer = self._peer(url)
        for first in range(0, jobs, BULK):
            peer.send_many([PAYLOAD] * min(BULK, jobs - first))
        self._say(sent=jobs)

    def work(self, url: str, counts: str, place: int) -> None:
        """Run a worker that counts at `place`."""
        with Path(counts).open("r+b") as file:
            count = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        called = itertools.count(1)

        def handle(_payload: str) -> None:
            count[place] = next(called)  # handlers of threads may write out of turn: never by more than a few

        self._peer(url, handle).work()

    def listen(self, url: str, counts: str, place: int) -> None:
        """Run a worker that writes how many microseconds late each handler began."""
        late = os.open(f"{counts}.{place}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def handle(sent_at: str) -> None:
            os.write(late, b"%d\n" % (1_000_000 * (time.monotonic() - float(sent_at))))

        self._peer(url, handle).work()

    def produce(self, url: str, for_s: float) -> None:
        """Warm up, wait to be told, then send one by one for some time."""
        began_at, sent, told = 0.0, 0, False

        def payloads() -> Iterator[str]:
            nonlocal began_at, sent, told
            for _ in range(WARM_JOBS):
                yield PAYLOAD
            self._say(warm=WARM_JOBS)
            sys.stdin.readline()
            began_at = time.monotonic()
            while time.monotonic() < began_at + for_s:
                sent += 1
                yield PAYLOAD

        self._peer(url).send_each(payloads())
        self._say(began_at=began_at, sent=sent, took_s=time.monotonic() - began_at)

    def ping(self, url: str, count: int) -> None:
        """Send the time `count` times, with pauses."""
        chance = random.Random(count)

        def payloads() -> Iterator[str]:
            for _ in range(count):
                time.sleep(chance.uniform(*PAUSE_S))
                yield repr(time.monotonic())

        self._peer(url).send_each(payloads())
        self._say(sent=count)


def main() -> None:
    adapter, command, arguments = sys.argv[1:]
    answers = os.dup(1)
    os.dup2(2, 1)
    getattr(Process(adapter, answers), command)(**json.loads(arguments))
    os._exit(0)  # some peers' threads would hold up the end


if __name__ == "__main__":
    main()
