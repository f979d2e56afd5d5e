"""
The async edge: many coroutines share commits, as threads do, without a thread each.

Imported with the first `asend`, so that a program without asyncio does not pay for it.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from dutiful.store.borrowed.aside import aside
from dutiful.store.borrowed.borrow import borrow
from dutiful.store.committer import Committer, Sending
from dutiful.store.contract import Draft, Store


async def insert_in(store: Store, transaction: Any, drafts: Sequence[Draft]) -> list[range]:
    """Store.insert_in, for connections that are awaited, and others."""
    borrowed = borrow(transaction)
    # What the store needs of its own first, such as ids from its database, blocks.
    steps = await aside(lambda: store.insertion(drafts))
    return await borrowed.arun(steps)


class AsyncEdge:
    """Stores drafts for coroutines."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._mutex = threading.Lock()
        self._done: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    async def store(self, drafts: list[Draft]) -> list[range]:
        """
        Store drafts; return the ids, in order.

        A coroutine that is cancelled meanwhile takes its jobs back, unless they are being
        stored right now: then they are.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        sending = Sending(drafts, lambda _sending: self._tell(loop, future))
        self._committer.post(sending)
        try:
            await future
        except asyncio.CancelledError:
            self._committer.withdraw(sending)
            raise
        return sending.result()

    def _tell(self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> None:
        # In the committer's thread. A thousand at once wake the loop once: a call from another
        # thread costs it a write to a pipe.
        with self._mutex:
            waiting = self._done.setdefault(loop, [])
            waiting.append(future)
            is_first = len(waiting) == 1
        if is_first:
            try:
                loop.call_soon_threadsafe(self._wake, loop)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._taken(loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        for future in self._taken(loop):
            if not future.done():
                future.set_result(None)

    def _taken(self, loop: asyncio.AbstractEventLoop) -> "list[asyncio.Future[None]]":
        with self._mutex:
            return self._done.pop(loop, [])
