"""The pipe between a supervisor and its processes: it closes when the supervisor is gone, killed even."""

from __future__ import annotations

import os
import signal
import threading

from dutiful.cli.logs import log

_FD = "DUTIFUL_CLI_PARENT_FD"


def is_above() -> bool:
    """Whether this process runs below a supervisor."""
    return _FD in os.environ


def environment(fd: int) -> dict[str, str]:
    """Return the environment of a process that is to watch this reading end."""
    return {**os.environ, _FD: str(fd)}


def stop_with_it() -> None:
    """Stop, as if by SIGTERM, when the supervisor is gone: nobody else would ever tell us."""
    number = os.environ.pop(_FD, None)  # not for processes that handlers start
    if number is None:
        return
    fd = int(number)
    os.set_inheritable(fd, False)  # noqa: FBT003  # takes it by position only

    def watch() -> None:
        os.read(fd, 1)
        log.warning("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="dutiful-cli-parent", daemon=True).start()
