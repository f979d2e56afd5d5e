"""What comes while a worker looks for the next due job counts as well as what the look has found."""

from collections.abc import Callable, Collection, Sequence

import pytest

from dutiful import Job, Worker
from dutiful.store.sqlite import SqliteStore
from tests.worker.tools import WAIT_S, background, result, until


class Slow(SqliteStore):
    """A store whose look at the next due time takes until `meanwhile` has been done."""

    meanwhile: Callable[[], object] | None = None

    def next_due_s(self, queues: Sequence[str], skip: Collection[str]) -> float | None:
        """Look, then let something happen before the answer is heard."""
        found = super().next_due_s(queues, skip)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            background(meanwhile).result(WAIT_S)
        return found


@pytest.mark.parametrize("delay_s", [0.05, 0])
def test_a_job_that_is_sent_during_a_look_runs_when_it_is_due(delay_s: float) -> None:
    store = Slow(":memory:")
    worker = Worker(store, handlers={"t": lambda payload: payload})
    sent: list[Job] = []
    with worker:
        store.meanwhile = lambda: sent.append(worker.send(1, task="t", delay=delay_s))
        worker.nudge()
        (job,) = until(lambda: sent)
        assert result(job) == 1


def test_a_job_that_is_run_again_during_a_look_runs_at_once() -> None:
    store = Slow(":memory:")
    worker = Worker(store, handlers={"t": lambda payload: payload})
    with worker:
        job = worker.send(1, task="t")
        result(job)
        store.meanwhile = lambda: worker.retry([job.id])
        worker.nudge()
        until(lambda: job.refresh().attempt == 2 and job.state == "completed")
