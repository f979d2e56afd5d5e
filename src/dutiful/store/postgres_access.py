"""
The way to a PostgreSQL database: connections, what their errors mean, and what a COMMIT came to.

A connection is one thread's at a time: idle ones lie on a small stack, and one that the server
has closed meanwhile is found out before it is used.

A connection that is lost in COMMIT says nothing about the transaction. So each write learns
its transaction's number before it commits; with it the server is asked afterwards, on another
connection, and a transaction that it still has in progress is ended first. `Outcome.committed`
is the truth in every case but one, and for that there is `StoreUnknown`.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl

from dutiful.errors import (
    ConfigError,
    SchemaTooNew,
    StoreError,
    StoreUnavailable,
    StoreUnknown,
)
from dutiful.store.contract import Outcome
from dutiful.store.fork import ForkGuard
from dutiful.store.postgres_driver import Connection, Cursor, Error, parameters
from dutiful.store.postgres_errors import translated
from dutiful.store.postgres_verdict import verdict

__all__ = ["Access", "Connection", "Cursor", "Error", "split_url"]

SCHEMA = "dutiful"
_OURS = "dutiful_"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
SERVER_MIN = 140000
# So many threads at a time look and edit; more of them take turns. (A step is one at a time, and handlers'
# transactions are as many as handlers run.) With more the server would be no faster, and refuse others.
TURNS = 10
_IDLE_MAX = TURNS + 1  # connections kept for the next who asks, for each of
_IDLE_S = 60.0  # seconds if it is not asked for
_CONNECT_S = 10
# A peer that is gone without a word is found out within this long, by either side: a lease (10 s) or so.
_SILENCE_S = 10
# A kernel acknowledges what a frozen server never answers, and so may whatever sits between. So there is a
# bound on any wait for an answer, besides that for a lock; and what may take longer has its own.
ANSWER_S = 10.0
READ_S = 60.0  # reads over many jobs, and pruning
REBUILD_S = 3600.0  # what goes through all jobs: a migration, a move
_ASK_AGAIN_S = 0.05  # between two questions what a transaction came to
# Where we are: behind a pooler the process is not the one that we were told of. The timeline, the first
# part of a log file's name, changes with a failover.
_WHERE = """
SELECT pg_backend_pid(), current_setting('server_encoding'),
       CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""
# How new a program must be to work with the tables. A migration may raise it while we are connected.
_MIN_CODE = "SELECT value::integer FROM dutiful.meta WHERE key = 'schema_min_code'"
_MIN_CODE_EVERY_S = 20.0


