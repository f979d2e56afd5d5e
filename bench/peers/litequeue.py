"""
litequeue: a table and three statements; the loop is its user's.

Bulk: `put` inside its own `transaction()`; `done` likewise, 100 at a time or when nothing
waits. Every `pop` is a commit, and sorts all jobs that wait: so sender and worker take turns
in one thread, 100 jobs each, which keeps few waiting and no lock contended.
"""

import time
from collections.abc import Callable
from pathlib import Path

from litequeue import LiteQueue

from bench.peers.peer import ACK_BATCH, POLL_S, Done, Durability, pragmas

TURN = 100


class Adapter:
    def __init__(self, path: Path, handle: Callable[[str], None], durability: Durability) -> None:
        self.queue = LiteQueue(path)
        self.queue.conn.execute(f"PRAGMA synchronous = {durability}")  # it sets NORMAL
        self.handle = handle
        self.is_worker = False  # else another process is
        self.waiting = 0

    def said(self) -> str:
        return pragmas(self.queue.conn)

    def send_many(self, payloads: list[str]) -> None:
        for first in range(0, len(payloads), TURN):
            with self.queue.transaction():
                for payload in payloads[first : first + TURN]:
                    self.queue.put(payload)
            self._handle_all()

    def send_one(self, payload: str) -> None:
        self.queue.put(payload)
        self.waiting += 1
        if self.is_worker and self.waiting >= TURN:
            self._handle_all()

    def start(self) -> None:
        self.is_worker = True

    def work(self, done: Done) -> None:
        self._handle_all()
        while not done.is_set():
            # Not pop(), which takes the write lock each time and makes senders wait.
            if self.queue.empty():
                time.sleep(POLL_S)
            else:
                self._handle_all()

    def _handle_all(self) -> None:
        handled: list[str] = []
        while (message := self.queue.pop()) is not None:
            self.handle(message.data)
            handled.append(message.message_id)
            if len(handled) >= ACK_BATCH:
                self._acknowledge(handled)
        self._acknowledge(handled)
        self.waiting = 0

    def _acknowledge(self, handled: list[str]) -> None:
        if handled:
            with self.queue.transaction():
                for message_id in handled:
                    self.queue.done(message_id)
            handled.clear()
