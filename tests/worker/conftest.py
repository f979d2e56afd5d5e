"""Workers that are stopped in the end, whatever happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dutiful import Worker
from tests.worker.tools import WAIT_S, Gate, Seen, within


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of the jobs."""
    return tmp_path / "jobs.db"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, path: Path) -> str:
    """A file, and memory."""
    return ":memory:" if request.param == "memory" else str(path)


@pytest.fixture(params=["file", "postgres"])
def shared(request: pytest.FixtureRequest, path: Path) -> str:
    """What several processes can share: a file, and a PostgreSQL database."""
    return str(path) if request.param == "file" else request.getfixturevalue("database_url")


@pytest.fixture
def make(path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Worker]]:
    """Make a worker: on the file, if no store is given."""
    for database in {"shared", "store", "database_url"} & set(request.fixturenames):
        request.getfixturevalue(database)  # first, so that it goes last: after the workers have stopped
    made: list[Worker] = []

    def make(store: Any = path, **options: Any) -> Worker:
        made.append(Worker(store, **options))
        return made[-1]

    yield make
    for worker in made:
        within(WAIT_S, worker.stop, 2, drain=False)


@pytest.fixture
def started(make: Callable[..., Worker]) -> Callable[..., Worker]:
    """Make a worker and start it."""

    def started(*args: Any, **options: Any) -> Worker:
        worker = make(*args, **options)
        worker.start()
        return worker

    return started


@pytest.fixture
def gate(make: Callable[..., Worker]) -> Iterator[Gate]:
    """A gate that is opened before the workers are stopped."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def seen() -> Seen:
    return Seen()
