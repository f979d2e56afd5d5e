"""Hearing that jobs have finished elsewhere."""

from __future__ import annotations

import pytest

from dutiful.store import notify
from dutiful.store.ear import FileEar
from dutiful.store.postgres_asked import ASKED_MAX, Asked
from tests.worker.tools import WAIT_S, background, within

LONG_S = 10 * WAIT_S


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "jobs.db-wal"
    path.write_bytes(b"")
    return path


@pytest.fixture
def ear(log):
    ear = FileEar(log)
    yield ear
    ear.close()


def test_a_write_ends_the_wait(ear, log):
    waiting = background(ear.wait, (), LONG_S)

    log.write_bytes(b"a commit")

    waiting.result(WAIT_S)


def test_a_write_between_two_waits_is_heard(ear, log):
    log.write_bytes(b"a commit")

    within(WAIT_S, ear.wait, (), LONG_S)


def test_after_a_write_it_looks_again_and_again(ear, log):
    """The commit may become visible only after the sync, and of that nobody says anything."""
    log.write_bytes(b"a commit")

    for _ in range(5):
        within(WAIT_S, ear.wait, (), LONG_S)


def test_it_can_be_woken(ear):
    waiting = background(ear.wait, (), LONG_S)

    ear.wake()

    waiting.result(WAIT_S)


def test_where_the_kernel_says_nothing_it_looks(monkeypatch, log):
    monkeypatch.setattr(notify, "watch", lambda _path: None)
    ear = FileEar(log)

    for _ in range(5):
        within(WAIT_S, ear.wait, (), LONG_S)
    ear.close()


def test_what_was_asked_is_remembered_for_a_while(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dutiful.store.postgres_asked.time.monotonic", lambda: now[0])
    asked = Asked()
    asked.hear("1,2,x,,3")
    assert [asked.has_any([job_id]) for job_id in (1, 3, 4)] == [True, True, False]

    now[0] += 16
    asked.hear("4")

    assert [asked.has_any([job_id]) for job_id in (1, 4)] == [False, True]


def test_no_more_is_remembered_than_has_room():
    asked = Asked()

    asked.hear(",".join(map(str, range(ASKED_MAX + 5))))
    asked.hear("999999")

    assert asked.has_any([ASKED_MAX - 1])
    assert not asked.has_any([ASKED_MAX, 999_999])
