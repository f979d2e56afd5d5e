"""
The async edge: many coroutines share commits, as threads do, without a thread each.

Imported with the first `asend`, so that a program without asyncio does not pay for it.
"""

import asyncio
from collections import deque

from dutiful.store.committer import Committer, Sending, own_copy
from dutiful.store.contract import Draft


class AsyncEdge:
    """Stores drafts for coroutines."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._loops: dict[asyncio.AbstractEventLoop, deque[tuple[asyncio.Future[None], Sending]]] = {}

    async def store(self, drafts: list[Draft]) -> list[range]:
        """Store drafts; return the ids, in order."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        sending = Sending(drafts, lambda done: self._done(loop, future, done))
        self._committer.post(sending)
        await future
        if sending.error is not None:
            raise own_copy(sending.error)
        return sending.stored

    def _done(
        self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]", sending: Sending
    ) -> None:
        # In the committer's thread. A thousand at once wake the loop once: a call from another
        # thread costs it a write to a pipe.
        waiting = self._loops.get(loop)
        if waiting is not None:
            waiting.append((future, sending))
            return
        self._loops[loop] = deque([(future, sending)])
        try:
            loop.call_soon_threadsafe(self._tell, loop)
        except RuntimeError:  # the loop is closed: nobody waits any more; the job is stored
            self._loops.pop(loop, None)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._loops.pop(loop)
        while waiting:
            future, _sending = waiting.popleft()
            if not future.done():
                future.set_result(None)
