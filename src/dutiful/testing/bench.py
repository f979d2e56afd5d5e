"""Workers taken over for a test: their jobs in a store of the test's own, run when the test says so."""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from dutiful import Worker
from dutiful.config import Config
from dutiful.errors import ConfigError, JobTimeout
from dutiful.front.base import store_for
from dutiful.job import FINISHED, JobId
from dutiful.runner.runner import Runner
from dutiful.stopping import Deadline
from dutiful.store.clock import SYSTEM
from dutiful.store.committer import Committer
from dutiful.store.contract import Store
from dutiful.store.sqlite import MEMORY
from dutiful.testing.clock import Clock
from dutiful.testing.committing import Clerk, Edge
from dutiful.testing.hand import Errors, Hand
from dutiful.testing.scratch import Scratch

if TYPE_CHECKING:
    import os

    from dutiful.async_edge import AsyncEdge
    from dutiful.runner.engine import MakeEngine

Mode: TypeAlias = Literal["manual", "inline", "threads"]


class Bench:
    """
    Workers on one store, under one clock.

    Attributes:
        mode, errors: See `override`; they may be changed at any time, but not from or to "threads".
    """

    def __init__(
        self,
        mode: Mode,
        errors: Errors,
        clock: Clock,
        store: "str | os.PathLike[str] | Store",
        *,
        worker: str,
    ) -> None:
        self.mode: Mode = _checked("mode", mode, get_args(Mode))
        self.errors: Errors = _checked("errors", errors, get_args(Errors))
        self.clock = clock
        self.seats: list[Seat] = []
        self._given = store
        self._scratch = self._made(worker)

    def _made(self, worker: str) -> Scratch | None:
        path = "://" if isinstance(self._given, Store) else str(self._given).removeprefix("sqlite:///")
        if "://" in path:
            return None
        return Scratch(path, SYSTEM if self.mode == "threads" else self.clock, worker)

    @property
    def is_private(self) -> bool:
        """Whether nobody else could run its jobs."""
        return self._scratch is not None and self._scratch.label == MEMORY

    def store(self) -> Store:
        """Return the store for a worker."""
        return self._scratch or store_for(self._given, Config(), create=True)

    def seat(self, worker: Worker) -> "Seat":
        """Take a worker over."""
        seat = Seat(self, worker)
        self.seats.append(seat)
        return seat

    def end(self) -> None:
        """Close the store."""
        if self._scratch is not None:
            self._scratch.end()

    # --- what is sent, and waited for ---------------------------------------------------------------

    def sent(self, stored: Sequence[range]) -> None:
        """Jobs were stored: with "inline", run them."""
        if self.mode != "inline" or self.runs_here():
            return  # what a handler sends comes when it has ended
        self.run_ready()
        for seat in self.seats:
            seat.hand.wait_for_others(job_id for ids in stored for job_id in ids)

    def awaited(self, worker: Worker, job_id: JobId) -> None:
        """
        Run what is ready until this job has finished, as nobody else will.

        Raises:
            JobTimeout: It does not finish now.
        """
        if self.mode == "threads":
            return

        def is_finished() -> bool:
            record = worker.job(job_id).refresh()
            return record.state in FINISHED

        self.run_ready(is_finished)
        for seat in self.seats:
            seat.hand.wait_for_others([job_id])
        if self.is_private and not is_finished():
            timeout = JobTimeout(job_id, 0.0)
            timeout.add_note(_NOBODY)
            raise timeout

    # --- for the clock, and drain ----------------------------------------------------------------------

    def run_ready(self, until: Callable[[], bool] | None = None) -> int:
        """Run all that is ready, of all workers here; return how many attempts that took."""
        total = 0
        while True:
            before = sum(seat.hand.finished for seat in self.seats)
            for seat in self.seats:
                seat.hand.run_ready(until=until)
            some = sum(seat.hand.finished for seat in self.seats) - before
            total += some
            if not some or len(self.seats) == 1 or (until is not None and until()):
                return total

    def next_at(self) -> int | None:
        found = [next_s for seat in self.seats if (next_s := seat.hand.next_s()) is not None]
        return self.clock.wall_ms() + max(1, round(1000 * min(found))) if found else None

    def refusal(self) -> str | None:
        if self.mode == "threads":
            return 'with mode="threads" workers wait in real time'
        if self._scratch is None:
            return "the store is a server, or another that keeps its own time"
        return None

    def runs_here(self) -> bool:
        return any(seat.is_hand_made and seat.hand.runs_here() for seat in self.seats)


