"""
What a store must do. The docstrings are the law; `dutiful.testing.StoreContract` checks it.

A store keeps jobs, and decides nothing about them: what becomes of a job is an `Ack`
made by `core.lifecycle`. It owns the clock: callers speak in delays, and instants in
records are its own, in milliseconds since 1970 UTC.

`exchange` is the heart: one atomic, durable step that writes what attempts came to,
takes due jobs, and stores new ones. The committer gathers what many threads want into
one such step. All other methods are off the hot path.
"""

from collections.abc import Callable, Collection, Container, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from msgspec import Struct, field

from dutiful.config import Keep
from dutiful.core.turns import Turns
from dutiful.job import Ack, Claim, JobId, Record, State

if TYPE_CHECKING:  # 3 ms, for those who use it
    from dutiful.store.borrowed.completing import Completion
    from dutiful.store.borrowed.connection import Borrowed, Steps
    from dutiful.store.ear import Ear

Owner = int


class Unique(Struct, frozen=True):
    """
    At most one job with this `key`: which states of an earlier one count, and for how long.

    `on_conflict`: "return" the job that is there, "replace" its payload, or also its time
    ("reschedule"), if it still waits, or "raise".
    """

    key: str
    states: tuple[State, ...]
    within_s: float | None = None
    on_conflict: Literal["return", "replace", "reschedule", "raise"] = "return"


class Special(Struct, frozen=True):
    """
    What new jobs ask for beyond task, queue, priority and time. Most ask for nothing: then there is none.

    Args:
        expires_s, expires_at: They are dead if not started by then (seconds from now, or ms).
        deadline_s: All attempts together end within so many seconds from now.
        key: They run one at a time, in the order sent, with all others of that key.
        key_skips: While one waits for a retry, the next of its key may run.
        pool: The name of a limit that they share with others: at most `pool_size` of them run at once
            (0: no bound), and at most `per_s` begin a second (0: no bound), smoothly but for `burst`.
        unique: See Unique. A draft that has it holds one payload.
        after: They wait until these jobs have finished.
        on_dead: What becomes of them when one of those did not complete.
        headers: What travels with the job: trace context and the like.
        gathers: It waits for the members of a group, which come after it, until that is closed.
        member_of: The job that waits for them as the members of its group.
        closes: Nothing is stored: the group that this job waits for is complete. The rest is that job's.

    In `after`, `member_of` and `closes`, -n is the job of the draft n places before this one in its step.
    """

    expires_s: float | None = None
    expires_at: int | None = None
    deadline_s: float | None = None
    key: str | None = None
    key_skips: bool = False
    pool: str | None = None
    pool_size: int = 0
    per_s: float = 0.0
    burst: int = 1
    unique: Unique | None = None
    after: tuple[JobId, ...] = ()
    on_dead: Literal["cancel", "run", "wait"] = "cancel"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    gathers: bool = False
    member_of: JobId = 0
    closes: JobId = 0


class Draft(Struct, frozen=True):
    """
    New jobs that differ in their payload alone.

    At most one of `delay_s` and `run_at` (an instant, ms) is given; with neither the
    jobs are due at once. With `only_if`, the (id, attempt) of an ack of the same step, they are
    stored if that applies, and left out if it is late. If it is `bound`, it is stored together with
    the draft before it, all of both, or not at all.
    """

    task: str
    queue: str
    payloads: Sequence[str]
    priority: int = 0
    delay_s: float | None = None
    run_at: int | None = None
    special: Special | None = None
    only_if: tuple[JobId, int] | None = None
    bound: bool = False

    @property
    def due_at_once(self) -> bool:
        """Whether these jobs may go to a handler as soon as they are stored."""
        return self.delay_s is None and self.run_at is None


class Aged(Struct, frozen=True):
    """
    Due jobs of these queues and priorities that have been due since `till` (ms): they come first.

    At most `limit` of them; with turns, of each queue.
    """

    levels: tuple[tuple[str, int], ...]  # (queue, priority)
    till: int
    limit: int


