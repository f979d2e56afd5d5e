"""
Huey: SqliteHuey(fsync=True, results=False) and its consumer with one worker thread.

It polls every 1 ms instead of its 0.1 s that grow to 10 s. No bulk way: `map` enqueues, and
commits, one by one. One worker thread: all share one connection under a lock.
"""

from collections.abc import Callable
from pathlib import Path

from huey import SqliteHuey

from bench.peers.peer import POLL_S, Background, Durability, pragmas


class Adapter(Background):
    def __init__(self, path: Path, handle: Callable[[str], None], _durability: Durability) -> None:
        self.huey = SqliteHuey(filename=str(path), fsync=True, results=False)

        def noop(payload: str) -> None:
            handle(payload)

        self.task = self.huey.task()(noop)

    def said(self) -> str:
        return pragmas(self.huey.storage.conn)

    def send_many(self, payloads: list[str]) -> None:
        self.task.map(payloads)

    def send_one(self, payload: str) -> None:
        self.task(payload)

    def start(self) -> None:
        consumer = self.huey.create_consumer(
            workers=1, periodic=False, initial_delay=POLL_S, max_delay=POLL_S, backoff=1.0
        )
        consumer.start()
