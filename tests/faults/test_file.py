"""A database file that was deleted, replaced, damaged or taken: a clear error, nothing destroyed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dutiful import SchemaTooNew, StoreBusy, StoreCorrupt, StoreError, StoreReplaced, Worker
from tests.crash.harness import Books, program, wait_until

HOLD_LOCK = Path(__file__).parent / "programs" / "hold_lock.py"
APP = Path(__file__).parent.parent / "crash" / "programs" / "app.py"


def _nothing(payload: Any) -> None:
    """Do the whole job."""


def _worker(db: Path, **options: float) -> Worker:
    # A short grace: some of these files never take what was done, and stop() tries for so long.
    return Worker(db, handlers={"work": _nothing}, **{"grace_s": 2.0, **options})  # type: ignore[arg-type]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A database with 200 jobs that wait, closed, so that all of it is in the one file."""
    path = tmp_path / "jobs.db"
    client = Worker(path)
    client.send_many([{"n": n, "pad": "x" * 300} for n in range(200)], task="work")
    client.stop()
    assert not path.with_name("jobs.db-wal").exists()
    return path


def _flip(path: Path, start: int, count: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(byte ^ 0xFF for byte in content[start : start + count])
    path.write_bytes(content)


def _refuses_to_start(db: Path, error: type[StoreError]) -> None:
    before = db.read_bytes()
    worker = _worker(db)
    with pytest.raises(error, match=r"jobs\.db"):
        worker.start()
    worker.stop()

    assert db.read_bytes() == before


def test_a_damaged_header_is_refused_and_left_alone(db: Path) -> None:
    """The file is no database any more: an error at the start, and not a byte is changed."""
    _flip(db, 0, 100)

    _refuses_to_start(db, StoreCorrupt)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A path that leads to a text file does not cost the user the text."""
    db = tmp_path / "jobs.db"
    db.write_text("Dear diary, " * 500)

    _refuses_to_start(db, StoreCorrupt)


def test_a_newer_schema_is_refused_and_left_alone(db: Path) -> None:
    """Neither a worker nor a client touches what a newer version has written."""
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("UPDATE dutiful_meta SET value = 99 WHERE key LIKE 'schema_%'")

    _refuses_to_start(db, SchemaTooNew)
    with pytest.raises(SchemaTooNew):
        Worker(db).send({"n": 1}, task="work")


def test_a_newer_schema_that_this_code_can_use_is_used(db: Path) -> None:
    """An additive change of a later version does not lock out this one."""
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("UPDATE dutiful_meta SET value = 99 WHERE key = 'schema_version'")

    with _worker(db) as worker:
        worker.send({"n": 1}, task="work").wait(timeout=10)


@pytest.mark.parametrize("page", [3, 5, 8, 12])
def test_a_damaged_page_hangs_nothing_and_deletes_nothing(db: Path, page: int) -> None:
    """Where the damage is met, the error says so; nowhere does it hang or cost the file."""
    _flip(db, (page - 1) * 4096, 4096)
    size = db.stat().st_size

    errors = _errors_of_a_day_at_work(db)

    assert all(isinstance(error, StoreCorrupt) for error in errors), errors
    assert db.stat().st_size >= size


def test_a_truncated_file_hangs_nothing_and_deletes_nothing(db: Path) -> None:
    """Half of the pages are missing: an error that names the file."""
    content = db.read_bytes()
    db.write_bytes(content[: len(content) // 2 // 4096 * 4096])

    errors = _errors_of_a_day_at_work(db)

    assert errors
    assert all(isinstance(error, StoreCorrupt) for error in errors), errors


def _errors_of_a_day_at_work(db: Path) -> list[Exception]:
    """Start, send, stop; return what they raised."""
    errors: list[Exception] = []
    worker = _worker(db)
    for step in (
        worker.start,
        lambda: worker.send({"n": -1}, task="work"),
        worker.stop,
    ):
        try:
            step()
        except StoreError as error:
            errors.append(error)
    return errors


def _left_by_a_kill(folder: Path) -> Path:
    """Return a database whose process was killed, so that its WAL still holds most of it."""
    books = Books(folder)
    options = ("--no-work", "--senders", "1")
    with program(APP, folder, *options) as client:
        client.wait_for("ready")
        wait_until(lambda: len(books.acked()) >= 50)
    return books.db


def _works_or_names_the_file(db: Path) -> None:
    refused = ""
    try:
        with _worker(db) as worker:
            worker.send({"n": -1}, task="work").wait(timeout=10)
    except StoreError as error:
        refused = str(error)
    assert "jobs.db" in refused or _integrity(db) == "ok"


def _integrity(db: Path) -> str:
    with closing(sqlite3.connect(db)) as connection:
        found: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return found


def test_a_damaged_wal_is_read_up_to_the_damage(tmp_path: Path) -> None:
    """SQLite's checksums end the log there; what comes before is used, and the worker works."""
    db = _left_by_a_kill(tmp_path)
    wal = db.with_name("jobs.db-wal")
    _flip(wal, wal.stat().st_size // 2, 10)

    _works_or_names_the_file(db)


def test_a_damaged_shared_memory_file_costs_nothing(tmp_path: Path) -> None:
    """It is rebuilt from the log: every acknowledged job is run."""
    books = Books(tmp_path)
    db = _left_by_a_kill(tmp_path)
    _flip(db.with_name("jobs.db-shm"), 0, 4096)

    with program(APP, tmp_path) as worker:
        worker.wait_for("ready")
        books.wait_until_finished()
    assert books.problems() == []


def test_a_missing_wal_ends_in_no_crash_loop(tmp_path: Path) -> None:
    """Somebody deleted it: what was only there is gone, and the rest works or names the file."""
    db = _left_by_a_kill(tmp_path)
    db.with_name("jobs.db-wal").unlink()

    _works_or_names_the_file(db)


def test_a_foreign_wal_ends_in_no_crash_loop(db: Path, tmp_path: Path) -> None:
    """Somebody left another database's log beside ours: an error that names the file, or it works."""
    other = tmp_path / "other"
    other.mkdir()
    foreign = _left_by_a_kill(other)
    shutil.copy(foreign.with_name("jobs.db-wal"), db.with_name("jobs.db-wal"))

    _works_or_names_the_file(db)


def test_a_deleted_file_is_noticed_at_the_next_send(db: Path) -> None:
    """No job is acknowledged into a file that has no name any more."""
    with _worker(db) as worker:
        worker.send({"n": 1}, task="work").wait(timeout=10)
        for name in db.parent.glob("jobs.db*"):
            if name.is_file():
                name.unlink()

        with pytest.raises(StoreReplaced, match="deleted"):
            worker.send({"n": 2}, task="work")


def test_a_replaced_file_is_noticed_at_the_next_send(db: Path, tmp_path: Path) -> None:
    """Somebody put another database in its place: nothing is stored in either."""
    other = tmp_path / "other.db"
    shutil.copy(db, other)
    content = other.read_bytes()
    with _worker(db) as worker:
        worker.send({"n": 1}, task="work").wait(timeout=10)
        other.replace(db)

        with pytest.raises(StoreReplaced, match="replaced"):
            worker.send({"n": 2}, task="work")
    assert db.read_bytes() == content


@contextmanager
def _locked(db: Path, for_s: float) -> Iterator[None]:
    """Have another process hold SQLite's write lock, for a time or until the block ends."""
    argv = [sys.executable, str(HOLD_LOCK), str(db), str(for_s)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield  # leaving the outer block closes its input, which ends it


def test_a_send_waits_for_a_lock_that_is_given_back(db: Path) -> None:
    """Another process's transaction of 1 s delays a send; nobody sees an error."""
    with _worker(db) as worker, _locked(db, for_s=1.0):
        job = worker.send({"n": 1}, task="work")

        job.wait(timeout=10)


def test_a_send_gives_up_on_a_lock_that_is_not_given_back(db: Path) -> None:
    """After busy_s it raises, and has stored nothing; the worker lives and goes on by itself."""
    with _worker(db, busy_s=0.5) as worker:
        worker.send({"n": 1}, task="work").wait(timeout=10)
        with _locked(db, for_s=30):
            began = time.monotonic()
            with pytest.raises(StoreBusy, match=r"jobs\.db"):
                worker.send({"n": 77_777}, task="work")
            waited_s = time.monotonic() - began
            time.sleep(1.0)  # the worker itself meets the lock as well

        worker.send({"n": 2}, task="work").wait(timeout=10)
    assert 0.4 <= waited_s <= 3
    with closing(sqlite3.connect(db)) as connection:
        found = connection.execute("SELECT count(*) FROM dutiful_job WHERE payload LIKE '%77777%'")
        assert found.fetchone() == (0,)
