"""Blocking calls of ours beside an event loop, with its own imported only for those who have one."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def aside(function: Callable[[], T], give_back: Callable[[T], None] = lambda _value: None) -> T:
    """
    Call something that blocks, in a thread of its own.

    Not in one of the event loop's: it has few, and all of them may come to wait for what this
    coroutine, or the holder of what it waits for, is about to give up after one more such call.

    Args:
        function: What to call.
        give_back: Is given what the call returns after the caller was cancelled.
    """
    import asyncio  # 20 ms, for those who use it

    loop = asyncio.get_running_loop()
    coming: asyncio.Future[T] = loop.create_future()

    def deliver(value: T) -> None:
        if coming.done():
            give_back(value)
        else:
            coming.set_result(value)

    def fail(error: BaseException) -> None:
        if not coming.done():
            coming.set_exception(error)

    def run() -> None:
        try:
            value = function()
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(deliver, value)
        except RuntimeError:  # likewise
            give_back(value)

    threading.Thread(target=run, name="dutiful-aside", daemon=True).start()
    return await coming
