"""
dbos: a workflow on one of its queues, sent by its client.

Polls every 1 ms instead of 1 s. Bulk: `enqueue_in_transaction`, 1,000 in one. No worker_concurrency.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient

OPTIONS: Any = {"queue_name": "bench", "workflow_name": "noop"}
POLL_S = 0.001
BATCH = 1000


class Adapter:
    def __init__(self, url: str, handle: Callable[[str], None]) -> None:
        logging.disable(logging.INFO)
        self.url, self.handle = url, handle

    def _launch(self) -> None:
        DBOS(
            config={
                "name": "bench",
                "system_database_url": self.url,
                "application_version": "1",
                "log_level": "ERROR",
            }
        )

        def noop(payload: str) -> None:
            self.handle(payload)

        DBOS.workflow(name="noop")(noop)
        DBOS.launch()

    def install(self) -> None:
        self._launch()
        DBOS.register_queue("bench", polling_interval_sec=POLL_S)

    def send_many(self, payloads: list[str]) -> None:
        client = DBOSClient(system_database_url=self.url)
        engine = sa.create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"))
        for first in range(0, len(payloads), BATCH):
            with engine.begin() as connection:
                for payload in payloads[first : first + BATCH]:
                    client.enqueue_in_transaction(connection, OPTIONS, payload)

    def send_each(self, payloads: Iterable[str]) -> None:
        client = DBOSClient(system_database_url=self.url)
        for payload in payloads:
            client.enqueue(OPTIONS, payload)

    def work(self) -> None:
        self._launch()
        DBOS.register_queue("bench", polling_interval_sec=POLL_S)
        threading.Event().wait()
