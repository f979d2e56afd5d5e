"""What holds for every test."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import shared

# "ci": a slow disk or a busy neighbour is no bug, so there is no deadline; and
# each run tries other examples (Hypothesis's own profile of that name repeats them).
settings.register_profile("ci", settings.get_profile("ci"), deadline=None, derandomize=False)
settings.load_profile("ci" if os.environ.get("CI") else "default")

GRACE_S = 2.0  # a thread may need a moment to end after the call that ends it has returned


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    """Fail a test that one of our threads outlives."""
    # Those of fixtures that live longer than one test are not its own.
    before = set(threading.enumerate())

    yield

    deadline = time.monotonic() + GRACE_S
    ours = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("dutiful") and thread not in before
    ]
    for thread in ours:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = sorted(thread.name for thread in ours if thread.is_alive())
    if left:
        pytest.fail(f"threads outlive the test: {', '.join(left)}", pytrace=False)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """
    Return the URL of the run's PostgreSQL server: its superuser, its database `postgres`.

    One server for all processes of the run, started when first asked for; or the one that
    DUTIFUL_TEST_POSTGRES names, whose role may create databases.
    """
    if named := os.environ.get("DUTIFUL_TEST_POSTGRES"):
        return named
    here = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder of its own in the run's, and the controller as its parent.
    if "PYTEST_XDIST_WORKER" in os.environ:
        return shared.run_url(here.parent, os.getppid())
    return shared.run_url(here, os.getpid())


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """Return the URL of a new, empty database; dropped after the test, whoever is still connected."""
    with shared.fresh_database(postgres_url) as url:
        yield url
