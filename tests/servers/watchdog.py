"""
End a server whose owner is gone.

A run of pytest can end without any clean-up: kill -9, a closed terminal, a CI job that took too long. So a
server has a watchdog from before its start: this small process, in a session of its own, where no Ctrl-C
reaches it. It waits for the end of its owner, ends the server that runs in the folder, and removes that.

Usage: python watchdog.py OWNER FOLDER; imports nothing of ours, so it is there within 30 ms.
"""

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.2  # where there is no pidfd (macOS)
END_S = 10  # PostgreSQL itself kills its children 5 s after SIGQUIT


def wait_for_end(pid: int, timeout_s: float | None = None) -> bool:
    """Wait until the process `pid` is no more, its child or not; False if it still is after `timeout_s`."""
    if hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([fd], [], [], timeout_s)[0])  # readable once it has ended, a zombie too
        finally:
            os.close(fd)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while deadline is None or time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(POLL_S)
    return False


def servers_in(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield the pid of each server in `folder`, and the signal that ends it at once."""
    for pattern, number in (("*/postmaster.pid", signal.SIGQUIT), ("*.pid", signal.SIGTERM)):
        for path in folder.glob(pattern):
            try:
                pid = int(path.read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue  # it ends, or starts, at this very moment: look at the others
            if runs_in(pid, folder):
                yield pid, number


def runs_in(pid: int, folder: Path) -> bool:
    """Tell whether the process works in `folder`: a server that was killed leaves a pid that others get."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True).is_relative_to(folder.resolve())
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # macOS: cannot be known


def end(pid: int, number: int) -> None:
    for each in (number, signal.SIGKILL):
        try:
            os.kill(pid, each)
        except ProcessLookupError:
            return
        if wait_for_end(pid, END_S):
            return


def main(owner: int, folder: Path) -> None:
    wait_for_end(owner)
    for pid, number in servers_in(folder):
        end(pid, number)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
