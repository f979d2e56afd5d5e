"""`dutiful run`: a worker in this process, or several below it."""

from __future__ import annotations

import argparse
import os
import threading
from typing import TYPE_CHECKING

from dutiful.cli import codes, logs, options, parent, queues, target
from dutiful.cli.signals import WOKEN, Signals

if TYPE_CHECKING:
    import argparse

    from dutiful import Strict, Worker

# After the second signal, async handlers and child processes are ended, which takes them up to 1 s, and
# what they did is given back as interrupted. What is not over after this time, or at a third signal, is
# cut off with the process.
AT_ONCE_S = 3.0

_EPILOG = """\
examples:
  dutiful run app:worker                           the Worker `worker` in app.py, or the package app
  dutiful run jobs/app.py:worker --concurrency 20
  dutiful run app:worker --queues critical=6,default=3
  dutiful run app:worker --processes 4             for handlers that use a core each
  dutiful run app:worker --reload                  while you develop

SIGTERM or Ctrl-C: no new jobs; running ones get the worker's grace_s, what is not finished is
stored and runs at the next start; exit code 0. A second one ends it at once: exit code 143 or 130.
With --processes, one that dies is started again, after a pause that grows while it keeps dying."""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="MODULE:WORKER", help="where the Worker is; also path/to/file.py:worker"
    )
    parser.add_argument(
        "--concurrency", type=options.count, metavar="N", help="handlers at once, in each process"
    )
    parser.add_argument(
        "--queues",
        type=queues.checked,
        metavar="A,B",
        help="take jobs from these queues only; A=6,B=3: by these weights",
    )
    parser.add_argument(
        "--strict", action="store_true", help="with --queues A,B: all jobs of A before any of B"
    )
    parser.add_argument(
        "--processes", type=options.count, metavar="N", help="so many processes, kept running"
    )
    parser.add_argument("--reload", action="store_true", help="start again when a .py file changes")
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info", help="(%(default)s)")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    chosen = _queues(args)
    is_child = parent.is_above()
    logs.set_up(args.log_level, as_json=args.log_json, with_pid=is_child)
    if not is_child and (args.processes or args.reload):
        from dutiful.cli.supervise import supervise

        return supervise(args)
    worker = target.load(args.target)
    _configure(worker, args, chosen)
    logs.log.info("tasks: %s", ", ".join(sorted(worker.handlers.tasks())) or "none")
    with Signals() as signals:
        parent.stop_with_it()
        worker.start()
        return _until_stopped(worker, signals)


def _queues(args: argparse.Namespace) -> tuple[str, ...] | dict[str, int] | Strict | None:
    if args.strict and (args.queues is None or "=" in args.queues):
        raise codes.Refused("--strict goes with --queues A,B, without weights; nothing was started.")
    return None if args.queues is None else queues.setting(args.queues, strict=args.strict)


def _configure(
    worker: Worker, args: argparse.Namespace, chosen: tuple[str, ...] | dict[str, int] | Strict | None
) -> None:
    from dutiful import AlreadyStarted

    try:
        worker.configure(concurrency=args.concurrency, queues=chosen)
    except AlreadyStarted as error:
        raise codes.Refused(
            f"the module of {args.target} has started the worker itself, as it was imported; it is stopped "
            'again. Put the start under: if __name__ == "__main__":'
        ) from error


def _until_stopped(worker: Worker, signals: Signals) -> int:
    signals.next()
    logs.log.info("stopping: running jobs get their grace time; a second signal stops at once")
    stopping = _Stopping(worker, signals)
    stopping.start()
    number = signals.next()
    if number == WOKEN:
        return stopping.code()
    logs.log.warning("stopping at once")
    threading.Thread(target=worker.stop, kwargs={"timeout": 0}, name="dutiful-cli-stop", daemon=True).start()
    signals.wait(AT_ONCE_S)
    # Not sys.exit, which would wait for threads that are in the middle of something.
    os._exit(codes.AT_ONCE + number)


class _Stopping(threading.Thread):
    """`worker.stop()` in a thread of its own, so that a second signal finds somebody who listens."""

    def __init__(self, worker: Worker, signals: Signals) -> None:
        super().__init__(name="dutiful-cli-stop", daemon=True)
        self._worker = worker
        self._signals = signals
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._worker.stop()
        except Exception as error:  # noqa: BLE001  # told in the main thread, by `code`
            self._error = error
        finally:
            self._signals.wake()

    def code(self) -> int:
        """Return the exit code, or raise what the stop raised."""
        if self._error is not None:
            raise self._error
        return codes.OK
