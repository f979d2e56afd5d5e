"""A trap in the network: it waits for a statement, and cuts the connection that this comes on."""

import re
import threading
from enum import Enum


class When(Enum):
    """
    When the connection is cut, seen from the statement that the trap waits for.

    BEFORE: The statement does not reach the server, which rolls back when it sees that the client is gone.
    WITH: The client is cut off while the statement is on its way: the server does it, but perhaps not yet
        when the client asks what has become of it.
    AFTER: The server has done it and said so, and the client never gets the answer.
    SILENT: As AFTER, but nothing is closed: each waits for the other. `heal` brings the answer, late.
    """

    BEFORE = "before"
    WITH = "with"
    AFTER = "after"
    SILENT = "silent"


class Trap:
    """Made by the proxy; a test asks it whether it has sprung."""

    def __init__(self, pattern: re.Pattern[str], when: When, skip: int) -> None:
        self.pattern, self.when = pattern, when
        self._left = skip
        self._sprung = threading.Event()

    @property
    def sprung(self) -> bool:
        """Whether the statement came, and what `when` says has happened."""
        return self._sprung.is_set()

    def wait(self, timeout_s: float = 30.0) -> None:
        """Wait until it has sprung."""
        assert self._sprung.wait(timeout_s), (
            f"no statement matched {self.pattern.pattern!r} in {timeout_s:.0f} s"
        )

    def catches(self, sql: str | None) -> bool:
        """Tell whether this is the statement; ask once for each that passes."""
        if sql is None or not self.pattern.search(sql):
            return False
        self._left -= 1
        return self._left == -1

    def spring(self) -> None:
        """Tell the test."""
        self._sprung.set()