class Take(Struct, frozen=True):
    """
    What a worker wants to take: at most `limit` due jobs, at most `suspects` of them suspects.

    Jobs of a task that is not in `known` are left for others; None knows every task. Those
    in `skip` are passed over without a look. With `handoff`, new jobs of the same step that
    are due at once and for which the limit has room are stored as claimed, if nothing that
    was due before them is left waiting.

    All queues are one line, by priority; with `turns`, each is a line of its own, and they say from
    which a job is taken next. `aged` may let some jobs come before those.
    """

    owner: Owner
    queues: tuple[str, ...]
    limit: int
    suspects: int = 0
    known: Container[str] | None = None
    skip: Collection[str] = ()
    look: bool = True  # False: nothing is waiting, as far as the caller knows
    handoff: bool = False
    turns: Turns | None = None
    aged: Aged | None = None


class Work(Struct):
    """One step's wishes. All of it happens, or none."""

    acks: Sequence[Ack] = ()
    completed: Sequence[tuple[JobId, int]] = ()  # (id, attempt) that ended well, without result
    take: Take | None = None
    drafts: Sequence[Draft] = ()
    exempt: int = 0  # so many drafts, the first ones, are stored whatever `buffer` says
    buffer: int | None = None
    keep_completed: bool = True


class Outcome(Struct):
    """
    What a step did. `committed` is the truth even if `exchange` raises; after StoreUnknown, `claims` are
    what it has taken if it was done.

    `stored` has for each draft the ids given, in order; with a `buffer` it may be
    shorter than the draft's payloads: the rest found no room.
    """

    committed: bool = False
    late: list[tuple[JobId, int]] = []
    claims: list[Claim] = []
    stored: list[range] = []
    unknown: set[str] = set()  # tasks that were met and are not in `known`
    drained: bool = False  # nothing due that is known was left waiting in the queues of `take`
    left_pending: bool = False  # new jobs that are due at once were left for a claim
    has_rung: bool = False  # the step has told other processes already, so `ring` need not
    next_delay_s: float | None = None  # of the new jobs that are not due yet, the soonest
    aside_s: float | None = None  # the same of those that a key or a limit lets through when they are due
    left_ends: bool = False  # so many wait for a job that has ended that the rest is told later (clockwork)
    # The drafts of which a job was there already (Unique), or whose group takes no more.
    found: set[int] = set()
    turns: Turns | None = None  # those of `take`, as they are after it
    aged: int = 0  # how many were taken because they are old


class WorkerInfo(Struct, frozen=True):
    """
    A worker in the store, as people and other workers see it.

    `is_alive` is told by the operating system: whether somebody holds the worker's lock.
    """

    owner: Owner
    name: str
    host: str
    pid: int
    token: str
    started_at: int
    seen_at: int
    queues: tuple[str, ...]
    concurrency: int
    is_alive: bool = True


class Pulse(Struct, frozen=True):
    """
    How a worker stands with its store, as far as is known without asking.

    The defaults are those of a store that a worker cannot be cut off from, and that has to be
    asked each time.
    """

    dead: bool | None = None  # whether a worker may be dead: `rescue`; None: not known
    cancelled: bool | None = (
        None  # whether a job that runs here was asked to stop: `cancelled`; None: likewise
    )
    incarnation: int = 1  # rises when the worker had to come back, and may have lost jobs: `held`
    may_start: bool = True  # False: nothing was heard of the store for half a lease
    may_run: bool = True  # False: nor for a whole lease; others may take over
    problem: str | None = None  # why the store cannot be reached right now
    is_polling: bool = False  # the worker cannot be woken, nor be seen to die: it looks, and is waited for


class Query(Struct, frozen=True):
    """
    Which jobs to list: newest id first, below `before`, at most `limit`.

    `task` "a" stands for "a" and all that begins with "a@" or "a#"; "a@2" for that and "a@2#…".
    """

    states: tuple[State, ...] = ()
    task: str | None = None
    queue: str | None = None
    before: JobId | None = None
    limit: int = 100


class Counts(Struct, frozen=True):
    """
    How many jobs there are: by state, and of those pending how many are due, and how many parked.

    Parked are jobs of tasks that no worker knew; they are looked at again when they fall due.
    """

    by_state: dict[State, int]
    due: int
    parked: int
    oldest_due_s: float | None


Edit = Literal["retry", "cancel", "delete"]


