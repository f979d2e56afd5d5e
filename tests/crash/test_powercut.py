"""
The power of a real file system is cut while the worker sends and works on it.

`DUTIFUL_TEST_CUTS` sets how often (3 without it); tens are for a longer run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.crash import images, powercut
from tests.crash.harness import Books, program

APP = Path(__file__).parent / "programs" / "app.py"
CUTS = int(os.environ.get("DUTIFUL_TEST_CUTS", "3"))


@pytest.mark.skipif(powercut.unavailable() is not None, reason=powercut.unavailable() or "")
@pytest.mark.parametrize("cut", range(CUTS))
def test_a_power_cut_loses_no_acknowledged_job(tmp_path: Path, cut: int) -> None:
    """After the cut and the journal's replay all that was acknowledged is there, and gets done."""
    with powercut.drive(tmp_path) as drive:
        books = Books(tmp_path, drive.mount / "jobs.db")
        _work_until_cut(books, drive)

        assert images.verify(books.db, books.acked(), set()) == []

        _finish(books)
        assert books.problems() == []
        assert len(books.acked()) >= 20


def _work_until_cut(books: Books, drive: powercut.Drive) -> None:
    options = ("--senders", "3", "--job-s", "0.002", "--pause-s", "0.001")
    with program(APP, books.folder, "--db", books.db, *options) as app:
        app.wait_for("ready")
        app.wait_until(lambda: len(books.acked()) >= 20)
        time.sleep(random.uniform(0, 0.3))
        died_at = time.monotonic()
        promised = drive.cut(books.acks)
        app.kill()
        books.deaths[app.pid] = died_at
    books.acks.write_bytes(promised)
    drive.unplug()
    drive.plug_in()


def _finish(books: Books) -> None:
    with program(APP, books.folder, "--db", books.db) as heir:
        heir.wait_for("ready")
        books.wait_until_finished()
        heir.signal(signal.SIGTERM)
        assert heir.wait() == 0, heir.errors
