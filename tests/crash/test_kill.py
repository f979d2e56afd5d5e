"""
Processes that work and send are killed with SIGKILL at random moments, over and over.

`DUTIFUL_TEST_KILLS` sets how many kills (60 without it); hundreds are for a longer run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.crash.harness import Books, Program, program, wait_until

APP = Path(__file__).parent / "programs" / "app.py"
KILLS = int(os.environ.get("DUTIFUL_TEST_KILLS", "60"))
NUMBERS_EACH = 1_000_000  # payload numbers set aside for each process


def _app(books: Books, *options: str, first: int = 0) -> Program:
    return Program(APP, books.folder, "--first", str(first * NUMBERS_EACH), *options)


def _finish(books: Books) -> None:
    """Let one undisturbed worker run what is left, and stop it properly."""
    with program(APP, books.folder) as last:
        last.wait_for("ready")
        books.wait_until_finished()
        last.signal(signal.SIGTERM)
        assert last.wait() == 0, last.errors


def _kill(books: Books, victim: Program) -> None:
    victim.kill()
    books.died(victim)
    assert "Traceback" not in victim.errors, victim.errors


def test_a_process_that_sends_and_works_is_killed_again_and_again(tmp_path: Path) -> None:
    """Nothing acknowledged is lost, nothing is stuck, and nothing runs twice without need."""
    books, chance = Books(tmp_path), random.Random()
    kills = KILLS // 3
    for round_ in range(kills):
        victim = _app(books, "--senders", "2", "--job-s", "0.002", "--pause-s", "0.002", first=round_)
        victim.wait_for("ready")
        time.sleep(chance.uniform(0, 0.15))
        _kill(books, victim)
    _finish(books)

    assert books.problems() == []
    assert len(books.acked()) > kills


def test_one_of_several_processes_is_killed_while_the_others_go_on(tmp_path: Path) -> None:
    """Two workers and a client on one file; in turn one of them dies and is replaced."""
    books, chance = Books(tmp_path), random.Random()
    options = ["--senders", "1", "--job-s", "0.002", "--pause-s", "0.002"]
    crew = [_app(books, *options, first=i) for i in range(2)]
    crew.append(_app(books, *options, "--no-work", first=2))
    try:
        for round_ in range(KILLS - KILLS // 3):
            place = chance.randrange(3)
            crew[place].wait_for("ready")
            time.sleep(chance.uniform(0, 0.1))
            _kill(books, crew[place])
            idle = ["--no-work"] if place == 2 else []
            crew[place] = _app(books, *options, *idle, first=3 + round_)
    finally:
        for member in crew:
            _kill(books, member)
    _finish(books)

    assert books.problems() == []
    assert len(books.acked()) > KILLS


def test_a_running_job_is_rescued_by_the_other_process_within_a_second(tmp_path: Path) -> None:
    """From kill -9 to the job's second run, elsewhere: under 1 s."""
    books = Books(tmp_path)
    with (
        program(APP, tmp_path, "--senders", "1", "--jobs", "1", "--job-s", "3600") as victim,
        program(APP, tmp_path, "--concurrency", "4") as other,
    ):
        other.wait_for("ready")
        wait_until(lambda: len(books.entries()) == 1)
        _kill_whoever_runs(books, [victim, other])
        wait_until(lambda: len(books.entries()) >= 2)

    first, second = books.entries()[:2]
    assert first.pid != second.pid
    assert second.attempt == first.attempt + 1
    assert second.at - (books.deaths[first.pid] or 0) < 1.0


def _kill_whoever_runs(books: Books, programs: list[Program]) -> None:
    (running,) = books.entries()
    _kill(books, next(p for p in programs if p.pid == running.pid))


def test_running_jobs_are_rescued_within_0_3_s_of_the_next_start(tmp_path: Path) -> None:
    """After a restart, the jobs that ran at the kill run again at once."""
    books = Books(tmp_path)
    with program(APP, tmp_path, "--senders", "1", "--jobs", "1", "--job-s", "3600") as victim:
        wait_until(lambda: len(books.entries()) == 1)
        _kill(books, victim)

    with program(APP, tmp_path) as heir:
        started_at = float(heir.wait_for("ready").split()[1])
        wait_until(lambda: len(books.entries()) >= 2)

    second = books.entries()[1]
    assert second.at - started_at < 0.3


def test_a_worker_that_is_stopped_by_a_signal_is_not_taken_for_dead(tmp_path: Path) -> None:
    """SIGSTOP for two seconds: its lock is still held, so its job is not run elsewhere."""
    books = Books(tmp_path)
    with program(APP, tmp_path, "--senders", "1", "--jobs", "1", "--job-s", "3") as paused:
        wait_until(lambda: len(books.entries()) == 1)
        paused.signal(signal.SIGSTOP)
        with program(APP, tmp_path) as other:
            other.wait_for("ready")
            time.sleep(2)  # what must not happen leaves no fact to wait for
            paused.signal(signal.SIGCONT)
            books.wait_until_finished()

    assert [entry.what for entry in books.entries()] == ["start", "end"]
    assert books.problems() == []


@pytest.mark.parametrize("senders", [1, 8])
def test_sigterm_without_a_handler_of_the_library_loses_nothing(tmp_path: Path, senders: int) -> None:
    """An application that stops its worker on SIGTERM leaves no job running and none lost."""
    books = Books(tmp_path)
    with program(APP, tmp_path, "--senders", str(senders), "--jobs", "50", "--job-s", "0.01") as app:
        app.wait_for("sent")
        app.signal(signal.SIGTERM)
        assert app.wait() == 0, app.errors
        books.died(app)
    _finish(books)

    assert books.problems() == []
    assert books.repeats() == 0
