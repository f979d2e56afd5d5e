"""The engine ends itself at each named point between two of its writes; then the books must be right."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.crash.harness import CRASHED, CRASHPOINTS, Books, crashing, program, wait_until

APP = Path(__file__).parent / "programs" / "app.py"
SENDING = ("--senders", "2", "--jobs", "20", "--job-s", "0.002")
CLAIMING = ("--concurrency", "1", "--job-s", "0.03")  # a few jobs a claim, so that there are many claims
RESCUING = ("rescue.before_commit", "rescue.after_commit")
MIGRATING = ("migrate.middle",)
WORKING = tuple(point for point in CRASHPOINTS if point not in RESCUING + MIGRATING)


def _finish(books: Books) -> None:
    with program(APP, books.folder) as last:
        last.wait_for("ready")
        books.wait_until_finished()
        last.signal(signal.SIGTERM)
        assert last.wait() == 0, last.errors


def _crash(books: Books, point: str, nth: int, *options: str) -> None:
    with program(APP, books.folder, *options, env=crashing(point, nth)) as crashed:
        status = crashed.wait()
        books.died(crashed)
    assert status == CRASHED, f"never came to {point}, or not {nth} times: {status}\n{crashed.errors}"


def _send_first(books: Books, *options: str) -> None:
    """Let a client store jobs that are not run yet."""
    sending = ("--no-work", "--senders", "1", "--jobs", "20", "--first", "1000")
    with program(APP, books.folder, *sending, *options) as client:
        assert client.wait() == 0, client.errors


@pytest.mark.parametrize("nth", [1, 2, 7])
@pytest.mark.parametrize("point", WORKING)
def test_a_crash_at_a_point_of_work_breaks_no_promise(tmp_path: Path, point: str, nth: int) -> None:
    """Jobs wait in the store and others are sent meanwhile; the process dies; the next one finishes."""
    books = Books(tmp_path)
    _send_first(books)
    _crash(books, point, nth, *(CLAIMING if point == "claim.after_commit" else SENDING))
    _finish(books)

    assert books.problems() == []


@pytest.mark.parametrize("point", RESCUING)
def test_a_crash_in_the_middle_of_a_rescue_breaks_no_promise(tmp_path: Path, point: str) -> None:
    """A worker dies, the one that rescues its jobs dies too, and the third finishes."""
    books = Books(tmp_path)
    with program(APP, tmp_path, "--senders", "4", "--jobs", "1", "--job-s", "3600") as victim:
        wait_until(lambda: len(books.entries()) == 4)
        victim.kill()
        books.died(victim)
    _crash(books, point, 1)
    _finish(books)

    assert books.problems() == []
    assert books.repeats() == 4


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_crash_in_the_middle_of_a_migration_leaves_no_trace(tmp_path: Path, nth: int) -> None:
    """The first process dies while it makes the schema; the second makes it, and all is well."""
    books = Books(tmp_path)
    _crash(books, "migrate.middle", nth)
    _send_first(books)
    _finish(books)

    assert books.problems() == []
    assert len(books.acked()) == 20


def test_a_crash_of_the_handler_itself_is_counted_and_ends(tmp_path: Path) -> None:
    """A process that dies in the handler each time makes the job dead after max_crashes, not before."""
    books = Books(tmp_path)
    _send_first(books, "--jobs", "1")
    for _ in range(3):
        _crash(books, "handler.after", 1, "--max-crashes", "3")
    with program(APP, tmp_path, "--max-crashes", "3") as last:
        last.wait_for("ready")
        books.wait_until_finished()

    assert [row.state for row in books.rows()] == ["dead"]
    assert [entry.attempt for entry in books.entries() if entry.what == "start"] == [1, 2, 3]
