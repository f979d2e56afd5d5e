"""
The raw limit: what plain `sqlite3` does with the same rows.

The strongest loop that is fair: one table, no index, `executemany`, the same payload text,
as durable as ours (WAL, synchronous=FULL). It inserts 500 rows and commits, deletes these
rows and commits, and so on; it runs no handlers, knows no states and encodes no payloads.
"""

import sqlite3
import time
from pathlib import Path

BATCH = 500
PAYLOAD = "x" * 98  # 100 bytes as JSON


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS raw (id INTEGER PRIMARY KEY, payload TEXT NOT NULL)")
    return db


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def batches_per_s(folder: Path, jobs: int) -> float:
    """Insert and delete `jobs` rows in batches of 500; return rows per second."""
    path = folder / "raw.db"
    db = connect(path)
    text = f'"{PAYLOAD}"'
    began = time.perf_counter()
    for first in range(0, jobs, BATCH):
        ids = range(first, min(first + BATCH, jobs))
        db.execute("BEGIN")
        db.executemany("INSERT INTO raw VALUES (?, ?)", [(row, text) for row in ids])
        db.execute("COMMIT")
        db.execute("BEGIN")
        db.executemany("DELETE FROM raw WHERE id = ?", [(row,) for row in ids])
        db.execute("COMMIT")
    took_s = time.perf_counter() - began
    db.close()
    _remove(path)
    return jobs / took_s


def commits_per_s(folder: Path, for_s: float) -> float:
    """Insert rows with a commit each for some time; return rows per second."""
    path = folder / "raw.db"
    db = connect(path)
    text = f'"{PAYLOAD}"'
    row = 0
    began = time.perf_counter()
    while time.perf_counter() < began + for_s:
        db.execute("INSERT INTO raw VALUES (?, ?)", (row, text))
        row += 1
    took_s = time.perf_counter() - began
    db.close()
    _remove(path)
    return row / took_s


def commit_s(folder: Path, count: int, pause_s: float) -> list[float]:
    """Return the seconds of single commits with a pause before each: disk and CPU idle, as for latency."""
    path = folder / "raw.db"
    db = connect(path)
    took_s: list[float] = []
    for row in range(count):
        time.sleep(pause_s)
        began = time.perf_counter()
        db.execute("INSERT INTO raw VALUES (?, ?)", (row, PAYLOAD))
        took_s.append(time.perf_counter() - began)
    db.close()
    _remove(path)
    return took_s
