"""
persist-queue: SQLiteQueue(auto_commit=False), which keeps a job until `task_done()`.

Chosen over SQLiteAckQueue, which commits three times a job and looks through all
acknowledged rows for the next; and over auto_commit=True, which deletes a job before it
runs. It has no bulk way: every `put` is a commit. `task_done()` after 100 jobs, or when
nothing waits. WAL, and SQLite's own default of synchronous=FULL. Sender and worker take
turns in one thread, as for litequeue.
"""

import time
from collections.abc import Callable
from pathlib import Path

from persistqueue import Empty, SQLiteQueue

from bench.peers.peer import ACK_BATCH, POLL_S, Done, Durability, pragmas


class Adapter:
    def __init__(self, path: Path, handle: Callable[[str], None], _durability: Durability) -> None:
        self.queue = SQLiteQueue(str(path.parent), auto_commit=False, db_file_name=path.name)
        self.handle = handle

    def said(self) -> str:
        return pragmas(self.queue._putter)

    def send_many(self, payloads: list[str]) -> None:
        for payload in payloads:
            self.queue.put(payload)

    def send_one(self, payload: str) -> None:
        self.queue.put(payload)

    def start(self) -> None:
        pass

    def work(self, done: Done) -> None:
        unacknowledged = 0
        while not done.is_set():
            try:
                payload = self.queue.get(block=False)
            except Empty:
                payload = None
            else:
                self.handle(payload)
                unacknowledged += 1
            if unacknowledged >= ACK_BATCH or (payload is None and unacknowledged):
                self.queue.task_done()
                unacknowledged = 0
            if payload is None:
                time.sleep(POLL_S)
        self.queue.task_done()
