"""The front door's part for tests: another store, and something that runs its jobs in its Runner's place."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from dutiful.door import Door
from dutiful.errors import ConfigError
from dutiful.front.sender import Sender
from dutiful.front.stand_in import StandIn
from dutiful.runner.engine import Engine, MakeEngine
from dutiful.sending import Room
from dutiful.store.committer import Committer
from dutiful.store.contract import Store

if TYPE_CHECKING:
    import weakref

    from dutiful.async_edge import AsyncEdge
    from dutiful.front.base import Base
    from dutiful.stopping import Stopping


# All that changes hands: what a worker works with, and how far it has come with it.
Parts: TypeAlias = tuple[
    Store,
    Committer,
    Room,
    "AsyncEdge | None",
    Door,
    MakeEngine,
    StandIn | None,
    bool,
    "Stopping | None",
    "weakref.finalize[..., Base] | None",
]


class Replaceable(Sender):
    """What of a worker `dutiful.testing` replaces. Bounds on unfinished jobs do not hold then."""

    @property
    def name(self) -> str:
        """What it is called in logs, and in a job's history."""
        return self._config.name

    @property
    def stand_in(self) -> StandIn | None:
        """What has taken it over; None: nothing has."""
        return self._stand_in

    def take_over(self, stand_in: StandIn) -> Callable[[], None]:
        """
        Work with these parts from now on; return what gives back those that were there.

        Before it is called the worker has to be stopped.

        Raises:
            ConfigError: It runs; nothing was changed.
        """
        if self._runner is not None:
            raise ConfigError(
                f"worker {self._config.name!r} is started, on {self._store.label}; nothing was replaced. "
                "Override it before it is started, or stop() it first."
            )
        before = self._parts
        self._parts = (
            stand_in.store,
            stand_in.committer,
            Room(stand_in.committer, None),
            stand_in.edge,
            Door(self._config.name),
            stand_in.make_engine,
            stand_in,
            False,
            None,
            None,
        )
        self._committer.room_made = self._room.made

        def give_back() -> None:
            self._parts = before

        return give_back

    @property
    def _parts(self) -> Parts:
        return (
            self._store,
            self._committer,
            self._room,
            self._async,
            self._door,
            self._make_engine,
            self._stand_in,
            self._is_open,
            self._stopping,
            self._at_exit,
        )

    @_parts.setter
    def _parts(self, parts: Parts) -> None:
        (
            self._store,
            self._committer,
            self._room,
            self._async,
            self._door,
            self._make_engine,
            self._stand_in,
            self._is_open,
            self._stopping,
            self._at_exit,
        ) = parts

    def engine(self) -> Engine:
        """Return what would run its jobs."""
        return self._make_engine(
            self._store,
            self._committer,
            self._registry,
            self._config,
            self._events,
            self._draft,
            self._schedules,
            self._middleware,
        )
