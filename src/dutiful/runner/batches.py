"""
Where jobs are gathered into batches, before they stand in line.

    claims → a batch is being gathered → a Place in line → (its turn) → the jobs that are there then

A batch gets its place when it is full, when its payloads are large, or when its first job has waited
long enough and what is due in the store has come. Which jobs it runs is decided only at its turn: what
came meanwhile goes along, and what was cancelled, paused or given back is not there any more. So nothing
that happens to a job here has to be told to the line.

A job that has failed before is gathered with others that have failed as often, into batches of half
the size for each failure: whichever of them makes the handler raise is soon on its own.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from dutiful.core.pacing import AHEAD_BYTES_MAX
from dutiful.events import Events
from dutiful.handler import Entry
from dutiful.job import Claim, JobId
from dutiful.registry import Registry
from dutiful.runner.upkeep import Duty, Upkeep
from dutiful.store.special import extra as extras

DRAIN_WAIT_S = 0.02  # at a drain nobody waits for more than what is in the store already
COMING_S = 0.005  # how often to look whether what is due in the store has come
COMING_S_MAX = 1.0  # so long it is waited for: some milliseconds on a machine that is not busy


class Place:
    """
    A place in line for one call of a handler of batches.

    It stands where a Claim would, and is told from one where that matters.
    """

    __slots__ = ("size", "task")

    id: JobId = 0  # no job's
    crashes = 0
    payload: str | None = None
    extra: str | None = None

    def __init__(self, task: str, size: int) -> None:
        self.task = task
        self.size = size


Item: TypeAlias = Claim | Place


class _Gathering:
    """The jobs of one task that are being gathered, in the order in which they came."""

    __slots__ = ("bytes", "came", "places", "size", "task", "wait_s")

    def __init__(self, task: str, size: int) -> None:
        self.task = task
        self.size = size
        self.wait_s = 0.0
        self.came: deque[tuple[Claim, float]] = deque()  # when (monotonic)
        self.bytes = 0  # of their payloads
        self.places = 0  # in line, each for `size` of them, the first ones

    @property
    def lacking(self) -> int:
        """How many would fill what was begun."""
        lack = self.places * self.size - len(self.came)
        return lack if lack >= 0 else lack + self.size

    def due_at(self, wait_max_s: float) -> float | None:
        """When the first one without a place has waited long enough; None: there is none."""
        at = self.places * self.size
        return self.came[at][1] + min(self.wait_s, wait_max_s) if at < len(self.came) else None

    def add(self, claim: Claim, now: float) -> Place | None:
        """Take in a job; return the place of the batch that it fills, if it does."""
        self.came.append((claim, now))
        self.bytes += len(claim.payload or "")
        is_full = len(self.came) >= (self.places + 1) * self.size
        return self.place() if is_full or self.bytes >= (self.places + 1) * AHEAD_BYTES_MAX else None

    def remove(self, count: int) -> list[Claim]:
        """Return so many jobs, the first ones; they are not here any more."""
        removed = [self.came.popleft()[0] for _ in range(min(count, len(self.came)))]
        self.count_bytes()
        return removed

    def count_bytes(self) -> None:
        self.bytes = sum(len(claim.payload or "") for claim, _at in self.came)

    def place(self) -> Place:
        self.places += 1
        return Place(self.task, self.size)


class Batches:
    """
    Gathers the jobs of handlers that take batches.

    Args:
        offer: Puts places, or jobs, at the end of the line.
        is_more_coming: Says whether the store may have more that is due and will be taken at once.
    """

    def __init__(
        self,
        registry: Registry,
        events: Events,
        worker: str,
        *,
        offer: Callable[[Sequence[Item]], None],
        is_more_coming: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._events = events
        self._worker = worker
        self.offer = offer
        self._is_more_coming = is_more_coming
        self._changing = threading.Lock()
        self._gatherings: dict[tuple[str, int], _Gathering] = {}
        self._wait_max_s = math.inf
        self._duty = Duty("closing batches", math.inf, self._close_due)
        self._clock: Upkeep | None = None
        self._is_over = False

    # --- looking --------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many jobs are here."""
        return sum(len(each.came) for each in list(self._gatherings.values())) if self._gatherings else 0

    @property
    def lacking(self) -> int:
        """How many jobs would fill the batches that were begun."""
        if not self._gatherings:
            return 0
        return sum(each.lacking for each in list(self._gatherings.values()) if each.came)

    @property
    def waiting(self) -> list[Claim]:
        """The jobs that are here."""
        with self._changing:
            return [claim for each in self._gatherings.values() for claim, _at in each.came]

    # --- jobs come ------------------------------------------------------------------------------

    def gather(self, claims: Sequence[Claim]) -> list[Item]:
        """Take in what goes into batches; return what is to stand in line now, in order."""
        line: list[Item] = []
        now = time.monotonic()
        with self._changing:
            touched: set[_Gathering] = set()
            for claim in claims:
                entry = self._registry.entry(claim.task)
                if entry is None or entry.batch is None or _is_for_itself(claim):
                    line.append(claim)
                    continue
                gathering = self._gathering(claim, entry, entry.batch)
                touched.add(gathering)
                place = gathering.add(claim, now)
                if place is not None:
                    line.append(place)
            next_at = self._close(touched, now, line)
            if next_at is not None and not self._can_wait(next_at):
                self._close(touched, math.inf, line)
        return line

    def _gathering(self, claim: Claim, entry: Entry, batch: int) -> _Gathering:
        size = max(1, batch >> min(claim.failures, 32))
        gathering = self._gatherings.get((claim.task, size))
        if gathering is None:
            gathering = self._gatherings[claim.task, size] = _Gathering(claim.task, size)
        gathering.wait_s = entry.wait_s
        return gathering

    def _close(self, gatherings: Collection[_Gathering], now: float, line: list[Item]) -> float | None:
        """Give those that have waited long enough their place; return when the next will have."""
        next_at: float | None = None
        for each in gatherings:
            due_at = each.due_at(self._wait_max_s)
            if due_at is None:
                continue
            if due_at <= now < due_at + COMING_S_MAX and self._is_more_coming():
                due_at = now + COMING_S
            if due_at <= now:
                line.append(each.place())
            else:
                next_at = due_at if next_at is None else min(next_at, due_at)
        return next_at

    def _can_wait(self, until: float) -> bool:
        """Have batches closed then; False, if there is no thread for it: at the interpreter's end."""
        if self._is_over:
            return False
        if self._clock is None:  # for those who use it
            clock = Upkeep(
                [self._duty],
                self._events,
                self._worker,
                trouble=_none,
                recovered=_none,
                timeouts=_never,
            )
            try:
                clock.start()
            except RuntimeError:  # "can't create new thread"
                return False
            self._clock = clock
        self._clock.call(self._duty, until)
        return True

    def _close_due(self) -> None:
        line: list[Item] = []
        with self._changing:
            next_at = self._close(list(self._gatherings.values()), time.monotonic(), line)
            if next_at is not None:
                self._can_wait(next_at)
        if line:
            self.offer(line)

    def hurry(self) -> None:
        """From now on gather only what is there anyway."""
        with self._changing:
            self._wait_max_s = DRAIN_WAIT_S
        self._close_due()

    def take_time(self) -> None:
        """From now on gather as long as the handlers say."""
        with self._changing:
            self._wait_max_s = math.inf

    # --- jobs go ----------------------------------------------------------------------------------

    def draw(self, place: Place) -> list[Claim]:
        """It is the turn of this place: return the jobs that are there for it, if there still are any."""
        with self._changing:
            gathering = self._gatherings[place.task, place.size]
            gathering.places = max(0, gathering.places - 1)
            return gathering.remove(place.size)

    def take_out(self, job_ids: Collection[JobId]) -> list[Claim]:
        """Take jobs out; return those that were here."""
        out: list[Claim] = []
        with self._changing:
            for each in self._gatherings.values():
                found = [claim for claim, _at in each.came if claim.id in job_ids]
                if found:
                    each.came = deque(pair for pair in each.came if pair[0].id not in job_ids)
                    each.count_bytes()
                    out += found
        return out

    def take_back(self, *, gathering: bool) -> list[Claim]:
        """The line was emptied: return the jobs that had a place, and with `gathering` all others."""
        back: list[Claim] = []
        with self._changing:
            for each in self._gatherings.values():
                back += each.remove(len(each.came) if gathering else each.places * each.size)
                each.places = 0
        return back

    def end(self) -> None:
        """Give back the thread."""
        with self._changing:
            self._is_over = True
            clock, self._clock = self._clock, None
        if clock is not None:
            clock.end()


def _is_for_itself(claim: Claim) -> bool:
    """Whether it runs in a batch of one: a suspect; or one whose own deadline would cut that of others."""
    return claim.crashes > 0 or (claim.extra is not None and extras.read(claim.extra).left_s is not None)


def _none(_error: object = None) -> None:
    """A clock has no trouble with the store."""


def _never() -> None:
    """It has no timeouts to look at."""
