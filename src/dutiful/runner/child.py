"""
The child's side of a handler that runs in a process of its own; `processes` has the worker's.

A child answers until the pipe closes, and dies with its parent.
"""

import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from dutiful.errors import ConfigError, NotEncodable
from dutiful.handler import Entry
from dutiful.job import Cancel, Discard, JobId, Snooze
from dutiful.payload import encode_result
from dutiful.runner.failure import check_ran
from dutiful.runner.messages import (
    ChildBatch,
    ChildJob,
    Failure,
    HandlerRef,
    HeldFd,
    Returned,
    Signal,
    Together,
)

PR_SET_PDEATHSIG = 1  # linux/prctl.h


# What needs the store, whose connection is in the worker's process.
_ELSEWHERE = frozenset({"asleep", "astep", "await_event", "progress", "send", "sleep", "step", "wait_event"})


@dataclass(frozen=True, slots=True)
class ChildContext:
    """What a handler with `process=True` can ask of its job: what was known when it started."""

    id: JobId
    attempt: int
    task: str
    queue: str
    headers: Mapping[str, str]
    after: tuple[Any, ...]
    cancelled: bool = False  # a cancel kills the process

    @property
    def job_id(self) -> JobId:
        return self.id

    def check(self) -> None:
        """Do nothing: a child that lost its job is killed."""

    def __getattr__(self, name: str) -> NoReturn:
        if name in _ELSEWHERE:
            self._refuse(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def transaction(self, own: object = None) -> NoReturn:  # noqa: ARG002  # as it is elsewhere
        """Raise `ConfigError`: the store's connection is in another process."""
        self._refuse("transaction()")

    def _refuse(self, name: str) -> NoReturn:
        raise ConfigError(
            f"ctx.{name} of job {self.id} ({self.task}) is not available with process=True; "
            "nothing was written. Return the result, or run the handler without process=True."
        )


@dataclass(frozen=True, slots=True)
class ChildBatchContext:
    """What a handler of batches with `process=True` can ask: of its batch, and of each job in it."""

    jobs: tuple[ChildContext, ...]
    cancelled: bool = False  # as above

    @property
    def task(self) -> str:
        return self.jobs[0].task

    def check(self) -> None:
        """Do nothing: a child that lost its jobs is killed."""

    def transaction(self, own: object = None) -> NoReturn:
        """Raise `ConfigError`: the store's connection is in another process."""
        self.jobs[0].transaction(own)


def child_main(pipe: Connection, _held: HeldFd | None, parent_pid: int) -> None:
    """Answer the parent's questions until the pipe closes. `_held` does its work by being open."""
    _settle(parent_pid)
    entries: dict[HandlerRef, Entry] = {}
    with suppress(EOFError, OSError):  # the parent is gone, or wants no more
        while True:
            pipe.send_bytes(_answer(pipe.recv(), entries))


def _settle(parent_pid: int) -> None:
    """Die with the parent, ignore Ctrl-C, lead a group, keep fds from programs, show what is printed."""
    if sys.platform == "linux":
        import ctypes

        # Refused (seccomp)? Then the thread below is what is left.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    threading.Thread(target=_die_with_parent, name="dutiful-parent", daemon=True).start()
    if os.getppid() != parent_pid:  # it died before the prctl
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for fd in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with suppress(OSError):  # the listing's own is closed by now
            os.set_inheritable(fd, fd <= 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a kill must not take what was printed


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent, "not a child"
    wait([parent.sentinel])
    os._exit(1)


def _answer(question: Any, entries: dict[HandlerRef, Entry]) -> bytes:
    """Import a handler (`None` when done), or run one; nothing it raises gets past here."""
    try:
        if isinstance(question, HandlerRef):
            entries[question] = question.entry()
            return pickle.dumps(None)
        ref, job = question
        entry = entries[ref]
        return pickle.dumps(_call_batch(entry, job) if isinstance(job, ChildBatch) else _call(entry, job))
    except BaseException as error:  # noqa: BLE001 - SystemExit too is the handler's, not the child's
        return pickle.dumps(Failure.of(error))


def _call(entry: Entry, job: ChildJob) -> Returned | Signal:
    args, kwargs = entry.arguments(job.payload)
    if entry.ctx_name is not None:
        kwargs[entry.ctx_name] = _context(job)
    return _answered(entry.fn(*args, **kwargs), job)


def _call_batch(entry: Entry, batch: ChildBatch) -> Together:
    from dutiful.runner.batch import outcomes_of  # for those who use it

    args, kwargs = entry.together([entry.arguments(job.payload) for job in batch.jobs])
    if entry.ctx_name is not None:
        kwargs[entry.ctx_name] = ChildBatchContext(tuple(map(_context, batch.jobs)))
    outcomes = outcomes_of(len(batch.jobs), entry.fn(*args, **kwargs))
    if isinstance(outcomes, BaseException):
        raise outcomes
    return Together(
        tuple(
            Failure.of(outcome) if isinstance(outcome, BaseException) else _answered(outcome, job)
            for outcome, job in zip(outcomes, batch.jobs, strict=True)
        )
    )


def _context(job: ChildJob) -> ChildContext:
    return ChildContext(job.id, job.attempt, job.task, job.queue, job.headers, job.after)


def _answered(result: object, job: ChildJob) -> Returned | Signal:
    check_ran(result)
    if isinstance(result, Snooze | Cancel | Discard):
        return result
    try:
        return Returned(encode_result(result, job.result_bytes_max, job.task))
    except NotEncodable as error:
        return Returned(None, error.reason)
