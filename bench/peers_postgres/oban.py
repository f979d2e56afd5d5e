"""oban: two workers with concurrency 100, on uvloop, as its command line runs them. Bulk: `enqueue_many`."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import uvloop
from oban import Oban, worker
from oban.schema import install

WORKERS = 2
CONCURRENCY = 100
BATCH = 1000


class Adapter:
    def __init__(self, url: str, handle: Callable[[str], None]) -> None:
        self.url = url

        @worker(queue="default")
        class Noop:
            async def process(self, job: Any) -> None:
                handle(job.args["payload"])

        self.noop: Any = Noop

    async def _pool(self) -> Any:
        return await Oban.create_pool(self.url)

    def install(self) -> None:
        async def make() -> None:
            await install(await self._pool())

        uvloop.run(make())

    def send_many(self, payloads: list[str]) -> None:
        async def send() -> None:
            async with Oban(pool=await self._pool()) as client:
                for first in range(0, len(payloads), BATCH):
                    batch = payloads[first : first + BATCH]
                    await client.enqueue_many(self.noop.new({"payload": payload}) for payload in batch)

        uvloop.run(send())

    def send_each(self, payloads: Iterable[str]) -> None:
        async def send() -> None:
            async with Oban(pool=await self._pool()) as client:
                for payload in payloads:
                    await client.enqueue(self.noop.new({"payload": payload}))

        uvloop.run(send())

    def work(self) -> None:
        async def run() -> None:
            async with Oban(pool=await self._pool(), queues={"default": CONCURRENCY}):
                await asyncio.Event().wait()

        uvloop.run(run())
