"""
pgqueuer: asyncpg, two workers with batch_size=1000; its tables LOGGED (its default), its autovacuum settings.

Bulk: `enqueue` with lists.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

WORKERS = 2
BATCH = 1000


class Adapter:
    def __init__(self, url: str, handle: Callable[[str], None]) -> None:
        self.url, self.handle = url, handle

    async def _queries(self) -> Queries:
        return Queries.from_asyncpg_connection(await asyncpg.connect(self.url))

    def install(self) -> None:
        async def install() -> None:
            queries = await self._queries()
            await queries.install()
            await queries.optimize_autovacuum()

        asyncio.run(install())

    def send_many(self, payloads: list[str]) -> None:
        async def send() -> None:
            queries = await self._queries()
            for first in range(0, len(payloads), BATCH):
                batch: list[Any] = [payload.encode() for payload in payloads[first : first + BATCH]]
                await queries.enqueue(["noop"] * len(batch), batch, [0] * len(batch))

        asyncio.run(send())

    def send_each(self, payloads: Iterable[str]) -> None:
        async def send() -> None:
            queries = await self._queries()
            for payload in payloads:
                await queries.enqueue("noop", payload.encode())

        asyncio.run(send())

    def work(self) -> None:
        async def run() -> None:
            manager = QueueManager(await self._queries())

            async def noop(job: Any) -> None:
                self.handle(job.payload.decode())

            manager.entrypoint("noop")(noop)
            await manager.run(batch_size=BATCH)

        asyncio.run(run())
