"""Signals as a queue that one thread reads: nothing happens inside a handler, and nothing polls."""

import os
import select
import signal
from collections import deque
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self

WOKEN = 0  # not a signal: somebody called `wake`
END = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """
    While in the block, the given signals are read with `wait`, or with `next`. For the main thread.

    Python writes each signal's number to a pipe (`signal.set_wakeup_fd`), which wakes
    whoever waits, however little of Python runs just then.
    """

    def __init__(self, numbers: Iterable[signal.Signals] = END) -> None:
        self._numbers = tuple(numbers)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # takes it by position only
        self._unread: deque[int] = deque()
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def __enter__(self) -> Self:
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._read)
        self._read, self._write, write = -1, -1, self._write
        os.close(write)

    def wake(self) -> None:
        """Have `wait` return WOKEN. From any thread, at any time."""
        if self._write >= 0:
            os.write(self._write, bytes([WOKEN]))

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Return what came, in its order; nothing if nothing came in time."""
        ready, _, _ = select.select([self._read], [], [], timeout_s)
        return list(os.read(self._read, 4096)) if ready else []

    def next(self) -> int:
        """Wait for the next one, and return it alone: two that came together are told one by one."""
        while not self._unread:
            self._unread.extend(self.wait())
        return self._unread.popleft()


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the pipe has it."""
