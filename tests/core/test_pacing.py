"""How much to hold, and how the pace follows what is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.core.pacing import (
    AHEAD_BYTES_MAX,
    AHEAD_JOBS_MAX,
    AHEAD_S,
    PACE_KEPT_S,
    PACE_WINDOW_S,
    Pace,
    room,
)


@pytest.mark.parametrize(
    ("slots", "busy", "ready", "pace_per_s", "payload_bytes", "wanted"),
    [
        (8, 0, 0, 0.0, 0.0, 8),  # a slot each
        (8, 8, 0, 0.0, 0.0, 0),
        (8, 5, 3, 0.0, 0.0, 0),
        (8, 5, 9, 0.0, 0.0, 0),  # never negative
        (8, 8, 0, 10.0, 0.0, 1),  # as many as start in 100 ms
        (8, 8, 0, 9.0, 0.0, 0),  # slow jobs: none is held back
        (8, 8, 50, 1000.0, 0.0, 50),
        (8, 0, 0, 1e9, 100.0, 8 + AHEAD_JOBS_MAX),
        (8, 0, 0, 1e9, 1024 * 1024, 8 + 16),  # large payloads: 16 MiB
        (8, 0, 0, 1e9, 1e12, 8),
        (1, 1, 0, 0.0, 0.0, 0),
    ],
)
def test_how_much_to_take(slots, busy, ready, pace_per_s, payload_bytes, wanted) -> None:
    taken = room(slots=slots, busy=busy, ready=ready, pace_per_s=pace_per_s, payload_bytes=payload_bytes)

    assert taken == wanted


@pytest.mark.parametrize(
    ("busy", "ready", "lacking", "gathered", "payload_bytes", "wanted"),
    [
        (0, 0, 92, 8, 0.0, 8 + 92),  # what fills the batch comes in one claim
        (8, 0, 92, 8, 0.0, 92),  # also while all handlers are busy: it is next
        (8, 1, 92, 8, 0.0, 91),
        (8, 92, 92, 8, 0.0, 0),  # jobs of other kinds came instead: no more than that
        (8, 100, 92, 8, 0.0, 0),
        (0, 0, 0, 100, 0.0, 8),
        (0, 0, 92, 8, 1024 * 1024, 8 + 8),  # large payloads: 16 MiB
        (0, 0, 92, 20, 1024 * 1024, 8),
    ],
)
def test_how_much_to_take_for_batches(busy, ready, lacking, gathered, payload_bytes, wanted) -> None:
    taken = room(
        slots=8,
        busy=busy,
        ready=ready,
        pace_per_s=0.0,
        payload_bytes=payload_bytes,
        lacking=lacking,
        gathered=gathered,
    )

    assert taken == wanted


@given(
    slots=st.integers(1, 4096),
    busy=st.integers(0, 5000),
    ready=st.integers(0, 10_000),
    pace_per_s=st.floats(0, 1e7),
    payload_bytes=st.floats(0, 1e9),
)
def test_what_is_held_is_bounded(slots, busy, ready, pace_per_s, payload_bytes) -> None:
    taken = room(slots=slots, busy=busy, ready=ready, pace_per_s=pace_per_s, payload_bytes=payload_bytes)

    assert 0 <= taken <= slots + min(AHEAD_JOBS_MAX, pace_per_s * AHEAD_S)
    assert (taken - slots) * payload_bytes <= AHEAD_BYTES_MAX


def test_the_pace_rises_half_way_and_falls_at_once() -> None:
    """To hold too much is worse than to hold too little."""
    pace = Pace()

    assert pace.look(100, 0.1, is_idle=False) == 500
    assert pace.look(200, 0.2, is_idle=False) == 750
    assert pace.look(250, 0.3, is_idle=False) == pytest.approx(500)
    assert pace.look(250, 0.4, is_idle=False) == 0


def test_the_pace_is_not_measured_over_a_moment() -> None:
    """Too short to count anything: the last one stands, and the count goes on."""
    pace = Pace()
    pace.look(100, 0.1, is_idle=False)

    assert pace.look(5000, 0.1 + PACE_WINDOW_S / 2, is_idle=False) == 500
    assert pace.look(110, 0.2, is_idle=False) == pytest.approx(100)


def test_handlers_without_work_do_not_slow_the_pace_down() -> None:
    """They could have done more; but after a long pause nothing is known any more."""
    pace = Pace()
    pace.look(100, 0.1, is_idle=False)

    assert pace.look(110, 0.2, is_idle=True) == 500
    assert pace.look(210, 0.3, is_idle=True) == pytest.approx(750)
    assert pace.look(220, 0.3 + PACE_KEPT_S + 1, is_idle=True) < 10


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), max_size=20))
def test_the_pace_is_never_more_than_was_seen(moves: list[tuple[int, float]]) -> None:
    pace, finished, now_s = Pace(), 0, 0.0
    for more, passed_s in moves:
        finished, now_s = finished + more, now_s + passed_s

        assert 0 <= pace.look(finished, now_s, is_idle=False) <= 1000 * len(moves) / PACE_WINDOW_S
