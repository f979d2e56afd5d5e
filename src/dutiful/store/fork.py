"""
What becomes of an open store in a child made by `fork()`: nothing, safely.

SQLite forbids carrying a connection over a fork (sqlite.org/howtocorrupt.html, 2.6), and
a lock file that the child holds too would make a dead parent look alive.
"""

import ctypes
import os
import weakref
from collections.abc import Callable

from dutiful.errors import ForkedProcess

# The only module-level state: fork hooks cannot be taken back, so one serves all guards.
_guards: "weakref.WeakSet[ForkGuard]" = weakref.WeakSet()


class ForkGuard:
    """Refuses the use of something in a forked child, and lets go of it there."""

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._pid = os.getpid()
        self._let_go = weakref.WeakMethod(let_go)
        _guards.add(self)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that opened it."""
        return os.getpid() != self._pid

    def renew(self) -> None:
        """It is opened here and now: what was made before a fork and never used is free to use."""
        self._pid = os.getpid()

    def check(self) -> None:
        """
        Raises:
            ForkedProcess: In a child of the process that made it.
        """
        if os.getpid() != self._pid:
            raise ForkedProcess(self._pid)

    def after_fork(self) -> None:
        """Let go, in the child."""
        let_go = self._let_go()
        if let_go is not None:
            let_go()

    @staticmethod
    def immortalize(*connections: object) -> None:
        """Keep the parent's connections from ever being closed in the child: closing touches the file."""
        for connection in connections:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _after_fork_in_child() -> None:
    for guard in list(_guards):
        guard.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
