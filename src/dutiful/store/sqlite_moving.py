"""A SQLite store as one end of a move (see moving.py)."""

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec

from dutiful.errors import StoreMoved
from dutiful.job import Ack, Claim, JobId, State
from dutiful.store import moving
from dutiful.store.contract import WorkerInfo
from dutiful.store.moving import BATCH_END, COLUMNS, ERROR_COLUMNS, Batch, ErrorRow, Row, Totals
from dutiful.store.sqlite_access import Access

# The guards refuse all but who has written this key, which is there in a mover's own transaction alone.
_HAND = "move_hand"
_GUARDED = [(action, table) for table, actions in moving.GUARDED.items() for action in actions]
_BATCH_END = BATCH_END.format(length="length", job="dutiful_job", error="dutiful_error", value="?")


def check_not_moved(access: Access) -> None:
    """
    Raises:
        StoreMoved: The jobs are elsewhere, or not all here yet.
    """
    with access.looking() as db:
        refuse_moved(db, access.label)


def refuse_moved(db: sqlite3.Connection, label: str) -> None:
    """Do so on a connection. In a transaction that writes it holds until the end, as the guards do."""
    row = db.execute("SELECT value FROM dutiful_meta WHERE key = ?", (moving.TEXT,)).fetchone()
    if row is not None:
        text = str(_readable(row[0]))
        raise moving.read(label, text) or StoreMoved(label, text)


