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
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from queue import SimpleQueue

from dutiful.job import JobId
from dutiful.runner.child import child_main
from dutiful.runner.child_process import DEATH_S, ChildProcess
from dutiful.runner.failure import error_info
from dutiful.runner.messages import (
    Answer,
    ChildBatch,
    ChildJob,
    Died,
    HandlerRef,
    HeldFd,
    Killed,
    Outcome,
    Raised,
    Reason,
    received,
)

START_S = 60.0  # for a child to start and import a handler's module


@dataclass(slots=True, eq=False)
class _Run:
    """A call of `run`, for `kill` to find."""

    job_id: JobId
    child: ChildProcess | None = None  # None: still starting
    killed: Reason | None = None

    def kill(self, reason: Reason) -> None:
        self.killed = self.killed or reason
        if self.child:
            self.child.kill()


_BEFORE_IT_BEGAN = (
    " before it had imported the handler: what it printed to standard error says more. If your main module "
    'starts a worker, put that under: if __name__ == "__main__":'
)


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
        self._held = None if held_fd is None else HeldFd(held_fd)
        self._jobs_max = max_jobs_per_child
        self._start_s = start_timeout_s
        self._changed = threading.Condition()  # guards what follows
        self._runs: set[_Run] = set()  # those that kill() can reach
        self._busy = 0  # all calls of run(), also those that are reaping their child
        self._idle: list[ChildProcess] = []
        self._closed = False
        self._spawner: threading.Thread | None = None
        self._wanted: SimpleQueue[Future[ChildProcess] | None] = SimpleQueue()
        self._owner_pid = os.getpid()

    def run(self, ref: HandlerRef, job: ChildJob | ChildBatch, *, timeout_s: float | None) -> Outcome:
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

    def _attempt(
        self, run: _Run, ref: HandlerRef, job: ChildJob | ChildBatch, timeout_s: float | None
    ) -> Outcome:
        try:
            child = self._warm_child() or self._new_child()
        except Exception as error:  # noqa: BLE001 - no memory, no process, no fd: not the job's fault,
            return Raised(error, error_info(error))  # so it fails, says why, and is retried later
        answer: Answer | Raised | None = None
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
        if answer is None and not run.killed and ref not in child.known:
            death += _BEFORE_IT_BEGAN
        return answer or (Killed(run.killed) if run.killed else Died(death))

    def _converse(
        self,
        run: _Run,
        child: ChildProcess,
        ref: HandlerRef,
        job: ChildJob | ChildBatch,
        timeout_s: float | None,
    ) -> Answer | Raised | None:
        """Return the child's answer; None if there will be none."""
        try:
            if ref not in child.known:
                if failure := child.ask(ref, self._start_s):
                    return received(failure)
                child.known.add(ref)
            return received(child.ask((ref, job), timeout_s))
        except TimeoutError:
            with self._changed:
                run.kill("timeout")
            if ref in child.known:
                return None
            error = TimeoutError(f"no child process had imported {ref.module} in {self._start_s} s")
            return Raised(error, error_info(error))
        except (EOFError, OSError):  # it died; how, its exit status tells
            return None

    def _kept(self, run: _Run, child: ChildProcess, *, answered: bool) -> bool:
        """Take the child from `run`, where kill() can reach it, and keep it for others if it is fit."""
        child.jobs += 1
        with self._changed:
            self._runs.discard(run)
            fit = answered and not run.killed and child.jobs != self._jobs_max
            if fit:
                self._idle.append(child)
            return fit

    def _warm_child(self) -> ChildProcess | None:
        while True:
            with self._changed:
                if not self._idle:
                    return None
                child = self._idle.pop()  # the last one used: its memory is the warmest
            if child.process.exitcode is None:
                return child
            child.bury()  # somebody killed it while it had nothing to do

    def _new_child(self) -> ChildProcess:
        wanted: Future[ChildProcess] = Future()
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

    def _spawn(self) -> ChildProcess:
        # This starts it if need be, and unblocks SIGINT, so it comes before the next line.
        resource_tracker.ensure_running()
        # A child inherits the mask: no Ctrl-C while it is not ready to ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        # No daemon: those must not have children of their own, which handlers may want.
        process = spawning.Process(
            target=child_main, args=(theirs, self._held, os.getpid()), name="dutiful-child"
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # the child's end is the child's alone, so its death is seen
        return ChildProcess(process, ours)
