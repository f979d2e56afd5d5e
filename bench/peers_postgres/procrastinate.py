"""procrastinate: one worker with concurrency 10, deleting what succeeded. Bulk: `batch_defer_async`."""

import asyncio
from collections.abc import Callable, Iterable

import procrastinate

CONCURRENCY = 10
BATCH = 1000


class Adapter:
    def __init__(self, url: str, handle: Callable[[str], None]) -> None:
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

        async def noop(payload: str) -> None:
            handle(payload)

        self.noop = self.app.task(name="noop")(noop)

    def install(self) -> None:
        async def make() -> None:
            async with self.app.open_async():
                await self.app.schema_manager.apply_schema_async()

        asyncio.run(make())

    def send_many(self, payloads: list[str]) -> None:
        async def send() -> None:
            async with self.app.open_async():
                for first in range(0, len(payloads), BATCH):
                    batch = payloads[first : first + BATCH]
                    await self.noop.batch_defer_async(*({"payload": payload} for payload in batch))

        asyncio.run(send())

    def send_each(self, payloads: Iterable[str]) -> None:
        async def send() -> None:
            async with self.app.open_async():
                for payload in payloads:
                    await self.noop.defer_async(payload=payload)

        asyncio.run(send())

    def work(self) -> None:
        async def run() -> None:
            async with self.app.open_async():
                await self.app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="successful")

        asyncio.run(run())
