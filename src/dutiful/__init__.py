"""
dutiful: background work that survives a crash. One file, no server.

The public names, each loaded when it is first used: `import dutiful` takes a few
milliseconds, and a program pays for what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dutiful.asking import Limit, Unique
    from dutiful.batch_context import BatchContext, JobInBatch
    from dutiful.config import Keep
    from dutiful.context import Context
    from dutiful.core.retry import Backoff, Retry
    from dutiful.core.turns import Strict
    from dutiful.errors import (
        AlreadyStarted,
        BufferFull,
        ConfigError,
        DrainTimeout,
        DuplicateJob,
        DutifulError,
        EventTimeout,
        ForkedProcess,
        GroupGone,
        JobError,
        JobFailed,
        JobNotFound,
        JobTimeout,
        KeyMissing,
        LeaseLost,
        NotDecodable,
        NotDecryptable,
        NotEncodable,
        PayloadError,
        SchemaTooNew,
        StoreBusy,
        StoreCorrupt,
        StoreError,
        StoreFull,
        StoreMoved,
        StoreReplaced,
        StoreUnavailable,
        StoreUnknown,
        UnknownTask,
        WorkerStopped,
        WrongState,
    )
    from dutiful.flows import Chain, ChainJob, Group, GroupJob
    from dutiful.handle import Job, Jobs
    from dutiful.handler import Handler
    from dutiful.job import AttemptError, Cancel, Discard, Progress, Record, Snooze, State, Step
    from dutiful.link import Link
    from dutiful.middleware import Call, CallJob
    from dutiful.relocation import Migrated, Moved, give_up_move, migrate, migration_sql, move
    from dutiful.schedules import Schedule, ScheduleOptions
    from dutiful.sealing import new_key
    from dutiful.secret import Secret
    from dutiful.sending import SendOptions
    from dutiful.store.contract import Counts, WorkerInfo
    from dutiful.store.special.pauses import Paused
    from dutiful.store.special.reseal import Rekeyed
    from dutiful.task import Task
    from dutiful.versions import version
    from dutiful.worker import Worker

__version__ = "0.1.0"

_HOMES = {
    "AlreadyStarted": "dutiful.errors",
    "AttemptError": "dutiful.job",
    "Backoff": "dutiful.core.retry",
    "BatchContext": "dutiful.batch_context",
    "BufferFull": "dutiful.errors",
    "Call": "dutiful.middleware",
    "CallJob": "dutiful.middleware",
    "Cancel": "dutiful.job",
    "Chain": "dutiful.flows",
    "ChainJob": "dutiful.flows",
    "ConfigError": "dutiful.errors",
    "Context": "dutiful.context",
    "Counts": "dutiful.store.contract",
    "Discard": "dutiful.job",
    "DrainTimeout": "dutiful.errors",
    "DutifulError": "dutiful.errors",
    "EventTimeout": "dutiful.errors",
    "ForkedProcess": "dutiful.errors",
    "Group": "dutiful.flows",
    "GroupGone": "dutiful.errors",
    "GroupJob": "dutiful.flows",
    "Handler": "dutiful.handler",
    "Job": "dutiful.handle",
    "JobError": "dutiful.errors",
    "JobInBatch": "dutiful.batch_context",
    "DuplicateJob": "dutiful.errors",
    "JobFailed": "dutiful.errors",
    "Limit": "dutiful.asking",
    "Unique": "dutiful.asking",
    "JobNotFound": "dutiful.errors",
    "JobTimeout": "dutiful.errors",
    "Jobs": "dutiful.handle",
    "Keep": "dutiful.config",
    "KeyMissing": "dutiful.errors",
    "LeaseLost": "dutiful.errors",
    "Link": "dutiful.link",
    "Migrated": "dutiful.relocation",
    "Moved": "dutiful.relocation",
    "NotDecodable": "dutiful.errors",
    "NotDecryptable": "dutiful.errors",
    "NotEncodable": "dutiful.errors",
    "Paused": "dutiful.store.special.pauses",
    "PayloadError": "dutiful.errors",
    "Progress": "dutiful.job",
    "Record": "dutiful.job",
    "Rekeyed": "dutiful.store.special.reseal",
    "Retry": "dutiful.core.retry",
    "Schedule": "dutiful.schedules",
    "ScheduleOptions": "dutiful.schedules",
    "SchemaTooNew": "dutiful.errors",
    "Secret": "dutiful.secret",
    "SendOptions": "dutiful.sending",
    "Snooze": "dutiful.job",
    "State": "dutiful.job",
    "Step": "dutiful.job",
    "StoreBusy": "dutiful.errors",
    "StoreCorrupt": "dutiful.errors",
    "StoreError": "dutiful.errors",
    "StoreFull": "dutiful.errors",
    "StoreMoved": "dutiful.errors",
    "StoreReplaced": "dutiful.errors",
    "StoreUnavailable": "dutiful.errors",
    "StoreUnknown": "dutiful.errors",
    "Strict": "dutiful.core.turns",
    "Task": "dutiful.task",
    "UnknownTask": "dutiful.errors",
    "Worker": "dutiful.worker",
    "WorkerInfo": "dutiful.store.contract",
    "WorkerStopped": "dutiful.errors",
    "WrongState": "dutiful.errors",
    "give_up_move": "dutiful.relocation",
    "migrate": "dutiful.relocation",
    "migration_sql": "dutiful.relocation",
    "move": "dutiful.relocation",
    "new_key": "dutiful.sealing",
    "version": "dutiful.versions",
}

__all__ = [
    "AlreadyStarted",
    "AttemptError",
    "Backoff",
    "BatchContext",
    "BufferFull",
    "Call",
    "CallJob",
    "Cancel",
    "Chain",
    "ChainJob",
    "ConfigError",
    "Context",
    "Counts",
    "Discard",
    "DrainTimeout",
    "DuplicateJob",
    "DutifulError",
    "EventTimeout",
    "ForkedProcess",
    "Group",
    "GroupGone",
    "GroupJob",
    "Handler",
    "Job",
    "JobError",
    "JobFailed",
    "JobInBatch",
    "JobNotFound",
    "JobTimeout",
    "Jobs",
    "Keep",
    "KeyMissing",
    "LeaseLost",
    "Limit",
    "Link",
    "Migrated",
    "Moved",
    "NotDecodable",
    "NotDecryptable",
    "NotEncodable",
    "Paused",
    "PayloadError",
    "Progress",
    "Record",
    "Rekeyed",
    "Retry",
    "Schedule",
    "ScheduleOptions",
    "SchemaTooNew",
    "Secret",
    "SendOptions",
    "Snooze",
    "State",
    "Step",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreMoved",
    "StoreReplaced",
    "StoreUnavailable",
    "StoreUnknown",
    "Strict",
    "Task",
    "Unique",
    "UnknownTask",
    "Worker",
    "WorkerInfo",
    "WorkerStopped",
    "WrongState",
    "__version__",
    "give_up_move",
    "migrate",
    "migration_sql",
    "move",
    "new_key",
    "version",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dutiful' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *globals()]
