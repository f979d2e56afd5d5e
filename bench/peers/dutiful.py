"""dutiful through its public API. Its clock stops last: when the store has no unfinished job."""

from collections.abc import Callable
from pathlib import Path

from bench.ours import TASK, wait_until_done
from bench.peers.peer import Done, Durability
from dutiful import Worker


class Adapter:
    def __init__(self, path: Path, handle: Callable[[str], None], durability: Durability) -> None:
        self.worker = Worker(path, handlers={TASK: handle}, keep_completed=False, durability=durability)
        self.durability = durability

    def said(self) -> str:
        return f"WAL, synchronous={self.durability.upper()}"

    def send_many(self, payloads: list[str]) -> None:
        self.worker.send_many(payloads, task=TASK)

    def send_one(self, payload: str) -> None:
        self.worker.send(payload, task=TASK)

    def start(self) -> None:
        self.worker.start()

    def work(self, done: Done) -> None:
        done.wait()
        wait_until_done(self.worker)
