"""
A power cut at every moment of a recorded life, with any un-synced write missing or torn.

`DUTIFUL_TEST_IMAGES` sets how many images (400 without it), `DUTIFUL_TEST_SEED` which ones.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.crash import images, recorder
from tests.crash.harness import Books, program

APP = Path(__file__).parent / "programs" / "app.py"
LIVES = Path(__file__).parent / "programs" / "lives.py"
IMAGES = int(os.environ.get("DUTIFUL_TEST_IMAGES", "400"))
SEED = int(os.environ.get("DUTIFUL_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
REOPENED = 10  # of the images, those in which a real worker finishes the work


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> images.Disk:
    """The recorded life of three workers, one after the other, on one file."""
    folder = tmp_path_factory.mktemp("recorded")
    events = recorder.record(
        [sys.executable, str(LIVES), str(APP), str(folder)],
        db=folder / "jobs.db",
        marks=folder / "acks",
        trace=folder / "trace",
        timeout_s=45,
    )
    return images.Disk(events)


def test_every_acknowledged_job_is_in_every_image(disk: images.Disk, tmp_path: Path) -> None:
    """Whatever a cut leaves of the files, SQLite opens it, whole, with all that was promised."""
    wrong: list[str] = []
    for case in images.cases(disk, seed=SEED, count=IMAGES):
        wrong += images.problems(case, disk, tmp_path / "image", name="jobs.db")

    assert len(disk.promised(disk.last, "ACK")) > 300
    assert wrong == [], f"{len(wrong)} in {IMAGES} images of seed {SEED}, e.g. {wrong[:5]}"


def test_a_worker_finishes_the_work_on_what_a_cut_left(disk: images.Disk, tmp_path: Path) -> None:
    """The worker itself opens such files and runs all that was not completed."""
    for number, case in enumerate(images.cases(disk, seed=SEED, count=REOPENED)):
        books = Books(tmp_path / str(number))
        images.put(case.image(disk), books.folder)
        _reboot(books.db)
        promised = disk.promised(case.cut, "ACK")
        with program(APP, books.folder) as worker:
            worker.wait_for("ready")
            books.wait_until_finished()
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0, worker.errors
        states = {row.id: row.state for row in books.rows()}

        missing = [line for line in promised if states.get(int(line.split()[0])) != "completed"]
        assert missing == [], f"{case}: {missing[:5]}"


def _reboot(db: Path) -> None:
    """Let the machine's run that the file remembers be an earlier one, as it is after a power cut."""
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        with suppress(sqlite3.OperationalError):  # the schema had not been made yet
            connection.execute("UPDATE dutiful_worker SET boot = 'the run before the cut'")
