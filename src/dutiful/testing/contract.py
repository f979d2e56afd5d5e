"""
What every Store must do: the docstrings of `dutiful.store.contract`, sentence by sentence.

Subclass it, give it a fixture, and run it with pytest:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path / "jobs")
            store.open()
            yield store
            store.close()

The other hooks (see `Hooks`) are for what a store alone can arrange, such as a worker's
death or damage to a stored payload. Tests whose hook is not there are skipped, and say so.
"""

from dutiful.testing.claims import ClaimContract
from dutiful.testing.drafts import DraftContract
from dutiful.testing.jobs import JobContract
from dutiful.testing.steps import StepContract
from dutiful.testing.workers import WorkerContract


class StoreContract(StepContract, ClaimContract, DraftContract, JobContract, WorkerContract):
    """The one suite for every store, ours or a stranger's."""
