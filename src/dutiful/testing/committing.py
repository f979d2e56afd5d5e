"""Committing without a thread: whoever asks does it, and then what was sent may be run."""

import asyncio
from collections.abc import Callable, Sequence

from dutiful.async_edge import AsyncEdge
from dutiful.store.committer import Committer, Sending
from dutiful.store.contract import Draft, Store

Sent = Callable[[Sequence[range]], None]


class Clerk(Committer):
    """
    Commits in the caller's thread, and has none of its own.

    Args:
        sent: Called, with the ids, when jobs were stored, and no lock is held.
    """

    def __init__(self, store: Store, sent: Sent) -> None:
        # Completed jobs are kept whatever the worker says, so that a test can look at them.
        super().__init__(store, buffer=None, keep_completed=True)
        self._sent = sent

    def submit(self, drafts: Sequence[Draft], *, exempt: bool = False) -> list[range]:
        stored = super().submit(drafts, exempt=exempt)
        self._sent(stored)
        return stored

    def finish(self, sending: Sending) -> list[range]:
        stored = super().finish(sending)
        self._sent(stored)
        return stored

    def kick(self) -> None:
        """Write what waits, now. What cannot be written stays: `step` raises why."""
        while self._sendings or self.has_outcomes():
            with self._lead:
                if self._step() is not None:
                    return

    def _arm(self) -> None:
        """What attempts came to is written by whoever runs them."""

    def _is_running(self) -> bool:
        return False


class Edge(AsyncEdge):
    """The way in for coroutines, who wait until what they sent has been run, if it is to be run at once."""

    def __init__(self, committer: Committer, sent: Sent, is_inline: Callable[[], bool]) -> None:
        super().__init__(committer)
        self._sent = sent
        self._is_inline = is_inline

    async def store(self, drafts: list[Draft]) -> list[range]:
        stored = await super().store(drafts)
        # In a thread, like sync handlers in real life: the event loop goes on.
        if self._is_inline():
            await asyncio.to_thread(self._sent, stored)
        return stored
