"""The front door: `Worker`."""

import atexit
import contextlib
import dataclasses
import math
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from dutiful import config as settings
from dutiful.config import Config, Keep
from dutiful.core import turns
from dutiful.core.retry import Retry
from dutiful.core.turns import Strict
from dutiful.core.values import number
from dutiful.errors import AlreadyStarted, ConfigError, DrainTimeout, StoreError, WorkerStopped
from dutiful.events import JobsLost
from dutiful.front.registering import Registering
from dutiful.handle import in_thread
from dutiful.sealing import keyring_of
from dutiful.sending import Drafting
from dutiful.stopping import Deadline, Stopping, is_inside_engine

if TYPE_CHECKING:
    import os

    from dutiful.middleware import Middleware
    from dutiful.runner.engine import Engine
    from dutiful.store.contract import Store


Queues = str | Sequence[str] | Mapping[str, int] | Strict


class Worker(Registering):
    """
    Stores payloads, and processes them in the background, whatever happens to the process.

    A worker that is never started is a client: it can send.

    Args:
        store: A path or `sqlite:///path` of a SQLite file, `postgresql://…`, `":memory:"` (not
            durable), or a Store. Default: the environment variable DUTIFUL_STORE, or "dutiful.db".
        handlers: Payload type, or task name → the function that handles it (or a Handler).
        middleware: Generator functions that run around each handler; the first outermost.
        queues: The queues that it takes jobs from, as one line, by priority; what it sends goes to
            the first. With weights, {"critical": 6, "default": 3}, each has that share of the starts
            while it has work; `Strict("critical", "default")`: the first one's jobs before all others'.
        concurrency: Handlers that run at once, of all kinds together. 1 keeps order.
        age_s: Seconds after which due jobs have waited long: an eighth of the starts goes to those
            that have been due longest, whatever their priority. None: strictly by priority.
        buffer: Bound on unfinished jobs: when it is reached, `send` waits. None: no bound.
        name: What it is called in logs and in a job's history.
        retry: The policy of handlers that have none of their own.
        durability: "full" (default), or "normal": a power cut may then lose the last jobs.
        keep_completed: How many completed jobs stay, and how long: a Keep, a count, or False.
        max_crashes: Deaths of the process in a row after which a running job is dead.
        grace_s: Seconds that `stop()` gives to running handlers by default.
        busy_s: Seconds to wait for the store's write lock.
        park_s: Seconds after which a job of an unknown task is looked at again.
        lease_s: Seconds after its timeout that a stuck thread keeps its job.
        payload_bytes_max: Largest payload, in bytes of JSON.
        result_bytes_max: Largest result, in bytes of JSON.
        encrypt: A key (32 bytes, or base64 text; see `dutiful.new_key`) or several: the first encrypts
            what is stored from now on, all decrypt. Default: the environment variable DUTIFUL_KEY,
            its keys separated by commas. False: not even then.
        create: False: never make a store; one that is not there, or holds no jobs of
            dutiful, is an error at the first use, and is not touched.

    Raises:
        ConfigError: An argument is wrong. The store is not touched until the first use.
    """

    def __init__(
        self,
        store: "str | os.PathLike[str] | Store | None" = None,
        *,
        handlers: Mapping[Any, Any] | None = None,
        middleware: "Iterable[Middleware]" = (),
        queues: Queues = ("default",),
        concurrency: int = 8,
        age_s: float | None = 300.0,
        buffer: int | None = None,
        name: str = "worker",
        retry: Retry | None = None,
        durability: Literal["full", "normal"] = "full",
        keep_completed: Keep | int | bool | None = None,
        max_crashes: int = 3,
        grace_s: float = 30.0,
        busy_s: float = 10.0,
        park_s: float = 60.0,
        lease_s: float = 60.0,
        payload_bytes_max: int = settings.MIB,
        result_bytes_max: int = settings.MIB,
        encrypt: "str | bytes | Sequence[str | bytes] | Literal[False] | None" = None,
        create: bool = True,
    ) -> None:
        config = Config(
            name=name,
            queues=turns.names(queues),
            turns=turns.turns(queues),
            age_s=age_s,
            concurrency=concurrency,
            buffer=buffer,
            retry=Retry() if retry is None else retry,
            durability=durability,
            keep_completed=settings.keep(keep_completed),
            max_crashes=max_crashes,
            grace_s=grace_s,
            busy_s=busy_s,
            park_s=park_s,
            lease_s=lease_s,
            payload_bytes_max=payload_bytes_max,
            result_bytes_max=result_bytes_max,
            keyring=keyring_of(encrypt),
        )
        super().__init__(store, config, handlers, create=create)
        for each in middleware:
            self.middleware(each)
        self._changing = threading.RLock()
        self._asking = threading.RLock()
        self._deadline = Deadline(None)
        self._is_resting = False  # after a drain that left threads in handlers

    def __repr__(self) -> str:
        state = "stopped" if self._stopping else "started" if self._runner else "not started"
        return f"<Worker {self._config.name!r} on {self._store.label}, {state}>"

    def configure(self, *, concurrency: int | None = None, queues: Queues | None = None) -> None:
        """
        Replace settings before the start, as `dutiful run --concurrency` does.

        Raises:
            ConfigError: A value is wrong. AlreadyStarted: It runs with the settings that it has.
        """
        with self._changing:
            if self._runner is not None:
                raise AlreadyStarted(self._config.name)
            self._config = dataclasses.replace(
                self._config,
                concurrency=self._config.concurrency if concurrency is None else concurrency,
                queues=self._config.queues if queues is None else turns.names(queues),
                turns=self._config.turns if queues is None else turns.turns(queues),
            )
            self._drafting = Drafting(self._registry, self._config)

    def start(self) -> None:
        """
        Take jobs from now on: what is unfinished in the store, then what is sent.

        Raises:
            AlreadyStarted: It runs, or a handler of its last run has not ended yet.
            StoreError: The store cannot be used; nothing was started.
        """
        self._door.check_process()
        if _is_spawned_child_importing():
            raise ConfigError(
                "a child process for process=True handlers imports your main module, and that starts a "
                'worker; nothing was started here. Put the start under: if __name__ == "__main__":'
            )
        with self._changing:
            if self._runner is not None:
                raise AlreadyStarted(self._config.name)
            self._start()

    def _start(self) -> None:
        self._run(self.engine())
        self._door.open()
        # Holds on to the worker while it runs, even if nobody else does.
        atexit.register(self._stop_at_exit)

    def _run(self, runner: "Engine") -> None:
        with self._asking:
            stopped, self._stopping = self._stopping, None
        try:
            self.opened()
            runner.start()
        except BaseException:
            self._stopping = stopped
            raise
        self._runner = runner

    def drain(self, timeout: float | None = None) -> int:
        """
        Run all that is ready: what is due by now, what that sends, and so on, until nothing is left.

        A worker that is started goes on; one that is not runs for so long. What waits for its time stays.

        Args:
            timeout: Seconds; None: no limit.

        Returns:
            How many attempts have ended meanwhile.

        Raises:
            DrainTimeout: Something is left after `timeout`. WorkerStopped: It was stopped meanwhile.
            ConfigError: It was called by one of its handlers. StoreError: The store cannot be used.
            AlreadyStarted: A handler of its last run, which had no time left, has not ended yet.
            In all of these what is left stays stored.
        """
        self._door.check_process()
        if self._must_not_wait():
            raise ConfigError(
                "drain() was called by a handler, or a signal handler that interrupted one: it would wait "
                "for itself; nothing was done. Call it from elsewhere."
            )
        deadline, attempts, is_drained = Deadline(timeout), 0, False
        while not is_drained:
            is_drained, some = self._drain(deadline)
            attempts += some
            if not is_drained and deadline.rest_s(at_most=1.0) <= 0:
                raise DrainTimeout(self._config.name, timeout or 0.0)
            if not is_drained and self._stopping is not None:
                raise WorkerStopped(self._config.name)
        return attempts

    def _drain(self, deadline: Deadline) -> tuple[bool, int]:
        """Return whether it is done (if not, another's drain that it joined may have ended), and how many."""
        with self._changing:
            if self._is_resting:
                raise AlreadyStarted(self._config.name)
            started = self._runner
            runner = started or self.engine()
            before = runner.finished
            if started is None:
                self._run(runner)
        try:
            is_drained = runner.drain(deadline)
        finally:
            if started is None:
                self._rest(runner)
        return is_drained, runner.finished - before

    def _rest(self, runner: "Engine") -> None:
        """After a run of its own: the store stays open, as for any that is not started."""
        with self._changing:
            if self._runner is not runner:  # stop() was first
                return
            if runner.stop(Deadline(self._config.grace_s)):
                self._runner = None
            else:
                self._is_resting = True
                runner.when_over(self._has_rested)

    def _has_rested(self) -> None:
        with self._changing:
            self._runner, self._is_resting = None, False
            if self._stopping is not None:
                self._close()

    def stop(self, timeout: float | None = None, *, drain: bool | None = None) -> None:
        """
        Take nothing more, let running handlers end, and close. What is unfinished stays stored.

        May be called from anywhere, any number of times. From inside a handler, a send or a
        signal handler that interrupted one, it returns at once and stops in the background.

        Args:
            timeout: Seconds for running handlers (with `drain`: for all); then async ones
                and child processes are stopped, and threads left to themselves. Default:
                `grace_s`; with `drain`, no limit.
            drain: Finish all that is ready first. Default: only for ":memory:", where it
                would be lost. What waits for its time, or for a retry, is not ready: in
                memory it ends with the worker, and is logged.
        """
        self._door.check_process()
        if timeout is not None:
            hint = "The worker goes on."
            timeout = number("timeout", timeout, -math.inf, wanted="seconds, or None", unchanged=hint)
        must_not_wait = self._must_not_wait()
        with self._asking:
            if self._stopping is None:
                drain = self._is_in_memory() if drain is None else drain
                limit = timeout if drain or timeout is not None else self._config.grace_s
                deadline = self._deadline = Deadline(limit)
                self._stopping = Stopping(lambda: self._stop(deadline, drain=bool(drain)))
                self._stopping.begin()
            else:
                self._deadline.shorten(timeout)
            stopping = self._stopping
        if not must_not_wait:
            stopping.wait()
            with self._changing:
                if self._runner is None:  # a job's handle may have opened the store again
                    self._close()

    def _stop_at_exit(self) -> None:
        if not self._door.is_forked:
            with contextlib.suppress(KeyboardInterrupt):  # heeded; the process ends anyway
                self._stop_or_at_once(self._config.grace_s)

    def _stop_or_at_once(self, timeout: float | None = None) -> None:
        """Stop; a second Ctrl-C, while running handlers have their grace time, ends that."""
        try:
            self.stop(timeout)
        except KeyboardInterrupt:
            self.stop(0)
            raise

    def _must_not_wait(self) -> bool:
        """Whether this thread stands in the way of what it would wait for."""
        return self._is_handler_here() or self._door.waits_for_loop_here() or is_inside_engine()

    def _stop(self, deadline: Deadline, *, drain: bool) -> None:
        with self._changing:
            self._door.close(self._room.made, deadline)
            runner = self._runner
            if runner is None:
                self._close()
                return
            if self._is_resting:  # it closes when the last handler of a drain has ended
                return
            if drain:
                try:
                    runner.drain(deadline)
                except StoreError as error:  # what is stored stays stored
                    runner.trouble(error)
                deadline.shorten(None if deadline.at is not None else self._config.grace_s)
            is_over = runner.stop(deadline)
            atexit.unregister(self._stop_at_exit)
            if is_over:
                self._over()
            else:
                runner.when_over(self._over)  # until then it counts as started

    def _over(self) -> None:
        with self._changing:
            self._runner = None
            self._close()

    def _close(self) -> None:
        self._committer.close(WorkerStopped(self._config.name))
        with self._opening:
            if self._is_open:
                if self._is_in_memory():
                    lost = self._store.unfinished()
                    if lost:
                        self._events.emit(JobsLost(self._config.name, lost))
                self._is_open = False
                self._listening.close()
                self._store.close()
                self._door.use_anywhere()
        if self._at_exit is not None:
            self._at_exit.detach()
            self._at_exit = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_or_at_once()

    async def __aenter__(self) -> Self:
        await in_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(self.stop)


def _is_spawned_child_importing() -> bool:
    # Not imported for this question alone: a spawned child has it.
    spawning = sys.modules.get("multiprocessing.process")
    return spawning is not None and getattr(spawning.current_process(), "_inheriting", False)
