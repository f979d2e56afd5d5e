"""
The raw limit on PostgreSQL: what plain psycopg does with the same rows.

One connection, in a loop: it inserts 500 rows with `unnest` and commits, claims 500 with `SKIP LOCKED` and
commits, deletes them and commits, on our own table, with the columns and indexes that a job has. It runs no
handlers, decides nothing and encodes no payloads. Arrays travel in binary, which psycopg writes faster than
as text: 60,000 jobs/s instead of 45,000 (2 CPUs, 2026-11).
"""

import time
from itertools import repeat

import psycopg

from bench.raw import BATCH, TEXT
from dutiful import Worker

_INSERT = (
    "INSERT INTO dutiful.job (id, state, queue, task, priority, due_at, created_at, payload)"
    " SELECT id, 'pending', 'default', 'noop', 0, 1, 1, payload"
    " FROM unnest(%b::bigint[], %b::text[]) AS new (id, payload)"
)
# What every queue on PostgreSQL does, by the index job_claim.
_CLAIM = (
    "UPDATE dutiful.job SET state = 'running', owner = 1, attempt = attempt + 1, started_at = 1"
    " WHERE id = ANY (ARRAY(SELECT id FROM dutiful.job"
    " WHERE queue = 'default' AND state = 'pending' AND crashes = 0 AND due_at <= 1"
    f" ORDER BY priority DESC, due_at, id LIMIT {BATCH} FOR UPDATE SKIP LOCKED))"
    " RETURNING id, attempt, task, payload"
)
_DELETE = "DELETE FROM dutiful.job WHERE id = ANY (%b::bigint[])"


def make_table(url: str) -> None:
    """Have dutiful make its tables."""
    worker = Worker(url)
    worker.counts()
    worker.stop()


def batches_per_s(url: str, jobs: int) -> float:
    """Insert, claim and delete `jobs` rows in batches of 500; return rows per second."""
    make_table(url)
    with psycopg.connect(url) as db:
        began = time.perf_counter()
        for first in range(0, jobs, BATCH):
            ids = range(first, min(first + BATCH, jobs))
            db.execute(_INSERT, (list(ids), list(repeat(TEXT, len(ids)))))
            db.commit()
            claimed = db.execute(_CLAIM).fetchall()
            db.commit()
            assert len(claimed) == len(ids)
            db.execute(_DELETE, ([row[0] for row in claimed],))
            db.commit()
        return jobs / (time.perf_counter() - began)
