"""The statements about workers: their rows, who holds a lock, and what a dead one leaves behind."""

from collections.abc import Collection, Sequence

import msgspec
from msgspec import Struct

from dutiful.job import Claim, JobId
from dutiful.store.contract import Owner, WorkerInfo
from dutiful.store.postgres_access import Connection
from dutiful.store.postgres_step import NOW

_SERVER_STARTED = "(extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint"


class Registration(Struct):
    """What a worker says of itself."""

    owner: Owner
    name: str
    host: str
    boot: str
    pid: int
    token: str
    queues: tuple[str, ...]
    concurrency: int
    tasks: Sequence[str] | None
    has_lock: bool = True
    incarnation: int = 1


class Missing(Struct, frozen=True, array_like=True):
    """A worker that cannot be seen to live. `is_due`: nothing was heard of it for too long."""

    owner: Owner
    name: str
    host: str
    boot: str
    pid: int
    token: str
    started_at: int
    seen_at: int
    queues: tuple[str, ...]
    concurrency: int
    incarnation: int
    has_just_gone: bool  # its lock is not held, and it is not that the server has lost all locks
    is_due: bool

    def info(self) -> WorkerInfo:
        """Return it as others see it."""
        return WorkerInfo(
            self.owner,
            self.name,
            self.host,
            self.pid,
            self.token,
            self.started_at,
            self.seen_at,
            self.queues,
            self.concurrency,
            is_alive=False,
        )


# --- one's own row ---------------------------------------------------------------------------------

_REGISTER = f"""
INSERT INTO dutiful.worker AS w
       (id, name, host, boot, pid, token, queues, concurrency, tasks, has_lock, incarnation,
        server_started, started_at, seen_at)
SELECT %(owner)s, %(name)s, %(host)s, %(boot)s, %(pid)s, %(token)s, %(queues)s, %(concurrency)s, %(tasks)s,
       %(has_lock)s, %(incarnation)s, {_SERVER_STARTED}, now.ms, now.ms
  FROM (SELECT {NOW} AS ms) AS now
    ON CONFLICT (id) DO UPDATE
   SET incarnation = excluded.incarnation, has_lock = excluded.has_lock, tasks = excluded.tasks,
       server_started = excluded.server_started, seen_at = excluded.seen_at
 WHERE w.token = excluded.token
RETURNING seen_at
"""


def register(db: Connection, who: Registration) -> int:
    """Write that this worker is there, or there again; return the instant."""
    tasks = None if who.tasks is None else list(who.tasks)
    values = {**msgspec.structs.asdict(who), "queues": list(who.queues), "tasks": tasks}
    return int(db.one(_REGISTER, values)[0])


def touch(db: Connection, owner: Owner) -> bool:
    """Write that a worker lives, and no more: what it can run others write; return whether it is there."""
    return db.run(f"UPDATE dutiful.worker SET seen_at = {NOW} WHERE id = %s", (owner,)).rowcount == 1


def beat(db: Connection, owner: Owner, tasks: Sequence[str] | None) -> bool:
    """Write that a worker lives, and which tasks it can run by now; return whether it is registered."""
    known = None if tasks is None else list(tasks)
    sql = f"UPDATE dutiful.worker SET seen_at = {NOW}, tasks = %s WHERE id = %s"
    return db.run(sql, (known, owner)).rowcount == 1


def remove(db: Connection, owner: Owner) -> None:
    """Take a worker out."""
    db.run("DELETE FROM dutiful.worker WHERE id = %s", (owner,))


def give_back(db: Connection, owner: Owner) -> list[JobId]:
    """Put all that a worker owns back in line, at nobody's fault; end and return what was to stop."""
    rows = db.run(
        f"""
        UPDATE dutiful.job
           SET state = CASE WHEN cancel_at IS NULL THEN 'pending' ELSE 'cancelled' END,
               finished_at = CASE WHEN cancel_at IS NULL THEN NULL ELSE {NOW} END,
               owner = NULL, cancel_at = NULL
         WHERE state = 'running' AND owner = %s       -- index job_running
        RETURNING id, state
        """,
        (owner,),
    ).fetchall()
    return [row[0] for row in rows if row[1] == "cancelled"]


def cancelled(db: Connection, owner: Owner) -> list[JobId]:
    """Return the running jobs of a worker that were asked to stop. By index job_cancel."""
    sql = "SELECT id FROM dutiful.job WHERE owner = %s AND cancel_at IS NOT NULL AND state = 'running'"
    return [row[0] for row in db.run(sql, (owner,)).fetchall()]


def held(db: Connection, owner: Owner) -> set[tuple[JobId, int]]:
    """Return the attempts that a worker owns. By index job_running."""
    sql = "SELECT id, attempt FROM dutiful.job WHERE owner = %s AND state = 'running'"
    return {(row[0], row[1]) for row in db.run(sql, (owner,)).fetchall()}


# --- the lock ----------------------------------------------------------------------------------------

