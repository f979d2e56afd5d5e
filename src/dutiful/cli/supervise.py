"""
`dutiful run --processes N` and `--reload`: processes of the same command, kept running.

The supervisor holds no store and runs no job; it starts, watches, and passes signals on.
Each process is in a process group of its own: Ctrl-C at a terminal goes to a whole group,
and with ours passed on each would take it for the second one. Each also holds the reading
end of a pipe whose writing end we hold: should we be killed, it closes, and they stop.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dutiful.cli import codes, parent, target
from dutiful.cli.logs import log
from dutiful.cli.signals import END, Signals

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 30.0
HEALTHY_S = 10.0  # whoever lived so long starts afresh: its next death is a first one
RELOAD_GRACE_S = 5.0  # then the old code is stopped at once: somebody waits to see the new
AT_ONCE_S = 5.0  # after a second signal, before SIGKILL


class Child:
    """One place for a process, and what happened there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.deaths = 0
        self.start_at: float | None = 0.0  # monotonic; None: not before something changes
        self.reload_by: float | None = None  # until then it may end by itself, to be started again

    @property
    def runs(self) -> bool:
        return self.process is not None

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Keeps processes running until it is told to stop."""

    def __init__(self, command: list[str], count: int, signals: Signals, *, waits_for_change: bool) -> None:
        self._command = command
        self._signals = signals
        self._waits_for_change = waits_for_change
        self._children = [Child(number) for number in range(1, count + 1)]
        self._parent_fd, self._held_fd = os.pipe()
        self._changed: list[str] = []
        self._stopping: int | None = None  # the signal that said so
        self._failed: int | None = None
        self._kill_at: float | None = None

    def changed(self, path: str) -> None:
        """Start all again; from any thread."""
        self._changed.append(path)
        self._signals.wake()

    def run(self) -> int:
        """Return the exit code once all have ended."""
        try:
            while True:
                self._reap()
                if self._stopping is not None or self._failed is not None:
                    if not any(child.runs for child in self._children):
                        return self._code()
                else:
                    self._start_due()
                self._hurry()
                for number in self._signals.wait(self._pause_s()):
                    self._received(number)
        finally:
            os.close(self._parent_fd)
            os.close(self._held_fd)

    def _code(self) -> int:
        if self._failed is not None:
            return self._failed
        assert self._stopping is not None
        return codes.OK if self._kill_at is None else codes.AT_ONCE + self._stopping

    # --- starting --------------------------------------------------------------------------------

    def _start_due(self) -> None:
        for child in self._children:
            if not child.runs and child.start_at is not None and child.start_at <= time.monotonic():
                self._start(child)

    def _start(self, child: Child) -> None:
        child.process = subprocess.Popen(  # noqa: S603  # this very program
            self._command,
            stdin=subprocess.DEVNULL,
            env=parent.environment(self._parent_fd),
            pass_fds=[self._parent_fd],
            process_group=0,
        )
        child.started_at = time.monotonic()
        child.reload_by = None
        log.info("process %d started, pid %d", child.number, child.process.pid)

    # --- ending -----------------------------------------------------------------------------------

    def _reap(self) -> None:
        for child in self._children:
            if child.process is None or (status := child.process.poll()) is None:
                continue
            pid = child.process.pid
            child.process = None
            if self._stopping is None and self._failed is None:
                self._ended(child, pid, status)

    def _ended(self, child: Child, pid: int, status: int) -> None:
        """Decide what becomes of a process that ended while it should run."""
        how = f"process {child.number} (pid {pid}) {_how(status)}"
        if child.reload_by is not None:
            child.start_at = time.monotonic()
        elif self._waits_for_change and status > 0:
            child.start_at = None
            log.error("%s; waiting for a change", how)
        elif status == codes.USAGE:
            log.error("%s: it cannot be run like this, so neither can the others", how)
            self._failed = status
            self._tell_all(signal.SIGTERM)
        else:
            pause_s = self._pause_after_death(child)
            child.start_at = time.monotonic() + pause_s
            log.error("%s; started again in %.1f s", how, pause_s)

    def _pause_after_death(self, child: Child) -> float:
        if time.monotonic() - child.started_at >= HEALTHY_S:
            child.deaths = 0
        child.deaths += 1
        return min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(child.deaths - 1, 10))

    def _hurry(self) -> None:
        """See that those end whose time is up."""
        now = time.monotonic()
        for child in self._children:
            if child.runs and child.reload_by is not None and child.reload_by <= now:
                child.signal(signal.SIGTERM)  # the second one
                child.reload_by = now + RELOAD_GRACE_S
        if self._kill_at is not None and self._kill_at <= now:
            self._tell_all(signal.SIGKILL)

    def _pause_s(self) -> float | None:
        """Return how long nothing is to be done."""
        moments = [child.reload_by for child in self._children if child.runs]
        if self._stopping is None and self._failed is None:
            moments += [child.start_at for child in self._children if not child.runs]
        moments.append(self._kill_at)
        known: list[float] = [moment for moment in moments if moment is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    # --- what comes in ----------------------------------------------------------------------------

    def _received(self, number: int) -> None:
        if number in END:
            self._stop(number)
        elif self._changed and self._stopping is None:
            path, self._changed = self._changed[0], []
            self._reload(path)

    def _stop(self, number: int) -> None:
        if self._stopping is None:
            log.info("stopping; a second signal stops at once")
        else:
            log.warning("stopping at once")
            self._kill_at = time.monotonic() + AT_ONCE_S
        self._stopping = number
        self._tell_all(number)

    def _reload(self, path: str) -> None:
        log.info("%s changed; starting again", os.path.relpath(path))
        for child in self._children:
            child.deaths = 0
            if child.runs and child.reload_by is None:
                child.reload_by = time.monotonic() + RELOAD_GRACE_S
                child.signal(signal.SIGTERM)
            elif not child.runs:
                child.start_at = time.monotonic()

    def _tell_all(self, number: int) -> None:
        for child in self._children:
            child.signal(number)


def supervise(args: argparse.Namespace) -> int:
    """Run the command in `args.processes` processes below this one."""
    with Signals((*END, signal.SIGCHLD)) as signals:
        supervisor = Supervisor(_command(args), args.processes or 1, signals, waits_for_change=args.reload)
        if not args.reload:
            return supervisor.run()
        from dutiful.cli.reload import watch

        end_watching = watch(_folders(args.target), supervisor.changed)
        try:
            return supervisor.run()
        finally:
            end_watching()


def _command(args: argparse.Namespace) -> list[str]:
    # -P, as for the `dutiful` script: a queue.py in the current folder must not become our queue.
    command = [sys.executable, "-P", "-m", "dutiful", "run", args.target, "--log-level", args.log_level]
    if args.concurrency is not None:
        command += ["--concurrency", str(args.concurrency)]
    if args.queues is not None:
        command += ["--queues", args.queues]
    if args.strict:
        command.append("--strict")
    if args.log_json:
        command.append("--log-json")
    if args.traceback:
        command.append("--traceback")
    return command


def _folders(named: str) -> list[Path]:
    here = Path.cwd()
    file = target.file_of(named)
    folder = here if file is None else file.resolve().parent
    return [here] if folder.is_relative_to(here) else [here, folder]


def _how(status: int) -> str:
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"ended with exit code {status}"
