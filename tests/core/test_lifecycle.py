"""What becomes of a job after an attempt: every result with every count."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.core.lifecycle import ALONE_FROM_CRASHES, TRANSITIONS, after, runs_alone
from dutiful.core.retry import GIVE_UP, Backoff, Retry
from dutiful.job import (
    FINISHED,
    Cancel,
    Claim,
    Completed,
    Crashed,
    Discard,
    ErrorInfo,
    Failed,
    Interrupted,
    Result,
    Snooze,
    State,
)

BOOM = ErrorInfo("ValueError", "boom", "trace")
RETRY = Retry(max_attempts=3, backoff=Backoff(jitter=0))
P, C, D, X = State.PENDING, State.COMPLETED, State.DEAD, State.CANCELLED
WHY = ErrorInfo("Discard", "no such user")


def _claim(failures: int = 1, crashes: int = 1) -> Claim:
    return Claim(7, 4, failures, crashes, "task", "default", "{}")


@pytest.mark.parametrize(
    ("result", "failures", "state", "failures_after", "crashes_after", "delay_s", "error"),
    [
        (Completed(), 1, C, 1, 0, None, None),
        (Completed("5"), 2, C, 2, 0, None, None),
        (Snooze(60), 2, P, 2, 0, 60, None),  # no failure
        (Snooze(0), 2, P, 2, 0, 0, None),
        (Snooze(-5), 2, P, 2, 0, 0, None),
        (Interrupted(), 2, P, 2, 1, None, None),  # nor is a shutdown; and it clears no crash
        (Cancel(), 1, X, 1, 0, None, None),
        (Cancel("changed my mind"), 1, X, 1, 0, None, ErrorInfo("Cancel", "changed my mind")),
        (Discard(), 1, D, 1, 0, None, None),
        (Discard("no such user"), 1, D, 1, 0, None, WHY),
        (Failed(BOOM), 0, P, 1, 0, 1, BOOM),
        (Failed(BOOM), 1, P, 2, 0, 2, BOOM),
        (Failed(BOOM), 2, D, 3, 0, None, BOOM),  # the last one allowed
        (Failed(BOOM), 9, D, 10, 0, None, BOOM),  # the policy was made stricter
        (Failed(BOOM, 0.0), 1, P, 2, 0, 0, BOOM),
        (Failed(BOOM, 99.0), 1, P, 2, 0, 99, BOOM),
        (Failed(BOOM, 99.0), 2, D, 3, 0, None, BOOM),
        (Failed(BOOM, GIVE_UP), 0, D, 1, 0, None, BOOM),
        (Crashed(BOOM), 2, P, 2, 2, None, BOOM),  # no failure; its place in line stays
    ],
)
def test_what_becomes_of_a_job(
    result, failures, state, failures_after, crashes_after, delay_s, error
) -> None:
    ack = after(_claim(failures), result, RETRY, max_crashes=3, chance=0.0)

    assert (ack.id, ack.attempt) == (7, 4)
    assert (ack.state, ack.failures, ack.crashes) == (state, failures_after, crashes_after)
    assert (ack.delay_s, ack.error) == (delay_s, error)
    assert ack.result == (result.value if isinstance(result, Completed) else None)


@pytest.mark.parametrize(
    ("crashes", "max_crashes", "state"), [(0, 1, D), (0, 2, P), (1, 2, D), (1, 3, P), (2, 3, D), (5, 3, D)]
)
def test_crashes_are_counted_apart(crashes: int, max_crashes: int, state: State) -> None:
    ack = after(_claim(2, crashes), Crashed(BOOM), RETRY, max_crashes, 0.0)

    assert (ack.state, ack.failures, ack.crashes, ack.error) == (state, 2, crashes + 1, BOOM)


@pytest.mark.parametrize(("crashes", "alone"), [(0, False), (1, False), (2, True), (3, True)])
def test_the_second_time_a_suspect_runs_alone(crashes: int, alone: bool) -> None:
    assert runs_alone(_claim(0, crashes)) is alone
    assert ALONE_FROM_CRASHES == 2


results = st.one_of(
    st.builds(Completed, st.none() | st.just("1")),
    st.builds(Failed, st.just(BOOM), st.none() | st.just(GIVE_UP) | st.floats(0, 1e6)),
    st.builds(Crashed, st.just(BOOM)),
    st.builds(Snooze, st.floats(-10, 1e6)),
    st.builds(Cancel, st.sampled_from(["", "why"])),
    st.builds(Discard, st.sampled_from(["", "why"])),
    st.builds(Interrupted),
)


@given(
    result=results,
    failures=st.integers(0, 30),
    crashes=st.integers(0, 5),
    attempts=st.integers(1, 30),
    max_crashes=st.integers(1, 5),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_whatever_happens_the_rules_hold(result, failures, crashes, attempts, max_crashes, chance) -> None:
    claim = _claim(failures, crashes)

    ack = after(claim, result, Retry(max_attempts=attempts), max_crashes, chance)

    assert ack.state in TRANSITIONS[State.RUNNING]
    assert (ack.id, ack.attempt) == (claim.id, claim.attempt)
    assert 0 <= ack.failures - failures <= isinstance(result, Failed)
    assert ack.crashes in {0, crashes, crashes + 1}
    assert ack.delay_s is None or (ack.delay_s >= 0 and ack.state is State.PENDING)
    assert (ack.state is State.COMPLETED) == isinstance(result, Completed)
    assert ack.result is None or ack.state is State.COMPLETED
    if ack.state is State.PENDING and isinstance(result, Failed):
        assert ack.failures < attempts
    if ack.state is State.PENDING and isinstance(result, Crashed):
        assert ack.crashes < max_crashes


@given(attempts=st.integers(1, 25), max_crashes=st.integers(1, 4), data=st.data())
def test_a_job_that_never_succeeds_comes_to_an_end(
    attempts: int, max_crashes: int, data: st.DataObject
) -> None:
    """After as many failures and crashes as are allowed, whatever their order."""
    failures = crashes = 0
    for _ in range(attempts * max_crashes + 1):
        result: Result = data.draw(st.sampled_from([Failed(BOOM), Crashed(BOOM)]))
        ack = after(_claim(failures, crashes), result, Retry(max_attempts=attempts), max_crashes, 0.5)
        failures, crashes = ack.failures, ack.crashes
        if ack.state is State.DEAD:
            assert failures == attempts or crashes == max_crashes
            return
    raise AssertionError("it goes on for ever")


def test_every_kind_of_result_is_decided_on() -> None:
    samples = [Completed(), Failed(BOOM), Crashed(BOOM), Snooze(1), Cancel(), Discard(), Interrupted()]

    assert {type(sample) for sample in samples} == set(get_args(Result))
    for sample in samples:
        assert after(_claim(), sample, RETRY, 3, 0.0) is not None


def test_the_table_of_transitions_is_whole() -> None:
    """Each state has its row; only a person brings a finished job back; only a claim leads to running."""
    assert set(TRANSITIONS) == set(State)
    assert all(TRANSITIONS[state] == {State.PENDING, State.BLOCKED} for state in FINISHED)
    assert [state for state, following in TRANSITIONS.items() if State.RUNNING in following] == [
        State.PENDING
    ]
    assert State.RUNNING not in TRANSITIONS[State.RUNNING]


def test_a_blocked_job_runs_only_by_way_of_pending() -> None:
    """It may be let through, cancelled or too late."""
    assert TRANSITIONS[State.BLOCKED] == {State.PENDING, State.CANCELLED, State.DEAD}
