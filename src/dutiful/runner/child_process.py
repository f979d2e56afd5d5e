"""A child process as its worker holds it: asked, killed, buried."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from dutiful.runner.messages import HandlerRef

LOOK_S = 0.5  # between looks at the process itself, for a pipe that a grandchild keeps open
DEATH_S = 5.0  # for the kernel to end a killed process; longer means a hung disk or network mount


@dataclass(slots=True, eq=False)
class ChildProcess:
    process: SpawnProcess
    pipe: Connection
    known: set[HandlerRef] = field(default_factory=set[HandlerRef])
    jobs: int = 0

    def ask(self, question: object, timeout_s: float | None) -> Any:
        """Raise TimeoutError, or EOFError or another OSError when the child is dead."""
        self.pipe.send(question)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = LOOK_S if until is None else max(0.0, until - time.monotonic())
            ready = wait([self.pipe, self.process.sentinel], min(left_s, LOOK_S))
            if self.pipe in ready:
                return self.pipe.recv()  # an answer, also from one that has died since; or EOFError
            if ready or self.process.exitcode is not None:
                raise EOFError
            if left_s == 0:
                raise TimeoutError

    def kill(self) -> None:
        """Send SIGKILL to a child that works, or was just seen alive, and to all it started."""
        pid = self.process.pid
        assert pid, "not started"  # killpg(0) would be our own group
        # ProcessLookupError: it has not come to make its group. PermissionError: macOS, a zombie.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        self.process.kill()

    def bury(self) -> str:
        """Reap it, close what belongs to it, and say how it died."""
        until = time.monotonic() + DEATH_S
        # Not join(): that waits for ever if someone else reaped the child (SIGCHLD ignored).
        while (code := self.process.exitcode) is None and time.monotonic() < until:
            time.sleep(0.001)
        self.pipe.close()
        if code is None:
            return "ended in a way that is not known: its exit status could not be read"
        self.process.close()
        return _death(code)


def _death(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = "?"
    hint = ", by hand or because memory ran out" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}){hint}"
