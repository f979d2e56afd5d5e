"""What holds for every test."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

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
