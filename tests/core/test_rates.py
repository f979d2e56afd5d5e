"""When jobs may start, so that so many a second do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.core.rates import starts


@pytest.mark.parametrize(
    ("next_at", "now", "count", "per_s", "burst", "found", "then"),
    [
        (0, 1000, 3, 2, 1, [1000, 1500, 2000], 2500),  # one by one
        (0, 1000, 3, 2, 2, [1000, 1000, 1500], 2500),  # two at once after a rest
        (2500, 1000, 1, 2, 1, [2500], 3000),  # others have taken what comes before
        (2500, 9000, 2, 2, 1, [9000, 9500], 10_000),  # a rest saves up no more than the burst
        (0, 1000, 0, 2, 1, [], 0),
    ],
)
def test_when_jobs_may_start(next_at, now, count, per_s, burst, found, then) -> None:
    assert starts(next_at, now, count, per_s=per_s, burst=burst) == (found, then)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20)), max_size=30),
    per_s=st.floats(0.1, 1000),
    burst=st.integers(1, 20),
)
def test_no_span_of_time_has_more_than_its_rate_and_a_burst(steps, per_s, burst) -> None:
    now, next_at, all_starts = 1_000_000, 0.0, []
    for passed, count in steps:
        now += passed
        found, next_at = starts(next_at, now, count, per_s=per_s, burst=burst)
        assert all(at >= now for at in found)
        all_starts += found

    assert all_starts == sorted(all_starts)
    for first, start in enumerate(all_starts):
        for after, end in enumerate(all_starts[first:], 1):
            # After k more starts at least k - burst intervals have passed; a ms for each rounding.
            assert end - start >= (after - burst) * 1000 / per_s - 2


@given(split=st.integers(0, 20), per_s=st.floats(0.1, 100), burst=st.integers(1, 5))
def test_it_does_not_matter_who_asks(split: int, per_s: float, burst: int) -> None:
    together, then = starts(0, 5000, 20, per_s=per_s, burst=burst)
    one, between = starts(0, 5000, split, per_s=per_s, burst=burst)
    other, after = starts(between, 5000, 20 - split, per_s=per_s, burst=burst)

    assert (one + other, after) == (together, then)
