"""The tools themselves: they find the losses of plain sqlite3 when it is careless, and no others."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash import images, powercut, recorder
from tests.crash.harness import Books, program, wait_until

PLAIN = Path(__file__).parent / "programs" / "plain.py"
IMAGES = 150


def _recorded(folder: Path, journal: str, synchronous: str) -> images.Disk:
    argv = [
        sys.executable,
        str(PLAIN),
        str(folder / "x.db"),
        str(folder / "marks"),
        journal,
        synchronous,
        "40",
    ]
    events = recorder.record(
        argv, db=folder / "x.db", marks=folder / "marks", trace=folder / "trace", timeout_s=60
    )
    return images.Disk(events)


def _losses(disk: images.Disk, folder: Path) -> Iterator[list[str]]:
    for case in images.cases(disk, seed=1, count=IMAGES):
        found = images.problems(case, disk, folder / "image", name="x.db")
        if found:
            yield found


@pytest.mark.parametrize(
    ("journal", "synchronous", "losing"),
    [
        ("wal", "full", False),
        ("wal", "normal", True),
        ("wal", "off", True),
        ("delete", "extra", False),
        ("delete", "off", True),
    ],
)
def test_the_replay_finds_the_losses_of_plain_sqlite(
    tmp_path: Path, journal: str, synchronous: str, losing: bool
) -> None:
    """FULL in WAL mode (EXTRA with a journal) keeps all that was acknowledged; less does not."""
    disk = _recorded(tmp_path, journal, synchronous)

    losses = list(_losses(disk, tmp_path))

    assert len(disk.promised(disk.last, "ACK")) == 120
    assert bool(losses) == losing, losses[:3]


def test_the_whole_recording_replays_to_the_files_that_were_written(tmp_path: Path) -> None:
    """Nothing is missing from a recording: with everything on disk, the replay is the file."""
    disk = _recorded(tmp_path, "wal", "full")

    image = images.Case("1", disk.last, "all").image(disk)

    assert {"x.db"} == set(image)
    assert image["x.db"] == (tmp_path / "x.db").read_bytes()


def _promised(marks: Path) -> dict[int, int]:
    fields = [line.split() for line in marks.read_text().splitlines()]
    return {int(job_id): int(number) for _, job_id, number in fields}


def _after_a_cut(folder: Path, synchronous: str) -> list[str]:
    """Cut the power while the plain program writes, and return what is wrong afterwards."""
    with powercut.drive(folder) as drive:
        marks = folder / "marks"
        with program(PLAIN, drive.mount / "x.db", marks, "wal", synchronous, "0") as plain:
            plain.wait_for("ready")
            wait_until(lambda: marks.exists() and marks.read_text().count("\n") > 200)
            promised = drive.cut(marks)
        marks.write_bytes(promised)  # the program is dead by now
        drive.unplug()
        drive.plug_in()
        return images.verify(drive.mount / "x.db", _promised(marks), set())


@pytest.mark.skipif(powercut.unavailable() is not None, reason=powercut.unavailable() or "")
@pytest.mark.parametrize(("synchronous", "losing"), [("full", False), ("off", True)])
def test_a_real_cut_finds_the_losses_of_plain_sqlite(tmp_path: Path, synchronous: str, losing: bool) -> None:
    """With FULL a real power cut loses nothing; with OFF it does, so it is one."""
    problems = _after_a_cut(tmp_path, synchronous)

    assert bool(problems) == losing, problems[:3]


def _books(folder: Path, *ledger: str, state: str = "completed") -> Books:
    """Return the books of one job, id 1 and n=5, acknowledged, with this ledger."""
    books = Books(folder)
    with closing(sqlite3.connect(books.db, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE dutiful_job (id INTEGER PRIMARY KEY, state, payload)")
        connection.execute("INSERT INTO dutiful_job VALUES (1, ?, ?)", (state, '{"n": 5}'))
    books.acks.write_text("ACK 1 5\n")
    books.ledger.write_text("".join(f"{line}\n" for line in ledger))
    return books


ONE_RUN = ("start 10 1 1 100.0", "end 10 1 1 101.0")


@pytest.mark.parametrize(
    ("ledger", "state", "problem"),
    [
        (ONE_RUN, "completed", None),
        (ONE_RUN, "dead", "lost"),
        (ONE_RUN, "pending", "stuck"),
        ((), "completed", "unrun"),
        ((*ONE_RUN, "start 11 1 2 102.0", "end 11 1 2 103.0"), "completed", "repeated, though"),
        (("start 10 1 1 100.0", "start 11 1 2 102.0", "end 11 1 2 103.0"), "completed", "overlap"),
    ],
)
def test_the_books_find_each_broken_promise(
    tmp_path: Path, ledger: tuple[str, ...], state: str, problem: str | None
) -> None:
    """The checker of the kill tests sees what it is there to see."""
    books = _books(tmp_path, *ledger, state=state)

    found = books.problems()

    assert any(problem in line for line in found) if problem else found == [], found


@pytest.mark.parametrize(
    ("killed_at", "problem"),
    [(101.1, None), (150.0, "repeated, 49.0 s after"), (99.0, None)],
)
def test_a_second_run_is_right_only_after_a_death_in_its_window(
    tmp_path: Path, killed_at: float, problem: str | None
) -> None:
    """A result is stored within a moment of the handler's end; a later kill is no excuse."""
    books = _books(tmp_path, *ONE_RUN, "start 11 1 2 160.0", "end 11 1 2 161.0")
    books.deaths[10] = killed_at

    found = books.problems()

    assert any(problem in line for line in found) if problem else found == [], found


def test_books_notice_a_lost_and_a_doubled_job(tmp_path: Path) -> None:
    """An acknowledged id that is not stored is lost; the same number twice is doubled."""
    books = _books(tmp_path, *ONE_RUN, "start 10 2 1 100.0", "end 10 2 1 101.0")
    books.acks.write_text("ACK 1 5\nACK 7 6\n")
    with closing(sqlite3.connect(books.db, isolation_level=None)) as connection:
        connection.execute("INSERT INTO dutiful_job VALUES (2, 'completed', '{\"n\": 5}')")

    found = books.problems()

    assert [line.split(":")[0] for line in found] == ["lost", "doubled"]


APPENDING = """
import os, sys
wal = os.open(sys.argv[1] + "-wal", os.O_RDWR | os.O_CREAT, 0o600)
end = os.open(sys.argv[1] + "-wal", os.O_WRONLY | os.O_APPEND)
os.pwrite(wal, b"a" * 100, 0)
os.write(end, bytes(50))
os.pwrite(wal, b"b" * 20, 100)
os.ftruncate(wal, 110)
os.write(end, bytes(5))
os.fdatasync(wal)
"""


def test_what_was_appended_is_replayed_where_it_went(tmp_path: Path) -> None:
    """The store makes room at the end of its log so."""
    argv = [sys.executable, "-c", APPENDING, str(tmp_path / "x.db")]
    events = recorder.record(
        argv, db=tmp_path / "x.db", marks=tmp_path / "marks", trace=tmp_path / "trace", timeout_s=60
    )
    disk = images.Disk(events)

    image = images.Case("1", disk.last, "all").image(disk)

    assert image["x.db-wal"] == (tmp_path / "x.db-wal").read_bytes() == b"a" * 100 + b"b" * 10 + bytes(5)
