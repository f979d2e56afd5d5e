"""What is done with whole stores: bringing their schema up to date, and moving all jobs to another."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager

from msgspec import Struct

from dutiful.config import Config
from dutiful.core.lifecycle import after
from dutiful.errors import ConfigError
from dutiful.front.base import store_for
from dutiful.job import Ack, Claim, Crashed, ErrorInfo, Interrupted, State
from dutiful.store.mover import Mover
from dutiful.store.moving import Ground, Lasting
from dutiful.store.sqlite import SqliteStore

StoreName = str | os.PathLike[str]
_NAME = "dutiful-move"
_NO_LIMIT = 2**31 - 1  # how often its process may die is the next worker's to judge


class Migrated(Struct, frozen=True):
    """A schema's version before and after `migrate`; 0 if there was none. `store` has no password in it."""

    store: str
    before: int
    after: int


class Moved(Struct, frozen=True):
    """
    What `move` came to.

    Attributes:
        source, target: The stores, without passwords.
        by_state: How many jobs of each state were moved.
        errors: How many errors in their history.
        damaged: Payloads and results that were no text, and could not be stored in the target.
        was_done: Whether the move had been finished before.
    """

    source: str
    target: str
    by_state: dict[State, int]
    errors: int
    damaged: int
    was_done: bool

    @property
    def jobs(self) -> int:
        """How many jobs were moved."""
        return sum(self.by_state.values())


def migrate(store: StoreName) -> Migrated:
    """
    Make a store's tables, or bring them up to date, as a worker's start does if it may.

    Raises:
        StoreError: Nothing was changed.
    """
    with _used(store, create=True) as opened:
        before, now = opened.migrated()
        return Migrated(opened.label, before, now)


def migration_sql(store: StoreName) -> str:
    """Return the SQL with which `migrate` would do it, "" if there is nothing to do. Changes nothing."""
    with _used(store, create=True) as opened:
        return opened.migration()


def move(
    source: StoreName, target: StoreName, *, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Moved:
    """
    Move all jobs to another store, with their ids, states, results and error history.

    No worker may run on either. It may be interrupted anywhere and repeated: a job is in charge of one
    store at a time, or of none while it is not finished. Afterwards the source refuses everything, and
    says where the jobs are.

    Args:
        source: Where they are.
        target: A store without jobs; made if it is not there.
        progress: Is told how many jobs of how many are there.

    Raises:
        StoreError: It could not be, or is not finished; the text says what is in charge.
        ConfigError: Jobs in memory cannot be moved, nor a store to itself.
    """
    with _ground(source, create=False) as from_, _ground(target, create=True) as to:
        if from_.label == to.label:
            raise ConfigError(
                f"{to.label} is source and target at once; nothing was changed. Name another target."
            )
        before, now, was_done = Mover(from_, to, decide=_after_death, tell=progress).run()
        damaged = 0 if was_done else before.texts - now.texts
        return Moved(from_.label, to.label, before.by_state, before.errors, damaged, was_done)


def give_up_move(source: StoreName) -> bool:
    """
    Put the source of an unfinished move in charge again; return whether there was such a move.

    Raises:
        StoreMoved: It is past that: its jobs are in charge of the target.
    """
    with _ground(source, create=False) as ground:
        ground.open()
        return Mover.give_up(ground)


def _after_death(claim: Claim, was_running: bool) -> Ack:
    error = ErrorInfo("WorkerDied", "worker died while running the job: found when its store was moved")
    result = Crashed(error) if was_running else Interrupted()
    return after(claim, result, Config().retry, _NO_LIMIT, chance=0.0)


@contextmanager
def _used(name: StoreName, *, create: bool) -> Generator[Lasting]:
    store = store_for(name, Config(name=_NAME), create=create)
    if not isinstance(store, Lasting) or (isinstance(store, SqliteStore) and store.in_memory):
        raise ConfigError(
            f"{name} does not outlive its process; nothing was changed. Name a file or a server."
        )
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _ground(name: StoreName, *, create: bool) -> Generator[Ground]:
    with _used(name, create=create) as store:
        ground = store.ground()
        try:
            yield ground
        finally:
            ground.close()