class Access:
    """
    The way to a PostgreSQL database.

    Args:
        url: postgresql://user:password@host:port/database, with libpq's parameters.
        schema: Where our tables are; see `split_url`.
        durability, busy_s: See Config.
        worker: Its name is shown by the server beside our connections.
        let_go: Called in a forked child, to let go of what else is the parent's.

    Attributes:
        label: What to call it in messages, without the password.
        schema: The schema as it is written before a table's name: `"dutiful".`
        is_pooled: Whether a pooler sits between: our connection may have another session each time.
        code: The schema's version that we know, once it is there: then it must not ask for newer programs.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = SCHEMA,
        durability: Literal["full", "normal"] = "full",
        busy_s: float = 10.0,
        worker: str = "worker",
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        if not _NAME.fullmatch(schema):
            raise ConfigError(
                f"the schema {schema!r} cannot be used; a name has small letters, digits and _, "
                "at most 63 of them, and no digit first."
            )
        self.schema_name = schema
        self.schema = f'"{schema}".'
        self.busy_s = busy_s
        self.is_open = False
        self.is_pooled = False
        self.code = 0
        self._asked_at = 0.0
        self._parameters = parameters(url)
        self.label = _label(self._parameters, schema)
        self.is_durable = durability == "full"
        self._worker = worker
        self._opening = threading.Lock()
        self._idle: list[Connection] = []
        self._lendable: list[Connection] = []
        self._all: set[Connection] = set()
        self._turns = threading.Semaphore(TURNS)
        self._mine = threading.local()
        self._let_go = let_go
        self._fork = ForkGuard(self._after_fork)

    # --- opening and closing --------------------------------------------------------------------

    def open(self) -> bool:
        """Connect; return whether it was closed before."""
        if self.is_open:
            self._fork.check()
        with self._opening:
            if self.is_open:
                return False
            self._fork.renew()
            self.code = 0
            db = self.connect("store")
            self._idle.append(db)
            self.is_open = True
            return True

    def close(self) -> None:
        """Close the connections. In a forked child they are the parent's, and stay."""
        if self._fork.is_forked:
            return
        with self._opening:
            self.is_open = False
            for idle in (self._idle, self._lendable):
                while idle:
                    self._discard(idle.pop())

    def _after_fork(self) -> None:
        """In a child: never close, and hold no socket open, or the server would not see the parent die."""
        self._let_go()
        self._fork.immortalize(*self._all)
        for db in self._all:
            db.drop_socket()
        self._idle, self._lendable, self._all = [], [], set()
        self._turns, self._mine = threading.Semaphore(TURNS), threading.local()

    # --- connections ----------------------------------------------------------------------------

    def connect(self, purpose: str, *, for_handler: bool = False) -> Connection:
        """
        Return a new connection in autocommit mode, for the caller to `disconnect`.

        One for a handler has the settings of its role and database, not ours.

        Raises:
            StoreUnavailable: There is no server, or it does not let us in.
            SchemaTooNew: It does not want programs of our version any more.
        """
        with self.translating():
            began_at = time.monotonic()
            db = Connection.connect(**self._parameters, **self._settings(purpose))
            db.connected_at = began_at
            db.schema = self.schema
            try:
                self._prepare(db, for_handler=for_handler)
            except BaseException:
                db.close()
                raise
        db.patience_s = self.busy_s + ANSWER_S  # for a lock, and for a server that is there
        self._all.add(db)
        return db

    def spare(self) -> Connection | None:
        """
        Return an idle connection, for the caller to `disconnect`: it is there at once. None: there is none.

        Never behind a pooler, where it would be everybody's.
        """
        return None if self.is_pooled or not self.is_open else self._next_idle(self._idle)

    def break_off(self, *, until: float) -> None:
        """Have all who wait for an answer get an error, on connections begun until then (monotonic)."""
        for db in list(self._all):
            if db.connected_at <= until:
                db.break_off()

    def disconnect(self, db: Connection) -> None:
        """Close a connection from `connect`."""
        self._discard(db)

    def _discard(self, db: Connection) -> None:
        self._all.discard(db)
        db.close()

    def name_of(self, purpose: str) -> str:
        """Return what a connection is called where the server shows it."""
        name: str = self._parameters.get("application_name") or f"dutiful {self._worker} {purpose}"
        return name[:63]

    def _settings(self, purpose: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "autocommit": True,
            "application_name": self.name_of(purpose),
            "client_encoding": "utf8",
            "connect_timeout": self._parameters.get("connect_timeout", _CONNECT_S),
            "keepalives": 1,
            "keepalives_idle": _SILENCE_S // 2,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": _SILENCE_S * 1000,
        }
        return {key: value for key, value in settings.items() if key not in self._parameters}

    def _prepare(self, db: Connection, *, for_handler: bool) -> None:
        """Set what our promises and plans need; see also `is_pooled`."""
        if self.code:
            pid, encoding, db.timeline, min_code = db.one(f"{_WHERE}, ({_MIN_CODE})")
            self._check_code(min_code)
        else:
            pid, encoding, db.timeline = db.one(_WHERE)
        if db.info.server_version < SERVER_MIN:
            raise StoreUnavailable(
                self.label,
                f"it is PostgreSQL {db.info.server_version // 10000}; nothing was changed. "
                "dutiful needs 14 or newer.",
            )
        if encoding != "UTF8":
            raise StoreUnavailable(
                self.label,
                f"its encoding is {encoding}, which cannot hold every payload; nothing was changed. "
                "Make a database with ENCODING 'UTF8'.",
            )
        # A pooler makes up the process number that it tells at the start. With one in between, a SET would
        # go to whoever gets that session next; and a prepared statement would be missing in the next one.
        self.is_pooled = pid != db.info.backend_pid
        if self.is_pooled or for_handler:
            db.prepare_threshold = None
            return
        db.prepare_threshold = 1
        _set(db, self._session(), local=False)

    def _check_code(self, min_code: int | None) -> None:
        if min_code is not None and min_code > self.code:
            raise SchemaTooNew(
                self.label,
                f"its schema is for programs that know version {min_code}, this one knows {self.code}; "
                "nothing was changed. Upgrade dutiful here.",
            )
        self._asked_at = time.monotonic()

    def _ask_code(self, db: Connection) -> None:
        """Look now and then whether the schema is still for us; nobody asks while nothing is done."""
        if self.code and time.monotonic() >= self._asked_at + _MIN_CODE_EVERY_S:
            row = db.run(_MIN_CODE).fetchone()
            self._check_code(None if row is None else row[0])

    def _session(self) -> list[tuple[str, str]]:
        return [
            ("synchronous_commit", "on" if self.is_durable else "off"),
            ("lock_timeout", str(round(self.busy_s * 1000))),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            # The server's side of the keepalives: a dead peer's locks are let go.
            ("tcp_keepalives_idle", str(_SILENCE_S // 2)),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", str(_SILENCE_S * 1000)),
            # Each of our statements has its index. The planner must not take an empty table for a reason
            # to read all of it, and keep that plan while a million jobs come in.
            ("enable_seqscan", "off"),
            # Nor must it gather and sort all that is due, because few seem to be left of it by a filter.
            ("enable_bitmapscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("plan_cache_mode", "force_generic_plan"),
            ("jit", "off"),
        ]

    @contextlib.contextmanager
    def borrowed(self) -> Generator[Connection]:
        """Give an idle connection that is not lost, or a new one; take it back if it is still good."""
        self._fork.check()
        self._check_open()
        db = self._next_idle(self._idle) or self.connect("store")
        try:
            self._ask_code(db)
            yield db
        except Error:
            # Not for the next: what psycopg has prepared in it, or has not, nobody knows for sure.
            db.close()
            raise
        finally:
            if db.is_ready and self._may_keep(self._idle):
                self._keep(self._idle, db)
            else:
                self._discard(db)

    def _check_open(self) -> None:
        if not self.is_open:
            raise StoreUnavailable(self.label, "the store is closed; nothing was changed.")

    def _may_keep(self, idle: list[Connection]) -> bool:
        return self.is_open and not self._fork.is_forked and len(idle) < _IDLE_MAX

    def _keep(self, idle: list[Connection], db: Connection) -> None:
        """Put it on top; who has been at the bottom for long has not been needed."""
        db.kept_at = now = time.monotonic()
        idle.append(db)
        with contextlib.suppress(IndexError):  # another thread has it
            if idle[0].kept_at < now - _IDLE_S:
                self._discard(idle.pop(0))

    @contextlib.contextmanager
    def _turn(self) -> Generator[None]:
        """Wait for one of the turns; who has one, and needs another connection beside it, does not wait."""
        if getattr(self._mine, "has_turn", False):
            yield
            return
        if not self._turns.acquire(timeout=self.busy_s):
            raise StoreUnavailable(
                self.label,
                f"all {TURNS} connections that a program looks and edits by were in use for "
                f"{self.busy_s:.1f} s; nothing was changed. Do so from fewer threads at once, or see what "
                "keeps the server busy.",
            )
        self._mine.has_turn = True
        try:
            yield
        finally:
            self._mine.has_turn = False
            self._turns.release()

    def _next_idle(self, idle: list[Connection]) -> Connection | None:
        while idle:
            try:
                db = idle.pop()
            except IndexError:  # another thread has it
                return None
            if not db.is_spoken_to:
                return db
            self._discard(db)  # the server has said goodbye, or the network has
        return None

    # --- a handler's -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lent(self) -> Generator[Connection]:
        """Give a connection in a transaction, for a handler to write on; roll back what is not committed."""
        self._fork.check()
        self._check_open()
        with self.translating():
            db = self._next_idle(self._lendable) or self.connect("transaction", for_handler=True)
            try:
                self._ask_code(db)
                self._begin(db, "BEGIN")  # at the level of isolation of his role, as all of its settings
            except BaseException:
                self._discard(db)
                raise
        try:
            yield db
        finally:
            self._take_back(db)

    def _take_back(self, db: Connection) -> None:
        """Keep it for the next handler, without whatever this one has set."""
        db.roll_back()
        # What a handler has had prepared is gone when we forget, and psycopg would not notice.
        has_prepared = db.prepare_threshold is not None
        may_keep = db.is_ready and self._may_keep(self._lendable)
        if may_keep and not has_prepared and not self.is_pooled:
            try:
                db.forget()
            except Error:
                self._discard(db)
            else:
                self._keep(self._lendable, db)
        else:
            self._discard(db)

    # --- reading and writing ---------------------------------------------------------------------

    @contextlib.contextmanager
    def looking(self) -> Generator[Connection]:
        """Give a connection to read with, each statement by itself."""
        with self._turn(), self.translating(), self.borrowed() as db:
            yield db

    @contextlib.contextmanager
    def writing(self, outcome: Outcome | None = None) -> Generator[Connection]:
        """
        Give a connection inside a transaction. Commit at the end, or roll back.

        Raises:
            StoreUnknown: Whether it has committed could not be found out. Any other: it has not.
        """
        with self._turn(), self.translating(), self.borrowed() as db:
            with self.rolling_back(db):
                self.begin(db)
                yield db
                (xid,) = db.one("SELECT pg_current_xact_id_if_assigned()::text")
            self.commit(db, xid, outcome, db.end)

    @contextlib.contextmanager
    def rolling_back(self, db: Connection) -> Generator[None]:
        """Roll back if anything goes wrong."""
        try:
            yield
        except BaseException:
            db.roll_back()
            raise

    def begin(self, db: Connection) -> None:
        """Begin a transaction of ours, with those of our settings that its session has not."""
        # Keys and limits are decided by what others have committed when their lock is got, not before: said
        # here, where no pooler and no role can have it otherwise.
        self._begin(db, "BEGIN ISOLATION LEVEL READ COMMITTED")

    def _begin(self, db: Connection, sql: str) -> None:
        db.began_at = time.monotonic()
        db.run(sql)
        if db.prepare_threshold is None:
            _set(db, [("synchronous_commit", "on" if self.is_durable else "off")], local=True)

    def commit(
        self, db: Connection, xid: str | None, outcome: Outcome | None, by: Callable[[], object]
    ) -> None:
        """
        Commit, and find out whether it has if the answer is lost.

        Args:
            db: It has the transaction, and is its caller's no more if anything goes wrong.
            xid: The transaction's number; None if it has written nothing.
            outcome: Is told.
            by: Sends the COMMIT, and reads the answer.
        """
        try:
            by()
        except BaseException as error:
            db.roll_back()
            if xid is None or not self._has_committed(xid, db, error):
                raise
            if outcome is not None:
                outcome.committed = True
            if not isinstance(error, Error):  # a signal's exception, which goes on
                raise
        else:
            if outcome is not None:
                outcome.committed = True

    def _has_committed(self, xid: str, lost: Connection, error: BaseException) -> bool:
        """Ask the server, until it knows; `error` is how the answer was lost, on the connection `lost`."""
        deadline = time.monotonic() + self.busy_s
        status = "in progress"
        while status == "in progress" and time.monotonic() < deadline:
            with contextlib.suppress(StoreError), self.looking() as db:
                status = verdict(db, xid, timeline=lost.timeline, began_at=lost.began_at)
            if status == "in progress":
                time.sleep(_ASK_AGAIN_S)
        if status in ("committed", "aborted"):
            return status == "committed"
        raise StoreUnknown(
            self.label,
            f"the connection was lost in COMMIT, and {self.busy_s:.0f} s long nobody could say whether "
            f"transaction {xid} has committed ({status}): what it stored may be there. Look before you "
            f"send it again.",
        ) from error

    @contextlib.contextmanager
    def translating(self) -> Generator[None]:
        """Raise a driver's error as ours; a value that no text can hold as ValueError."""
        try:
            yield
        except Error as error:
            raise translated(error, self.label, self.busy_s) from error


def _set(db: Connection, settings: Sequence[tuple[str, str]], *, local: bool) -> None:
    db.run(
        "SELECT " + ", ".join([f"set_config(%s, %s, {local})"] * len(settings)),
        [word for pair in settings for word in pair],
    )


# --- addresses -----------------------------------------------------------------------------------


def split_url(url: str) -> tuple[str, dict[str, str]]:
    """Take our own parameters, `dutiful_…`, out of a URL: libpq refuses what it does not know."""
    address, mark, query = url.partition("?")
    words = query.split("&")
    ours = dict(parse_qsl("&".join(word for word in words if word.startswith(_OURS)), keep_blank_values=True))
    rest = "&".join(word for word in words if not word.startswith(_OURS))
    return f"{address}{mark if rest else ''}{rest}", {key.removeprefix(_OURS): ours[key] for key in ours}


def _label(parameters: dict[str, Any], schema: str) -> str:
    user = f"{parameters['user']}@" if "user" in parameters else ""
    host = parameters.get("host") or parameters.get("hostaddr") or parameters.get("service") or "localhost"
    port = f":{parameters['port']}" if "port" in parameters else ""
    label = f"postgresql://{user}{host}{port}/{parameters.get('dbname', '')}"
    return label if schema == SCHEMA else f"{label} (schema {schema})"
