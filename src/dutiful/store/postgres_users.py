"""What a PostgreSQL store does in its user's own transaction (see borrowed/connection.py)."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dutiful.errors import ConfigError, LeaseLost, StoreError
from dutiful.job import Claim, JobId
from dutiful.store import moving
from dutiful.store.borrowed.connection import Borrowed, Statement, Steps
from dutiful.store.contract import Draft
from dutiful.store.postgres_access import Access
from dutiful.store.postgres_bell import DUE
from dutiful.store.postgres_step import NOW

# Which server and database a connection leads to, whatever address or pooler it took; and whether our
# tables are there as its role sees them.
_PLACE = """
SELECT oid::bigint, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
       to_regclass({job}) IS NOT NULL
  FROM pg_database WHERE datname = current_database()
"""
# Values by position, each with its type: every driver can bind these. One statement for any number.
_INSERT = """
INSERT INTO {schema}job (id, state, queue, task, priority, due_at, due_fixed, created_at, payload)
SELECT %s::bigint + at - 1, 'pending', %s::text, %s::text, %s::integer,
       coalesce(%s::bigint, now + %s::bigint), %s::boolean, now, payload
  FROM (SELECT {now} AS now) AS clock, unnest(%s::text[]) WITH ORDINALITY AS new (payload, at)
"""
_OWNS = "SELECT 1 FROM {schema}job WHERE id = %s::bigint AND attempt = %s::integer AND state = 'running'"
_COMPLETE = """
UPDATE {schema}job SET state = 'completed', owner = NULL, cancel_at = NULL, finished_at = {now},
       held = CASE WHEN extra IS NOT NULL OR followed THEN 'end' END
 WHERE id = %s::bigint AND attempt = %s::integer AND state = 'running'
RETURNING id
"""
_NOTIFY = "SELECT pg_notify(%s::text, %s::text)"
# PostgreSQL takes one lock for all that notify, from then until their commit is on disk. So not with each of
# a burst: whoever is left out is seen at the next of these, or by the workers' pulse.
_NOTIFY_EVERY_S = 0.1


class Users:
    """Statements for users' transactions on one store."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._insert = _INSERT.format(schema=access.schema, now=NOW)
        self._place = _PLACE.format(job=f"'{access.schema}job'")
        self._owns = _OWNS.format(schema=access.schema)
        self._complete = _COMPLETE.format(schema=access.schema, now=NOW)
        self._here: tuple[Any, ...] | None = None
        self._notified_at = float("-inf")

    def insertion(
        self, borrowed: Borrowed, firsts: Sequence[JobId], drafts: Sequence[Draft]
    ) -> Steps[list[range]]:
        """Store new jobs with the ids from `firsts`, which are given for good; return the ids."""
        yield from self.checked(borrowed)
        stored: list[range] = []
        try:
            for first, draft in zip(firsts, drafts, strict=True):
                yield self._inserting(first, draft)
                stored.append(range(first, first + len(draft.payloads)))
            if any(draft.due_at_once for draft in drafts) and self._may_notify():
                # No name behind it: our own worker is to hear it too.
                yield _NOTIFY, (self._access.schema_name, DUE)
        except ConfigError:
            raise
        except Exception as error:
            raise self._refused(error) from error
        return stored

    def completion(self, *claims: Claim) -> "Completion":
        """Return how to complete jobs in their handler's own transaction."""
        return Completion(self, claims)

    def owning(self, claim: Claim) -> Steps[None]:
        """
        Raises:
            LeaseLost: Another attempt owns the job.
        """
        yield from self._one(self._owns, claim)

    def completing(self, claim: Claim) -> Steps[None]:
        """
        Complete a job.

        Raises:
            LeaseLost: Another attempt owns it.
        """
        yield from self._one(self._complete, claim)

    def _one(self, sql: str, claim: Claim) -> Steps[None]:
        try:
            rows = yield sql, (claim.id, claim.attempt)
        except ConfigError:
            raise
        except Exception as error:
            raise self._refused(error) from error
        if not rows:
            raise LeaseLost(claim.id)

    def _refused(self, error: Exception) -> StoreError:
        if moved := moving.read(self._access.label, (str(error).splitlines() or [""])[0]):
            return moved
        return StoreError(
            self._access.label,
            f"{error}; nothing was stored. PostgreSQL takes no more in this transaction: roll it back.",
        )

    def _inserting(self, first: JobId, draft: Draft) -> Statement:
        delay_ms = round((draft.delay_s or 0) * 1000)
        is_fixed = draft.run_at is not None
        values = (draft.queue, draft.task, draft.priority, draft.run_at, delay_ms, is_fixed)
        return self._insert, (first, *values, list(draft.payloads))

    def _may_notify(self) -> bool:
        now = time.monotonic()
        if now - self._notified_at < _NOTIFY_EVERY_S:
            return False
        self._notified_at = now
        return True

    def checked(self, borrowed: Borrowed) -> Steps[None]:
        """
        Raises:
            ConfigError: It leads elsewhere, or is in no transaction.
        """
        borrowed.check("postgresql", self._access.label)
        try:
            ((*place, has_tables),) = yield self._place, ()
        except ConfigError:
            raise
        except Exception as error:
            raise borrowed.unusable(error) from error
        if not has_tables or (tuple(place) != self._here and tuple(place) != self._ask()):
            raise ConfigError(
                f"transaction= ({borrowed.name}) is not a connection to {self._access.label}, where this "
                "worker keeps its jobs; nothing was stored. Connect it to the same server and database."
            )

    def _ask(self) -> tuple[Any, ...]:
        """Return where we are; the server may have been restarted since the last time."""
        with self._access.looking() as db:
            self._here = db.one(self._place)[:2]
        return self._here


class Completion:
    """Completes jobs in their handler's own transaction (see borrowed/completing.py)."""

    def __init__(self, users: Users, claims: Sequence[Claim]) -> None:
        self._users = users
        # In one order for all, so that two who complete the same rows do not wait for each other in a circle.
        self._claims = sorted(claims, key=lambda claim: claim.id)

    def acquire(self) -> Callable[[], None]:
        """Wait for nobody: here writers do not take turns."""
        return _nothing

    def inside(self) -> AbstractContextManager[None]:
        """Forbid nothing: another write does not wait for this one."""
        return nullcontext()

    def first(self, borrowed: Borrowed) -> Steps[None]:
        yield from self._users.checked(borrowed)
        # Not locked, so that the job can be cancelled or rescued meanwhile: the fence is at the end.
        for claim in self._claims:
            yield from self._users.owning(claim)

    def last(self, borrowed: Borrowed) -> Steps[None]:
        if not borrowed.is_open():
            raise borrowed.ended()
        for claim in self._claims:
            yield from self._users.completing(claim)


def _nothing() -> None:
    pass
