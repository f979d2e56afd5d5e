"""
dbos: a workflow on one of its queues, sent by its client, run in the same process.

An engine of our own sets WAL (it leaves SQLite's rollback journal) and otherwise what its
own does; synchronous=FULL. Polls every 1 ms instead of 1 s. Bulk:
`enqueue_in_transaction`, all in one. No worker_concurrency: 8 or 64 made it slower.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient

from bench.peers.peer import POLL_S, Background, Durability, pragmas

OPTIONS: Any = {"queue_name": "bench", "workflow_name": "noop"}


def _engine(path: Path) -> Any:
    engine = sa.create_engine(f"sqlite:///{path}")

    def connected(db: Any, _record: Any) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.isolation_level = "IMMEDIATE"
        db.execute("PRAGMA busy_timeout = 30000")
        db.execute("PRAGMA foreign_keys = ON")

    sa.event.listen(engine, "connect", connected)
    return engine


class Adapter(Background):
    def __init__(self, path: Path, handle: Callable[[str], None], _durability: Durability) -> None:
        logging.disable(logging.INFO)
        self.engine = _engine(path)
        DBOS(
            config={
                "name": "bench",
                "system_database_engine": self.engine,
                "system_database_url": f"sqlite:///{path}",
                "application_version": "1",
                "log_level": "ERROR",
            }
        )

        def noop(payload: str) -> None:
            handle(payload)

        DBOS.workflow(name="noop")(noop)
        self._client: Any = None

    @property
    def client(self) -> Any:
        if self._client is None:
            self._client = DBOSClient(system_database_engine=self.engine)
        return self._client

    def said(self) -> str:
        with self.engine.connect() as connection:
            return pragmas(connection.connection.driver_connection)

    def send_many(self, payloads: list[str]) -> None:
        with self.engine.begin() as connection:
            for payload in payloads:
                self.client.enqueue_in_transaction(connection, OPTIONS, payload)

    def send_one(self, payload: str) -> None:
        self.client.enqueue(OPTIONS, payload)

    def start(self) -> None:
        DBOS.launch()
        DBOS.register_queue("bench", polling_interval_sec=POLL_S)
