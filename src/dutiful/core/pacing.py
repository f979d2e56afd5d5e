"""
How many jobs to hold, and how long to sleep.

A worker claims ahead so that its handlers never wait for the disk, but no more than it
will start within about 100 ms at the pace seen lately: a long job must never hold
others back that another worker could run.
"""

from dataclasses import dataclass

AHEAD_S = 0.1
AHEAD_JOBS_MAX = 4096  # a bound: more would only mean more to give back at a stop
AHEAD_BYTES_MAX = 16 * 1024 * 1024
PACE_WINDOW_S = 0.005  # long enough to count something, short enough to follow a change
PACE_KEPT_S = 1.0  # after a longer silence the next jobs may be of another kind


@dataclass(slots=True)
class Pace:
    """Jobs that the handlers can finish per second, as seen lately. Told the time; keeps no clock."""

    per_s: float = 0.0
    finished: int = 0
    since_s: float = 0.0

    def look(self, finished: int, now_s: float, *, is_idle: bool) -> float:
        """
        Take the count of all jobs finished so far; return the pace per second.

        `is_idle`: the handlers have finished all they were given, so they could have done
        more than what was seen: then the pace does not fall.
        """
        passed_s = now_s - self.since_s
        if passed_s >= PACE_WINDOW_S:
            seen = (finished - self.finished) / passed_s
            if seen > self.per_s:
                seen = (self.per_s + seen) / 2  # a short burst says little; to hold too much is worse
            elif is_idle and passed_s < PACE_KEPT_S:
                seen = self.per_s
            self.per_s, self.finished, self.since_s = seen, finished, now_s
        return self.per_s


def room(
    *,
    slots: int,
    busy: int,
    ready: int,
    pace_per_s: float,
    payload_bytes: float,
    lacking: int = 0,
    gathered: int = 0,
) -> int:
    """
    Return how many more jobs to take.

    A batch in line is one of those held, and one of those finished: it takes one handler. A batch that
    is being gathered asks for what it still lacks, so that it is filled by one claim or two. Among what
    comes then may be jobs of other kinds; so what is held already is taken off that as well.

    Args:
        slots: Handlers that may run at once.
        busy: Handlers that run now.
        ready: Jobs held and not started.
        pace_per_s: Jobs finished per second lately.
        payload_bytes: Their mean payload size.
        lacking: Jobs that the batches which are being gathered have room for.
        gathered: Jobs that are held for batches.
    """
    bytes_left = max(0.0, AHEAD_BYTES_MAX - gathered * payload_bytes)
    jobs_left = bytes_left / max(payload_bytes, 1.0)
    ahead = min(pace_per_s * AHEAD_S, AHEAD_JOBS_MAX, jobs_left)
    return max(0, slots - busy + int(ahead) + min(lacking, int(jobs_left)) - ready)
