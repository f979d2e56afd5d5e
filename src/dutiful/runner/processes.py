"""
Handlers in child processes, which a timeout or a cancel really kills.

A handler thread of the worker calls `ChildPool.run`, which blocks until the outcome is there. A
child is a fresh interpreter at the end of one pipe, on which question and answer take turns:
first a `HandlerRef` the child has not seen (it imports the module, which may take long and is
not counted as the job's time), then the job.

- A child runs one job at a time. It is kept for the next one only if it answered and nobody
  asked for its death; else it is killed and reaped, and a new one is started on demand.
- It leads its own process group, so that a kill takes along what it started.
- It holds the worker's liveness lock: while it runs, nobody re-runs its job. That is the last
  net where the others fail: macOS has no PR_SET_PDEATHSIG, and a handler that never lets go of
  the GIL starves the thread that waits for the parent's death.
- No lock is held while a child starts, works or dies.
"""

import atexit
import importlib
import inspect
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NoReturn, TypeAlias

from msgspec import Struct

from dutiful.errors import ConfigError, NotEncodable
from dutiful.job import Cancel, Discard, ErrorInfo, JobId, Snooze
from dutiful.payload import encode_result
from dutiful.registry import Entry, Handler
from dutiful.runner.failure import error_info

EXCEPTION_BYTES_MAX = 1024 * 1024  # of a pickled exception: some carry the data they failed on
START_S = 60.0  # for a child to start and import a handler's module
LOOK_S = 0.5  # between looks at the process itself, for a pipe that a grandchild keeps open
DEATH_S = 5.0  # for the kernel to end a killed process; longer means a hung disk or network mount
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Reason: TypeAlias = Literal["timeout", "cancel", "stop"]
Signal: TypeAlias = Snooze | Cancel | Discard


class HandlerRef(Struct, frozen=True):
    """
    How a child finds a handler: by name in its module, never by anything that is stored.

    Build it with `HandlerRef.to`. The rest is what `registry.Entry` is made of there. The type is
    pickled, which for a class means its name too, and also does for `list[int]` and unions.
    """

    module: str
    qualname: str
    task: str
    payload_type: bytes | None = None
    spread: bool = False

    @classmethod
    def to(
        cls, fn: Callable[..., Any], task: str, payload_type: Any = None, *, spread: bool = False
    ) -> "HandlerRef":
        """Refer to `fn`. Raises `ConfigError` if a child could not find it or its type."""
        check_importable(fn)
        try:
            pickled = None if payload_type is None else pickle.dumps(payload_type)
        except Exception as error:
            raise ConfigError(
                f"process=True: {payload_type!r}, the payload type of {fn!r}, cannot be imported in "
                f"another process ({error}). Define it at the top level of a module."
            ) from error
        return cls(fn.__module__, fn.__qualname__, task, pickled, spread)

    def entry(self) -> Entry:
        """Import the handler and make it ready; in the child."""
        payload_type = pickle.loads(self.payload_type) if self.payload_type else None  # noqa: S301 - from the parent
        return Entry(self.task, Handler(self.resolve(), spread=self.spread), payload_type)

    def resolve(self) -> Callable[..., Any]:
        """Import the handler; in the child."""
        try:
            module: Any = importlib.import_module(self.module)
            found = reduce(getattr, self.qualname.split("."), module)
        except AttributeError as error:
            raise ConfigError(
                f"process=True: the child process finds no {self.qualname!r} in {self.module!r}. "
                'Define it at import, not under `if __name__ == "__main__"`.'
            ) from error
        # Only what @worker.task made is taken off, not what the user wrapped around the function.
        ours = type(found).__module__.partition(".")[0] == __name__.partition(".")[0]
        fn: Callable[..., Any] = getattr(found, "__wrapped__", found) if ours else found
        return fn


def check_importable(fn: Callable[..., Any]) -> None:
    """Raise `ConfigError`, saying what to do, if a child process could not find `fn` by name."""
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    main = sys.modules["__main__"]
    if module == "__main__" and not (getattr(main, "__file__", None) or main.__spec__):
        problem = "was typed in or piped into Python. Put it into a file"
    elif not module or not qualname or inspect.ismethod(fn):
        problem = "is a bound method, partial or object. Make it a function"
    elif "<" in qualname:
        problem = "is a lambda or is defined inside a function. Define it with `def`"
    else:
        return
    raise ConfigError(
        f"process=True: a child process has to import its handler by name, but {fn!r} {problem} "
        "at the top level of a module, or leave process=True out."
    )


class ChildJob(Struct, frozen=True):
    """What a child has to know of an attempt."""

    id: JobId
    attempt: int
    task: str
    queue: str
    payload: str
    result_bytes_max: int = 1024 * 1024  # as Config has it


class Returned(Struct, frozen=True):
    """
    The handler returned; `value` is its result as JSON, if it has one.

    `unencodable` says why a result other than None could not be kept.
    """

    value: str | None
    unencodable: str | None = None


