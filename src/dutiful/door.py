"""Who is inside `send` right now, so that `stop` can wait for them and nobody slips in after."""

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from dutiful.errors import ForkedProcess, WorkerStopped
from dutiful.stopping import Deadline


class Insider(Protocol):
    """A task that sends, or something that is being sent."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...


class Door:
    """Open, or closed for good measure: whoever is inside when it closes may finish."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._inside: set[int | Insider] = set()
        self._left = threading.Event()
        self._is_open = True
        self._pid = 0

    @property
    def is_open(self) -> bool:
        """Whether new senders are let in."""
        return self._is_open

    def waits_for_loop_here(self) -> bool:
        """Whether coroutines are inside, and this thread has an event loop: perhaps the one they need."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or all(isinstance(who, int) for who in list(self._inside)):
            return False
        return asyncio._get_running_loop() is not None  # noqa: SLF001  # get_running_loop would raise

    def use_here(self) -> None:
        """From now on it belongs to this process: what it leads to is open here."""
        self._pid = os.getpid()

    def use_anywhere(self) -> None:
        """What it leads to is closed: a forked child may open its own."""
        self._pid = 0

    @property
    def is_forked(self) -> bool:
        """Whether it belongs to a parent of this process."""
        return self._pid not in (0, os.getpid())

    def check_process(self) -> None:
        """
        Raises:
            ForkedProcess: It belongs to the parent of this process, whose locks may be held for ever here.
        """
        if self.is_forked:
            raise ForkedProcess(self._pid)

    def check(self) -> None:
        """
        Raises:
            WorkerStopped: The door is closed.
        """
        if not self._is_open:
            raise WorkerStopped(self._worker)

    # Two calls and not a context manager: a generator's would cost 3 µs on every send.

    def enter(self, who: Insider | None = None, *, exempt: bool = False) -> int | Insider | None:
        """
        Come in, and return what to give to `leave`; `exempt` for handlers, who work on while we stop.

        Raises:
            WorkerStopped: The door is closed.
        """
        self.check_process()
        me = threading.get_ident() if who is None else who
        if me in self._inside:  # a payload's own code sends while it is encoded
            return None
        # First be seen, then look: who closes it does the reverse.
        self._inside.add(me)
        if not exempt and not self._is_open:
            self.leave(me)
            raise WorkerStopped(self._worker)
        return me

    def stay(self, who: Insider) -> None:
        """Something that was begun inside goes on: it counts as inside until it is done, or leaves."""
        self._inside.add(who)

    def leave(self, me: int | Insider | None) -> None:
        """Go out."""
        if me is not None:
            self._inside.discard(me)
            if not self._is_open:
                self._left.set()

    def open(self) -> None:
        """Let senders in."""
        self._is_open = True

    def close(self, kick: Callable[[], None], deadline: Deadline) -> None:
        """
        Let nobody in any more, and wait until all have left; `kick` wakes those who wait inside.

        Whoever has not left at the deadline finds the store closed.
        """
        self._is_open = False
        while self._inside:
            self._left.clear()
            kick()
            self._forget_gone()
            rest_s = deadline.rest_s(at_most=0.02)
            if rest_s <= 0:
                return
            if self._inside:
                self._left.wait(rest_s)

    def _forget_gone(self) -> None:
        """
        A signal's exception may have struck between coming in and being sure to leave.

        So what counts is whether the thread has a send on its stack, or the task still runs.
        """
        # Documented, for tools that look at other threads.
        frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for who in list(self._inside):
            is_gone = not _is_sending(frames.get(who)) if isinstance(who, int) else who.done()
            if is_gone:
                self._inside.discard(who)


def _is_sending(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "dutiful.front.sender" and frame.f_code.co_name in _SENDING:
            return True
        frame = frame.f_back
    return False


_SENDING = ("_send", "_send_in_turn", "_begin")
