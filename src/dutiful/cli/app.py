"""From the command's words to its exit code."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from dutiful import __version__
from dutiful.cli import (
    codes,
    demo,
    doctor,
    edits,
    job,
    jobs,
    key,
    migrate,
    move,
    pause,
    rekey,
    run,
    schedules,
    send,
    status,
    watch,
)
from dutiful.cli.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

_DESCRIPTION = "Background work for Python that survives a crash. One file, no server."
_EXAMPLES = """\
examples:
  dutiful demo                                     see a worker being killed, and nothing lost
  dutiful run app:worker                           run the Worker `worker` of app.py
  dutiful send jobs.db notify '{"user_id": 7}'     store a job
  dutiful status jobs.db                           how things stand
  dutiful jobs jobs.db --state dead                what failed for good
  dutiful job jobs.db 42                           all about one job
  dutiful watch jobs.db 42                         the same, live
  dutiful retry jobs.db 42

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    _never_fail_on_a_character()
    try:
        code = _main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `| head`: whoever read has enough. What is still buffered goes nowhere, without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return codes.BROKEN_PIPE


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    try:
        code: int = args.command(args)
        return code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return codes.AT_ONCE + signal.SIGINT
    except Exception as error:
        code = _code_of(error)
        if args.traceback or not code:
            raise
        _complain(error)
        return code


def _complain(error: Exception) -> None:
    sys.stdout.flush()
    notes: list[str] = getattr(error, "__notes__", [])
    print("dutiful:", clean(" ".join([str(error), *notes])), file=sys.stderr)


def _code_of(error: Exception) -> int:
    """Return the exit code of what was raised on purpose; 0 for a bug, which is shown as it is."""
    from dutiful import DutifulError, JobError, StoreError

    match error:
        case codes.Refused():
            return error.code
        case StoreError():
            return codes.STORE
        case JobError():
            return codes.FAILED
        case DutifulError():
            return codes.USAGE
        case _:
            return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dutiful",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + codes.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dutiful {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    add = commands.add_parser
    _add(add, "run", run, "run a worker")
    _add(add, "send", send, "store jobs")
    _add(add, "status", status, "how a store stands: jobs, what is due, workers")
    _add(add, "jobs", jobs, "list jobs, newest first")
    _add(add, "job", job, "all about one job: payload, result, attempts, tracebacks")
    _add(add, "watch", watch, "follow one job live, until it ends")
    for name in ("retry", "cancel", "delete"):
        _add(add, name, edits, edits.HELP[name])
    for name in ("pause", "resume"):
        _add(add, name, pause, pause.HELP[name])
    _add(add, "schedules", schedules, "what fires when; pause, resume or run one")
    _add(add, "doctor", doctor, "what to look at: jobs that nobody takes, file modes, free disk space")
    _add(add, "migrate", migrate, "make a store's tables, or bring them up to date")
    _add(add, "key", key, "make a key for Worker(encrypt=…) and DUTIFUL_KEY")
    _add(add, "rekey", rekey, "encrypt what is stored with the first key of DUTIFUL_KEY")
    _add(add, "move", move, "move all jobs to another store, as from a file to PostgreSQL")
    _add(add, "demo", demo, "kill a worker in the middle, and see that nothing is lost")
    return parser


def _add(add: Callable[..., argparse.ArgumentParser], name: str, module: ModuleType, text: str) -> None:
    parser = add(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    module.add_to(parser)
    parser.epilog = f"{parser.epilog}\n\n{codes.EPILOG}"


def _never_fail_on_a_character() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
