"""Disks that are full, fail, turn read-only or forbid: named errors, nothing lost, and it goes on."""

from __future__ import annotations

import itertools
import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dutiful import StoreError, StoreFull, StoreUnavailable, Worker
from dutiful.store import sqlite_access
from tests.crash.harness import Books, program, wait_until
from tests.crash.recorder import run
from tests.faults import disk

APP = Path(__file__).parent.parent / "crash" / "programs" / "app.py"
SYNCS_MAX = 60  # far more than one thread of the app makes
needs_mount = pytest.mark.skipif(disk.cannot_mount() is not None, reason=disk.cannot_mount() or "")
needs_strace = pytest.mark.skipif(disk.cannot_inject() is not None, reason=disk.cannot_inject() or "")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with disk.small_disk(tmp_path, 1000) as mount:
        yield mount


def _numbers(db: Path) -> list[int]:
    """Return the numbers of all stored payloads, by plain sqlite3."""
    with closing(sqlite3.connect(db)) as connection:
        rows = connection.execute("SELECT payload FROM dutiful_job ORDER BY id").fetchall()
    return [json.loads(payload)["n"] for (payload,) in rows]


def _send_until_full(worker: Worker, first: int) -> list[int]:
    """Send large payloads until the disk is full; return the numbers that were acknowledged."""
    sent: list[int] = []
    with pytest.raises(StoreFull):
        for number in itertools.count(first):
            worker.send({"n": number, "pad": "x" * 3000}, task="work")
            sent.append(number)
    return sent


@needs_mount
def test_a_full_disk_makes_send_raise_and_nothing_is_stored(small: Path) -> None:
    """The error names the file; what was acknowledged is there, what raised is not; then it goes on."""
    db = small / "jobs.db"
    ran: list[int] = []
    with Worker(db, handlers={"work": lambda payload: ran.append(payload["n"])}) as worker:
        worker.send({"n": 0}, task="work").wait(timeout=10)
        filling = disk.Filling(small)
        sent = [0, *_send_until_full(worker, 1)]
        with pytest.raises(StoreFull, match=r"jobs\.db"):
            worker.send({"n": -1, "pad": "x" * 3000}, task="work")

        filling.free()
        worker.send({"n": -2}, task="work").wait(timeout=10)
        wait_until(lambda: len(ran) >= len(sent) + 1)

    assert sorted(_numbers(db)) == sorted([-2, *sent])
    assert sorted(ran) == sorted([-2, *sent])


@needs_mount
def test_a_full_disk_at_the_finish_forgets_no_success(small: Path) -> None:
    """A handler has ended well and the disk is full: its result is stored later, and it is not run again."""
    running, go_on, runs = threading.Event(), threading.Event(), []

    def work(payload: dict[str, Any]) -> int:
        runs.append(payload["n"])
        running.set()
        go_on.wait(30)
        return 7

    with Worker(small / "jobs.db", handlers={"work": work}, concurrency=1) as worker:
        job = worker.send({"n": 0}, task="work")
        assert running.wait(10)
        client = Worker(small / "jobs.db")
        filling = disk.Filling(small)
        sent = _send_until_full(client, 1)
        client.stop()
        filling.more()
        go_on.set()
        with pytest.raises(TimeoutError):
            job.wait(timeout=1.5)
        assert runs[0] == 0
        assert 0 not in runs[1:]

        filling.free()

        assert job.result(timeout=10) == 7
        wait_until(lambda: len(runs) == 1 + len(sent))
    assert sorted(runs) == [0, *sent]


