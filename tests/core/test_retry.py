"""How long to wait after a failure, and when to give up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.core.retry import GIVE_UP, Backoff, Retry
from dutiful.errors import ConfigError

seconds = st.floats(0, 1e6)
chances = st.floats(0, 1, exclude_max=True)
backoffs = st.builds(
    Backoff, first_s=seconds, factor=st.floats(1, 100), limit_s=seconds, jitter=st.floats(0, 1)
)


@pytest.mark.parametrize(
    ("backoff", "failures", "chance", "delay_s"),
    [
        (Backoff(), 1, 0.0, 1.0),
        (Backoff(), 2, 0.0, 2.0),
        (Backoff(), 11, 0.0, 1024.0),
        (Backoff(), 13, 0.0, 3600.0),  # the ceiling
        (Backoff(), 5000, 0.0, 3600.0),  # 2.0 ** 4999 is no float
        (Backoff(first_s=2), 3, 0.0, 8.0),
        (Backoff(jitter=0.5), 3, 0.5, 3.0),
        (Backoff(factor=1, jitter=0), 9, 0.9, 1.0),
        (Backoff(first_s=0), 7, 0.3, 0.0),
        (Backoff(first_s=10, limit_s=4, jitter=0), 1, 0.0, 4.0),
    ],
)
def test_the_wait_after_a_failure(backoff: Backoff, failures: int, chance: float, delay_s: float) -> None:
    assert backoff.delay_s(failures, chance) == delay_s


@given(backoff=backoffs, failures=st.integers(1, 10_000), chance=chances)
def test_a_wait_is_within_its_bounds(backoff: Backoff, failures: int, chance: float) -> None:
    """Never negative, never beyond the ceiling, and chance takes off `jitter` at most."""
    full_s = backoff.delay_s(failures, 0.0)

    delay_s = backoff.delay_s(failures, chance)

    assert 0 <= delay_s <= backoff.limit_s
    assert full_s * (1 - backoff.jitter) - 1e-6 <= delay_s <= full_s


@given(backoff=backoffs, failures=st.integers(1, 2000), chance=chances)
def test_waits_do_not_shrink_from_failure_to_failure(backoff: Backoff, failures: int, chance: float) -> None:
    assert backoff.delay_s(failures, chance) <= backoff.delay_s(failures + 1, chance)


@pytest.mark.parametrize(("failures", "chance"), [(0, 0.0), (1, 1.0), (1, -0.1)])
def test_what_cannot_be_asked(failures: int, chance: float) -> None:
    with pytest.raises(AssertionError):
        Backoff().delay_s(failures, chance)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"first_s": -1}, "first_s"),
        ({"factor": 0.9}, "factor"),
        ({"limit_s": -1}, "limit_s"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
        ({"first_s": float("nan")}, "first_s"),
    ],
)
def test_a_number_outside_its_range_is_named(options: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Backoff(**options)


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_job_has_one_attempt_at_least(attempts: int) -> None:
    with pytest.raises(ConfigError, match="max_attempts"):
        Retry(max_attempts=attempts)


@pytest.mark.parametrize(
    ("said", "after_s"),
    [(None, None), (True, None), (False, GIVE_UP), (5, 5.0), (0, 0.0), (0.5, 0.5), (-3, 0.0)],
)
def test_what_a_policy_says(said: float | bool | None, after_s: float | None) -> None:
    """0 seconds are no False, and a negative wait is none."""
    asked: list[tuple[BaseException, int]] = []
    retry = Retry(decide=lambda error, failures: (asked.append((error, failures)), said)[1])
    error = ValueError()

    assert retry.after_s(error, 3) == after_s
    assert asked == [(error, 3)]


def test_some_errors_are_given_up_on_at_once() -> None:
    """Their subclasses too, and without asking `decide`."""
    retry = Retry(give_up_on=(LookupError, TypeError), decide=lambda _error, _failures: 1)

    assert [retry.after_s(error, 1) for error in (KeyError(), TypeError(), ValueError())] == [
        GIVE_UP,
        GIVE_UP,
        1,
    ]


def test_without_a_policy_the_backoff_counts() -> None:
    assert Retry().after_s(ValueError(), 1) is None
