"""The settings: defaults, and what is refused, by name."""

from __future__ import annotations

import dataclasses

import pytest

from dutiful import config
from dutiful.config import CONCURRENCY_MAX, Config, Keep
from dutiful.core import turns
from dutiful.core.turns import Strict
from dutiful.errors import ConfigError
from dutiful.store.liveness import SLOTS_MAX


def test_the_defaults_are_right() -> None:
    settings = Config()

    assert (settings.name, settings.queues, settings.durability) == ("worker", ("default",), "full")
    assert (settings.buffer, settings.max_crashes) == (None, 3)
    assert (settings.keep_completed.count, settings.keep_completed.age_s) == (10_000, 86_400)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().concurrency = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", ""),
        ("name", "with space"),
        ("queues", ()),
        ("queues", "default"),
        ("queues", ("no good",)),
        ("concurrency", 0),
        ("concurrency", True),
        ("concurrency", CONCURRENCY_MAX + 1),
        ("concurrency", "8"),
        ("buffer", 0),
        ("max_crashes", 0),
        ("payload_bytes_max", 0),
        ("result_bytes_max", -1),
        ("grace_s", -1),
        ("grace_s", float("nan")),
        ("busy_s", -0.1),
        ("park_s", None),
        ("lease_s", -1),
        ("durability", "some"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    words = {"queues": "queue", "name": "name"}
    with pytest.raises(ConfigError, match=words.get(name, name)):
        Config(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"count": -1}, {"age_s": -0.1}])
def test_keeping_less_than_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="keep_completed"):
        Keep(**options)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        (None, Keep()),
        (True, Keep()),
        (False, Keep(count=0)),
        (0, Keep(count=0)),
        (5, Keep(count=5)),
        (Keep(3, 1), Keep(3, 1)),
    ],
)
def test_keep_completed_is_read(setting: object, kept: Keep) -> None:
    assert config.keep(setting) == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "queues"),
    [
        ("mail", ("mail",)),
        (["a", "b"], ("a", "b")),
        (("a",), ("a",)),
        (["a", "b", "a"], ("a", "b")),
        ({"a": 6, "b": 3}, ("a", "b")),
        (Strict("b", "a"), ("b", "a")),
    ],
)
def test_queues_are_read(setting: object, queues: tuple[str, ...]) -> None:
    assert turns.names(setting) == queues  # type: ignore[arg-type]


def test_each_handler_that_may_run_has_its_mark() -> None:
    """The lock file has a slot for each; two numbers in two layers, the same."""
    assert CONCURRENCY_MAX == SLOTS_MAX
