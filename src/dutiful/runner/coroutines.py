"""One event loop in one thread, for async handlers; started when the first of them comes."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class Coroutines:
    """Runs coroutines on an event loop of its own."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine, which must not raise."""
        loop = self._running_loop()
        loop.call_soon_threadsafe(self._start, coroutine)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, name="dutiful-async", daemon=True)
                self._thread.start()
            return self._loop

    def _run(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def runs_here(self) -> bool:
        """Whether this very thread is the event loop's."""
        return self._thread is threading.current_thread()

    def call(self, function: Any, *arguments: Any) -> None:
        """Call something in the loop's thread, if there is one."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function, *arguments)

    def end(self) -> None:
        """Stop the loop and its thread. All coroutines have ended before."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
