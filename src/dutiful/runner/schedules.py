"""
The schedules that a worker declares, and their firing.

A worker fires what it declares, and nothing else: a schedule that no code declares any more stops by
itself. When the next firing is due is known from looking at the rows now and then (`look`), and from
having moved them; so a firing is on time without asking the store all the time.
"""

import threading
import time
from collections.abc import Callable, Mapping

from dutiful.config import Config
from dutiful.core import schedule
from dutiful.core.schedule import Decision
from dutiful.errors import ConfigError
from dutiful.events import Events, WorkerFault
from dutiful.store.contract import Sql, Store
from dutiful.store.special import schedules as rows
from dutiful.store.special.schedules import Declared, Row

SEEN_S = 300.0  # how often to say that a schedule is still declared
FIRE_S_MIN = 0.001  # so that clocks which differ by a millisecond do not make us spin


class Firing:
    """
    Declares and fires.

    Args:
        declared: What is declared here, by name; more may come while the worker runs.
        call: Has `fire` called in so many seconds.
        fired: Called when there are new jobs.
    """

    def __init__(
        self,
        store: Store,
        declared: Mapping[str, Declared],
        events: Events,
        config: Config,
        *,
        call: Callable[[float], None],
        fired: Callable[[], None],
    ) -> None:
        self._store = store
        self._declared = declared
        self._events = events
        self._worker = config.name
        self._queue = config.queues[0]
        self._call = call
        self._fired = fired
        self._known: dict[str, Declared] = {}  # as they were written down
        self._seen_by = 0.0
        self._unreadable: set[str] = set()
        self._declaring = threading.Lock()

    def declare(self) -> None:
        """Write down what was declared since the last time."""
        with self._declaring:
            fresh = {
                name: each for name, each in dict(self._declared).items() if self._known.get(name) != each
            }
            if not fresh:
                return
            with self._store.sql() as sql:
                for each in fresh.values():
                    at = schedule.read(each.spec).after(sql.now)
                    rows.declare(sql, each, at, queue=each.queue or self._queue)
            self._known |= fresh
            self._seen_by = time.monotonic() + SEEN_S
        self._call(0.0)

    def look(self, look: Sql) -> None:
        """See when the next firing is due."""
        if self._known:
            self._call_for(rows.next_at(look, self._known), look.now)

    def _call_for(self, next_at: int | None, now: int) -> None:
        if next_at is not None:
            self._call(max(FIRE_S_MIN, (next_at - now) / 1000))

    def keep_fresh(self) -> None:
        """Say now and then that these schedules are still declared."""
        self.declare()
        if self._known and time.monotonic() >= self._seen_by:
            with self._store.sql() as sql:
                rows.seen(sql, self._known)
            self._seen_by = time.monotonic() + SEEN_S

    def fire(self) -> None:
        """Send the jobs of what is due."""
        if not self._known:
            return
        with self._store.sql_look() as look:  # most often another worker has been here
            due = [row for row in rows.due(look, self._known) if self._is_readable(row)]
        is_new = False
        for row in due:
            with self._store.sql() as sql:
                is_new = bool(rows.fire(sql, row, _decide)) or is_new
        if is_new:
            self._fired()
        with self._store.sql_look() as look:
            readable = [name for name in self._known if name not in self._unreadable]
            self._call_for(rows.next_at(look, readable), look.now)

    def _is_readable(self, row: Row) -> bool:
        """Whether we know what it means: a newer version of the program may have written it."""
        try:
            schedule.read(row.spec)
            schedule.check_missed(row.missed)
        except (ConfigError, ValueError) as error:
            if row.name not in self._unreadable:
                self._unreadable.add(row.name)
                self._events.emit(WorkerFault(self._worker, f"firing schedule {row.name!r}", str(error)))
            return False
        self._unreadable.discard(row.name)
        return True


def _decide(row: Row, now: int) -> Decision:
    return schedule.decide(schedule.read(row.spec), schedule.check_missed(row.missed), row.next_at, now)
