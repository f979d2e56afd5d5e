"""dutiful: background work that survives a crash. One file, no server."""

from dutiful.config import Keep
from dutiful.context import Context
from dutiful.core.retry import Backoff, Retry
from dutiful.errors import (
    AlreadyStarted,
    BufferFull,
    ConfigError,
    DutifulError,
    ForkedProcess,
    JobError,
    JobFailed,
    JobNotFound,
    JobTimeout,
    LeaseLost,
    NotDecodable,
    NotEncodable,
    PayloadError,
    SchemaTooNew,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReplaced,
    StoreUnavailable,
    UnknownTask,
    WorkerStopped,
    WrongState,
)
from dutiful.handle import Job, Jobs
from dutiful.handler import Handler
from dutiful.job import AttemptError, Cancel, Discard, Record, Snooze, State
from dutiful.sending import SendOptions
from dutiful.store.contract import Counts, WorkerInfo
from dutiful.task import Task
from dutiful.worker import Worker

__all__ = [
    "AlreadyStarted",
    "AttemptError",
    "Backoff",
    "BufferFull",
    "Cancel",
    "ConfigError",
    "Context",
    "Counts",
    "Discard",
    "DutifulError",
    "ForkedProcess",
    "Handler",
    "Job",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobTimeout",
    "Jobs",
    "Keep",
    "LeaseLost",
    "NotDecodable",
    "NotEncodable",
    "PayloadError",
    "Record",
    "Retry",
    "SchemaTooNew",
    "SendOptions",
    "Snooze",
    "State",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreReplaced",
    "StoreUnavailable",
    "Task",
    "UnknownTask",
    "Worker",
    "WorkerInfo",
    "WorkerStopped",
    "WrongState",
    "__version__",
]

__version__ = "0.1.0"