class SqliteHand:
    """One transaction, under the write lock, of a connection of its own."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.put(_HAND, "1")

    def end(self) -> None:
        """Commit."""
        self.put(_HAND, None)
        self._db.execute("COMMIT")

    def get(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM dutiful_meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM dutiful_meta WHERE key = ?", (key,))
            return
        self._db.execute(
            "INSERT INTO dutiful_meta (key, value) VALUES (?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, int(value) if key == moving.NEXT_ID else value),
        )

    def raise_guards(self, text: str) -> None:
        self.lower_guards()
        literal = "'" + text.replace("\0", "").replace("'", "''") + "'"
        for action, table in _GUARDED:
            self._db.execute(
                f"CREATE TRIGGER {_guard(action, table)} BEFORE {action} ON dutiful_{table}"
                f" WHEN NOT EXISTS (SELECT 1 FROM dutiful_meta WHERE key = '{_HAND}')"
                f" BEGIN SELECT RAISE(ABORT, {literal}); END"
            )

    def lower_guards(self) -> None:
        for action, table in _GUARDED:
            self._db.execute(f"DROP TRIGGER IF EXISTS {_guard(action, table)}")

    def is_idle(self) -> bool:
        sql = (
            "SELECT NOT EXISTS (SELECT 1 FROM dutiful_worker)"
            " AND NOT EXISTS (SELECT 1 FROM dutiful_job WHERE state = 'running')"
        )
        return bool(self._db.execute(sql).fetchone()[0])

    def kept_beside(self) -> str | None:
        for table in moving.KEPT_BESIDE:
            if self._db.execute(f"SELECT EXISTS (SELECT 1 FROM dutiful_{table})").fetchone()[0]:
                return table
        return None

    def last_id(self) -> JobId:
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM dutiful_job").fetchone()[0])

    def add(self, batch: Batch) -> None:
        marks = ", ".join("?" * len(Row.__struct_fields__))
        self._db.executemany(
            f"INSERT INTO dutiful_job ({COLUMNS}) VALUES ({marks})", map(msgspec.structs.astuple, batch.rows)
        )
        self._db.executemany(
            f"INSERT INTO dutiful_error ({ERROR_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", batch.errors
        )

    def clear(self) -> None:
        self._db.execute("DELETE FROM dutiful_job")
        self._db.execute("DELETE FROM dutiful_error")

    def put_beside(self, table: str, rows: Sequence[Sequence[object]]) -> None:
        columns = moving.BESIDE[table]
        marks = ", ".join("?" * len(columns.split(", ")))
        self._db.execute(f"DELETE FROM dutiful_{table}")
        self._db.executemany(f"INSERT INTO dutiful_{table} ({columns}) VALUES ({marks})", rows)

    def forget_clock(self) -> None:
        # As after a boot: there is nothing to compare with, so nothing moves (sqlite_upkeep.follow_clock).
        self.put("clock_boot", "")


class SqliteGround:
    """A SQLite store, for a mover."""

    def __init__(
        self,
        access: Access,
        *,
        workers: Callable[[], list[WorkerInfo]],
        rescue: Callable[[Callable[[Claim, bool], Ack]], object],
        close: Callable[[], None],
    ) -> None:
        self._access = access
        self._workers = workers
        self._rescue = rescue
        self._close = close
        self._reader: sqlite3.Connection | None = None

    @property
    def label(self) -> str:
        return self._access.label

    def open(self) -> None:
        self._access.open()
        with contextlib.suppress(StoreMoved):
            check_not_moved(self._access)
            with self._access.writing():
                pass  # due times follow the clock now, and not between the copies

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._close()

    @contextlib.contextmanager
    def change(self) -> Generator[SqliteHand]:
        with self._access.own_transaction() as db, self._access.translating():
            hand = SqliteHand(db)
            yield hand
            hand.end()

    def totals(self) -> Totals:
        db = self._reading()
        with self._access.translating():
            by_state: dict[bytes, int] = dict(
                db.execute("SELECT state, count(*) FROM dutiful_job GROUP BY state").fetchall()
            )
            (errors,) = db.execute(
                "SELECT count(*) FROM dutiful_error WHERE job_id IN (SELECT id FROM dutiful_job)"
            ).fetchone()
            (texts,) = db.execute("SELECT count(payload) + count(result) FROM dutiful_job").fetchone()
        return Totals({state: by_state.get(state.encode(), 0) for state in State}, errors, texts)

    def batch(self, after: JobId) -> Batch:
        db = self._reading()
        with self._access.translating():
            limits = (after, moving.BATCH_JOBS, moving.BATCH_BYTES)
            (last,) = db.execute(_BATCH_END, limits).fetchone()
            ids = (after, last)
            rows = db.execute(
                f"SELECT {COLUMNS} FROM dutiful_job WHERE id > ? AND id <= ? ORDER BY id", ids
            ).fetchall()
            errors = db.execute(
                f"SELECT {ERROR_COLUMNS} FROM dutiful_error WHERE job_id > ? AND job_id <= ?"
                " AND job_id IN (SELECT id FROM dutiful_job) ORDER BY job_id, attempt",
                ids,
            ).fetchall()
        return Batch([_row(row) for row in rows], [_error(row) for row in errors])

    def beside(self, table: str) -> list[tuple[object, ...]]:
        order = moving.BESIDE_ORDER.get(table, "1")
        db = self._reading()
        with self._access.translating():
            found = db.execute(
                f"SELECT {moving.BESIDE[table]} FROM dutiful_{table} ORDER BY {order}"
            ).fetchall()
        return [tuple(_readable(value) for value in row) for row in found]

    def _reading(self) -> sqlite3.Connection:
        """Return a connection that shows what is stored, UTF-8 or not."""
        if self._reader is None:
            with self._access.translating():
                self._reader = self._access.connection()
            self._reader.text_factory = bytes
        return self._reader

    def workers(self) -> list[WorkerInfo]:
        return self._workers()

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> object:
        return self._rescue(decide)


def _guard(action: str, table: str) -> str:
    return f"dutiful_moved_{table}_{action.lower()}"


def _row(values: tuple[Any, ...]) -> Row:
    row = Row(*values)
    return msgspec.structs.replace(
        row,
        state=_readable(values[1]),
        queue=_readable(values[2]),
        task=_readable(values[3]),
        due_fixed=bool(row.due_fixed),
        extra=_readable(row.extra),
        held=_readable(row.held),
        lane=_readable(row.lane),
        pool=_readable(row.pool),
        followed=None if row.followed is None else bool(row.followed),
        unique_key=_readable(row.unique_key),
        progress=_readable(row.progress),
        payload=_exact(row.payload),
        result=_exact(row.result),
    )


def _error(values: tuple[Any, ...]) -> ErrorRow:
    job_id, attempt, at, *texts = values
    worker, kind, message, traceback = map(_readable, texts)
    return job_id, attempt, at, worker, kind, message, traceback


def _readable(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _exact(value: str | bytes | None) -> str | bytes | None:
    """Return a text as such; what is none, as it is."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
