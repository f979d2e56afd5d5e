"""When to look into the store next, told from several threads."""

import threading
from collections.abc import Generator
from contextlib import contextmanager


class Alarm:
    """
    The earliest instant that anybody has named, by the monotonic clock.

    Who looks, and finds when the next job is due, may look while another job comes: what is
    named during a look counts as well as what the look finds.
    """

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self.at = 0.0

    def set(self, at: float) -> bool:
        """Have it go off by then at the latest; return whether that is earlier than before."""
        with self._changing:
            is_earlier = at < self.at
            if is_earlier:
                self.at = at
            return is_earlier

    @contextmanager
    def looking(self) -> Generator[None]:
        """Forget what was named before, as a look begins. If it fails, it is to be repeated at once."""
        with self._changing:
            self.at = float("inf")
        try:
            yield
        except BaseException:
            self.set(0.0)
            raise
