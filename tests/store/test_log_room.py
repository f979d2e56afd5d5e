"""Room at the end of the log: what it saves, and that nothing is lost for it."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from dutiful.job import State
from dutiful.store import log_room
from dutiful.store.contract import Draft, Outcome, Work
from dutiful.store.sqlite import SqliteStore
from tests.store import inside

KILLED = """
import os, signal, sys
from dutiful.store.contract import Draft, Outcome, Work
from dutiful.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
store.open()
for _ in range(50):
    store.exchange(Work(drafts=[Draft("t", "q", ["1"])]), Outcome())
os.kill(os.getpid(), signal.SIGKILL)
"""


def _send(store: SqliteStore) -> int:
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["1"])]), outcome)
    return outcome.stored[0][0]


def _log(folder: Path) -> Path:
    return folder / "jobs.db-wal"


@pytest.mark.parametrize(("durability", "changes"), [("full", range(1, 10)), ("normal", range(90, 101))])
def test_few_commits_make_the_log_longer(tmp_path: Path, durability, changes) -> None:
    """Where each commit is synced; else nobody waits for it."""
    store = inside.opened(tmp_path / "jobs.db", durability=durability)
    sizes = []
    for _ in range(100):
        _send(store)
        sizes.append(_log(tmp_path).stat().st_size)
    store.close()

    assert len(set(sizes)) in changes


def test_after_a_kill_the_log_is_read_to_its_last_commit(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "jobs.db")], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert _log(tmp_path).read_bytes().endswith(bytes(log_room._FIRST_BYTES // 2))  # there was room left

    store = inside.opened(tmp_path / "jobs.db")

    assert store.counts().by_state[State.PENDING] == 50
    store.close()


def test_who_writes_at_the_same_moment_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    """Another connection knows nothing of our locks, and writes where the log ends, as we do."""
    path = tmp_path / "jobs.db"
    store = inside.opened(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (n INTEGER PRIMARY KEY)")
        db.commit()
    monkeypatch.setattr(log_room, "_MOST_BYTES", 4096)  # small and often
    room = log_room.LogRoom(_log(tmp_path), 1 << 26)
    done = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=60)) as db:
            for n in range(400):
                with db:
                    db.execute("INSERT INTO theirs VALUES (?)", (n,))
        done.set()

    other = threading.Thread(target=write)
    other.start()
    rounds = 0
    while not done.is_set():
        room._seen = _log(tmp_path).stat().st_size - 1  # as if it had just grown
        room.make()
        rounds += 1
    room.close()
    other.join()
    ids = [_send(store) for _ in range(20)]
    store.close()

    assert rounds > 100
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM theirs").fetchone() == (400,)
        assert db.execute("SELECT count(*) FROM dutiful_job").fetchone() == (len(ids),)


def test_without_space_for_it_commits_go_on(tmp_path: Path, monkeypatch) -> None:
    store = inside.opened(tmp_path / "jobs.db")
    refused = []

    def write(fd: int, data: bytes) -> int:
        refused.append(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log_room.os, "write", write)
    ids = [_send(store) for _ in range(5)]
    monkeypatch.undo()
    ids += [_send(store) for _ in range(5)]

    assert refused
    assert len(set(ids)) == store.counts().by_state[State.PENDING] == 10
    store.close()
