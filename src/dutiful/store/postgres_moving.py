"""A PostgreSQL store as one end of a move (see moving.py)."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence

import msgspec

from dutiful.errors import StoreMoved
from dutiful.job import Ack, Claim, JobId, State
from dutiful.store import moving, postgres_schema
from dutiful.store.contract import WorkerInfo
from dutiful.store.moving import BATCH_END, COLUMNS, ERROR_COLUMNS, Batch, Row, Totals
from dutiful.store.postgres_access import REBUILD_S, Access, Connection
from dutiful.store.postgres_driver import Error, in_schema
from dutiful.store.postgres_errors import is_busy

# Nobody else writes what moves meanwhile; whoever has begun to is waited for.
_LOCK = f"LOCK TABLE {', '.join(f'dutiful.{table}' for table in moving.GUARDED)} IN SHARE ROW EXCLUSIVE MODE"
# Somebody may hold one of the tables and wait for another. The server ends one of the two after a second
# (deadlock_timeout): we give way before that, and try again.
_LOCK_WAIT = "SET LOCAL lock_timeout = '300ms'"
# For a transaction of the mover's, for whom the guards make way.
_HAND = "SELECT set_config('dutiful_move.hand', 'on', true)"
_GUARDS = [
    f"""
    CREATE OR REPLACE FUNCTION dutiful.refuse_moved() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
        IF coalesce(current_setting('dutiful_move.hand', true), '') <> 'on' THEN
            RAISE EXCEPTION USING
                ERRCODE = '{moving.SQLSTATE}',
                MESSAGE = (SELECT value FROM dutiful.meta WHERE key = '{moving.TEXT}');
        END IF;
        RETURN NULL;
    END $body$
    """,
    *(
        f"CREATE OR REPLACE TRIGGER moved BEFORE {' OR '.join(actions)} ON dutiful.{table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION dutiful.refuse_moved()"
        for table, actions in moving.GUARDED.items()
    ),
]
_NO_GUARDS = [
    *(f"DROP TRIGGER IF EXISTS moved ON dutiful.{table}" for table in moving.GUARDED),
    "DROP FUNCTION IF EXISTS dutiful.refuse_moved()",
]
_BATCH_END = BATCH_END.format(length="octet_length", job="dutiful.job", error="dutiful.error", value="%s")


def check_not_moved(access: Access) -> None:
    """
    Raises:
        StoreMoved: The jobs are elsewhere, or not all here yet.
    """
    with access.looking() as db:
        row = db.run("SELECT value FROM dutiful.meta WHERE key = %s", (moving.TEXT,)).fetchone()
    if row is not None:
        raise moving.read(access.label, row[0]) or StoreMoved(access.label, row[0])


class PostgresHand:
    """One transaction, which keeps all other writers out."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def get(self, key: str) -> str | None:
        row = self._db.run("SELECT value FROM dutiful.meta WHERE key = %s", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str | None) -> None:
        if value is None:
            self._db.run("DELETE FROM dutiful.meta WHERE key = %s", (key,))
            return
        self._db.run(
            "INSERT INTO dutiful.meta (key, value) VALUES (%s, %s)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def raise_guards(self, text: str) -> None:
        del text  # they read it from the meta table
        for statement in _GUARDS:
            self._db.run(statement)

    def lower_guards(self) -> None:
        if self.get(moving.TEXT) is None:
            return  # whoever may not drop anything need not
        for statement in _NO_GUARDS:
            self._db.run(statement)

    def is_idle(self) -> bool:
        sql = (
            "SELECT NOT EXISTS (SELECT FROM dutiful.worker)"
            " AND NOT EXISTS (SELECT FROM dutiful.job WHERE state = 'running')"
        )
        return bool(self._db.one(sql)[0])

    def kept_beside(self) -> str | None:
        for table in moving.KEPT_BESIDE:
            if self._db.one(f"SELECT EXISTS (SELECT FROM dutiful.{table})")[0]:
                return table
        return None

    def last_id(self) -> JobId:
        return int(self._db.one("SELECT coalesce(max(id), 0) FROM dutiful.job")[0])

    def add(self, batch: Batch) -> None:
        self._copy(f"COPY dutiful.job ({COLUMNS}) FROM STDIN", map(_storable, batch.rows))
        errors = ([_readable(value) for value in row] for row in batch.errors)
        self._copy(f"COPY dutiful.error ({ERROR_COLUMNS}) FROM STDIN", errors)

    def _copy(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with self._db.cursor() as cursor, cursor.copy(in_schema(sql, self._db.schema)) as copy:
            for row in rows:
                copy.write_row(row)

    def clear(self) -> None:
        self._db.run("DELETE FROM dutiful.job")
        self._db.run("DELETE FROM dutiful.error")

    def put_beside(self, table: str, rows: Sequence[Sequence[object]]) -> None:
        self._db.run(f"DELETE FROM dutiful.{table}")
        readable = ([_readable(value) for value in row] for row in rows)
        self._copy(f"COPY dutiful.{table} ({moving.BESIDE[table]}) FROM STDIN", readable)

    def forget_clock(self) -> None:
        pass  # the server's is never compared with another


class PostgresGround:
    """A PostgreSQL store, for a mover."""

    def __init__(
        self,
        access: Access,
        *,
        create: bool,
        workers: Callable[[], list[WorkerInfo]],
        rescue: Callable[[Callable[[Claim, bool], Ack]], object],
        close: Callable[[], None],
    ) -> None:
        self._access = access
        self._create = create
        self._workers = workers
        self._rescue = rescue
        self._close = close

    @property
    def label(self) -> str:
        return self._access.label

    def open(self) -> None:
        self._access.open()
        postgres_schema.migrate(self._access, create=self._create, migrate=True)

    def close(self) -> None:
        self._close()

    @contextlib.contextmanager
    def change(self) -> Generator[PostgresHand]:
        with self._access.writing() as db, db.patient(REBUILD_S):
            self._lock(db)
            db.run(_HAND)
            yield PostgresHand(db)

    def _lock(self, db: Connection) -> None:
        until = time.monotonic() + self._access.busy_s
        db.run("SAVEPOINT unlocked")
        db.run(_LOCK_WAIT)
        while True:
            try:
                db.run(_LOCK)
            except Error as error:
                if not is_busy(error) or time.monotonic() > until:
                    raise
                db.run("ROLLBACK TO unlocked")
                db.run(_LOCK_WAIT)
            else:
                db.run(f"SET LOCAL lock_timeout = {round(self._access.busy_s * 1000)}")
                return

    def totals(self) -> Totals:
        with self._access.looking() as db, db.patient(REBUILD_S):
            by_state: dict[str, int] = dict(
                db.run("SELECT state, count(*) FROM dutiful.job GROUP BY state").fetchall()
            )
            (errors,) = db.one(
                "SELECT count(*) FROM dutiful.error AS e"
                " WHERE EXISTS (SELECT FROM dutiful.job WHERE job.id = e.job_id)"
            )
            (texts,) = db.one("SELECT count(payload) + count(result) FROM dutiful.job")
        return Totals({state: by_state.get(state.value, 0) for state in State}, errors, texts)

    def batch(self, after: JobId) -> Batch:
        with self._access.looking() as db, db.patient(REBUILD_S):
            (last,) = db.one(_BATCH_END, (after, moving.BATCH_JOBS, moving.BATCH_BYTES))
            ids = (after, last)
            rows = db.run(
                f"SELECT {COLUMNS} FROM dutiful.job WHERE id > %s AND id <= %s ORDER BY id", ids
            ).fetchall()
            errors = db.run(
                f"SELECT {ERROR_COLUMNS} FROM dutiful.error AS e WHERE job_id > %s AND job_id <= %s"
                " AND EXISTS (SELECT FROM dutiful.job WHERE job.id = e.job_id) ORDER BY job_id, attempt",
                ids,
            ).fetchall()
        return Batch([Row(*row) for row in rows], errors)

    def beside(self, table: str) -> list[tuple[object, ...]]:
        order = moving.BESIDE_ORDER.get(table, "1")
        with self._access.looking() as db, db.patient(REBUILD_S):
            return db.run(f"SELECT {moving.BESIDE[table]} FROM dutiful.{table} ORDER BY {order}").fetchall()

    def workers(self) -> list[WorkerInfo]:
        return self._workers()

    def rescue(self, decide: Callable[[Claim, bool], Ack]) -> object:
        return self._rescue(decide)


def _storable(row: Row) -> Sequence[object]:
    """Return the columns. A payload that no text column can hold becomes NULL: such a job will be dead."""
    *columns, payload, result = msgspec.structs.astuple(row)
    return [*map(_readable, columns), _text(payload), _text(result)]


def _text(value: str | bytes | None) -> str | None:
    return None if not isinstance(value, str) or "\0" in value else value


def _readable(value: object) -> object:
    """Return a key or a name, or what an error says, as a text column can hold it."""
    return value.replace("\0", "\\x00") if isinstance(value, str) else value
