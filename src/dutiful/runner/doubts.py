"""Jobs that this worker may have taken, in a step of which nobody could say whether it was done."""

import time
from collections.abc import Collection, Iterable

from dutiful.job import Claim, JobId

# A transaction that is still open then has long been ended by its server.
DOUBT_S = 600.0


class Doubts:
    """The claims of such steps, until it shows whose they are."""

    def __init__(self) -> None:
        self._claims: dict[tuple[JobId, int], tuple[Claim, float]] = {}

    def add(self, claims: Iterable[Claim]) -> None:
        """Note what a step would have taken."""
        at = time.monotonic()
        for claim in claims:
            self._claims[claim.id, claim.attempt] = claim, at

    def received(self, claims: Iterable[Claim]) -> None:
        """These came with a later step: they are in good hands."""
        if self._claims:
            for claim in claims:
                self._claims.pop((claim.id, claim.attempt), None)

    def __bool__(self) -> bool:
        return bool(self._claims)

    def found(self, held: Collection[tuple[JobId, int]]) -> list[Claim]:
        """Return those that are this worker's after all, among all that it holds: nobody here runs them."""
        now = time.monotonic()
        found = [claim for key, (claim, _at) in self._claims.items() if key in held]
        self._claims = {
            key: (claim, at)
            for key, (claim, at) in self._claims.items()
            if key not in held and at > now - DOUBT_S
        }
        return found
