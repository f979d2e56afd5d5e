"""
Who is next in a worker's line: its queues' turns, and the share of those that have waited long.

Whether anybody has waited long is looked at now and then, and only while more is waiting than
the worker has room for; a claim that has nothing to do with it asks the store nothing more.
"""

from collections.abc import Collection, Sequence

from dutiful.core import ageing
from dutiful.core.ageing import Level
from dutiful.core.turns import Turns
from dutiful.job import Claim
from dutiful.store.contract import Aged, Outcome, Store, Take
from dutiful.store.special.ageing import levels

LEVELS_MAX = 8  # of a line, that one claim looks at
Levels = tuple[tuple[str, int], ...]


class Line:
    """
    Knows whose turn it is.

    Args:
        age_s: Seconds after which a job that is due counts as old; None: never.

    Attributes:
        turns: Of the queues; None: they are one line.
    """

    def __init__(self, store: Store, turns: Turns | None, age_s: float | None) -> None:
        self._store = store
        self._age_s = age_s
        self.turns = turns
        self._credit = 0.0
        self._old: list[Levels] = []  # of each line, the oldest first
        self._till = 0
        # Where there are very many priorities, a look sees a part of them, and the next goes on from there.
        self._below: dict[str, int | None] = {}
        self._highest: dict[str, int] = {}

    def aged(self, limit: int) -> Aged | None:
        """Return what of a claim goes to those that have waited long."""
        if not self._old or self._credit < 1:
            return None
        some = tuple(level for line in self._old for level in line[:LEVELS_MAX])
        return Aged(some, self._till, min(limit, int(self._credit)))

    def took(self, wish: Take, outcome: Outcome) -> None:
        """A claim was made."""
        if outcome.turns is not None:
            self.turns = outcome.turns
        if self._old:
            self._credit = ageing.credit(self._credit, taken=len(outcome.claims), aged=outcome.aged)
        if wish.aged is not None:
            old = [self._without_exhausted(line, wish.aged, outcome.claims) for line in self._old]
            self._old = [line for line in old if line]

    @staticmethod
    def _without_exhausted(line: Levels, aged: Aged, claims: Sequence[Claim]) -> Levels:
        """Old ones are the first of their line: if others were taken of it, those were all."""
        asked = set(line) & set(aged.levels)
        queues = {queue for queue, _priority in line}
        taken = [(claim.queue, claim.priority) for claim in claims if not claim.crashes]
        had = sum(level in asked for level in taken)
        if had < aged.limit and any(level not in asked and level[0] in queues for level in taken):
            return tuple(level for level in line if level not in asked)
        return line

    def look(self, queues: Sequence[str], skip: Collection[str], *, is_behind: bool) -> None:
        """See which jobs have waited long behind others; `is_behind`: whether any are waiting at all."""
        if self._age_s is None or not is_behind:
            self._old = []
            return
        age_ms = round(self._age_s * 1000)
        with self._store.sql_look() as look:
            now = look.now
            found: dict[str, list[Level]] = {}
            for queue in queues:
                below = self._below.get(queue)
                found[queue], self._below[queue] = levels(look, queue, skip, below=below)
                if below is None:
                    due = [level.priority for level in found[queue] if level.due_at <= now]
                    self._highest[queue] = max(due, default=ageing.NONE)
        self._old = self._oldest(found, now, age_ms)
        self._till = now - age_ms

    def _oldest(self, found: dict[str, list[Level]], now: int, age_ms: int) -> list[Levels]:
        """Return for each line where jobs have waited long and need help."""
        if self.turns is None:  # all queues are one line
            together = [level for its in found.values() for level in its]
            lines = [(together, max((self._highest[queue] for queue in found), default=ageing.NONE))]
        else:
            lines = [(its, self._highest[queue]) for queue, its in found.items()]
        old = [ageing.oldest(its, now, age_ms, above=above) for its, above in lines]
        return [tuple((level.queue, level.priority) for level in levels) for levels in old if levels]