class Raised(Struct, frozen=True):
    """
    The handler raised; or no child could be started, or import it.

    `exception` is the handler's own if it can be pickled, and a RuntimeError with its type and
    message if not. `error` is taken from the original.
    """

    exception: BaseException
    error: ErrorInfo


class Died(Struct, frozen=True):
    """The child died by itself, or by someone else's hand, while it ran the job."""

    description: str


class Killed(Struct, frozen=True):
    """We killed the child; what it did for the job until then is done."""

    reason: Reason


Outcome: TypeAlias = Returned | Signal | Raised | Died | Killed


# The parent's side.


@dataclass(slots=True, eq=False)
class _Child:
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


@dataclass(slots=True, eq=False)
class _Run:
    """A call of `run`, for `kill` to find."""

    job_id: JobId
    child: _Child | None = None  # None: still starting
    killed: Reason | None = None

    def kill(self, reason: Reason) -> None:
        self.killed = self.killed or reason
        if self.child:
            self.child.kill()


class ChildPool:
    """
    Run handlers in child processes. Opens nothing until the first `run`.

    There are at most as many children as `run` was busy with at once.

    Args:
        held_fd: The worker's locked liveness file. Children inherit it, and with it the lock.
        max_jobs_per_child: Replace a child after so many jobs, for handlers that leak; >= 1.
        start_timeout_s: How long a child may take to start, and to import a handler's module.
    """

    def __init__(
        self,
        *,
        held_fd: int | None,
        max_jobs_per_child: int | None = None,
        start_timeout_s: float = START_S,
    ) -> None:
        self._held = None if held_fd is None else _HeldFd(held_fd)
        self._jobs_max = max_jobs_per_child
        self._start_s = start_timeout_s
        self._changed = threading.Condition()  # guards what follows
        self._runs: set[_Run] = set()  # those that kill() can reach
        self._busy = 0  # all calls of run(), also those that are reaping their child
        self._idle: list[_Child] = []
        self._closed = False
        self._spawner: threading.Thread | None = None
        self._wanted: SimpleQueue[Future[_Child] | None] = SimpleQueue()
        self._owner_pid = os.getpid()

    def run(self, ref: HandlerRef, job: ChildJob, *, timeout_s: float | None) -> Outcome:
        """
        Run one attempt in a child and wait for its outcome.

        `timeout_s` counts from when the child has the handler imported. `Killed("stop")` is the
        answer when the pool is closed. What an attempt did before it was killed stays done.
        """
        run = _Run(job.id)
        with self._changed:
            if self._closed:
                return Killed("stop")
            self._runs.add(run)
            self._busy += 1
        try:
            return self._attempt(run, ref, job, timeout_s)
        finally:
            with self._changed:
                self._runs.discard(run)
                self._busy -= 1
                self._changed.notify_all()

    def kill(self, job_id: JobId, reason: Reason) -> bool:
        """
        Kill the child that runs `job_id`. Returns whether there is one, without waiting for its end.

        It may have answered already: what `run` returns is what happened.
        """
        with self._changed:
            found = [run for run in self._runs if run.job_id == job_id]
            for run in found:
                run.kill(reason)
            return bool(found)

    def close(self) -> None:
        """
        Kill and reap all children, and wait until each `run` has returned. Safe to repeat.

        What stays is Python's own resource tracker: one process for all users of multiprocessing.
        """
        if os.getpid() != self._owner_pid:  # at exit of a fork: the children are not its own
            return
        with self._changed:
            self._closed = True
            for run in self._runs:
                run.kill("stop")
            idle, self._idle = self._idle, []
        for child in idle:
            if child.process.exitcode is None:
                child.kill()
        for child in idle:
            child.bury()
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, DEATH_S + 1)
            spawner, self._spawner = self._spawner, None
        if spawner:
            self._wanted.put(None)
            spawner.join()
            atexit.unregister(self.close)

    def _attempt(self, run: _Run, ref: HandlerRef, job: ChildJob, timeout_s: float | None) -> Outcome:
        try:
            child = self._warm_child() or self._new_child()
        except Exception as error:  # noqa: BLE001 - no memory, no process, no fd: not the job's fault,
            return Raised(error, error_info(error))  # so it fails, says why, and is retried later
        answer: Returned | Signal | Raised | None = None
        death = ""
        try:
            with self._changed:
                run.child = child
            if not run.killed:
                answer = self._converse(run, child, ref, job, timeout_s)
        finally:
            if not self._kept(run, child, answered=answer is not None):
                child.kill()  # also if it died: what it started may live
                death = child.bury()
        return answer or (Killed(run.killed) if run.killed else Died(death))

    def _converse(
        self, run: _Run, child: _Child, ref: HandlerRef, job: ChildJob, timeout_s: float | None
    ) -> Returned | Signal | Raised | None:
        """Return the child's answer; None if there will be none."""
        try:
            if ref not in child.known:
                if failure := child.ask(ref, self._start_s):
                    return _received(failure)
                child.known.add(ref)
            return _received(child.ask((ref, job), timeout_s))
        except TimeoutError:
            with self._changed:
                run.kill("timeout")
            if ref in child.known:
                return None
            error = TimeoutError(f"no child process had imported {ref.module} in {self._start_s} s")
            return Raised(error, error_info(error))
        except (EOFError, OSError):  # it died; how, its exit status tells
            return None

    def _kept(self, run: _Run, child: _Child, *, answered: bool) -> bool:
        """Take the child from `run`, where kill() can reach it, and keep it for others if it is fit."""
        child.jobs += 1
        with self._changed:
            self._runs.discard(run)
            fit = answered and not run.killed and child.jobs != self._jobs_max
            if fit:
                self._idle.append(child)
            return fit

    def _warm_child(self) -> _Child | None:
        while True:
            with self._changed:
                if not self._idle:
                    return None
                child = self._idle.pop()  # the last one used: its memory is the warmest
            if child.process.exitcode is None:
                return child
            child.bury()  # somebody killed it while it had nothing to do

    def _new_child(self) -> _Child:
        wanted: Future[_Child] = Future()
        with self._changed:
            if self._spawner is None:
                self._spawner = threading.Thread(
                    target=self._spawn_all, name="dutiful-processes", daemon=True
                )
                self._spawner.start()
                # A forgotten close() must not make multiprocessing wait for our children at exit.
                atexit.register(self.close)
        self._wanted.put(wanted)
        return wanted.result()

    def _spawn_all(self) -> None:
        """
        Start children, in the one thread that lives as long as the pool.

        PR_SET_PDEATHSIG fires when the starting *thread* ends, and handler threads come and go.
        """
        while wanted := self._wanted.get():
            try:
                wanted.set_result(self._spawn())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                wanted.set_exception(error)

    def _spawn(self) -> _Child:
        # This starts it if need be, and unblocks SIGINT, so it comes before the next line.
        resource_tracker.ensure_running()
        # A child inherits the mask: no Ctrl-C while it is not ready to ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        # No daemon: those must not have children of their own, which handlers may want.
        process = spawning.Process(
            target=_child_main, args=(theirs, self._held, os.getpid()), name="dutiful-child"
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # the child's end is the child's alone, so its death is seen
        return _Child(process, ours)


class _HeldFd:
    """A file descriptor that is inherited when this is pickled for a child."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Callable[..., "_HeldFd"], tuple[Any]]:
        return _inherited, (reduction.DupFd(self.fd),)


def _inherited(duplicate: Any) -> _HeldFd:
    return _HeldFd(duplicate.detach())


# The child's side.


@dataclass(frozen=True, slots=True)
class ChildContext:
    """What a handler with `process=True` can ask of its job: what was known when it started."""

    id: JobId
    attempt: int
    task: str
    queue: str
    cancelled: bool = False  # a cancel kills the process

    @property
    def job_id(self) -> JobId:
        return self.id

    def check(self) -> None:
        """Do nothing: a child that lost its job is killed."""

    def transaction(self) -> NoReturn:
        """Raise `ConfigError`: the store's connection is in another process."""
        raise ConfigError(
            f"ctx.transaction() of job {self.id} ({self.task}) is not available with process=True; "
            "nothing was written. Return the result, or run the handler without process=True."
        )


class _Failure(Struct, frozen=True):
    """A `Raised` on its way: its exception is unpickled by whoever may fail at it."""

    pickled: bytes | None
    error: ErrorInfo


def _received(answer: Returned | Signal | _Failure) -> Returned | Signal | Raised:
    if not isinstance(answer, _Failure):
        return answer
    if answer.pickled:
        # Fails where its class can only be imported in the child; the text is there all the same.
        with suppress(Exception):
            return Raised(pickle.loads(answer.pickled), answer.error)  # noqa: S301 - from our child
    return Raised(RuntimeError(f"{answer.error.type}: {answer.error.message}"), answer.error)


def _failure(error: BaseException) -> _Failure:
    info = error_info(error)
    try:
        pickled = pickle.dumps(error)
        same = type(pickle.loads(pickled)) is type(error)  # noqa: S301 - our own, a line ago
    except Exception:  # noqa: BLE001 - then it does not pickle: `info` has what there is to say
        return _Failure(None, info)
    return _Failure(pickled if same and len(pickled) <= EXCEPTION_BYTES_MAX else None, info)


def _child_main(pipe: Connection, _held: _HeldFd | None, parent_pid: int) -> None:
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
        return pickle.dumps(_call(entries[ref], job))
    except BaseException as error:  # noqa: BLE001 - SystemExit too is the handler's, not the child's
        return pickle.dumps(_failure(error))


def _call(entry: Entry, job: ChildJob) -> Returned | Signal:
    args, kwargs = entry.arguments(job.payload)
    if entry.ctx_name is not None:
        kwargs[entry.ctx_name] = ChildContext(job.id, job.attempt, job.task, job.queue)
    result = entry.fn(*args, **kwargs)
    if isinstance(result, Snooze | Cancel | Discard):
        return result
    try:
        return Returned(encode_result(result, job.result_bytes_max, job.task))
    except NotEncodable as error:
        return Returned(None, error.reason)
