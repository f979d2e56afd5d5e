"""The wall clock is set while jobs wait, run and are sent: by two days on, by three hours back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.crash.harness import Books, Program, program, wait_until
from tests.faults.clock import Clock, cannot_move

APP = Path(__file__).parent.parent / "crash" / "programs" / "app.py"
JUMPS_S = [2 * 86400, -3 * 3600]
SLACK_S = 1.5  # a worker looks at the clock about twice a second
pytestmark = [
    pytest.mark.skipif(cannot_move() is not None, reason=cannot_move() or ""),
    pytest.mark.alone,  # it measures delays
]


def _app(books: Books, clock: Clock, *options: str) -> Program:
    return Program(APP, books.folder, *options, env=clock.env)


def _end(app: Program) -> None:
    app.signal(signal.SIGTERM)
    assert app.wait() == 0, app.errors
    assert "Traceback" not in app.errors, app.errors


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_delay_keeps_its_length_when_the_clock_is_set(tmp_path: Path, jump_s: int) -> None:
    """Jobs that wait 1.5 s run after 1.5 s, whatever the clock says meanwhile."""
    books, clock = Books(tmp_path), Clock(tmp_path)
    app = _app(books, clock, "--senders", "1", "--jobs", "3", "--delay-s", "1.5")
    try:
        ready_at = float(app.wait_for("ready").split()[1])
        app.wait_for("sent")
        clock.jump_to(jump_s)
        wait_until(lambda: len(books.entries()) == 6)
        _end(app)
    finally:
        app.kill()

    starts = [entry.at - ready_at for entry in books.entries() if entry.what == "start"]
    assert all(1.5 <= start <= 1.5 + SLACK_S for start in starts), starts
    assert books.problems() == []


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_delay_keeps_its_length_when_the_clock_is_set_while_nobody_works(
    tmp_path: Path, jump_s: int
) -> None:
    """The clock is set between two processes: the second knows how long the jobs have waited."""
    books, clock = Books(tmp_path), Clock(tmp_path)
    client = _app(books, clock, "--no-work", "--senders", "1", "--jobs", "2", "--delay-s", "2")
    sent_at = float(client.wait_for("ready").split()[1])
    assert client.wait() == 0, client.errors
    clock.jump_to(jump_s)
    app = _app(books, clock)
    try:
        wait_until(lambda: len(books.entries()) == 4)
        _end(app)
    finally:
        app.kill()

    starts = [entry.at - sent_at for entry in books.entries() if entry.what == "start"]
    assert all(2 <= start <= 2 + SLACK_S for start in starts), starts


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_running_jobs_keep_their_owner_when_the_clock_is_set(tmp_path: Path, jump_s: int) -> None:
    """No lease is taken for expired: a job of 2 s runs once, though another worker looks on."""
    books, clock = Books(tmp_path), Clock(tmp_path)
    app = _app(books, clock, "--senders", "1", "--jobs", "2", "--job-s", "2")
    other = _app(books, clock)
    try:
        other.wait_for("ready")
        wait_until(lambda: len(books.entries()) == 2)
        clock.jump_to(jump_s)
        wait_until(lambda: len(books.entries()) == 4)
        books.wait_until_finished()
        _end(app)
        _end(other)
    finally:
        app.kill()
        other.kill()

    assert books.repeats() == 0
    assert books.problems() == []


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_sending_goes_on_when_the_clock_is_set(tmp_path: Path, jump_s: int) -> None:
    """Jobs sent before, while and after the clock is set all run, at once."""
    books, clock = Books(tmp_path), Clock(tmp_path)
    with program(
        APP, tmp_path, "--senders", "2", "--jobs", "40", "--pause-s", "0.02", "--wait", env=clock.env
    ) as app:
        wait_until(lambda: len(books.acked()) >= 10)
        clock.jump_to(jump_s)
        app.wait_for("sent")
        _end(app)

    assert len(books.acked()) == 80
    assert books.problems() == []
