"""
potatoq: its worker as it is run in production, one child process, beside the sender.

`durable` makes it synchronous=FULL. Results are not kept, children not recycled. Bulk: one
`group`, which is one commit. It wakes by PRAGMA data_version, every 2 to 50 ms. Four
threads in the child were slower.
"""

import os
from collections.abc import Callable
from pathlib import Path

from potatoq import Potatoq, group

from bench.peers.peer import Background, Durability, pragmas


class Adapter(Background):
    def __init__(self, path: Path, handle: Callable[[str], None], durability: Durability) -> None:
        self.app = Potatoq("bench", broker=f"sqlite:///{path}")
        self.app.conf.update(
            broker_transport_options={"durable": durability == "full"},
            task_ignore_result=True,
            worker_max_tasks_per_child=None,
        )

        def noop(payload: str) -> None:
            handle(payload)

        self.task = self.app.task(name="noop")(noop)

    def said(self) -> str:
        return pragmas(self.app.broker.conn)

    def send_many(self, payloads: list[str]) -> None:
        group(self.task.s(payload) for payload in payloads).apply_async()

    def send_one(self, payload: str) -> None:
        self.task.delay(payload)

    def start(self) -> None:
        if os.fork() == 0:
            try:
                self.app.Worker(concurrency=1, loglevel="WARNING").start()
            finally:
                os._exit(0)
