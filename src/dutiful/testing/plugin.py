"""
The plugin for pytest, which finds it by itself once dutiful is installed.

    [tool.pytest.ini_options]
    dutiful_workers = ["app.jobs:worker"]   # in each test they have an empty store in memory
    dutiful_mode = "manual"                 # or "inline", "threads"; see dutiful.testing.override

It loads nothing of dutiful before a test needs it.
"""

from collections.abc import Callable, Generator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dutiful import Worker
    from dutiful.testing.clock import Clock

MARKER = (
    "dutiful(mode=..., errors=..., start=..., store=...): how this test runs its workers' jobs (see "
    'dutiful.testing.override); start is where the clock begins, and mode="off" leaves the workers alone'
)
_SETTINGS = frozenset({"mode", "errors", "start", "store"})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our settings to pytest's."""
    parser.addini(
        "dutiful_workers",
        "workers that have a store of their own in each test: module:attribute, one a line",
        type="linelist",
        default=[],
    )
    parser.addini("dutiful_mode", "how jobs are run: manual, inline, threads, or off", default="manual")
    parser.addini("dutiful_errors", "what becomes of a handler's exceptions: raise, or keep", default="raise")


def pytest_configure(config: pytest.Config) -> None:
    """Name our marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def dutiful_workers(request: pytest.FixtureRequest) -> "list[Worker]":
    """The app's workers; define a fixture of this name if your app makes them in a function."""
    named: list[str] = request.config.getini("dutiful_workers")
    if not named:
        raise pytest.UsageError(
            "dutiful does not know your workers. Name them in the settings of pytest, dutiful_workers = "
            '["app:worker"], or define a fixture dutiful_workers that returns them in a list.'
        )
    return [_worker(name) for name in named]


@pytest.fixture
def dutiful_clock(request: pytest.FixtureRequest, dutiful_workers: "list[Worker]") -> "Generator[Clock]":
    """The clock of the workers, which have a store of this test's own and run their jobs as set."""
    from dutiful.testing.bench import override
    from dutiful.testing.clock import Clock

    settings = _settings(request)
    clock = Clock(settings.pop("start", None))
    if settings["mode"] == "off":
        yield clock
        return
    with override(*dutiful_workers, clock=clock, **settings):
        yield clock


@pytest.fixture
def dutiful_worker(dutiful_workers: "list[Worker]", dutiful_clock: "Clock") -> "Worker":
    """The worker, the first if there are several, with a store of this test's own."""
    del dutiful_clock  # for its effect
    return dutiful_workers[0]


@pytest.fixture
def dutiful_inline(
    request: pytest.FixtureRequest, dutiful_workers: "list[Worker]", dutiful_clock: "Clock"
) -> "Generator[Worker]":
    """The worker, as dutiful_worker, whose jobs run when they are sent."""
    from dutiful.testing.bench import inline

    del dutiful_clock  # for its effect
    with inline(*dutiful_workers, errors=_settings(request)["errors"]):
        yield dutiful_workers[0]


@pytest.fixture
def dutiful_sent(dutiful_worker: "Worker") -> Callable[..., Any]:
    """`dutiful.testing.sent` of the worker: `dutiful_sent(Order)` is the list of orders that were sent."""
    from dutiful.testing.asserting import sent

    return partial(sent, dutiful_worker)


@pytest.fixture(autouse=True)
def _dutiful_in_each_test(request: pytest.FixtureRequest) -> None:  # pyright: ignore[reportUnusedFunction]
    """No test is to store anything where the app keeps its jobs."""
    if request.config.getini("dutiful_workers"):
        request.getfixturevalue("dutiful_clock")


def _settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what the markers of the test say, the nearest last, on top of pytest's settings."""
    settings: dict[str, Any] = {
        "mode": request.config.getini("dutiful_mode"),
        "errors": request.config.getini("dutiful_errors"),
    }
    node: Any = request.node
    for marker in reversed(list(node.iter_markers("dutiful"))):
        unknown = sorted(marker.kwargs.keys() - _SETTINGS)
        if marker.args or unknown:
            wrong = unknown[0] if unknown else repr(marker.args[0])
            raise pytest.UsageError(f"the marker dutiful does not take {wrong}; it is {MARKER}.")
        settings |= marker.kwargs
    return settings


def _worker(name: str) -> "Worker":
    """Return the worker that `module:attribute` names."""
    from dutiful import Worker

    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(
            f"dutiful_workers names {name!r}, which cannot be imported: {error}. Write module:attribute; the "
            "module is looked for in `pythonpath`, and in the folders of conftest.py."
        ) from error
    if not isinstance(found, Worker):
        raise pytest.UsageError(f"dutiful_workers names {name!r}, which is no Worker but {found!r}.")
    return found
