"""A process that dies at a chosen place, and what is left of it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import dutiful
from dutiful import ConfigError, State
from dutiful.testing import CRASH_POINTS, crash_at, override
from tests.testing import crashing_functions as functions

SOURCE = Path(dutiful.__file__).parent


def own_function(path: Path) -> None:
    """In this file, which pytest has imported in its own way."""
    functions.send_only(path)


def test_every_crash_point_of_ours_is_listed_and_there() -> None:
    named = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r'\bcrashpoint\("([^"]+)"\)', path.read_text())
    }

    assert named == set(CRASH_POINTS)


def test_after_a_death_before_the_outcome_is_stored_the_job_runs_again(tmp_path: Path) -> None:
    crash = crash_at("handler.after", functions.send_and_run, tmp_path)

    assert (crash.point, crash.output, crash.errors) == ("handler.after", "sending\n", "")
    worker = functions.make(tmp_path)
    assert worker.drain() == 1
    assert functions.ledger(tmp_path) == ["0 attempt 1", "0 attempt 2"]
    worker.stop()


def test_a_worker_that_is_taken_over_finds_what_the_dead_process_left(tmp_path: Path) -> None:
    crash_at("handler.after", functions.send_and_run, tmp_path)

    worker = functions.make(tmp_path)
    with override(worker, store=tmp_path / "jobs.db"):
        assert worker.drain() == 1
        assert [record.state for record in worker.jobs()] == [State.COMPLETED]
    assert functions.ledger(tmp_path) == ["0 attempt 1", "0 attempt 2"]


def test_a_crash_point_of_the_apps_own(tmp_path: Path) -> None:
    crash_at("noted", functions.send_and_run, tmp_path, "note", 3, nth=2)

    worker = functions.make(tmp_path)
    worker.drain()
    assert [record.state for record in worker.jobs()] == [State.COMPLETED] * len(worker.jobs())
    assert len(functions.ledger(tmp_path)) > len(worker.jobs())
    worker.stop()


@pytest.mark.parametrize(("point", "stored"), [("send.before_commit", 0), ("send.after_commit", 1)])
def test_a_send_that_did_not_return_is_stored_or_not(tmp_path: Path, point: str, stored: int) -> None:
    crash_at(point, own_function, tmp_path)

    worker = functions.make(tmp_path)
    assert sum(worker.counts().by_state.values()) == stored
    worker.stop()


@pytest.mark.parametrize("point", ["transaction.before_commit", "transaction.after_commit"])
def test_what_a_handlers_own_transaction_writes_is_there_once(tmp_path: Path, point: str) -> None:
    crash_at(point, functions.send_and_run, tmp_path, "pay")
    functions.start_only(tmp_path)

    with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
        assert db.execute("SELECT id FROM paid").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (functions.fail, "status 1.*ValueError: no good"),
        (functions.leave, "ended with status 3"),
    ],
)
def test_one_that_ends_otherwise_fails_the_test(function, said: str) -> None:
    with pytest.raises(AssertionError, match=re.compile(said, re.DOTALL)):
        crash_at("handler.before", function)


def test_one_that_never_comes_there_fails_the_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"'ack\.after_commit' for the 5\. time, but returned") as told:
        crash_at("ack.after_commit", functions.send_and_run, tmp_path, nth=5)

    assert "It wrote:\nsending" in str(told.value)


def test_one_that_does_not_end_is_killed_and_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"still ran after 0\.5 s"):
        crash_at("handler.before", functions.hang, timeout=0.5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("handler.aftre", functions.fail), "Did you mean 'handler.after'"),
        (("handler.after", lambda: None), "top level"),
        (("handler.after", print), "top level"),
        (("handler.after", functions.fail, lambda: None), "arguments"),
    ],
)
def test_what_cannot_be_done_is_refused(args, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        crash_at(*args)
    with pytest.raises(ConfigError, match="nth"):
        crash_at("handler.after", functions.fail, nth=0)
