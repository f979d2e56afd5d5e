"""What `send` is asked for, checked and brought into one form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful import ConfigError, Limit, State, Unique
from dutiful.asking import NOTHING, Asking
from dutiful.core.values import span_s

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def _special(limit: Limit | None = None, payload: object = 5, **options: object):
    return Asking(options).special("t", payload, "5", limit)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"key": "k"}, "key", "k"),
        ({"key": lambda payload: f"k{payload}"}, "key", "k5"),
        ({"key": lambda payload: None}, "key", None),  # this one has none
        ({"key": "k", "on_failure": "skip"}, "key_skips", True),
        ({"key": "k"}, "key_skips", False),
        ({"expires": 5}, "expires_s", 5.0),
        ({"expires": timedelta(minutes=1)}, "expires_s", 60.0),
        ({"expires": LATER}, "expires_at", round(LATER.timestamp() * 1000)),
        ({"deadline": 5}, "deadline_s", 5.0),
        ({"after": 7}, "after", (7,)),
        ({"after": [7, 3, 7]}, "after", (7, 3)),
        ({"after": []}, "after", ()),
        ({"on_dead": "wait"}, "on_dead", "wait"),
        ({"headers": {"traceparent": "00-1"}}, "headers", {"traceparent": "00-1"}),
    ],
)
def test_an_option_becomes_what_is_stored(options, field, value) -> None:
    assert getattr(_special(**options), field) == value


@pytest.mark.parametrize(
    "options",
    [
        {"key": ""},
        {"key": "x" * 201},
        {"key": 5},
        {"key": lambda payload: 5},
        {"key": "half a pair: \ud800"},
        {"key": "a\0b"},
        {"key": lambda payload: "\ud800"},
        {"unique": Unique(by=lambda payload: "\ud800")},
        {"unique": Unique(by=lambda payload: {1, object()})},
        {"expires": 1e300},
        {"expires": timedelta.max},
        {"deadline": 1e300},
        {"after": 2**70},
        {"after": [0]},
        {"headers": {"a": "\ud800"}},
        {"headers": {"a": "a\0b"}},
        {"headers": {"\ud800": "a"}},
        {"unique": 1},
        {"unique": Unique},
        {"expires": 0},
        {"expires": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"deadline": -1},
        {"deadline": "5"},
        {"deadline": float("nan")},
        {"after": "job"},
        {"after": [object()]},
        {"after": [True]},
        {"on_dead": "sing"},
        {"on_failure": "sing"},
        {"headers": {"a": 5}},
        {"headers": ["a"]},
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_stored(options) -> None:
    with pytest.raises(ConfigError, match="Nothing was stored"):
        _special(**options)


@pytest.mark.parametrize(
    ("rate", "per_s"),
    [
        ("5/s", 5),
        ("100/m", 100 / 60),
        ("1/10s", 0.1),
        ("0.5/s", 0.5),
        (" 60 / h ", 1 / 60),
        ("1/d", 1 / 86400),
    ],
)
def test_a_rate_is_read(rate: str, per_s: float) -> None:
    assert Limit(rate=rate).per_s == pytest.approx(per_s)


@pytest.mark.parametrize("rate", ["", "5", "s", "5/x", "-5/s", "0/s", "5/0s", "5/s/s", "1e3/s", "five/s"])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(ConfigError):
        Limit(rate=rate)


@pytest.mark.parametrize(
    "options", [{"burst": True, "rate": "1/s"}, {"concurrency": 1.5}, {"concurrency": True}]
)
def test_what_is_no_number_of_jobs_is_refused(options) -> None:
    with pytest.raises(ConfigError):
        Limit(**options)


@pytest.mark.parametrize("made", ["\ud800", "a\0b", "x" * 2000])
def test_what_no_store_can_keep_names_no_limit(made: str) -> None:
    with pytest.raises(ConfigError, match="Nothing was stored"):
        _special(Limit(concurrency=1, by=lambda payload: made))


def test_a_limit_has_the_name_of_its_task_unless_given() -> None:
    assert Limit(concurrency=1).pool("t", 5) == "t"
    assert Limit(concurrency=1, name="api").pool("t", 5) == "api"
    assert Limit(concurrency=1, name="api", by=str).pool("t", 5) == "api:5"


@pytest.mark.parametrize(
    ("unique", "states"),
    [
        (Unique(), (State.PENDING, State.BLOCKED, State.RUNNING)),
        (Unique(on_conflict="replace"), (State.PENDING, State.BLOCKED)),
        (Unique(while_="stored"), tuple(State)),
    ],
)
def test_which_earlier_jobs_count(unique: Unique, states: tuple[State, ...]) -> None:
    assert unique.stored("t", 5, "5").states == states


@given(
    one=st.tuples(st.text("ab", max_size=3), st.integers(0, 3)),
    other=st.tuples(st.text("ab", max_size=3), st.integers(0, 3)),
)
def test_two_jobs_are_the_same_if_task_and_payload_are(one, other) -> None:
    keys = [Unique().stored(task, number, str(number)).key for task, number in (one, other)]

    assert (keys[0] == keys[1]) == (one == other)


def test_who_asks_for_nothing_gets_what_is_nothing() -> None:
    assert not NOTHING.is_unique
    assert NOTHING.special("t", 5, "5", None).key is None


@pytest.mark.parametrize(("value", "found"), [(1, 1.0), (0.5, 0.5), (timedelta(days=1), 86_400.0)])
def test_durations(value, found) -> None:
    assert span_s("x", value) == found
