"""
psycopg as we use it: the only file that imports it.

`Connection.send` and `commit` are one statement and its commit, in two trips to the server with nothing
in between. A statement that is sent without a Sync leaves its transaction open, and the Sync commits
it (PostgreSQL, "Pipelining"): the server parses no BEGIN and no COMMIT, and we know the transaction's
number before we ask for the commit. It is written on psycopg's libpq layer, since this is every
sender's way: 40 µs of the client's time instead of 130 with psycopg's pipeline (2026-11).
"""

import contextlib
import functools
import os
import re
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dutiful.errors import ConfigError

try:
    import psycopg
    from psycopg import conninfo, errors, pq
    from psycopg.pq.abc import PGresult
    from psycopg.rows import tuple_row
except ImportError as missing:
    raise ConfigError(
        "a postgresql:// store needs psycopg 3, which is not installed (or finds no libpq); nothing was "
        'changed. Run: pip install "dutiful[postgres]"'
    ) from missing

Error = psycopg.Error
Cursor = psycopg.Cursor[tuple[Any, ...]]
Values = Sequence[object] | Mapping[str, object]

_NOTIFY = b"SELECT pg_notify($1, $2)"
_NAMED = re.compile(rb"%\((\w+)\)s")


@functools.cache
def in_schema(sql: str, schema: str) -> bytes:
    """Put the schema's name, as it is written before a table, into a statement of ours."""
    return sql.replace("dutiful.", schema).encode()


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection of ours. It is one thread's at a time."""

    schema = ""
    timeline = ""  # of the server's history: another after a failover
    began_at = 0.0  # its last transaction, by the monotonic clock
    patience_s = 30.0  # `send` and `commit_sent` wait so long for an answer; the others as long as TCP does
    _poll: "select.poll | None" = None

    def run(self, sql: str, values: Values | None = None) -> Cursor:
        """Execute a statement of ours, in which every table is called `dutiful.…`."""
        # A cursor of ours: a handler may have set another kind of rows for its own.
        return psycopg.Cursor(self, row_factory=tuple_row).execute(in_schema(sql, self.schema), values)

    def one(self, sql: str, values: Values | None = None) -> tuple[Any, ...]:
        """Return the row of a query that has one row, always."""
        row = self.run(sql, values).fetchone()
        assert row is not None, "such a query has one row"
        return row

    @property
    def is_ready(self) -> bool:
        """Whether it is open, and outside of any transaction."""
        return (
            not self.closed
            and self.info.transaction_status == pq.TransactionStatus.IDLE
            and self.pgconn.pipeline_status == pq.PipelineStatus.OFF
        )

    @property
    def is_spoken_to(self) -> bool:
        """Whether the server has sent what nobody asked for: as a rule, that it closes. No trip."""
        if self.closed:
            return True
        return bool(self._poll_for(select.POLLIN).poll(0))

    def is_in(self, xid: str) -> bool:
        """Whether the transaction of that number is open. One that has failed still is."""
        status = self.info.transaction_status
        if status == pq.TransactionStatus.INTRANS:
            return bool(self.one("SELECT pg_current_xact_id_if_assigned()::text")[0] == xid)
        return bool(status == pq.TransactionStatus.INERROR)

    def end(self) -> None:
        """
        Send COMMIT.

        Raises:
            Error: The answer is lost; or a statement had failed, and all was rolled back.
        """
        if self.run("COMMIT").statusmessage != "COMMIT":
            raise errors.InFailedSqlTransaction("a statement had failed before, so all was rolled back")

    def roll_back(self) -> None:
        """Undo what is not committed; a connection that cannot is closed."""
        try:
            if not self.is_ready:
                self.run("ROLLBACK")
        except Error:
            self.close()

    def forget(self) -> None:
        """Undo what a handler may have set for the session, or on this object."""
        self.run("DISCARD ALL")
        self.autocommit = True
        self.row_factory = tuple_row
        self.cursor_factory = psycopg.Cursor

    def break_off(self) -> None:
        """Have the thread that waits for an answer get an error instead. From any thread."""
        with contextlib.suppress(OSError, Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as copy:
            copy.shutdown(socket.SHUT_RDWR)

    def drop_socket(self) -> None:
        """Replace the socket by nothing, in this process alone, without a word to the server."""
        with contextlib.suppress(OSError, Error):
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, self.pgconn.socket, inheritable=False)
            os.close(nothing)

    # --- one statement and its commit ---------------------------------------------------------------

    def send(self, sql: str, values: Mapping[str, object]) -> list[bytes | None]:
        """
        Execute a statement; return its one row. Its transaction is open: `commit` it, or close.

        Raises:
            Error: It has failed; nothing was changed.
        """
        self.began_at = time.monotonic()
        try:
            name, order = self._statements.get(sql) or self._ready_statement(sql)
            bound = [None if (value := values[key]) is None else str(value).encode() for key in order]
            self.pgconn.enter_pipeline_mode()
            self.pgconn.send_query_prepared(name, bound)
            self.pgconn.send_flush_request()
            result = self._result()
            if result is None or result.status != pq.ExecStatus.TUPLES_OK:
                self._end_failed()
                raise _error(result)  # noqa: TRY301  # one way to end it
            row = [result.get_value(0, column) for column in range(result.nfields)]
            while self._result() is not None:
                pass
        except Error:
            if not self.is_ready:
                self.close()
            raise
        except BaseException:  # a signal's: nobody knows how far it was
            self.close()
            raise
        return row

    def commit_sent(self, ring: tuple[str, str] | None = None) -> bool:
        """
        Commit what `send` did; right behind it, in the same trip, send a notification.

        Args:
            ring: The notification's channel and text; None: none.

        Returns:
            Whether there was one and it is sent. It is not part of the transaction: if it fails, that holds.

        Raises:
            Error: The answer is lost with the connection; or it has failed.
        """
        try:
            self.pgconn.pipeline_sync()
            if ring is not None:
                self.pgconn.send_query_params(_NOTIFY, [word.encode() for word in ring])
                self.pgconn.pipeline_sync()
            result = self._result()
            if result is None or result.status != pq.ExecStatus.PIPELINE_SYNC:
                raise _error(result)  # noqa: TRY301  # one way to end it
            has_rung = ring is not None and self._has_rung()
            if not self.closed:
                self.pgconn.exit_pipeline_mode()
        except BaseException:
            self.close()
            raise
        return has_rung

    def _has_rung(self) -> bool:
        answers = (pq.ExecStatus.TUPLES_OK, None, pq.ExecStatus.PIPELINE_SYNC)
        try:
            has_rung = all(
                (result and result.status) == wanted for wanted in answers for result in [self._result()]
            )
        except Error:
            has_rung = False
        if not has_rung:
            self.close()
        return has_rung

    def _end_failed(self) -> None:
        """After an error the Sync rolls back."""
        while self._result() is not None:
            pass
        self.pgconn.pipeline_sync()
        while (result := self._result()) is None or result.status != pq.ExecStatus.PIPELINE_SYNC:
            pass
        self.pgconn.exit_pipeline_mode()

    @functools.cached_property
    def _statements(self) -> dict[str, tuple[bytes, list[str]]]:
        return {}

    def _ready_statement(self, sql: str) -> tuple[bytes, list[str]]:
        order: list[str] = []

        def number(match: re.Match[bytes]) -> bytes:
            key = match[1].decode()
            if key not in order:
                order.append(key)
            return b"$%d" % (order.index(key) + 1)

        text = _NAMED.sub(number, in_schema(sql, self.schema))
        name = b"dutiful_%d" % len(self._statements)
        self.pgconn.send_prepare(name, text)
        result = self._result()
        if result is None or result.status != pq.ExecStatus.COMMAND_OK:
            raise _error(result)
        while self._result() is not None:
            pass
        self._statements[sql] = name, order
        return name, order

    def _result(self) -> PGresult | None:
        while self.pgconn.flush():  # the kernel's buffer is full: perhaps the server must be read from first
            self._wait_for(select.POLLIN | select.POLLOUT)
        while self.pgconn.is_busy():
            self._wait_for(select.POLLIN)
        return self.pgconn.get_result()

    def _wait_for(self, events: int) -> None:
        if not self._poll_for(events).poll(1000 * self.patience_s):
            raise errors.OperationalError(f"the server has not answered for {self.patience_s:.0f} s")
        self.pgconn.consume_input()

    def _poll_for(self, events: int) -> select.poll:
        if self._poll is None:
            self._poll = select.poll()
        self._poll.register(self.pgconn.socket, events)
        return self._poll


def _error(result: PGresult | None) -> Error:
    if result is None:
        return errors.OperationalError("the connection to the server was lost")
    return errors.error_from_result(result)


# --- addresses and errors -----------------------------------------------------------------------


def parameters(url: str) -> dict[str, Any]:
    """
    Return libpq's parameters that a URL holds.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return dict(conninfo.conninfo_to_dict(url))
    except Error:
        # Without the cause, whose text quotes the URL and with it the password.
        raise ConfigError(
            "the store's URL is not one that libpq can read; nothing was changed. Write "
            "postgresql://user:password@host:port/database, with special characters as %XX."
        ) from None


def is_bad_value(error: Error) -> bool:
    """Whether a value is at fault, such as a text with a NUL: neither the store nor the network."""
    return isinstance(error, errors.DataError)


def is_about_the_connection(error: Error) -> bool:
    """Whether it says that the server is not there, does not answer, or lets nobody in."""
    return isinstance(error, errors.OperationalError | errors.InterfaceError)
