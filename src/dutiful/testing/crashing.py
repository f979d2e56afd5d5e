"""
Processes that die at a chosen place, so that a test can see what is left.

A place has a name. `DUTIFUL_CRASHPOINT=name` in a program's environment ends it there, as `kill -9`
would; `name:3` the third time that it comes there. `crash_at` does that to a function.
"""

import base64
import difflib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dutiful.crashpoint import STATUS, crashpoint
from dutiful.errors import ConfigError

__all__ = ["CRASH_POINTS", "Crash", "crash_at", "crashpoint"]

CRASH_POINTS = {
    "send.before_commit": "new jobs are about to be stored: `send` has not returned",
    "send.after_commit": "new jobs are stored, and `send` has not returned",
    "claim.after_commit": "jobs were claimed, and none of them has begun",
    "handler.before": "an attempt is counted, and its handler about to be called",
    "handler.after": "the handler has ended, and nothing of that is stored",
    "ack.before_commit": "what attempts came to is about to be stored",
    "ack.after_commit": "what attempts came to is stored",
    "transaction.before_commit": "ctx.transaction(): all is written, and about to be committed",
    "transaction.after_commit": "ctx.transaction(): all is committed",
    "rekey.between": "rekeying goes from one chunk of jobs to the next",
    "rescue.before_commit": "a dead worker's jobs are about to be put back in line",
    "rescue.after_commit": "a dead worker's jobs are back in line",
    "migrate.middle": "one of the statements that make the tables has run, in the one transaction of all",
    "move.marked": "a move: the source has been told of it",
    "move.in_batch": "a move: within a transaction that copies some jobs",
    "move.batch": "a move: some jobs are copied",
    "move.beside": "a move: a copy is made beside the target's place",
    "move.copied": "a move: all is copied",
    "move.handed_over": "a move: the source has given its jobs away",
    "move.received": "a move: the target has accepted them",
    "move.done": "a move: all is done",
}


@dataclass(frozen=True)
class Crash:
    """
    How a process died.

    Attributes:
        point: Where.
        output: What it had printed.
        errors: What it had written to its standard error.
    """

    point: str
    output: str
    errors: str


def crash_at(
    point: str, function: Callable[..., object], /, *args: Any, nth: int = 1, timeout: float = 60.0
) -> Crash:
    """
    Call a function in a process of its own, which is to die at a crash point; wait until it has.

    Args:
        point: One of CRASH_POINTS, or a name without a dot: of a `crashpoint(name)` in your own code.
        function: At the top level of a module, which the new process imports: it makes its worker itself.
        args: What it is called with: values that pickle, such as paths and numbers.
        nth: At the n-th time that the process comes there.
        timeout: Seconds after which it is killed, and the test has failed.

    Raises:
        AssertionError: It did not die there; the message says how it ended, and what it wrote.
        ConfigError: There is no such point, or the function or its arguments cannot be sent.
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    _check_point(point, nth)
    process = subprocess.Popen(
        [sys.executable, "-m", "dutiful.testing.crash_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what it starts itself ends with it
        env={**os.environ, "DUTIFUL_CRASHPOINT": f"{point}:{nth}"},
    )
    try:
        output, errors = process.communicate(_order(function, args), timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(
            _not_there(point, nth, f"still ran after {timeout:g} s", *_killed(process))
        ) from None
    finally:
        _killed(process)
    if process.returncode != STATUS:
        how = "returned" if process.returncode == 0 else f"ended with status {process.returncode}"
        raise AssertionError(_not_there(point, nth, how, output, errors))
    return Crash(point, output, errors)


def _check_point(point: str, nth: int) -> None:
    if nth < 1:
        raise ConfigError(f"nth is {nth!r}; nothing was run. It must be 1 or more.")
    if "." in point and point not in CRASH_POINTS:
        near = difflib.get_close_matches(point, CRASH_POINTS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(CRASH_POINTS)}."
        raise ConfigError(f"there is no crash point {point!r}; nothing was run. {hint}")


def _order(function: Callable[..., object], args: tuple[Any, ...]) -> str:
    """Say to the new process what to call."""
    name = getattr(function, "__qualname__", "")
    code = getattr(function, "__code__", None)
    if code is None or "<" in name:
        raise ConfigError(
            f"{function!r} cannot be called in another process; nothing was run. Define it with `def` at the "
            "top level of a module, and have it make its worker itself."
        )
    try:
        sent = pickle.dumps(args)
    except Exception as error:
        raise ConfigError(
            f"the arguments of {name}() cannot be sent to another process ({error}); nothing was run. Give "
            "paths, numbers and texts."
        ) from error
    return json.dumps(
        {
            "path": sys.path,
            "file": code.co_filename,
            "module": function.__module__,
            "name": name,
            "args": base64.b64encode(sent).decode(),
        }
    )


def _killed(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Kill it, and what it has started; return what it wrote."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(ValueError):  # it has been read to its end
        return process.communicate()
    return "", ""


def _not_there(point: str, nth: int, how: str, output: str, errors: str) -> str:
    times = "" if nth == 1 else f" for the {nth}. time"
    said = "".join(f"\nIt wrote:\n{text.rstrip()}" for text in (output, errors) if text.strip())
    return f"the process did not come to {point!r}{times}, but {how}.{said}"
