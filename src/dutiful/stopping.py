"""How a worker stops: once, in a thread of its own, so that whoever waits for it may be interrupted."""

import inspect
import threading
import time
from collections.abc import Callable

HEED_S = 0.1


class Deadline:
    """A point in time that can be brought forward: a second, more impatient stop."""

    def __init__(self, timeout: float | None) -> None:
        self.at = None if timeout is None else time.monotonic() + timeout

    def shorten(self, timeout: float | None) -> None:
        """Bring it forward to `timeout` seconds from now, if that is sooner."""
        if timeout is not None:
            at = time.monotonic() + timeout
            self.at = at if self.at is None else min(self.at, at)

    def rest_s(self, at_most: float) -> float:
        """Return the seconds that are left, `at_most` so many; 0 or less when it has passed."""
        return at_most if self.at is None else min(at_most, self.at - time.monotonic())


class Stopping:
    """
    A stop under way.

    Args:
        stop: Does it.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._over = threading.Event()
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Start it."""
        try:
            # Not a daemon: the interpreter waits for it.
            threading.Thread(target=self._run, name="dutiful-stop").start()
        except RuntimeError:  # "can't create new thread at interpreter shutdown"
            self._run()

    def _run(self) -> None:
        try:
            self._stop()
        except BaseException as error:  # noqa: BLE001  # raised by `wait`, where somebody sees it
            self._error = error
        finally:
            self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def wait(self) -> None:
        """Wait for its end; raises what went wrong."""
        # Not without a limit: a signal that comes right before the thread goes to sleep is heeded only when
        # it wakes.
        while not self._over.wait(HEED_S):
            pass
        if self._error is not None:
            raise self._error


def is_inside_engine() -> bool:
    """
    Whether this thread has, further down its stack, code of ours that may hold a lock.

    So it is in a handler, and in a signal handler that struck in the middle of a send or a
    look: it must not wait for the end of what it interrupts.
    """
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        is_ours = name.startswith("dutiful.") and not name.startswith(("dutiful.cli", "dutiful.testing"))
        if is_ours and frame.f_code.co_name not in _MERELY_STOPPING:
            return True
        frame = frame.f_back
    return False


_MERELY_STOPPING = (
    *("is_inside_engine", "stop", "_must_not_wait"),
    *("_stop_or_at_once", "_stop_at_exit", "__exit__", "drain"),
)
