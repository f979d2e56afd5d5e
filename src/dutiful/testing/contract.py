"""
What every Store must do: the docstrings of `dutiful.store.contract`, sentence by sentence.

Subclass what applies, give it a fixture and the hooks (see `Hooks`), and run it with pytest:

    class TestMyStore(StoreContract, DurableContract):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path / "jobs")
            store.open()
            yield store
            store.close()

        def another(self, store):
            ...

`StoreContract` is for every store, one in memory too. The others are for what a store may have
besides: jobs that outlive the process (`DurableContract`), a database that it shares with its
user (`UsersTransactionContract`), a doorbell (`DoorbellContract`). No test is skipped: what is
inherited is checked, and a hook that is missing is an error.
"""

from dutiful.testing.claims import ClaimContract
from dutiful.testing.drafts import DraftContract, DurableDrafts, UsersTransactionContract
from dutiful.testing.jobs import JobContract
from dutiful.testing.payloads import PayloadContract
from dutiful.testing.periodic import DurableSchedules
from dutiful.testing.special import DurableKeys, SpecialContract
from dutiful.testing.steps import DurableSteps, StepContract
from dutiful.testing.turns import TurnContract
from dutiful.testing.workers import DoorbellContract, DurableWorkers, WorkerContract

__all__ = [
    "DoorbellContract",
    "DurableContract",
    "SpecialContract",
    "StoreContract",
    "UsersTransactionContract",
]


class StoreContract(
    StepContract, ClaimContract, TurnContract, DraftContract, JobContract, PayloadContract, WorkerContract
):
    """The one suite for every store, ours or a stranger's."""


class DurableContract(DurableSteps, DurableDrafts, DurableWorkers, DurableSchedules, DurableKeys):
    """For a store whose jobs outlive its process, and that several processes share."""