class Seat:
    """What takes one worker over (see `front.replacing.StandIn`)."""

    def __init__(self, bench: Bench, worker: Worker) -> None:
        self._bench = bench
        self._worker = worker
        self._hand: Hand | None = None
        self.store: Store = bench.store()
        self.committer: Committer
        self.edge: AsyncEdge | None = None
        self.make_engine: MakeEngine = self._engine
        if bench.mode == "threads":
            self.make_engine = Runner
            self.committer = Committer(self.store, buffer=None, keep_completed=True)
        else:
            self.committer = Clerk(self.store, bench.sent)
            self.edge = Edge(self.committer, bench.sent, lambda: bench.mode == "inline")

    @property
    def bench(self) -> Bench:
        return self._bench

    @property
    def is_hand_made(self) -> bool:
        """Whether it has run anything."""
        return self._hand is not None

    @property
    def hand(self) -> Hand:
        """What runs the worker's jobs; its store is open then."""
        self._worker.opened()
        self._worker.engine()
        assert self._hand is not None, "the engine has just been made"
        return self._hand

    def _engine(self, *parts: Any) -> Hand:
        if self._hand is None:
            self._hand = Hand(*parts, errors=lambda: self._bench.errors)
        return self._hand

    def awaited(self, job_id: JobId) -> None:
        self._bench.awaited(self._worker, job_id)

    def end(self) -> None:
        """Stop the worker, whatever it is doing."""
        if self._hand is not None:
            self._hand.stop(Deadline(0))
        self._worker.stop(0, drain=False)


@contextmanager
def override(
    *workers: Worker,
    mode: Mode = "manual",
    errors: Errors = "raise",
    store: "str | os.PathLike[str] | Store" = MEMORY,
    clock: Clock | None = None,
) -> Generator[Clock]:
    """
    Give workers a store of the test's own, and run their jobs when the test says so; give back in the end.

    The store is empty and in memory. Several workers share it. Within the block `start()` and `stop()` work
    as ever, but no thread is started.

    Args:
        *workers: Not started.
        mode: "manual": jobs are run by `worker.drain()`, by `clock.advance()`, or by waiting for one.
            "inline": each send also runs what is ready before it returns. "threads": as in real life, by
            threads of a started worker, and in real time; only the store is the test's.
        errors: "raise": what a handler raises comes out of the send or drain that ran it.
            "keep": it is a failure of the job, as in real life.
        store: Where the jobs are, if not in memory: a path, a URL or a Store, such as the test's own
            database, in which there are the app's tables too. Nothing is removed from it in the end.
        clock: The workers' time; default: one that stands still at now. Not for PostgreSQL.

    Yields:
        The clock.

    Raises:
        ConfigError: A worker is started, or an argument is wrong; nothing was replaced.
    """
    if not workers:
        raise ConfigError("override() was given no worker; nothing was replaced. Name those of your app.")
    clock = clock or Clock()
    bench = Bench(mode, errors, clock, store, worker=workers[0].name)
    with ExitStack() as undo:
        undo.callback(bench.end)
        for worker in workers:
            seat = bench.seat(worker)
            undo.callback(worker.take_over(seat))
            undo.callback(seat.end)
        clock.attach(bench)
        undo.callback(clock.detach, bench)
        yield clock


@contextmanager
def inline(*workers: Worker, errors: Errors = "raise", clock: Clock | None = None) -> Generator[Clock]:
    """
    Have each send run its job, in the thread that sends, before it returns.

    `override(…, mode="inline")`; within an `override` of these workers, this mode for the block.

    Args:
        *workers: As for `override`, like the others.
        errors: What becomes of a handler's exceptions.
        clock: The workers' time.

    Raises:
        ConfigError: As `override`.
    """
    bench = _bench_of(workers)
    if bench is None or clock is not None:
        with override(*workers, mode="inline", errors=errors, clock=clock) as made:
            yield made
        return
    before = bench.mode, bench.errors
    bench.mode, bench.errors = "inline", _checked("errors", errors, get_args(Errors))
    try:
        yield bench.clock
    finally:
        bench.mode, bench.errors = before


def _bench_of(workers: Collection[Worker]) -> Bench | None:
    """Return what all of them have been taken over by, if that runs their jobs by hand."""
    benches = {seat.bench for worker in workers if isinstance(seat := worker.stand_in, Seat)}
    if len(benches) != 1 or any(worker.stand_in is None for worker in workers):
        return None
    (bench,) = benches
    return None if bench.mode == "threads" else bench


def _checked(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ConfigError(
            f"{name} is {value!r}; nothing was replaced. It must be one of {', '.join(map(repr, allowed))}."
        )
    return value


_NOBODY = (
    "In this test jobs are run by hand; all that was ready was run, and this one is not finished: it waits "
    'for its time, or for another job. Move the clock (clock.advance), or override with mode="threads".'
)
