"""
The store's clock: wall time for calendars, elapsed time for delays, and no jumps between.

A wall clock is set by people and by NTP, at times by hours. A delay must not grow or
shrink by that: "in 60 seconds" means 60 seconds. An instant on the calendar (`run_at`)
must follow it. So a store remembers how far the wall clock is ahead of the boot clock,
which only ever runs on. When a process sees, before it reads or writes an instant, that
this distance has changed by `STEP_MS` or more, the clock was set: whoever sees it first
writes the new distance and moves all due times that came from delays by the same amount,
in one transaction. Smaller differences are the ordinary correction of a running clock.
"""

import sys
import time
from pathlib import Path
from typing import Protocol

# NTP slews a clock by at most 0.5 ms a second; what is this large was set at once.
STEP_MS = 1000

if sys.platform == "darwin":
    _ELAPSED = time.CLOCK_MONOTONIC  # counts on while the machine sleeps
else:
    _ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wall_ms() -> int:
    """Return the wall clock, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def offset_ms() -> int:
    """Return how far the wall clock is ahead of the boot clock."""
    return (time.time_ns() - time.clock_gettime_ns(_ELAPSED)) // 1_000_000


def boot_id() -> str:
    """Return what names this run of the machine; the boot clock starts anew with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Elsewhere the moment of the boot, to ten seconds, tells one run from the next.
        return f"boot-{round(offset_ms() / 10_000)}"


class Clock(Protocol):
    """Where a store's time comes from. `dutiful.testing.Clock` is one that a test moves."""

    def wall_ms(self) -> int:
        """Return the wall clock, in milliseconds since 1970 UTC."""
        ...

    def offset_ms(self) -> int:
        """Return how far the wall clock is ahead of the time that only ever runs on."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return wall_ms()

    def offset_ms(self) -> int:
        return offset_ms()


SYSTEM = SystemClock()


class StepDetector:
    """Notices that the wall clock was set since the last look. Costs two clock readings."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self.offset = clock.offset_ms()

    def step_ms(self) -> int:
        """Return by how much the clock was set since `offset`; 0 for an ordinary correction."""
        now = self._clock.offset_ms()
        step = now - self.offset
        if abs(step) < STEP_MS:
            self.offset = now
            return 0
        return step
