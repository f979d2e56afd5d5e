"""A folder with a worker's module, and a store with one job of each kind."""

from pathlib import Path

import pytest

from tests.cli.commands import APP, dutiful


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Path:
    """Job 1: pending. 2: completed, with result. 3: dead, of an evil error. 4: cancelled. 5: due in 1 h."""
    from dutiful import Retry, Worker

    path = folder / "jobs.db"

    def fail(payload: str) -> None:
        raise ValueError("\x1b]0;owned\x07 \x1b[31mred\x9b2J\u202e")

    def total(numbers: list[int]) -> int:
        return sum(numbers)

    worker = Worker(
        path, queues=("work",), handlers={"add": total, "fail": fail}, retry=Retry(max_attempts=1)
    )
    with worker:
        worker.send({"user": 7, "secret": "hush"}, task="notify", queue="mail", priority=5)
        worker.send([1, 2], task="add").result(timeout=30)
        worker.send("\x1b[2Jpayload", task="fail").wait(timeout=30)
        worker.send(None, task="notify", queue="mail").cancel()
        worker.send(None, task="notify", queue="mail", delay=3600)
    assert dutiful("status", path).returncode == 0
    return path
