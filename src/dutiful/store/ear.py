"""Hearing that jobs have finished elsewhere: what a store may have for those who wait."""

import contextlib
import os
import select
import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from dutiful.job import JobId
from dutiful.store import notify

_LOOK_S = 0.01  # how often to look, where the kernel does not say that the log was written to
# A commit can be seen only a sync after the log was written to, and of that the kernel says nothing.
_AGAIN_S = (0.01, 0.03, 0.1, 0.3, 1.0)


class Ear(Protocol):
    """One listener's; `wait` and `close` are called from its one thread, `wake` from any."""

    def wait(self, ids: Collection[JobId], timeout_s: float) -> None:
        """
        Return when some of these jobs may have finished, when woken, or after so many seconds.

        What happened between two calls counts as well.
        """
        ...

    def wake(self) -> None:
        """End the wait, or the next one."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Waking:
    """A pipe that ends a wait."""

    def __init__(self) -> None:
        self.inlet, self._outlet = os.pipe()
        for fd in (self.inlet, self._outlet):
            os.set_blocking(fd, False)

    def wake(self) -> None:
        """Make it readable."""
        with contextlib.suppress(BlockingIOError):  # full: it is readable as it is
            os.write(self._outlet, b"1")

    def quiet(self) -> None:
        """Make it as it was."""
        with contextlib.suppress(BlockingIOError):  # nobody woke us
            os.read(self.inlet, 4096)

    def close(self) -> None:
        """Close its ends."""
        os.close(self.inlet)
        os.close(self._outlet)


class FileEar:
    """Hears each commit to a SQLite file: the kernel says that its log is written to."""

    def __init__(self, log: Path) -> None:
        self._waking = Waking()
        self._changes = notify.watch(log)
        self._poll = select.poll()
        self._poll.register(self._waking.inlet, select.POLLIN)
        if self._changes is not None:
            self._poll.register(self._changes, select.POLLIN)
        self._heard_at = 0.0
        self._again: tuple[float, ...] = () if self._changes is not None else (_LOOK_S,)

    def wait(self, ids: Collection[JobId], timeout_s: float) -> None:  # noqa: ARG002  # all jobs are one to it
        # A busy log is heard of every _LOOK_S, not at each commit.
        time.sleep(max(0.0, self._heard_at + _LOOK_S - time.monotonic()))
        limit_s = min(timeout_s, self._again[0] if self._again else timeout_s)
        found = [fd for fd, _event in self._poll.poll(1000 * limit_s)]
        self._heard_at = time.monotonic()
        self._waking.quiet()
        if self._changes is None:
            return
        if self._changes in found:
            self._again = _AGAIN_S
            with contextlib.suppress(BlockingIOError):  # read by now
                os.read(self._changes, 65536)
        elif not found:
            self._again = self._again[1:]

    def wake(self) -> None:
        self._waking.wake()

    def close(self) -> None:
        self._waking.close()
        if self._changes is not None:
            os.close(self._changes)
