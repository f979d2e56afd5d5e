"""When schedules fire: a table of cases, and what holds for all."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dutiful.core.schedule import FIRINGS_MAX, LATE_MS, Cron, Decision, Every, decide, read
from dutiful.errors import ConfigError

BERLIN = "Europe/Berlin"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def ms(text: str) -> int:
    """Return an instant written with its offset."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def firings(schedule: Cron, since: str, count: int) -> list[str]:
    """Return the firings after an instant, in Berlin's time with its offset."""
    found = []
    at = ms(since)
    for _ in range(count):
        at = schedule.after(at)
        found.append(
            datetime.fromtimestamp(at / 1000, UTC).astimezone(ZoneInfo(BERLIN)).isoformat("T", "minutes")
        )
    return found


# Clocks go from 02:00+01:00 to 03:00+02:00 on 2026-03-29, and from 03:00+02:00 to 02:00+01:00 on 2026-10-25.
@pytest.mark.parametrize(
    ("line", "since", "expected"),
    [
        # What is left out fires right after it, once.
        ("30 2 * * *", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("0,30 2 * * *", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
        ("0 2,3 * * *", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
        # What comes twice fires the first time alone.
        ("30 2 * * *", "2026-10-24T12:00+02:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("0 3 * * *", "2026-10-24T12:00+02:00", ["2026-10-25T03:00+01:00", "2026-10-26T03:00+01:00"]),
        # Also for a worker that is started in the hour that comes twice.
        ("30 2 * * *", "2026-10-25T02:15+01:00", ["2026-10-26T02:30+01:00"]),
        # All others go by the time that passes.
        ("*/30 * * * *", "2026-03-29T01:00+01:00", ["2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00"]),
        (
            "*/30 * * * *",
            "2026-10-25T02:00+02:00",
            ["2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00", "2026-10-25T02:30+01:00"],
        ),
        # Names of days, and the last of a month.
        ("0 3 * * mon-fri", "2026-11-20T12:00+01:00", ["2026-11-23T03:00+01:00", "2026-11-24T03:00+01:00"]),
        ("0 0 L * *", "2026-02-01T00:00+01:00", ["2026-02-28T00:00+01:00", "2026-03-31T00:00+02:00"]),
    ],
)
def test_cron_fires_as_debians_does(line, since, expected):
    assert firings(Cron(line, BERLIN), since, len(expected)) == expected


@pytest.mark.parametrize(
    ("missed", "now", "expected"),
    [
        ("latest", 3999, Decision([], 4000)),
        ("latest", 4000, Decision([4000], 5000)),
        ("latest", 6500, Decision([6000], 7000)),
        ("all", 6500, Decision([4000, 5000, 6000], 7000)),
        ("skip", 4000, Decision([4000], 5000)),
        ("skip", 6500, Decision([6000], 7000)),
    ],
)
def test_what_was_missed_is_made_up_for_as_asked(missed, now, expected):
    assert decide(Every(1000), missed, 4000, now) == expected


def test_skip_fires_nothing_that_is_over_a_minute_late():
    assert decide(Every(DAY_MS), "skip", DAY_MS, DAY_MS + LATE_MS) == Decision([DAY_MS], 2 * DAY_MS)
    assert decide(Every(DAY_MS), "skip", DAY_MS, DAY_MS + LATE_MS + 1) == Decision([], 2 * DAY_MS)


def test_all_are_fired_in_parts():
    first = decide(Every(1000), "all", 1000, 10_000_000)
    second = decide(Every(1000), "all", first.next_at, 10_000_000)

    assert len(first.firings) == len(second.firings) == FIRINGS_MAX
    assert second.firings[0] == first.firings[-1] + 1000


@pytest.mark.parametrize(
    "line", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "0 3 * * someday", "* * * * * * *"]
)
def test_a_line_that_is_none_is_refused(line):
    with pytest.raises(ConfigError, match="nothing was declared"):
        Cron(line)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", "/etc/passwd"])
def test_a_zone_that_is_none_is_refused(tz):
    with pytest.raises(ConfigError, match="nothing was declared"):
        Cron("0 3 * * *", tz)


def test_a_span_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="too often"):
        Every(99)


@pytest.mark.parametrize("spec", ["", "weekly 1", "every", "every soon", "cron"])
def test_a_spec_that_is_none_is_refused(spec):
    with pytest.raises(ValueError, match=r".+"):
        read(spec)


# --- what holds for all ---------------------------------------------------------------------------

instants = st.integers(ms("2020-01-01T00:00+00:00"), ms("2030-01-01T00:00+00:00"))
schedules = st.one_of(
    st.integers(60_000, 40 * DAY_MS).map(Every),
    st.builds(
        Cron,
        st.sampled_from(
            [
                "* * * * *",
                "*/7 * * * *",
                "30 2 * * *",
                "0 */5 * * *",
                "15,45 1-3 * * sun",
                "0 0 29 2 *",
                "0 4 L * *",
            ]
        ),
        st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]),
    ),
)


@settings(deadline=None)
@given(schedules, instants)
def test_the_next_firing_is_later_and_has_none_before_it(schedule, instant):
    at = schedule.after(instant)

    assert at > instant
    assert schedule.after(at - 1) == at
    assert schedule.after((instant + at) // 2) == at


@settings(deadline=None)
@given(schedules, instants, st.integers(0, 400 * DAY_MS))
def test_the_last_firing_is_the_one_before_the_next(schedule, instant, later):
    first = schedule.after(instant)
    until = first + later

    last = schedule.last(first, until)

    assert first <= last <= until < schedule.after(last)


@settings(deadline=None)
@given(schedules, instants, st.integers(0, DAY_MS), st.sampled_from(["latest", "all", "skip"]))
def test_a_decision_goes_on_after_what_it_fires(schedule, instant, late, missed):
    next_at = schedule.after(instant)
    now = next_at + late

    firings, then = decide(schedule, missed, next_at, now)

    assert firings == sorted(set(firings))
    assert all(next_at <= at <= now for at in firings)
    assert then == schedule.after(firings[-1] if firings else now)
    assert then > now or (missed == "all" and len(firings) == FIRINGS_MAX)


@settings(deadline=None)
@given(schedules, instants, st.lists(st.integers(0, 5 * HOUR_MS), max_size=4))
def test_looking_more_often_fires_the_same(schedule, instant, steps):
    """Of "all", nothing is doubled or lost, whenever it is looked."""
    next_at = first = schedule.after(instant)
    now, found = instant, []
    for step in steps:
        now += step
        while True:
            firings, next_at = decide(schedule, "all", next_at, now)
            found += firings
            if next_at > now:
                break

    expected = []
    while first <= now:
        expected.append(first)
        first = schedule.after(first)
    assert found == expected


@settings(deadline=None)
@given(schedules)
def test_a_spec_says_it_all(schedule):
    again = read(schedule.spec)

    assert again.spec == schedule.spec
    assert again.after(0) == schedule.after(0)
