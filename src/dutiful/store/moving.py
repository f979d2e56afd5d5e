"""
Moving all jobs from one store to another, so that at each moment at most one of them is in charge.

The source is marked first, in one transaction with guards (triggers) on its tables: from then on nobody
can store, take or change a job there, send an event, pause a queue or change a schedule, programs of any
version and open connections included. The target
has guards too, until all is there. So nothing moves under our feet, and a repetition goes on where the
last one ended: the jobs travel in the order of their ids, a batch a transaction.

    source      target      what is in charge
    ----------  ----------  ------------------
    free        free        source
    leaving     free        nobody: marked, the target not yet
    leaving     arriving    nobody: jobs are copied, then counted
    left        arriving    nobody: from here on there is no way back
    left        arrived     target

`leaving` can be given up, and is if the counts differ: then the source is free again. `leaving` → `left`
happens only to the very move that was counted, and the target is opened only after it. The jobs stay in
the source, out of reach, until somebody deletes it.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from dutiful.errors import StoreMoved
from dutiful.job import Ack, Claim, JobId, State
from dutiful.store.contract import WorkerInfo

SQLSTATE = "DU001"  # with which guards in PostgreSQL refuse: nobody else has that class
BATCH_JOBS = 1000
BATCH_BYTES = 8 * 1024 * 1024  # payloads may be large, and two batches are in memory at a time


class Note(Struct, frozen=True):
    """
    What a store knows of its part in a move, in its meta table.

    Args:
        side: Whether the jobs go from here, or come here.
        move: Which move; each attempt that was given up is another one.
        source: Which store they come from; it stays the same over all attempts.
        other: What to call the store at the other side.
        is_over: Whether they have all gone, or come.
    """

    side: Literal["from", "to"]
    move: str
    source: str
    other: str
    is_over: bool = False

    def text(self) -> str:
        """Return what a program is told that uses the store all the same; `read` knows it again."""
        if self.side == "to":
            return (
                f"jobs are being moved here from {self.other}, and not all are here yet; nothing was "
                "changed. Finish that: run the same `dutiful move` again."
            )
        if self.is_over:
            return f"its jobs were moved to {self.other}; nothing was changed. Use that store."
        return (
            f"its jobs are being moved to {self.other}; nothing was changed. Use that store when it is "
            "done; to finish or give up the move, see `dutiful move`."
        )


_GONE = re.compile(r"its jobs (?:are being|were) moved to (.+?); nothing was changed\. .*", re.DOTALL)
_COMING = re.compile(r"jobs are being moved here from .*; nothing was changed\. .*", re.DOTALL)


def read(label: str, text: str) -> StoreMoved | None:
    """Return the error that a guard's text means; None if it is no guard's."""
    if gone := _GONE.fullmatch(text):
        return StoreMoved(label, text, gone[1])
    return StoreMoved(label, text) if _COMING.fullmatch(text) else None


class Row(Struct, frozen=True, array_like=True):
    """A job as it travels: all columns but the owner, since none is running. What is no text is bytes."""

    id: JobId
    state: str
    queue: str
    task: str
    priority: int
    due_at: int
    due_fixed: bool
    attempt: int
    failures: int
    crashes: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    cancel_at: int | None
    parked_at: int | None
    extra: str | None
    held: str | None
    lane: str | None
    pool: str | None
    waits: int | None
    followed: bool | None
    unique_key: str | None
    unique_till: int | None
    expires_at: int | None
    progress: str | None
    payload: str | bytes | None
    result: str | bytes | None


# Both stores have these columns.
COLUMNS = ", ".join(Row.__struct_fields__)
ERROR_COLUMNS = "job_id, attempt, at, worker, type, message, traceback"
ErrorRow = tuple[JobId, int, int, str, str, str, str]
# What lies beside the jobs, table by table, in an order that has to be kept.
BESIDE = {
    "after": "parent_id, job_id, place, outcome, result",
    "pool": "name, size, per_s, burst, next_at",
    "step": "job_id, name, kind, at, event, value",
    "event": "name, at, value",
    "schedule": (
        "name, spec, missed, task, queue, payload, priority, next_at, last_at, last_job, paused_at, seen_at"
    ),
    "pause": "kind, name, at",
}
BESIDE_ORDER = {"event": "id"}
# What somebody may have left in a store that has no jobs, and would miss.
KEPT_BESIDE = ("event", "schedule", "pause")
# Every table is in one of these two: else changes would be accepted in a store that is out of use, and lost.
_ANY = ("INSERT", "UPDATE", "DELETE")
GUARDED: dict[str, tuple[str, ...]] = {
    "job": _ANY,
    "error": _ANY,
    "worker": ("INSERT", "UPDATE"),  # it may leave
    **dict.fromkeys(BESIDE, _ANY),
}
UNGUARDED = ("meta",)  # ids that are given in vain, and how the store's clock goes


class Batch(Struct, frozen=True):
    """Some jobs that follow each other, with their error history."""

    rows: Sequence[Row]
    errors: Sequence[ErrorRow]


class Totals(Struct, frozen=True):
    """
    What a store holds.

    `texts` are payloads and results: fewer in the target if damaged ones could not be stored there.
    """

    by_state: dict[State, int]
    errors: int
    texts: int

    @property
    def jobs(self) -> int:
        """How many jobs there are."""
        return sum(self.by_state.values())


class Hand(Protocol):
    """One transaction in a store that nobody else is working on meanwhile."""

    def get(self, key: str) -> str | None:
        """Return what the meta table has."""
        ...

    def put(self, key: str, value: str | None) -> None:
        """Write it there; None takes it out."""
        ...

    def raise_guards(self, text: str) -> None:
        """Refuse every change that is GUARDED, from now on with this text."""
        ...

    def lower_guards(self) -> None:
        """Let them be."""
        ...

    def is_idle(self) -> bool:
        """Whether no worker is registered and no job is running."""
        ...

    def kept_beside(self) -> str | None:
        """Return the first table of KEPT_BESIDE that is not empty."""
        ...

    def last_id(self) -> JobId:
        """Return the largest id of a job; 0 if there is none."""
        ...

    def add(self, batch: Batch) -> None:
        """Store jobs, the guards notwithstanding."""
        ...

    def clear(self) -> None:
        """Delete all jobs, likewise."""
        ...

    def put_beside(self, table: str, rows: Sequence[Sequence[object]]) -> None:
        """Fill one of the tables of BESIDE anew, likewise."""
        ...

    def forget_clock(self) -> None:
        """Take the times of the jobs as they are from now on: they are from elsewhere."""
        ...


class Ground(Protocol):
    """A store as the mover has it: open, whatever its note says."""

    @property
    def label(self) -> str:
        """What to call it, without a password."""
        ...

    def open(self) -> None:
        """Open it, though it may have been moved; make it if that was allowed."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

    def change(self) -> AbstractContextManager[Hand]:
        """Begin a transaction; commit at the end of the block."""
        ...

    def totals(self) -> Totals:
        """Count everything."""
        ...

    def batch(self, after: JobId) -> Batch:
        """Return the next jobs in the order of their ids; an empty batch at the end."""
        ...

    def beside(self, table: str) -> list[tuple[object, ...]]:
        """Return all of one of the tables of BESIDE."""
        ...

    def workers(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        ...

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> object:
        """Put the jobs of dead workers back in line."""
        ...


@runtime_checkable
class Lasting(Protocol):
    """A store that outlives the process: it has a schema, and its jobs can be moved."""

    @property
    def label(self) -> str:
        """What to call it, without a password."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

    def ground(self) -> Ground:
        """Return it as one end of a move."""
        ...

    def migrated(self) -> tuple[int, int]:
        """Bring the schema up to date; return its version before, and now."""
        ...

    def migration(self) -> str:
        """Return the SQL that would do it, "" if there is nothing to do. Changes nothing."""
        ...


# --- notes --------------------------------------------------------------------------------------

NOTE, TEXT, IDENTITY, NEXT_ID = "move", "move_text", "store_id", "next_id"


def note_of(hand: Hand) -> Note | None:
    """Return what the store knows of a move."""
    text = hand.get(NOTE)
    return None if text is None else msgspec.json.decode(text, type=Note)


def write(hand: Hand, note: Note, *, guarded: bool) -> None:
    """Write a note, and raise or lower the guards with it."""
    if not guarded:
        hand.lower_guards()
    hand.put(NOTE, msgspec.json.encode(note).decode())
    hand.put(TEXT, note.text() if guarded else None)
    if guarded:
        hand.raise_guards(note.text())


def erase(hand: Hand) -> None:
    """Take the note away, and the guards."""
    hand.lower_guards()
    hand.put(NOTE, None)
    hand.put(TEXT, None)


# The last job of the batch after an id: as many as fit, and one at least. By primary key.
BATCH_END = """
SELECT max(id) FROM (
    SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (
        SELECT id, coalesce({length}(payload), 0) + coalesce({length}(result), 0)
                 + coalesce((SELECT sum({length}(message) + {length}(traceback))
                               FROM {error} AS e WHERE e.job_id = j.id), 0) AS size
          FROM {job} AS j WHERE id > {value} ORDER BY id LIMIT {value}) AS sized) AS summed
 WHERE before < {value}
"""
