"""
What a transaction came to whose COMMIT got no answer: the server is asked by its number.

A number alone misleads after a crash. The server has then lost what was not in its log yet, and gives the
numbers of those transactions to others, whose fate is not theirs. A recovery ends with a checkpoint that says
the first number to be given from then on; so after a crash a transaction with that number or a higher one
is lost, whatever is said of its number now. (A later checkpoint would hide that; there is none so soon,
unless somebody orders one.)
"""

import time
from typing import Literal

from dutiful.store.postgres_driver import Connection, Error

Verdict = Literal["committed", "aborted", "in progress"]

_IN_THE_FUTURE = "22023"
_DENIED = "42501"
# A crash of any server process ends all sessions and restarts the rest; the first of the server's processes
# may live on, but what was counted is thrown away.
_STATUS = """
SELECT pg_xact_status(%s::text::xid8),
       extract(epoch FROM clock_timestamp() - greatest(pg_postmaster_start_time(),
            (SELECT stats_reset FROM pg_stat_bgwriter)))::float8,
       left(pg_walfile_name(pg_current_wal_lsn()), 8)
"""
_FIRST_AFTER = """
SELECT split_part(next_xid, ':', 1)::bigint << 32 | split_part(next_xid, ':', 2)::bigint
  FROM pg_control_checkpoint()
"""
# Whoever has that number is ours, behind whatever pooler; the same role may end it.
_END = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE backend_xid = %s::text::xid8::xid AND pid <> pg_backend_pid()
"""


def verdict(db: Connection, xid: str, *, timeline: str, began_at: float) -> Verdict | str:
    """
    Return what a transaction came to, and end it if it is not decided; another text says why nobody knows.

    Args:
        db: A connection to ask on.
        xid: The transaction's number.
        timeline: The server's when the transaction began.
        began_at: When that was, by the monotonic clock here, or before.
    """
    try:
        status, up_s, timeline_now = db.one(_STATUS, (xid,))
    except Error as error:
        if error.sqlstate != _IN_THE_FUTURE:
            raise
        return "aborted"  # after a failover or a crash, this server has never heard of it
    if status == "aborted":
        return "aborted"
    if timeline_now != timeline:
        return "there was a failover"  # the number may be another's here
    if up_s < time.monotonic() - began_at:
        is_lost = _is_lost(db, xid)
        if is_lost is not False:
            return "aborted" if is_lost else "the server has crashed, and pg_control_checkpoint() is denied"
    if status == "in progress":
        db.run(_END, (xid,))
    return str(status)


def _is_lost(db: Connection, xid: str) -> bool | None:
    """Tell whether a crash lost this transaction; None if the role may not know."""
    try:
        (first_after,) = db.one(_FIRST_AFTER)
    except Error as error:
        if error.sqlstate != _DENIED:
            raise
        return None
    return int(xid) >= int(first_after)
