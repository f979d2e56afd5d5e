"""Who has waited so long that a share of the starts is his."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.core.ageing import CREDIT_MAX, NONE, SHARE, Level, credit, oldest, share

NOW, AGE = 100_000, 10_000


def at(*pairs: tuple[int, int]) -> list[Level]:
    """Return levels from (priority, seconds that its first job has been due)."""
    return [Level("q", priority, NOW - 1000 * due_s) for priority, due_s in pairs]


@pytest.mark.parametrize(
    ("levels", "above", "priorities"),
    [
        ([], NONE, []),
        ([(0, 60)], NONE, []),  # nobody stands before it
        ([(5, 1), (0, 60)], NONE, [0]),
        ([(5, 1), (0, 10)], NONE, [0]),
        ([(5, 1), (0, 9)], NONE, []),  # not long enough
        ([(5, 90), (0, 60)], NONE, [0]),
        ([(5, 1), (0, 60), (-3, 70)], NONE, [-3, 0]),
        ([(5, 1), (0, 60), (-3, 60)], NONE, [0, -3]),  # alike: the more urgent first
        ([(5, -30), (0, 60)], NONE, []),  # what stands before it is not due
        ([(0, 60)], 5, [0]),  # somebody does whom this look did not see
    ],
)
def test_who_has_waited_long(levels, above, priorities):
    found = oldest(at(*levels), NOW, AGE, above=above)

    assert [level.priority for level in found] == priorities


@given(claims=st.lists(st.integers(1, 300), max_size=50))
def test_no_more_than_a_share_goes_to_the_old(claims):
    now, taken, old = 0.0, 0, 0
    for limit in claims:
        aged = min(limit, int(now))
        now = credit(now, taken=limit, aged=aged)
        taken, old = taken + limit, old + aged

        assert 0 <= now <= CREDIT_MAX
        assert old <= taken / SHARE


@given(limit=st.integers(1, 200), claims=st.integers(1, 200))
def test_the_share_is_reached(limit, claims):
    now, old = 0.0, 0
    for _ in range(claims):
        aged = min(limit, int(now))
        now = credit(now, taken=limit, aged=aged)
        old += aged

    assert old >= (claims - 1) * limit / SHARE - 1 - limit / SHARE


@given(count=st.integers(0, 1000), now=st.integers(0, 2**43))
def test_a_share_without_a_credit_is_right_to_one(count, now):
    assert count // SHARE <= share(count, now) <= -(-count // SHARE)


@given(start=st.integers(0, 2**43), every_ms=st.integers(1, 2000))
def test_a_share_without_a_credit_comes_up_at_any_pace(start, every_ms):
    """However regular the instants are at which it is asked for."""
    had = sum(share(1, start + n * every_ms) for n in range(2000))

    assert 100 <= had <= 400