def _app_under(
    folder: Path, injection: tuple[str, str, str], *options: str
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run the app to its end with failing calls on the database and its WAL; return it and their number."""
    calls, error, when = injection
    db, log = folder / "jobs.db", folder / "strace"
    paths = [db, db.with_name("jobs.db-wal")]
    command = disk.failing(calls, error, when, paths=paths, log=log)
    argv = [*command, str(APP), str(folder), "--stop", *options]
    return run(argv, timeout_s=60), disk.injected(log)


def _finish(books: Books) -> None:
    with program(APP, books.folder) as last:
        last.wait_for("ready")
        books.wait_until_finished()
        last.signal(signal.SIGTERM)
        assert last.wait() == 0, last.errors


def _refused(said: str) -> list[int]:
    """Return the numbers whose send has raised."""
    return [int(line.split()[1]) for line in said.splitlines() if line.startswith("failed")]


def _check(books: Books, done: subprocess.CompletedProcess[str], when: str) -> None:
    """Whatever failed: no promise is broken, and what raised is not stored."""
    assert not BUG.search(done.stderr), (when, done.stderr)
    _finish(books)
    # A result that could not be written is worked out again: all of these had an excuse.
    books.deaths = {entry.pid: None for entry in books.entries()}
    stored = {row.number for row in books.rows()}
    assert books.problems() == [], when
    assert stored.isdisjoint(_refused(done.stdout)), (when, done.stdout)


BUG = re.compile("ProgrammingError|AssertionError|AttributeError|Exception in thread")
SENDING = ("--senders", "1", "--jobs", "6")
ENDINGS = pytest.mark.parametrize("ending", ["--stop", "--die"])


@needs_strace
@ENDINGS
def test_each_sync_fails_in_turn(tmp_path: Path, ending: str) -> None:
    """The N-th sync fails with EIO, for each N until none is hit, and perhaps a kill comes after it."""
    for nth in range(1, SYNCS_MAX):
        books = Books(tmp_path / str(nth))
        books.folder.mkdir()
        done, injected = _app_under(books.folder, (disk.SYNCS, "EIO", str(nth)), *SENDING, ending)
        if injected == 0:
            assert done.returncode == 0, done.stderr
            assert nth > 5
            return
        _check(books, done, f"sync {nth}")
    pytest.fail(f"still syncing after {SYNCS_MAX}")


def _made(folder: Path) -> Books:
    """Return the books of a database that is there, with its schema."""
    books = Books(folder)
    with Worker(books.db):
        pass
    return books


@needs_strace
@ENDINGS
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6, 9, 13, 18])
def test_a_write_fails(tmp_path: Path, nth: int, error: str, ending: str) -> None:
    """The N-th write fails, and perhaps a kill comes after it: nothing is lost, what raised is not stored."""
    books = _made(tmp_path)
    done, injected = _app_under(tmp_path, ("pwrite64", error, str(nth)), *SENDING, ending)

    assert injected > 0
    _check(books, done, f"write {nth}: {error}")


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("nth", [1, 5, 15, 25])
def test_a_write_fails_while_the_schema_is_made(tmp_path: Path, nth: int, error: str) -> None:
    """The start raises; the next start finds a file that it can use."""
    done, injected = _app_under(tmp_path, ("pwrite64", error, str(nth)), *SENDING, "--stop")

    assert injected > 0
    _check(Books(tmp_path), done, f"write {nth}: {error}")


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("nth", [5, 15, 20])
def test_a_disk_that_stays_broken_makes_sends_raise_and_no_hang(tmp_path: Path, nth: int, error: str) -> None:
    """From the N-th write on all fail: each send, or the start, raises in time, and stop returns."""
    books = _made(tmp_path)
    options = (*SENDING, "--stop", "--grace-s", "1")
    done, injected = _app_under(tmp_path, ("pwrite64", error, f"{nth}+"), *options)

    assert injected > 0
    assert _refused(done.stdout) or "dutiful.errors.Store" in done.stderr, done
    _check(books, done, f"from {nth} on")


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_that_recovers_is_used_again(tmp_path: Path, error: str) -> None:
    """A sender's writes fail for a while and then do not: its sends raise, and then succeed again."""
    books = _made(tmp_path)
    options = ("--senders", "1", "--jobs", "60", "--pause-s", "0.01", "--stop")
    done, injected = _app_under(tmp_path, ("pwrite64", error, "40..60"), *options)

    assert injected > 0
    assert done.returncode == 0, done.stderr
    assert _refused(done.stdout)
    assert 59 in books.acked().values(), done
    _check(books, done, "for a while")


def test_a_store_that_could_not_be_reopened_is_reopened_by_the_next_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an I/O error the fresh connection fails too: sends raise our errors until it does not."""

    def no_connection(*_args: object, **_options: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    with Worker(tmp_path / "jobs.db", handlers={"work": lambda payload: None}, grace_s=2) as worker:
        worker.send({"n": 1}, task="work").wait(timeout=10)
        access: Any = vars(worker)["_store"]._access
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_access, "connect", no_connection)
            access._after_io_error()
            with pytest.raises(StoreError, match="unable to open"):
                worker.send({"n": 2}, task="work")

        worker.send({"n": 3}, task="work").wait(timeout=10)
    assert _numbers(tmp_path / "jobs.db") == [1, 3]


def test_after_an_error_what_had_failed_is_written_over(tmp_path: Path) -> None:
    """Else the frames of a refused commit lie at the end of the log, and a crash brings them to life."""
    with Worker(tmp_path / "jobs.db") as worker, closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
        worker.send({"n": 1}, task="work")
        before = other.execute("PRAGMA data_version").fetchone()

        vars(worker)["_store"]._access._after_io_error()

        assert other.execute("PRAGMA data_version").fetchone() != before
        assert worker.send({"n": 2}, task="work").id > 1


@needs_mount
def test_a_read_only_disk_is_refused_at_start_with_path_and_reason(small: Path) -> None:
    """At the start, not at the first send; with and without a database there."""
    with disk.read_only(small), pytest.raises(StoreUnavailable, match=r"jobs\.db.*read-only"):
        Worker(small / "jobs.db", handlers={"work": print}).start()
    Worker(small / "jobs.db").send({"n": 1}, task="work")
    with disk.read_only(small), pytest.raises(StoreUnavailable, match=r"jobs\.db.*read-only"):
        Worker(small / "jobs.db", handlers={"work": print}).start()


@needs_mount
def test_a_disk_that_turns_read_only_makes_send_raise(tmp_path: Path) -> None:
    """ext4 gives up under a live worker: sends raise, what was acknowledged stays, stop returns."""
    with disk.journalled_disk(tmp_path) as mount:
        db = mount / "jobs.db"
        worker = Worker(db, handlers={"work": lambda payload: None}, grace_s=2)
        worker.start()
        worker.send({"n": 1}, task="work").wait(timeout=10)
        disk.abort(mount)

        with pytest.raises(StoreError):
            worker.send({"n": 2}, task="work")
        worker.stop(timeout=5)


def _script_says(script: str, *args: str | Path) -> str:
    argv = [*disk.bound_by_permissions(), sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


START = """
import sys
from dutiful import StoreUnavailable, Worker
try:
    Worker(sys.argv[1], handlers={"work": print}).start()
except StoreUnavailable as error:
    print("refused", error)
"""


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o500, 0o600), (0o700, 0o400), (0o500, None)])
def test_missing_permission_is_refused_at_start_with_path_and_reason(
    tmp_path: Path, folder_mode: int, file_mode: int | None
) -> None:
    """A folder or a file that may not be written: the error says which."""
    folder = tmp_path / "folder"
    folder.mkdir()
    db = folder / "jobs.db"
    if file_mode is not None:
        Worker(db).send({"n": 1}, task="work")
        db.chmod(file_mode)
    folder.chmod(folder_mode)
    try:
        said = _script_says(START, db)
    finally:
        folder.chmod(0o700)

    assert said.startswith("refused"), said
    assert "permission" in said
    assert str(folder) in said


def test_a_missing_folder_is_refused_at_start_with_its_path(tmp_path: Path) -> None:
    """Nothing is created in its place."""
    with pytest.raises(StoreUnavailable, match="no-such-folder"):
        Worker(tmp_path / "no-such-folder" / "jobs.db", handlers={"work": print}).start()

    assert list(tmp_path.iterdir()) == []
