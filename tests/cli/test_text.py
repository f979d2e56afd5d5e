"""What a terminal must not obey, and how values read."""

import pytest

from dutiful.cli import text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain, ümläut, 漢字, 🙂", "plain, ümläut, 漢字, 🙂"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("\x1b]8;;http://evil\x07link", "\\x1b]8;;http://evil\\x07link"),
        ("a\rb\x08c\x7f\x00", "a\\x0db\\x08c\\x7f\\x00"),
        ("two\nlines\tand", "two\\nlines\\tand"),
        ("\u202eright to left\u2066", "\\u202eright to left\\u2066"),
        ("half \ud800", "half \\ud800"),
        ("tag \U000e0041", "tag \\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(raw, shown):
    assert text.clean(raw) == shown


def test_lines_may_stay_lines_but_nothing_else():
    assert text.clean("a\r\nb\rc\x1b", lines=True) == "a\nb\\x0dc\\x1b"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.04, "0 s"),
        (1.26, "1.3 s"),
        (59.9, "59 s"),
        (125, "2 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86_400 * 3 + 3600, "3 d 1 h"),
        (86_400 * 40, "40 d"),
        (-3, "0 s"),
    ],
)
def test_lengths_of_time(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB")]
)
def test_sizes(count, shown):
    assert text.size(count) == shown


@pytest.mark.parametrize("instant", [10**17, -(10**17)])
def test_an_impossible_instant_is_no_error(instant):
    assert text.local(instant) == text.iso(instant) == f"{instant} ms"


@pytest.mark.parametrize("stored", ["NaN", "{", "[" * 100_000, ""])
def test_what_is_no_json_is_shown_as_it_is(stored):
    assert text.pretty(stored) == stored
