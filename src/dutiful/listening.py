"""Tells those who wait for jobs when another process has finished them."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dutiful.errors import DutifulError
from dutiful.job import JobId
from dutiful.store.contract import Store

if TYPE_CHECKING:
    from dutiful.store.ear import Ear

# A ring can be lost: so it looks by itself, soon after it was asked to listen, then seldom.
FIRST_S = 0.02
BACKSTOP_S = 1.0
# Its ear, which may be a connection to a server, is kept so long for those who come next.
LINGER_S = 2.0

Tell = Callable[[], None]


class Listening:
    """
    One thread for all who wait in this process; it lives while anybody does, and a little longer.

    Nobody who is told may rely on it: each looks by himself as well, if seldom.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changing = threading.Lock()
        self._waiting: dict[JobId, list[Tell]] = {}
        self._ear: Ear | None = None
        self._thread: threading.Thread | None = None
        self._has_new = False
        self._is_closing = False

    def begin(self, job_id: JobId, tell: Tell) -> bool:
        """Have `tell` called when the job has finished or is gone; return whether that can be."""
        with self._changing:
            if self._is_closing or not self._is_running():
                return False
            self._waiting.setdefault(job_id, []).append(tell)
            self._has_new = True
            self._wake()
        return True

    def end(self, job_id: JobId, tell: Tell) -> None:
        """Take that back."""
        with self._changing:
            tells = self._waiting.get(job_id, [])
            if tell in tells:
                tells.remove(tell)
            if not tells:
                self._waiting.pop(job_id, None)

    def close(self) -> None:
        """End the thread."""
        with self._changing:
            self._is_closing = True
            thread = self._thread
            self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._is_closing = False

    def _wake(self) -> None:
        if self._ear is not None:
            self._ear.wake()

    def _is_running(self) -> bool:
        if self._thread is None:
            ear = self._store.ear()
            if ear is None:
                return False
            thread = threading.Thread(target=self._run, name="dutiful-listener", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # "can't create new thread"
                ear.close()
                return False
            self._ear, self._thread = ear, thread
        return True

    def _run(self) -> None:
        with self._changing:  # until whoever started us has set it down
            ear = self._ear
        assert ear is not None, "it was made before us"
        pause_s, idle_since = FIRST_S, time.monotonic()
        while True:
            with self._changing:
                ids = set(self._waiting)
                if ids:
                    idle_since = time.monotonic()
                if self._is_closing or time.monotonic() > idle_since + LINGER_S:
                    ear.close()
                    self._ear = self._thread = None
                    return
                pause_s = FIRST_S if self._has_new else min(2 * pause_s, BACKSTOP_S)
                self._has_new = False
            ear.wait(ids, pause_s)
            if ids:
                self._tell(ids)

    def _tell(self, ids: set[JobId]) -> None:
        try:
            with self._store.sql_look() as look:
                rows = look.rows(
                    "SELECT id FROM {job} WHERE id IN {ids} AND state IN ('pending', 'blocked', 'running')",
                    sorted(ids),
                )
        except DutifulError:  # they find out themselves what is the matter
            unfinished: set[JobId] = set()
        else:
            unfinished = {row[0] for row in rows}
        with self._changing:
            tells = [tell for job_id in ids - unfinished for tell in self._waiting.pop(job_id, ())]
        for tell in tells:
            tell()
