"""
Everything that dutiful raises on purpose.

Each error says what happened, what was or was not changed, and what to do.
The fields carry the data, so every error pickles and can be inspected.
A handler's own exception is a result: it is stored, never wrapped in these.
"""

from collections.abc import Sequence


class DutifulError(Exception):
    """
    The root of all errors raised on purpose; not raised itself.

    Attributes:
        stored: Raised by `send_many`: how many of its jobs are stored all the same.
    """

    stored: int = 0


class ConfigError(DutifulError, ValueError):
    """
    A wrong argument or setting. Raised where it is given; nothing was changed.

    Attributes:
        problem: What is wrong, with the value, and what would be right.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class AlreadyStarted(DutifulError, RuntimeError):
    """`start()` on a worker that runs. It goes on running."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker

    def __str__(self) -> str:
        return (
            f"worker {self.worker!r} is already started; it goes on running. "
            "Call stop() first, or make a second Worker."
        )


class DrainTimeout(DutifulError, TimeoutError):
    """
    `drain()`: not all that is ready was finished in time. What is left stays stored.

    Attributes:
        worker: Its name.
        waited_s: The seconds that it had.
    """

    def __init__(self, worker: str, waited_s: float) -> None:
        super().__init__(worker, waited_s)
        self.worker, self.waited_s = worker, waited_s

    def __str__(self) -> str:
        return (
            f"worker {self.worker!r} has not finished all that is ready within {self.waited_s:g} s; the rest "
            "stays stored. Call drain() again, or give it more time."
        )


