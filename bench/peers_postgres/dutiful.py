"""dutiful: one worker process, nothing set but that it keeps no completed jobs."""

import threading
from collections.abc import Callable, Iterable

from dutiful import Worker

TASK = "noop"


class Adapter:
    def __init__(self, url: str, handle: Callable[[str], None]) -> None:
        # More threads would only take the GIL from each other: its handler waits for nothing.
        self.worker = Worker(url, handlers={TASK: handle}, concurrency=1, keep_completed=False)

    def install(self) -> None:
        self.worker.counts()

    def send_many(self, payloads: list[str]) -> None:
        self.worker.send_many(payloads, task=TASK)

    def send_each(self, payloads: Iterable[str]) -> None:
        for payload in payloads:
            self.worker.send(payload, task=TASK)

    def work(self) -> None:
        self.worker.start()
        threading.Event().wait()
