"""
Async handlers: one event loop in one thread, started when the first of them comes.

Whatever a handler does, its attempt ends here with a value or an error: a SystemExit that
reached asyncio would end the loop for all.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from dutiful.runner.attempt import Attempt

log = logging.getLogger("dutiful")

# Goes along into the threads of asyncio.to_thread.
_within: ContextVar[object] = ContextVar("dutiful_within", default=None)

Ended = Callable[[Attempt, object, BaseException | None], None]


class Coroutines:
    """
    Runs attempts of async handlers.

    Args:
        ended: Called in the loop's thread with an attempt, and its value or its error.
    """

    def __init__(self, ended: Ended) -> None:
        self._ended = ended
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}
        self._is_ending = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dutiful-async", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._is_ending:
            try:
                self._loop.run_forever()
            except BaseException:  # a SystemExit in a task that a handler made
                log.exception("a task of an async handler tried to end the event loop; it goes on")
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        with contextlib.suppress(RuntimeError):  # "can't create new thread", at the interpreter's end
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def start(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run an attempt."""
        self._loop.call_soon_threadsafe(self._start, attempt, args, kwargs)

    def _start(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        task = self._loop.create_task(self._attempt(attempt, args, kwargs))
        self._tasks[attempt] = task  # the loop itself keeps only weak references

    async def _attempt(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _within.set(self)
        value: object = None
        failure: BaseException | None = None
        limit = asyncio.timeout(attempt.timeout_s)
        try:
            async with limit:
                value = await attempt.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # see above
            failure = error
        attempt.timed_out = limit.expired() and failure is not None
        self._tasks.pop(attempt, None)
        self._ended(attempt, value, failure)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel an attempt, from any thread."""
        self._loop.call_soon_threadsafe(self._cancel, attempt)

    def _cancel(self, attempt: Attempt) -> None:
        # Starts and cancels come through one queue, in order, so it has been started.
        task = self._tasks.get(attempt)
        if task is not None:
            task.cancel()

    def runs_here(self) -> bool:
        """Whether this is a handler's code, on the loop or in a thread that it waits for."""
        return self._thread is threading.current_thread() or _within.get() is self

    def end(self) -> None:
        """Stop the loop and its thread. All attempts have ended before."""
        self._is_ending = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
