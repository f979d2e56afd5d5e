"""
One peer in a process of its own: `python -m bench.peers.process ADAPTER COMMAND JSON`.

It answers with lines of JSON on what was its stdout; whatever the peer prints goes to stderr.
"""

import importlib
import itertools
import json
import os
import random
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bench.peers.peer import PAYLOAD, Durability, Peer

PAUSE_S = (0.015, 0.035)  # by chance between the two, so that no polling interval falls into step


class Tally:
    """Counts handler calls; set after the last. Through a pipe, as one peer's worker is a forked process."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._count = itertools.count(1)
        self._out, self._in = os.pipe()

    def handle(self, _payload: str) -> None:
        if next(self._count) == self._jobs:  # next() is atomic: handlers may run in several threads
            os.write(self._in, b".")

    def wait(self, timeout: float | None = None) -> bool:
        return bool(select.select([self._out], [], [], timeout)[0])

    def is_set(self) -> bool:
        return self.wait(0)


class Process:
    def __init__(self, adapter: str, answers: int) -> None:
        self._adapter = importlib.import_module(f"bench.peers.{adapter}").Adapter
        self._answers = os.fdopen(answers, "w")

    def _peer(self, path: str, handle: Callable[[str], None], durability: Durability) -> Peer:
        return cast("Peer", self._adapter(Path(path), handle, durability))

    def _say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self._answers, flush=True)

    def end_to_end(self, path: str, durability: Durability, jobs: int, how: str) -> None:
        """Send `jobs` to a started worker; from the first send until the last handler has run."""
        tally = Tally(jobs)
        peer = self._peer(path, tally.handle, durability)
        peer.start()
        said = peer.said()
        payloads = [PAYLOAD] * jobs
        began = time.perf_counter()
        if how == "bulk":
            peer.send_many(payloads)
        else:
            for payload in payloads:
                peer.send_one(payload)
        peer.work(tally)
        self._say(took_s=time.perf_counter() - began, durability=said)

    def listen(self, path: str, durability: Durability) -> None:
        """Run a worker until stdin closes; then say how long after its sending each handler began."""
        out, into = os.pipe()  # the worker may be a forked process; 64 kB hold 8,000 lines of 8 bytes

        def handle(sent_at: str) -> None:
            late_us = 1_000_000 * (time.monotonic() - float(sent_at))
            os.write(into, b"%7d\n" % late_us)

        peer = self._peer(path, handle, durability)
        peer.start()
        said = peer.said()
        closed = threading.Event()

        def watch() -> None:
            sys.stdin.read()
            closed.set()

        threading.Thread(target=watch, daemon=True).start()
        self._say(durability=said)
        peer.work(closed)
        late_us = os.read(out, 65_536).split() if select.select([out], [], [], 0)[0] else []
        self._say(late_s=[int(value) / 1_000_000 for value in late_us])

    def ping(self, path: str, durability: Durability, count: int) -> None:
        """Send the time `count` times, with pauses; the other process is the worker."""
        peer = self._peer(path, print, durability)
        chance = random.Random(count)
        for _ in range(count):
            time.sleep(chance.uniform(*PAUSE_S))
            peer.send_one(repr(time.monotonic()))
        self._say(sent=count)


def main() -> None:
    adapter, command, arguments = sys.argv[1:]
    answers = os.dup(1)
    os.dup2(2, 1)
    getattr(Process(adapter, answers), command)(**json.loads(arguments))
    os._exit(0)  # some peers' threads would hold up the end


if __name__ == "__main__":
    main()
