"""What the tests of the worker share: facts to wait for, gates that hold handlers, scripts to run."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

from dutiful import Job, Record, WorkerStopped
from tests.crash.harness import Program

WAIT_S = 20.0  # a bound for facts that take milliseconds, on a machine that is busy with other tests

_PREAMBLE = """\
import asyncio, faulthandler, logging, os, random, signal, sys, threading, time
faulthandler.register(signal.SIGUSR1)
logging.getLogger("dutiful").addHandler(logging.NullHandler())  # standard error is for what is wrong
from dutiful import *

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines, from any thread

"""
_numbers = itertools.count()


def until(fact: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Return what `fact` says, as soon as that is true: for facts that nothing would wake us for."""
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(0.002)
    return found


def background(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call something in a thread of its own."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(function(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="background", daemon=True).start()
    return done


def within(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a call returns; fail if it has not returned in time."""
    done = background(function, *args, **kwargs)
    try:
        return done.result(seconds)
    except TimeoutError:
        assert done.done(), f"{function} has not returned within {seconds} s"
        raise


def finished(job: Job) -> Record:
    """Wait for the end of a job."""
    return job.wait(timeout=WAIT_S)


def result(job: Job) -> Any:
    """Wait for the result of a job."""
    return job.result(timeout=WAIT_S)


def is_dead(pid: int) -> bool:
    """Whether a process has ended; a zombie counts, its own parent may be slow to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def has_stopped(worker):
    """Whether the worker takes no more jobs; it stores nothing either way that could run."""
    try:
        worker.send(0, task="nobody", delay=3600)
    except WorkerStopped:
        return True
    return False


def has_failed_once() -> Callable[[], None]:
    """Return a function that raises the first time that it is called."""
    calls = itertools.count()

    def fail() -> None:
        if next(calls) == 0:
            raise ValueError("the first time")

    return fail


class Seen:
    """What handlers were given, in order; the test waits for it."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._changed = threading.Condition()

    def add(self, payload: Any) -> None:
        """Note a payload. Also a handler."""
        with self._changed:
            self.all.append(payload)
            self._changed.notify_all()

    def wait(self, count: int = 1, timeout_s: float = WAIT_S) -> list[Any]:
        """Return all, once there are so many."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.all) >= count, timeout_s)
            assert came, f"{len(self.all)} came within {timeout_s} s, not {count}"
            return list(self.all)


class Gate:
    """Holds handlers until it is opened."""

    def __init__(self) -> None:
        self.entered = Seen()
        self._open = threading.Event()

    def hold(self, payload: Any) -> Any:
        """Wait for the opening. Also a handler."""
        self.entered.add(payload)
        assert self._open.wait(2 * WAIT_S), "nobody opened the gate"
        return payload

    def open(self) -> None:
        """Let all go, and those that come."""
        self._open.set()


@contextmanager
def script(folder: Path, source: str, *args: object, env: dict[str, str] | None = None) -> Iterator[Program]:
    """Run Python source in a process of its own, where every warning is an error; kill it in the end."""
    path = folder / f"script{next(_numbers)}.py"
    path.write_text(_PREAMBLE + dedent(source))
    started = Program(path, *map(str, args), env={"PYTHONWARNINGS": "error", **(env or {})})
    try:
        yield started
    finally:
        started.kill()


def ran(folder: Path, source: str, *args: object, env: dict[str, str] | None = None) -> Program:
    """Run Python source to its end; fail if it failed, or said anything on its standard error."""
    with script(folder, source, *args, env=env) as done:
        status = done.wait(2 * WAIT_S)
    assert status == 0, f"exit status {status}\n{done.errors}"
    assert not done.errors, done.errors
    return done
