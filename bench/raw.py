"""
The raw limit: what plain `sqlite3` does with the same rows.

A loop of `executemany`: it inserts 500 rows and commits, deletes these rows and commits,
and so on, as durable as ours (WAL, synchronous=FULL). It runs no handlers, decides nothing
and encodes no payloads. There are two tables to do it on:

- SAME: our own table, with the columns and indexes that a job has: the limit that the
  targets are shares of, because these are the same rows.
- CHEAPEST: an id and a payload, no index. What no job queue can do, since such rows know no
  state, time or queue; shown beside the other, so that nothing hides in the choice.
"""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from bench.peers.peer import PAYLOAD

BATCH = 500
TEXT = f'"{PAYLOAD}"'


@dataclass(frozen=True, slots=True)
class Table:
    """A table to insert rows into, and how."""

    name: str
    schema: str
    insert: str
    rest: tuple[object, ...]  # of a row, after its id

    @property
    def delete(self) -> str:
        return f"DELETE FROM {self.name} WHERE id = ?"

    def rows(self, ids: Sequence[int]) -> list[tuple[object, ...]]:
        return [(row, *self.rest) for row in ids]


CHEAPEST = Table(
    "raw",
    "CREATE TABLE raw (id INTEGER PRIMARY KEY, payload TEXT NOT NULL)",
    "INSERT INTO raw VALUES (?, ?)",
    (TEXT,),
)
_NOW = 1_700_000_000_000
SAME = Table(
    "dutiful_job",
    (files("dutiful") / "store" / "schema" / "sqlite" / "0001.sql").read_text(encoding="utf-8"),
    "INSERT INTO dutiful_job (id, state, owner, queue, task, priority, due_at, attempt, created_at,"
    " started_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ("running", 1, "default", "noop", 0, _NOW, 1, _NOW, _NOW, TEXT),
)


def connect(path: Path, table: Table) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(table.schema)
    return db


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def batches_per_s(folder: Path, jobs: int, table: Table = SAME) -> float:
    """Insert and delete `jobs` rows in batches of 500; return rows per second."""
    path = folder / "raw.db"
    db = connect(path, table)
    began = time.perf_counter()
    for first in range(0, jobs, BATCH):
        ids = range(first, min(first + BATCH, jobs))
        db.execute("BEGIN")
        db.executemany(table.insert, table.rows(ids))
        db.execute("COMMIT")
        db.execute("BEGIN")
        db.executemany(table.delete, [(row,) for row in ids])
        db.execute("COMMIT")
    took_s = time.perf_counter() - began
    db.close()
    _remove(path)
    return jobs / took_s


def commits_per_s(folder: Path, for_s: float, table: Table = SAME) -> float:
    """Insert rows with a commit each for some time; return rows per second."""
    path = folder / "raw.db"
    db = connect(path, table)
    row = 0
    began = time.perf_counter()
    while time.perf_counter() < began + for_s:
        db.execute(table.insert, (row, *table.rest))
        row += 1
    took_s = time.perf_counter() - began
    db.close()
    _remove(path)
    return row / took_s


def commit_s(folder: Path, count: int, pause_s: float) -> list[float]:
    """Return the seconds of single commits with a pause before each: disk and CPU idle, as for latency."""
    path = folder / "raw.db"
    db = connect(path, SAME)
    took_s: list[float] = []
    for row in range(count):
        time.sleep(pause_s)
        began = time.perf_counter()
        db.execute(SAME.insert, (row, *SAME.rest))
        took_s.append(time.perf_counter() - began)
    db.close()
    _remove(path)
    return took_s
