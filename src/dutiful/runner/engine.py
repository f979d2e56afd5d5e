"""What the front door needs of whatever runs its jobs: a Runner, or in a test what stands in for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from dutiful.config import Config
from dutiful.errors import StoreError
from dutiful.events import Events
from dutiful.registry import Registry
from dutiful.stopping import Deadline
from dutiful.store.committer import Committer
from dutiful.store.contract import Draft, Store
from dutiful.store.special.schedules import Declared


class Engine(Protocol):
    """One incarnation of a worker, from `start` to `stop`."""

    @property
    def finished(self) -> int:
        """How many attempts have ended."""
        ...

    def start(self) -> None:
        """Take jobs from now on."""
        ...

    def drain(self, deadline: Deadline) -> bool:
        """Run all that is ready; return whether nothing is left: else the time is up, or it was stopped."""
        ...

    def stop(self, deadline: Deadline) -> bool:
        """Take nothing more, and end; return whether all is over."""
        ...

    def when_over(self, then: Callable[[], None]) -> None:
        """After a stop that was not over: have `then` called when it is."""
        ...

    def trouble(self, error: StoreError) -> None:
        """The store failed; it goes on."""
        ...

    def nudge(self) -> None:
        """Something may be due that nobody announced."""
        ...

    def reread(self) -> None:
        """Something was paused or resumed, or a schedule changed."""
        ...

    def declare(self) -> None:
        """Write down the schedules that were declared since the start."""
        ...

    def runs_here(self) -> bool:
        """Whether this very thread is one of its own, which cannot wait for its end."""
        ...


MakeEngine: TypeAlias = Callable[
    [
        Store,
        Committer,
        Registry,
        Config,
        Events,
        Callable[[object, Mapping[str, Any]], Draft],
        Mapping[str, Declared],
        Sequence[Any],
    ],
    Engine,
]
