"""What the contract's tests share: hooks for the store under test, and short words for steps."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from dutiful.job import Ack, AttemptError, Claim, ErrorInfo, JobId, Record, State
from dutiful.store.contract import Draft, Outcome, Owner, Special, Store, Take, Work

QUEUE = "default"
OTHER = "other"
TASK = "task"
HOUR_S = 3600.0
BOOM = ErrorInfo("ValueError", "boom", "Traceback: boom")


class Hooks(ABC):
    """What a test of any store has to arrange."""

    @abstractmethod
    def pass_time(self, store: Store, seconds: float) -> None:
        """Let the store's clock go on by so much, at once."""

    @abstractmethod
    def write(self, connection: Any, name: str) -> None:
        """Write a row of the user's own with a connection from `transaction`."""

    @abstractmethod
    def written(self, store: Store) -> list[str]:
        """Return the names that `write` has put, as far as they are committed."""

    @abstractmethod
    def spoil(self, store: Store, job_id: JobId, payload: bytes, *, as_text: bool) -> None:
        """Overwrite a stored payload with bytes that no text has, as text or as a BLOB."""

    def wait_until_due(self, store: Store, *queues: str) -> None:
        """Let time pass until a pending job of the queues is due."""
        due_s = store.next_due_s(queues or (QUEUE,))
        assert due_s is not None
        self.pass_time(store, due_s + 0.001)  # a store's instants may be rounded to milliseconds


class Doors(Hooks):
    """What a test of a store that outlives its process has to arrange as well."""

    @abstractmethod
    def another(self, store: Store) -> Store:
        """Return a second open Store on the same jobs, as another process would have; the test closes it."""

    @abstractmethod
    def die(self, store: Store, owner: Owner) -> None:
        """Let the worker `owner` of this store die, as `kill -9` would."""

    def reopened(self, store: Store) -> Store:
        """Close the store, and return one that is open on the same jobs."""
        store.close()
        return self.another(store)


class Exploding:
    """Knows no task: asked for one, it fails, and with it the step that asked."""

    def __contains__(self, task: object) -> bool:
        """Fail."""
        raise RuntimeError("exploding")


def draft(
    *payloads: str,
    queue: str = QUEUE,
    task: str = TASK,
    priority: int = 0,
    delay_s: float | None = None,
    run_at: int | None = None,
    special: Special | None = None,
) -> Draft:
    """Return new jobs, one with payload `1` if nothing is said."""
    return Draft(task, queue, list(payloads or ("1",)), priority, delay_s, run_at, special)


def wish(owner: Owner, limit: int = 100, *, queues: Sequence[str] = (QUEUE,), **more: Any) -> Take:
    """Return a Take from the default queue."""
    return Take(owner, tuple(queues), limit, **more)


def step(store: Store, **wishes: Any) -> Outcome:
    """Do one step; return what it did."""
    outcome = Outcome()
    store.exchange(Work(**wishes), outcome)
    assert outcome.committed
    return outcome


def put(store: Store, *drafts: Draft, **wishes: Any) -> list[JobId]:
    """Store new jobs; return their ids."""
    outcome = step(store, drafts=drafts or (draft(),), **wishes)
    return [job_id for ids in outcome.stored for job_id in ids]


def take(store: Store, owner: Owner, limit: int = 100, **more: Any) -> list[Claim]:
    """Take due jobs; return the claims."""
    return step(store, take=wish(owner, limit, **more)).claims


def ids_of(claims: Sequence[Claim]) -> list[JobId]:
    """Return the claims' job ids, in order."""
    return [claim.id for claim in claims]


def ack(claim: Claim, state: State = State.COMPLETED, **more: Any) -> Ack:
    """Return an Ack for a claim; the counts stay as they are."""
    usual: dict[str, Any] = {
        "failures": claim.failures,
        "crashes": claim.crashes,
        "special": claim.extra is not None,
    }
    return Ack(claim.id, claim.attempt, state, **{**usual, **more})


def one(store: Store, job_id: JobId) -> Record:
    """Return the job, which must be there."""
    (record,) = store.get([job_id])
    return record


def state_of(store: Store, job_id: JobId) -> State:
    """Return the job's state."""
    return one(store, job_id).state


def suspects(store: Store, owner: Owner, count: int, *, queue: str = QUEUE) -> list[JobId]:
    """Store jobs that have crashed once each."""
    ids = put(store, draft(*map(str, range(count)), queue=queue))
    claims = take(store, owner, count, queues=(queue,))
    assert ids_of(claims) == ids
    step(store, acks=[ack(claim, State.PENDING, crashes=1) for claim in claims])
    return ids


def brief(errors: Sequence[AttemptError]) -> list[tuple[int, str, str, str]]:
    """Return of each error what does not depend on the store's clock and name."""
    return [(error.attempt, error.type, error.message, error.traceback) for error in errors]
