"""The jobs that somebody in another process waits for, as a worker remembers it (see postgres_ear)."""

import time
from collections.abc import Iterable

from dutiful.job import FINISHED, JobId
from dutiful.store.contract import Work

ASKED_S = 15.0
ASKED_MAX = 100_000  # ids; those beyond are looked for by who waits for them, once a second


class Asked:
    """The jobs that somebody elsewhere waits for, as the workers of this process have heard."""

    def __init__(self) -> None:
        self._until: dict[JobId, float] = {}

    def hear(self, words: str) -> None:
        """Take down what was asked."""
        now = time.monotonic()
        self._until = {job_id: until for job_id, until in self._until.items() if until > now}
        ids = [int(word) for word in words.split(",") if word.isdecimal()]
        for job_id in ids[: ASKED_MAX - len(self._until)]:
            self._until[job_id] = now + ASKED_S

    def __bool__(self) -> bool:
        return bool(self._until)

    def has_any(self, ids: Iterable[JobId]) -> bool:
        """Return whether somebody waits for one of these, which have ended."""
        return any(job_id in self._until for job_id in ids)

    def has_ended(self, work: Work) -> bool:
        """Return whether a step may have ended one of these. Most often nobody waits, and this is all."""
        if not self._until:
            return False
        return self.has_any(job_id for job_id, _attempt in work.completed) or self.has_any(
            ack.id for ack in work.acks if ack.state in FINISHED
        )
