"""
chancy: one worker, its asyncio executor with concurrency 100, eager_polling, which asks for more at once.

Bulk: `push_many`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from chancy import Chancy, Job, Queue, Worker

CONCURRENCY = 100

_handle: Callable[[str], None] = print


async def noop(payload: str) -> None:
    """Its jobs are named by where a function can be imported from."""
    _handle(payload)


class Adapter:
    def __init__(self, url: str, handle: Callable[[str], None]) -> None:
        global _handle  # noqa: PLW0603  # see noop
        _handle = handle
        self.url = url

    def _chancy(self) -> Chancy:
        return Chancy(self.url, log=logging.getLogger("quiet"))

    def install(self) -> None:
        queue = Queue("default", concurrency=CONCURRENCY, executor=Chancy.Executor.Async, eager_polling=True)

        async def make() -> None:
            async with self._chancy() as chancy:
                await chancy.migrate()
                await chancy.declare(queue)

        asyncio.run(make())

    def send_many(self, payloads: list[str]) -> None:
        jobs = [Job.from_func(noop, kwargs={"payload": payload}) for payload in payloads]

        async def send() -> None:
            async with self._chancy() as chancy:
                async for _references in chancy.push_many(jobs):
                    pass

        asyncio.run(send())

    def send_each(self, payloads: Iterable[str]) -> None:
        async def send() -> None:
            async with self._chancy() as chancy:
                for payload in payloads:
                    await chancy.push(Job.from_func(noop, kwargs={"payload": payload}))

        asyncio.run(send())

    def work(self) -> None:
        async def run() -> None:
            async with self._chancy() as chancy, Worker(chancy) as worker:
                await worker.wait_for_shutdown()

        asyncio.run(run())
