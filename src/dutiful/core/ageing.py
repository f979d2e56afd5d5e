"""
Ageing: a share of what is taken goes to those that have been due longest, whatever their priority.

Pure. A share, and not a priority that rises with time: when more comes in than can be done,
all that waits grows old, and risen priorities would say nothing any more; with a share the
urgent ones keep seven of eight starts, and the others move all the same.
"""

from collections.abc import Iterable
from typing import NamedTuple

NONE = -(2**31)  # below any priority that something else can be above
_MASK = 2**32 - 1
SHARE = 8  # one of so many goes to the oldest
CREDIT_MAX = 512.0  # of the largest claim (see pacing.AHEAD_JOBS_MAX) this is its share


class Level(NamedTuple):
    """A priority of a queue that has pending jobs, and when the first of them is due (ms)."""

    queue: str
    priority: int
    due_at: int


def oldest(levels: Iterable[Level], now: int, age_ms: int, *, above: int = NONE) -> list[Level]:
    """
    Return where jobs have waited long and need help, the oldest first.

    They do if they have been due for `age_ms`, and there are due ones of a higher priority, which
    would be taken before them. `above`: the highest priority of due jobs that are not in `levels`.

    >>> oldest([Level("q", 5, 900), Level("q", 0, 100)], 1000, 500)
    [Level(queue='q', priority=0, due_at=100)]
    """
    due = [level for level in levels if level.due_at <= now]
    highest = max((level.priority for level in due), default=above)
    old = [level for level in due if level.due_at <= now - age_ms and level.priority < max(highest, above)]
    return sorted(old, key=lambda level: (level.due_at, -level.priority))


def share(count: int, now: int) -> int:
    """
    Return how many of the next `count` may be old ones, where nobody keeps a credit.

    What is less than one comes up as often as it should, by an instant (ms) in place of a die.

    >>> share(16, 0), round(sum(share(1, now) for now in range(8000)), -2)
    (2, 1000)
    """
    whole, rest = divmod(count, SHARE)
    return whole + (_die(now) % SHARE < rest)


def _die(now: int) -> int:
    # Mixed well, as events may come at multiples of some milliseconds. Source: the finalizer of MurmurHash3.
    mixed = (now ^ now >> 32) & _MASK
    mixed = (mixed ^ mixed >> 16) * 0x85EB_CA6B & _MASK
    mixed = (mixed ^ mixed >> 13) * 0xC2B2_AE35 & _MASK
    return mixed ^ mixed >> 16


def credit(credit: float, *, taken: int, aged: int) -> float:
    """
    Return how many old jobs may be taken next: what was earned less what was had.

    Args:
        credit: As it was.
        taken: So many jobs were taken in all.
        aged: So many of them because they are old.
    """
    return min(CREDIT_MAX, credit + taken / SHARE - aged)
