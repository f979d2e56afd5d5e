"""What all parts of the front door stand on: a worker's settings, and its store, opened at the first use."""

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from dutiful.config import Config
from dutiful.door import Door
from dutiful.errors import ConfigError, WorkerStopped
from dutiful.events import Events
from dutiful.job import JobId, Record
from dutiful.listening import Listening
from dutiful.payload import decode_plain
from dutiful.registry import Registry
from dutiful.runner.runner import Runner
from dutiful.sealing import Cover
from dutiful.sending import Drafting, Room
from dutiful.showing import shown
from dutiful.store.committer import Committer
from dutiful.store.contract import Store
from dutiful.store.sqlite import MEMORY, SqliteStore

if TYPE_CHECKING:
    from dutiful.async_edge import AsyncEdge
    from dutiful.front.stand_in import StandIn
    from dutiful.runner.engine import Engine, MakeEngine
    from dutiful.stopping import Stopping
    from dutiful.store.special.schedules import Declared


DEFAULT_STORE = "dutiful.db"


class Base:
    """A worker's parts, and the store behind them."""

    def __init__(
        self,
        store: "str | os.PathLike[str] | Store | None",
        config: Config,
        handlers: Mapping[Any, Any] | None,
        *,
        create: bool,
    ) -> None:
        self._config = config
        keyring = config.keyring
        self._registry = Registry(handlers, () if keyring is None else keyring.ids)
        self._events = Events()
        self._schedules: dict[str, Declared] = {}
        self._middleware: list[Any] = []
        self._outgoing: list[Callable[[], Mapping[str, str]]] = []
        self._store = store_for(store, config, create=create)
        self._committer = Committer(
            self._store, buffer=config.buffer, keep_completed=config.keep_completed.count > 0
        )
        self._listening = Listening(self._store)
        self._drafting = Drafting(self._registry, config)
        self._room = Room(self._committer, config.buffer)
        self._committer.room_made = self._room.made
        self._async: AsyncEdge | None = None
        self._door = Door(config.name)
        self._make_engine: MakeEngine = Runner
        self._runner: Engine | None = None
        self._stand_in: StandIn | None = None  # in a test
        self._is_open = False
        self._opening = threading.RLock()  # inside the others: a sender may open while we stop
        self._stopping: Stopping | None = None
        self._at_exit: weakref.finalize[..., Base] | None = None

    @property
    def label(self) -> str:
        """What to call its store in messages: the file, or the URL without its password."""
        return self._store.label

    def opened(self) -> Store:
        """Return the store, opened if need be."""
        self._door.check_process()
        if not self._is_open:
            with self._opening:
                if not self._is_open:
                    if self._is_in_memory() and self._stopping is not None and self._stopping.is_over:
                        raise WorkerStopped(self._config.name)  # and its memory is gone
                    self._store.open()
                    self._is_open = True
                    self._door.use_here()
                    self._at_exit = weakref.finalize(
                        self, _close_at_exit, self._committer, self._store, self._listening
                    )
        return self._store

    def watch(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Have `tell` called when this worker finishes the job."""
        self._committer.watched.setdefault(job_id, []).append(tell)

    def unwatch(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Take that back."""
        waiting = self._committer.watched.get(job_id, [])
        if tell in waiting:
            waiting.remove(tell)
        if not waiting:
            self._committer.watched.pop(job_id, None)

    def listen(self, job_id: JobId, tell: Callable[[], None]) -> bool:
        """Have `tell` called also when another process finishes the job; return whether that can be."""
        self.opened()
        return self._listening.begin(job_id, tell)

    def unlisten(self, job_id: JobId, tell: Callable[[], None]) -> None:
        """Take that back."""
        self._listening.end(job_id, tell)

    def before_waiting(self, job_id: JobId) -> Callable[[], None] | None:
        """Return what is to be done before somebody waits for a job; None, but in a test."""
        stand_in = self._stand_in
        return None if stand_in is None else lambda: stand_in.awaited(job_id)

    def decode_result(self, task: str, text: str) -> Any:
        """Return a result as the task's handler is annotated, if this process knows it."""
        entry = self._registry.entry(task)
        return decode_plain(text) if entry is None else entry.result(text)

    def uncovered(self, text: str, *place: object) -> str:
        """Return the JSON text of what the store has at this place."""
        return Cover(self._config.keyring).get(text, *place)

    def shown(self, record: Record, *, reveal: bool = False) -> Record:
        """Return a job to show; `reveal` leaves its secrets in clear."""
        return shown(record, self._config.keyring, reveal=reveal)

    def reread(self) -> None:
        """Have all workers see what was paused or resumed."""
        if self._runner is not None:
            self._runner.reread()
        self._store.ring()

    def nudge(self) -> None:
        """Have this process's worker look for what was changed by hand."""
        if self._runner is not None:
            self._runner.nudge()

    def _is_in_memory(self) -> bool:
        return isinstance(self._store, SqliteStore) and self._store.in_memory

    def _is_handler_here(self) -> bool:
        return self._runner is not None and self._runner.runs_here()


def _close_at_exit(committer: Committer, store: Store, listening: Listening) -> None:
    committer.close()
    listening.close()
    store.close()


def store_for(store: "str | os.PathLike[str] | Store | None", config: Config, *, create: bool) -> Store:
    if isinstance(store, Store):
        return store
    given: Any = os.environ.get("DUTIFUL_STORE", DEFAULT_STORE) if store is None else store
    url: object = os.fspath(cast("os.PathLike[str]", given)) if hasattr(given, "__fspath__") else given
    if not isinstance(url, str) or "\0" in url:
        raise ConfigError(f"the store is {given!r}; it must be a path, a URL or a Store, without a NUL.")
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and separator and not rest.startswith("/"):
        raise ConfigError(
            f"the store {url!r} has no path; write sqlite:///relative.db or sqlite:////absolute.db."
        )
    if separator and scheme in ("postgresql", "postgres"):
        from dutiful.store.postgres import PostgresStore  # psycopg, if it is there

        return PostgresStore(
            url, durability=config.durability, busy_s=config.busy_s, worker=config.name, create=create
        )
    if separator and scheme != "sqlite":
        raise ConfigError(
            f"{scheme}:// is no store that this version knows; use a path, sqlite:///path, ':memory:' or "
            "postgresql://…"
        )
    if not separator and url.partition(":")[0] in ("sqlite", "file", "postgresql", "postgres"):
        raise ConfigError(
            f"the store {url!r} is no URL; write sqlite:///path or postgresql://…, or ./{url} for a file of "
            "that name."
        )
    path = rest[1:] if rest else url
    if not path:
        raise ConfigError(f"the store {url!r} names no file; give a path, or ':memory:'.")
    return SqliteStore(
        MEMORY if path == MEMORY else path,
        durability=config.durability,
        busy_s=config.busy_s,
        worker=config.name,
        create=create,
    )
