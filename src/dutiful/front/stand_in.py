"""What may stand in for the parts behind a worker's front door, in a test."""

from typing import TYPE_CHECKING, Protocol

from dutiful.job import JobId
from dutiful.runner.engine import MakeEngine
from dutiful.store.committer import Committer
from dutiful.store.contract import Store

if TYPE_CHECKING:
    from dutiful.async_edge import AsyncEdge


class StandIn(Protocol):
    """
    What takes a worker over (see `dutiful.testing.override`).

    `edge` is the way in for coroutines, None for the usual one.
    """

    store: Store
    committer: Committer
    make_engine: MakeEngine
    edge: "AsyncEdge | None"

    def awaited(self, job_id: JobId) -> None:
        """Somebody is about to wait for this job."""
        ...
