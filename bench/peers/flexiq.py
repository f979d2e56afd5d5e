"""
flexiq: its worker (Rust) in a thread, with two threads for Python handlers.

It sets WAL and synchronous=NORMAL on each connection, and has no setting for that: weaker
than ours. Bulk: `map`, one transaction. It polls every 1 ms instead of 50. Not
push_dispatch, with which it stops after the first few jobs of a `map` (2.1.0).
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from flexiq import Queue

from bench.peers.peer import Background, Durability


class Adapter(Background):
    def __init__(self, path: Path, handle: Callable[[str], None], _durability: Durability) -> None:
        os.environ["FLEXIQ_LOG_LEVEL"] = "WARNING"  # else it says two lines a job
        self.queue = Queue(
            db_path=str(path),
            workers=2,
            scheduler_poll_interval_ms=1,
            scheduler_batch_size=100,
        )

        def noop(payload: str) -> None:
            handle(payload)

        self.task = self.queue.task(name="noop")(noop)

    def said(self) -> str:
        return "WAL, synchronous=NORMAL (fixed)"  # a string in its binary; strace sees no fsync in 20 sends

    def send_many(self, payloads: list[str]) -> None:
        self.task.map([(payload,) for payload in payloads])

    def send_one(self, payload: str) -> None:
        self.task.delay(payload)

    def start(self) -> None:
        threading.Thread(target=self.queue.run_worker, daemon=True).start()