class ForkedProcess(DutifulError, RuntimeError):
    """
    A worker was used in a child made by `fork()`. Nothing was changed.

    A database connection and its locks must not be carried over a fork.

    Attributes:
        pid: The process that made the worker.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"this worker belongs to process {self.pid} and was carried over a fork; nothing was "
            "changed. Make a new Worker in the child process (or start children with 'spawn')."
        )


class PayloadError(DutifulError):
    """Something is wrong with a payload; see the subclasses."""


class UnknownTask(PayloadError, LookupError):
    """
    `send()`: nothing handles this payload type or task. Nothing was stored.

    Attributes:
        task: The type or task that was asked for.
        near: Registered names that look alike.
    """

    def __init__(self, task: str, near: Sequence[str] = ()) -> None:
        super().__init__(task, tuple(near))
        self.task, self.near = task, tuple(near)

    def __str__(self) -> str:
        hint = f" Did you mean {' or '.join(map(repr, self.near))}?" if self.near else ""
        return (
            f"no handler for {self.task!r}; nothing was stored.{hint} Register one "
            f"(handlers={{…}} or @worker.handler), or name a task that another process handles: task=…"
        )


class NotEncodable(PayloadError, TypeError):
    """
    `send()`: the payload's type or value cannot be stored. Nothing was stored.

    Attributes:
        task: The task it was for.
        reason: What cannot be stored, and where.
    """

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason

    def __str__(self) -> str:
        return f"the payload for {self.task!r} cannot be stored: {self.reason}. Nothing was stored."


class NotDecodable(PayloadError):
    """
    A stored payload does not fit the handler's type. The job becomes dead, and keeps it.

    Attributes:
        task: The task it is for.
        reason: What does not fit, and where.
    """

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason

    def __str__(self) -> str:
        return (
            f"the stored payload of a {self.task!r} job cannot be read: {self.reason}. "
            "The job is kept; mend the handler's type and retry it."
        )


class KeyMissing(PayloadError):
    """
    A stored value is encrypted with a key that this process does not have. Nothing was changed.

    A worker that meets such a job puts it back, for one that has the key.

    Attributes:
        key_id: Which key: the beginning of a hash of it.
        what: What is encrypted: payload, result, step, event …
        job_id: The job whose handler asked for it by its context; None: somebody else asked.
    """

    def __init__(self, key_id: str, what: str) -> None:
        super().__init__(key_id, what)
        self.key_id, self.what = key_id, what
        self.job_id: int | None = None

    def __str__(self) -> str:
        return (
            f"the stored {self.what} is encrypted with key {self.key_id}, which is not here; nothing was "
            "changed. Give it to the worker, beside its other keys: Worker(encrypt=[…]), or DUTIFUL_KEY."
        )


class NotDecryptable(PayloadError):
    """
    A stored value does not open with its key: it was changed, or moved there from another place.

    Attributes:
        key_id: The key that it names.
        what: What is encrypted: payload, result, step, event …
    """

    def __init__(self, key_id: str, what: str) -> None:
        super().__init__(key_id, what)
        self.key_id, self.what = key_id, what

    def __str__(self) -> str:
        return (
            f"the stored {self.what} does not open with key {self.key_id}, which it names; it is kept. It "
            "was changed in the database, or moved there from another job: restore it from a backup, or send "
            "it anew."
        )


class StoreError(DutifulError):
    """
    The store could not do it. `__cause__` is the driver's error, if there is one.

    Attributes:
        store: The file or server.
        problem: What happened, what was or was not changed, what to do.
    """

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(store, problem)
        self.store, self.problem = store, problem

    def __str__(self) -> str:
        return f"{self.store}: {self.problem}"


class StoreBusy(StoreError):
    """
    The write lock was not free in time. Nothing was changed; repeating is safe.

    Attributes:
        waited_s: Seconds waited before giving up (`busy_s`, or `timeout=`).
    """

    def __init__(self, store: str, waited_s: float) -> None:
        super().__init__(store, "busy")
        self.args = (store, waited_s)
        self.waited_s = waited_s

    def __str__(self) -> str:
        return (
            f"{self.store}: another process or connection held the write lock for "
            f"{self.waited_s:.1f} s; nothing was written. Retry, raise busy_s, or shorten that transaction."
        )


class StoreFull(StoreError):
    """The disk is full, or a quota is reached. Nothing was stored; repeat when there is room."""


class StoreUnavailable(StoreError):
    """The store cannot be opened, read or written: path, permission, file system. Nothing was stored."""


class StoreCorrupt(StoreError):
    """The file is damaged, or is no database. Nothing was changed, and nothing was deleted."""


class StoreReplaced(StoreError):
    """The database file was deleted or replaced while it was open. Nothing was stored in the old one."""


class StoreUnknown(StoreError):
    """
    The connection was lost in COMMIT, and nobody could say in time whether it had happened.

    The one error after which the jobs may be stored: look before you repeat. A worker's own outcomes
    are fenced, so that it repeats them safely by itself.
    """


class StoreMoved(StoreError):
    """
    The jobs are not here any more, or not all here yet (`dutiful move`). Nothing was changed.

    Attributes:
        to: Where they are, or will be, without a password; "" if that is here.
    """

    def __init__(self, store: str, problem: str, to: str = "") -> None:
        super().__init__(store, problem)
        self.args = (store, problem, to)
        self.to = to


class SchemaTooNew(StoreError):
    """A newer dutiful has written this store. Nothing was changed; upgrade this program."""


class JobError(DutifulError):
    """
    Something about one job; see the subclasses.

    Attributes:
        job_id: The job.
    """

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.job_id = job_id


class JobNotFound(JobError, LookupError):
    """No such job: it never existed, was deleted, or was pruned after it finished."""

    def __str__(self) -> str:
        return (
            f"job {self.job_id} is not in the store: there never was one, or it was deleted, or "
            "finished and pruned (see keep_completed)."
        )


class WrongState(JobError):
    """
    The job's state does not allow this. Nothing was changed.

    Attributes:
        action: What was asked for, e.g. "retry".
        state: The job's state.
        allowed: The states that allow it.
    """

    def __init__(self, job_id: int, action: str, state: str, allowed: Sequence[str]) -> None:
        super().__init__(job_id)
        self.args = (job_id, action, state, tuple(allowed))
        self.action, self.state, self.allowed = action, state, tuple(allowed)

    def __str__(self) -> str:
        return (
            f"job {self.job_id} is {self.state}; nothing was changed. "
            f"{self.action} is for jobs that are {' or '.join(self.allowed)}."
        )


class LeaseLost(JobError):
    """
    A handler should stop: it was cancelled, ran out of time, lost its job, or the worker ends.

    Raised by `ctx.check()` and `ctx.transaction()`. Let it pass: it is no failure of the job.
    """

    def __str__(self) -> str:
        return (
            f"the handler of job {self.job_id} should stop: the job was cancelled, ran out of time or has "
            "another attempt, or the worker ends. What it still does is not recorded."
        )


class EventTimeout(JobError, TimeoutError):
    """
    `ctx.wait_event()`: the event did not come in time. The job goes on; catch this to do without it.

    Attributes:
        event: Its name.
    """

    def __init__(self, job_id: int, event: str) -> None:
        super().__init__(job_id)
        self.args = (job_id, event)
        self.event = event

    def __str__(self) -> str:
        return (
            f"the event {self.event!r} did not come in time for job {self.job_id}; one that comes later is "
            "kept for whoever waits next. Catch EventTimeout to go on without it."
        )


class JobFailed(JobError):
    """
    `result()` of a job that ended without one.

    Attributes:
        state: "dead" or "cancelled".
        error: The last error: type, message and traceback of the handler's process, as text.
    """

    def __init__(self, job_id: int, state: str, error: str) -> None:
        super().__init__(job_id)
        self.args = (job_id, state, error)
        self.state, self.error = state, error

    def __str__(self) -> str:
        return f"job {self.job_id} is {self.state}: {self.error}"


class JobTimeout(JobError, TimeoutError):
    """
    The job was not finished in time: `wait` and `result`. The job goes on.

    Attributes:
        waited_s: Seconds waited.
    """

    def __init__(self, job_id: int, waited_s: float) -> None:
        super().__init__(job_id)
        self.args = (job_id, waited_s)
        self.waited_s = waited_s

    def __str__(self) -> str:
        return f"job {self.job_id} is not finished after {self.waited_s:.1f} s; it goes on."


class DuplicateJob(DutifulError):
    """
    `send(…, unique=…)`: there is such a job already. Nothing was stored; see `Unique`.

    Attributes:
        job_id: The job that is there.
        task: Its task.
    """

    def __init__(self, job_id: int, task: str) -> None:
        super().__init__(job_id, task)
        self.job_id, self.task = job_id, task

    def __str__(self) -> str:
        return (
            f"job {self.job_id} of task {self.task!r} is there already, and unique; nothing was stored. "
            'Wait for it, or use Unique(on_conflict="return") to get it.'
        )


class GroupGone(JobError):
    """
    `Group.send()`: the group was cancelled or deleted meanwhile, or given up after an hour without members.

    Those of its members that `stored` counts are stored, and will run; its callback will not.
    """

    def __str__(self) -> str:
        return (
            f"the group of job {self.job_id} takes no more members: it was cancelled or deleted, or nothing "
            "came for an hour; its callback will not run. Send it again as a new group."
        )


class BufferFull(DutifulError):
    """
    `send()`: no room within `timeout`. Nothing was stored; repeat later.

    Attributes:
        buffer: The bound on unfinished jobs.
        waited_s: Seconds waited.
    """

    def __init__(self, buffer: int, waited_s: float) -> None:
        super().__init__(buffer, waited_s)
        self.buffer, self.waited_s = buffer, waited_s

    def __str__(self) -> str:
        return (
            f"{self.buffer} jobs are unfinished, as many as buffer= allows, after {self.waited_s:.1f} s; "
            "it was not stored. Send later, raise buffer, or add workers."
        )


class WorkerStopped(DutifulError, RuntimeError):
    """
    `send()` after `stop()`. Nothing was stored.

    Attributes:
        worker: The worker's name.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker

    def __str__(self) -> str:
        return (
            f"worker {self.worker!r} is stopped; nothing was stored. "
            "Send before stop(), start it again, or use another Worker."
        )