class Sql(Protocol):
    """
    A transaction of the store's, in SQL that every store understands which speaks SQL.

    A statement has `?` for each value, and these names in braces: the tables {job}, {error},
    {worker}, {meta}, {after}, {pool}, {step}, {event}, {schedule} and {pause}; {ids} and {names}, a
    list of numbers or texts given as one value, as in `id IN {ids}`; {texts}, as a table with the columns
    `at`, from 0, and `value`, a list of texts given as its JSON; {lock}, which keeps the rows that were
    read from changing until the transaction ends.
    """

    @property
    def now(self) -> int:
        """The store's clock, in ms."""
        ...

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query, or of RETURNING."""
        ...

    def change(self, statement: str, *values: object) -> int:
        """Return how many rows it changed."""
        ...

    def hold(self, *names: str, rank: int = 0) -> None:
        """
        Wait until no other transaction holds one of these names, and hold them until this one ends.

        So that nobody waits in a circle, a transaction holds names once for each rank (0 to 3), the
        lower first.
        """
        ...

    def new_ids(self, count: int) -> JobId:
        """Take `count` ids in a row for new jobs; return the first."""
        ...


@runtime_checkable
class Store(Protocol):
    """Where jobs are kept. Every method may be called from any thread."""

    @property
    def label(self) -> str:
        """What to call this store in messages: no password in it."""
        ...

    def open(self) -> None:
        """
        Open or create the store, and bring its schema up to date. Repeating is harmless.

        Raises:
            StoreError: One of its subclasses; nothing was changed.
        """
        ...

    def close(self) -> None:
        """Give back all connections, files and locks. Repeating is harmless."""
        ...

    def exchange(self, work: Work, outcome: Outcome) -> None:
        """
        Do one step, atomically and durably: first the acks, then the take, then the drafts.

        An ack applies only while its `(id, attempt)` is running; the others are `late`
        and change nothing. Claims come most urgent first: priority (higher first), then
        time, then id; each raises the job's attempt. No two callers get the same attempt.
        Suspects come first. A job that was asked to stop (`edit`) and would be tried again
        is cancelled instead.

        Raises:
            StoreError: `outcome.committed` tells whether the step was done.
            StoreUnknown: Nobody could say in time; `committed` is False, and it may have been done.
        """
        ...

    def insert_in(self, transaction: Any, drafts: Sequence[Draft]) -> list[range]:
        """
        Store new jobs inside the caller's own open transaction: they exist if it commits.

        Raises:
            ConfigError: The connection is not one to this store, is in no transaction, or is
                asynchronous.
            StoreError: The database refused it; the transaction may have to be rolled back.
        """
        ...

    def insertion(self, drafts: Sequence[Draft]) -> "Callable[[Borrowed], Steps[list[range]]]":
        """
        Return what `insert_in` runs on the caller's connection, for one that is awaited.

        May block, for what it needs beforehand.
        """
        ...

    def transaction(self, claim: Claim, *others: Claim) -> AbstractContextManager[Any]:
        """
        Open a write transaction in which the job's completion commits with the caller's writes.

        With `others`, those of a batch: all are completed, or none.

        Raises:
            LeaseLost: Another attempt owns one of the jobs; nothing was written.
        """
        ...

    def completion(self, claim: Claim, *others: Claim) -> "Completion":
        """Return how to complete the jobs in their handler's own transaction, for `ctx.transaction(own)`."""
        ...

    def join(
        self, name: str, queues: Sequence[str], concurrency: int, tasks: Sequence[str] | None = None
    ) -> Owner:
        """
        Become a worker of this store: from now on `rescue` elsewhere can see it live or die.

        `tasks` are those that it can run; None: any.
        """
        ...

    def leave(self, owner: Owner) -> None:
        """Stop being a worker. Jobs that it still owns are given back, as at a crash of nobody's fault."""
        ...

    def mark(self, owner: Owner) -> "Marks":
        """Return where to mark which jobs run, so that a crash shows which job may be guilty."""
        ...

    def held_fd(self, owner: Owner) -> int | None:
        """Return the descriptor that is held while the worker lives, for its child processes to hold too."""
        ...

    def beat(self, owner: Owner, tasks: Sequence[str] | None = None) -> None:
        """Say that the worker lives, and which tasks it can run by now."""
        ...

    def pulse(self, owner: Owner) -> Pulse:
        """Return how the worker stands, from memory."""
        ...

    def held(self, owner: Owner) -> set[tuple[JobId, int]]:
        """Return the running attempts, (id, attempt), that are this worker's."""
        ...

    def cancelled(self, owner: Owner) -> list[JobId]:
        """Return the running jobs of this worker whose cancellation was asked for."""
        ...

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> list[tuple[WorkerInfo, list[Ack]]]:
        """
        Put the jobs of dead workers back in line, each worker's once, whoever comes first.

        `decide` gets each job and whether it was running (rather than waiting in memory).
        """
        ...

    def workers(self) -> list[WorkerInfo]:
        """Return the workers that are registered, dead ones not yet rescued included."""
        ...

    def park(
        self,
        tasks: Collection[str],
        queues: Sequence[str],
        *,
        after_s: float,
        park_s: float,
        listed: bool = False,
    ) -> dict[str, int]:
        """
        Put jobs of these tasks out of the way: due again in `park_s`, pending, no attempt counted.

        Some of those that have been due for `after_s`, from the head of the line; unless `listed`,
        only of tasks that no registered worker of these queues lists. Returns how many of each
        task; none: nothing of them is in the way.
        """
        ...

    def unpark(self, known: Container[str] | None) -> int:
        """Make the parked jobs of known tasks due again at their old place; None knows every task."""
        ...

    def get(self, ids: Sequence[JobId]) -> list[Record]:
        """Return the jobs that exist among `ids`, with their error history, in that order."""
        ...

    def find(self, query: Query) -> list[Record]:
        """Return the jobs that fit, without their errors, newest first."""
        ...

    def counts(self) -> Counts:
        """Count the jobs by state."""
        ...

    def edit(self, ids: Sequence[JobId], edit: Edit) -> list[JobId]:
        """
        Retry, cancel or delete jobs; return those for which it was done.

        retry: dead, cancelled or completed → pending, due now, failures and crashes at 0.
        cancel: pending → cancelled at once; running → its worker is asked (`beat`).
        delete: any that is not running.
        """
        ...

    def prune(self, keep: Keep, *, limit: int) -> int:
        """Delete up to `limit` completed and cancelled jobs beyond what `keep` allows; return how many."""
        ...

    def unfinished(self) -> int:
        """Count the jobs that are pending or running."""
        ...

    def next_due_s(self, queues: Sequence[str], skip: Collection[str] = ()) -> float | None:
        """
        Return the seconds until the next pending job of these queues is due (0: now); None: none.

        Jobs of the tasks in `skip` do not count.
        """
        ...

    def changed(self) -> bool:
        """Whether anyone else has committed since the last call. Costs microseconds."""
        ...

    def ring(self) -> None:
        """Wake the workers of other processes: there is something due."""
        ...

    def doorbell(self) -> int | None:
        """Return a file descriptor that becomes readable when `ring` is called elsewhere."""
        ...

    def changes(self) -> int | None:
        """
        Return a file descriptor that becomes readable when anybody may have committed, us included.

        None if there is none: then `changed` is asked often.
        """
        ...

    def hush(self) -> None:
        """Take the rings that came in, so that the doorbell is quiet again."""
        ...

    def sql(self) -> AbstractContextManager[Sql]:
        """
        Open a write transaction for what is off the hot path: schedules, steps, pauses and the like.

        It commits when the block ends, and rolls back when it raises.

        Raises:
            StoreError: Nothing was changed.
        """
        ...

    def sql_look(self) -> AbstractContextManager[Sql]:
        """Give a way to read, and read only."""
        ...

    def ear(self) -> "Ear | None":
        """Return a way to hear that jobs have finished elsewhere; None if there is none, or no elsewhere."""
        ...

    def is_in_transaction_here(self) -> bool:
        """Whether the caller is inside `transaction`, so that another write would wait for itself."""
        ...

    def tidy(self) -> None:
        """Give back disk space and shorten logs, a few milliseconds at a time."""
        ...


class Marks(Protocol):
    """Which jobs a worker runs right now, where it outlives the process (see `Store.mark`)."""

    def __setitem__(self, slot: int, job_id: JobId, /) -> None:
        """Say that the handler in `slot` runs `job_id`; 0 for none."""
        ...