# A lock on one bigint is shown in two halves.
LOCKS = """
SELECT (classid::bigint << 32) | objid::bigint AS id, pid FROM pg_locks
 WHERE locktype = 'advisory' AND objsubid = 1 AND granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def try_lock(db: Connection, owner: Owner, *, former: int) -> bool:
    """
    Take a worker's lock for as long as the connection lives; return whether it was free.

    Should the server process `former`, of our own lost connection, still hold it, it is ended: a
    server may take minutes to notice that the network has gone.
    """
    if db.one("SELECT pg_try_advisory_lock(%s)", (owner,))[0]:
        return True
    db.run(
        f"SELECT pg_terminate_backend(pid) FROM ({LOCKS}) AS locks WHERE id = %s AND pid = %s",
        (owner, former),
    )
    return False


def unlock(db: Connection, owner: Owner) -> None:
    """Let go of a worker's lock."""
    db.run("SELECT pg_advisory_unlock(%s)", (owner,))


def try_lock_here(db: Connection, owner: Owner) -> bool:
    """Take a worker's lock until this transaction ends: meanwhile it cannot come back to life."""
    return bool(db.one("SELECT pg_try_advisory_xact_lock(%s)", (owner,))[0])


# --- the others ---------------------------------------------------------------------------------------

# Who cannot be seen to live. With a lock: nobody holds it. When the server was restarted, or another took
# over, all locks went at once; then the living get the time of a lease to take them again, from the moment
# that they could and that we ourselves could see it. Without a lock: silent for longer than a lease.
MISSING = f"""
SELECT coalesce(json_agg(json_build_array(
           w.id, w.name, w.host, w.boot, w.pid, w.token, w.started_at, w.seen_at, w.queues, w.concurrency,
           w.incarnation, w.has_lock AND w.server_started = server.started,
           CASE WHEN NOT w.has_lock THEN server.now - w.seen_at > %(lease_ms)s
                WHEN w.server_started = server.started THEN true
                ELSE server.now - greatest(w.seen_at, server.started, %(here_since)s) > %(lease_ms)s
           END)), '[]')::text
  FROM dutiful.worker AS w, (SELECT {NOW} AS now, {_SERVER_STARTED} AS started) AS server
 WHERE w.id <> ALL(%(mine)s::bigint[])
   AND NOT (w.has_lock AND w.id IN (SELECT id FROM ({LOCKS}) AS locks))
"""


def missing(db: Connection, mine: Collection[Owner], *, lease_s: float, here_since: int) -> list[Missing]:
    """Return the workers, but for `mine`, that cannot be seen to live."""
    values = {"mine": list(mine), "lease_ms": round(lease_s * 1000), "here_since": here_since}
    return read_missing(db.one(MISSING, values)[0])


def read_missing(text: str) -> list[Missing]:
    """Return what `MISSING` tells."""
    return msgspec.json.decode(text, type=list[Missing])


def all_workers(db: Connection) -> list[WorkerInfo]:
    """Return all that are registered, as if they lived."""
    sql = (
        "SELECT id, name, host, pid, token, started_at, seen_at, queues, concurrency"
        "  FROM dutiful.worker ORDER BY id"
    )
    return [
        WorkerInfo(owner, name, host, pid, token, started_at, seen_at, tuple(queues), concurrency)
        for owner, name, host, pid, token, started_at, seen_at, queues, concurrency in db.run(sql).fetchall()
    ]


def is_still_dead(db: Connection, dead: Missing) -> bool:
    """Return whether nothing has been heard of a dead worker since it was looked at; its row is locked."""
    sql = "SELECT FROM dutiful.worker WHERE id = %s AND incarnation = %s AND seen_at = %s FOR UPDATE"
    return db.run(sql, (dead.owner, dead.incarnation, dead.seen_at)).rowcount == 1


def running_of(db: Connection, owner: Owner) -> list[Claim]:
    """Return the jobs that a worker owns, without payloads, and lock them. By index job_running."""
    rows = db.run(
        "SELECT id, attempt, failures, crashes, task, queue, NULL FROM dutiful.job"
        " WHERE state = 'running' AND owner = %s ORDER BY id FOR UPDATE",
        (owner,),
    ).fetchall()
    return [Claim(*row) for row in rows]


# By index job_running, a step for each owner.
_ORPHANS = """
WITH RECURSIVE owners (id) AS (
    SELECT (SELECT min(owner) FROM dutiful.job WHERE state = 'running')
    UNION ALL
    SELECT (SELECT min(owner) FROM dutiful.job WHERE state = 'running' AND owner > owners.id)
      FROM owners WHERE owners.id IS NOT NULL)
SELECT id FROM owners
 WHERE id IS NOT NULL AND NOT EXISTS (SELECT FROM dutiful.worker AS w WHERE w.id = owners.id)
"""


def orphan_owners(db: Connection) -> list[Owner]:
    """Return the owners of running jobs that are not registered."""
    return [row[0] for row in db.run(_ORPHANS).fetchall()]
