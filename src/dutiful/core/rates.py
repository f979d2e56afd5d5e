"""
Rates: when the next job may start, so that so many a second do, smoothly but for a burst.

Pure: the clock comes in as an argument. Instants are in milliseconds.

Source: the generic cell rate algorithm (ITU-T I.371): one number is kept, the instant at
which the next start would be exactly on schedule; a start may come up to `burst - 1`
intervals early.
"""


def starts(next_at: float, now: int, count: int, *, per_s: float, burst: int) -> tuple[list[int], float]:
    """
    Return when each of the next `count` jobs may start, and the new `next_at`.

    Args:
        now: The instant, in ms.
        count: How many jobs.
        next_at: As returned the last time; 0 at first.
        per_s: Starts per second; > 0.
        burst: So many may start at once after a rest; 1 or more.

    >>> starts(0, 1000, 3, per_s=2, burst=1)
    ([1000, 1500, 2000], 2500.0)
    >>> starts(0, 1000, 3, per_s=2, burst=2)
    ([1000, 1000, 1500], 2500.0)
    """
    assert per_s > 0, per_s
    assert burst >= 1, burst
    interval = 1000 / per_s
    found: list[int] = []
    for _ in range(count):
        next_at = max(next_at, float(now))
        found.append(max(now, round(next_at - (burst - 1) * interval)))
        next_at += interval
    return found, next_at
