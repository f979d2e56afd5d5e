"""Whose turn it is, of several queues."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.core.turns import Strict, Turns, turns
from dutiful.errors import ConfigError

MANY = 10**9
WEIGHTS = st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 50), min_size=1)


@pytest.mark.parametrize(
    ("weights", "limit", "order"),
    [
        ({"a": 2, "b": 1}, 6, "abaaba"),
        ({"a": 1, "b": 1}, 4, "abab"),
        ({"a": 6, "b": 3, "c": 1}, 10, "abcaabaaba"),
        ({"a": 5}, 3, "aaa"),
    ],
)
def test_turns_are_spread_evenly(weights, limit, order):
    picked, _ = Turns.by_weight(weights).pick(dict.fromkeys(weights, MANY), limit)

    assert "".join(picked) == order


@pytest.mark.parametrize(
    ("found", "limit", "order"),
    [({"a": 9, "b": 9}, 3, "aaa"), ({"a": 2, "b": 9}, 4, "aabb"), ({"b": 9}, 2, "bb"), ({}, 5, "")],
)
def test_strictly_the_first_that_has_work(found, limit, order):
    picked, after = Turns.strictly(["a", "b"]).pick(found, limit)

    assert "".join(picked) == order
    assert after == Turns.strictly(["a", "b"])


@given(weights=WEIGHTS, claims=st.lists(st.integers(1, 40), max_size=30))
def test_who_always_has_work_gets_his_share(weights, claims):
    """What two have had by their weights differs by a turn of each at most, at any time."""
    now, had = Turns.by_weight(weights), Counter()
    for limit in claims:
        order, now = now.pick(dict.fromkeys(weights, MANY), limit)
        had.update(order)

        assert len(order) == limit
        for one, first in weights.items():
            for other, second in weights.items():
                apart = Fraction(had[one], first) - Fraction(had[other], second)
                assert abs(apart) <= Fraction(1, first) + Fraction(1, second)


@given(weights=WEIGHTS, limits=st.lists(st.integers(0, 40), max_size=20), data=st.data())
def test_no_turn_is_lost_while_anybody_has_work(weights, limits, data):
    now = Turns.by_weight(weights)
    for limit in limits:
        found = {queue: data.draw(st.integers(0, 5)) for queue in weights}

        order, now = now.pick(found, limit)

        assert len(order) == min(limit, sum(found.values()))
        assert all(count <= found[queue] for queue, count in Counter(order).items())
        assert all(now.behind[queue] <= stride for queue, stride in now.strides.items())


@given(weights=WEIGHTS, alone=st.integers(1, 1000), data=st.data())
def test_who_had_no_work_is_not_owed_for_it(weights, alone, data):
    """After one queue has had all turns, the others get no more than their share either."""
    busy = data.draw(st.sampled_from(sorted(weights)))
    _, now = Turns.by_weight(weights).pick({busy: alone}, alone)

    order, _ = now.pick(dict.fromkeys(weights, MANY), sum(weights.values()))

    had = Counter(order)
    assert all(had[queue] <= weight + 1 for queue, weight in weights.items() if queue != busy)


@given(weights=WEIGHTS, split=st.integers(0, 30))
def test_it_does_not_matter_how_many_are_taken_at_once(weights, split):
    start, found = Turns.by_weight(weights), dict.fromkeys(weights, MANY)
    together, _ = start.pick(found, 30)

    one, between = start.pick(found, split)
    other, _ = between.pick(found, 30 - split)

    assert one + other == together


@pytest.mark.parametrize("weight", [0, -1, 1.5, True, "3", 10**7])
def test_a_wrong_weight_is_refused(weight):
    with pytest.raises(ConfigError, match="queue 'a'"):
        turns({"a": weight, "b": 1})


def test_what_asks_for_turns():
    assert turns("a") is None
    assert turns(["a", "b"]) is None
    assert turns(Strict("a", "b")) == Turns.strictly(["a", "b"])
    assert turns({"a": 6, "b": 3}).strides == {"a": 1, "b": 2}
