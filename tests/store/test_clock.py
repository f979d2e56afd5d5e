"""The wall clock is set: delays keep their length, instants on the calendar stay where they are."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dutiful.job import Ack, State
from dutiful.store import clock
from dutiful.store.contract import Draft, Outcome, Take, Work
from dutiful.store.sqlite import MEMORY, SqliteStore

HOUR_MS = 3_600_000
BEGIN_MS = 1_700_000_000_000
# Nothing here takes real time; a call may still see the true milliseconds pass in a slow test.


class Hands:
    """A clock whose hands a test moves: elapsed time goes on, the wall is set."""

    def __init__(self) -> None:
        self.elapsed_ms = 5_000_000
        self.offset_ms = BEGIN_MS

    def go_on(self, ms: int) -> None:
        self.elapsed_ms += ms

    def set_by(self, ms: int) -> None:
        self.offset_ms += ms


@pytest.fixture
def hands(monkeypatch):
    hands = Hands()
    monkeypatch.setattr(clock, "offset_ms", lambda: hands.offset_ms)
    monkeypatch.setattr(clock, "wall_ms", lambda: hands.elapsed_ms + hands.offset_ms)
    return hands


@pytest.fixture
def store(hands):
    store = SqliteStore(MEMORY)
    store.open()
    yield store
    store.close()


def _step(store, **wishes) -> Outcome:
    outcome = Outcome()
    store.exchange(Work(**wishes), outcome)
    return outcome


def _put(store, **options) -> int:
    (ids,) = _step(store, drafts=[Draft("t", "q", ["1"], **options)]).stored
    return ids[0]


def _due_s(store) -> float:
    store.beat(0)  # a write looks at the clock
    due_s = store.next_due_s(["q"])
    assert due_s is not None
    return due_s


# --- the detector ---------------------------------------------------------------------------


def test_the_clocks_are_real() -> None:
    """Wall time is wall time, and the offset is what it is ahead of the boot clock."""
    assert abs(clock.wall_ms() - time.time() * 1000) < 1000
    assert abs(clock.offset_ms() + time.clock_gettime(time.CLOCK_BOOTTIME) * 1000 - time.time() * 1000) < 1000
    assert clock.boot_id() == clock.boot_id() != ""


def test_without_proc_the_moment_of_the_boot_names_the_run(monkeypatch, hands: Hands) -> None:
    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(clock.Path, "read_text", absent)
    first = clock.boot_id()
    hands.set_by(60_000)

    assert first.startswith("boot-")
    assert clock.boot_id() != first


@pytest.mark.parametrize(
    ("delta_ms", "step_ms"),
    [(0, 0), (1, 0), (-999, 0), (999, 0), (1000, 1000), (-1000, -1000), (2 * 24 * HOUR_MS, 2 * 24 * HOUR_MS)],
)
def test_what_counts_as_a_step(hands: Hands, delta_ms: int, step_ms: int) -> None:
    detector = clock.StepDetector()
    hands.set_by(delta_ms)

    assert detector.step_ms() == step_ms


def test_small_corrections_never_add_up_to_a_step(hands: Hands) -> None:
    detector = clock.StepDetector()

    for _ in range(100):
        hands.set_by(500)
        assert detector.step_ms() == 0


def test_a_step_is_told_until_it_is_followed(hands: Hands) -> None:
    """A transaction that failed has not moved anything: the next one must."""
    detector = clock.StepDetector()
    hands.set_by(-HOUR_MS)

    assert [detector.step_ms(), detector.step_ms()] == [-HOUR_MS, -HOUR_MS]
    detector.offset = hands.offset_ms
    assert detector.step_ms() == 0


# --- the store follows ------------------------------------------------------------------------

deltas = st.lists(
    st.tuples(
        st.integers(0, HOUR_MS),  # time that passes
        st.one_of(
            st.integers(-999, 999), st.integers(-200 * 24 * HOUR_MS, 200 * 24 * HOUR_MS)
        ),  # and the clock is set
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(delay_s=st.integers(0, 10 * 24 * 3600), moves=deltas)
@example(delay_s=60, moves=[(0, 3 * HOUR_MS), (1000, -6 * HOUR_MS)])
def test_a_delay_neither_grows_nor_shrinks(hands: Hands, delay_s: int, moves: list[tuple[int, int]]) -> None:
    """But by the small corrections, each of which is less than a step."""
    store = SqliteStore(MEMORY)
    store.open()
    try:
        _put(store, delay_s=float(delay_s))
        passed_ms, slack_ms = 0, 0
        for pass_ms, set_ms in moves:
            hands.go_on(pass_ms)
            hands.set_by(set_ms)
            passed_ms += pass_ms
            slack_ms += clock.STEP_MS if abs(set_ms) < clock.STEP_MS else 0
            left_ms = max(0, delay_s * 1000 - passed_ms)

            assert abs(round(_due_s(store) * 1000) - left_ms) <= slack_ms
    finally:
        store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run_in_ms=st.integers(-HOUR_MS, 1000 * HOUR_MS), moves=deltas)
def test_run_at_follows_the_wall_clock(hands: Hands, run_in_ms: int, moves: list[tuple[int, int]]) -> None:
    store = SqliteStore(MEMORY)
    store.open()
    try:
        run_at = clock.wall_ms() + run_in_ms
        job_id = _put(store, run_at=run_at)
        for pass_ms, set_ms in moves:
            hands.go_on(pass_ms)
            hands.set_by(set_ms)

            assert _due_s(store) == max(0, run_at - clock.wall_ms()) / 1000
        assert store.get([job_id])[0].due_at == run_at
    finally:
        store.close()


@pytest.mark.parametrize("step_ms", [-3 * HOUR_MS, 48 * HOUR_MS])
def test_a_step_between_two_openings_is_followed(tmp_path, hands: Hands, step_ms: int) -> None:
    """Nobody was there when the clock was set; who opens the file next finds it out."""
    path = str(tmp_path / "jobs.db")
    store = SqliteStore(path)
    store.open()
    _put(store, delay_s=60.0)
    store.close()
    hands.set_by(step_ms)

    store = SqliteStore(path)
    store.open()
    due_s = _due_s(store)
    store.close()

    assert due_s == 60


def test_of_two_who_see_the_step_one_moves_the_jobs(tmp_path, hands: Hands) -> None:
    stores = [SqliteStore(str(tmp_path / "jobs.db")) for _ in range(2)]
    for store in stores:
        store.open()
    _put(stores[0], delay_s=60.0)
    hands.set_by(HOUR_MS)

    assert [_due_s(store) for store in stores] == [60, 60]
    for store in stores:
        store.close()


def test_after_a_boot_nothing_moves(tmp_path, hands: Hands, monkeypatch) -> None:
    """The boot clock began anew: there is nothing to compare with, and the wall clock counts."""
    path = str(tmp_path / "jobs.db")
    store = SqliteStore(path)
    store.open()
    _put(store, delay_s=60.0)
    store.close()
    monkeypatch.setattr(clock, "boot_id", lambda: "another")
    hands.elapsed_ms, hands.offset_ms = 0, clock.wall_ms() + 10_000

    store = SqliteStore(path)
    store.open()
    due_s = _due_s(store)
    store.close()

    assert due_s == 50


def test_corrections_written_by_beats_never_add_up_to_a_step(tmp_path, hands: Hands) -> None:
    """A clock that NTP slews for days is the same clock to whoever opens the file afterwards."""
    path = str(tmp_path / "jobs.db")
    store = SqliteStore(path)
    store.open()
    _put(store, delay_s=60.0)
    for _ in range(20):
        hands.set_by(400)
        store.beat(0)
    store.close()

    store = SqliteStore(path)
    store.open()
    due_s = _due_s(store)
    store.close()

    assert due_s == 52


def test_a_live_worker_is_not_silent_because_the_clock_was_set(store: SqliteStore, hands: Hands) -> None:
    """`seen_at` moves along, so a heartbeat lease does not expire."""
    owner = store.join("w", ["q"], 1)
    hands.set_by(2 * 24 * HOUR_MS)
    store.beat(-1)

    (info,) = store.workers()
    assert info.owner == owner
    assert info.seen_at == clock.wall_ms()


@pytest.mark.parametrize("way", ["given back", "left", "crashed"])
def test_a_running_job_that_goes_back_is_due_at_once_though_the_clock_went_back(
    store, hands: Hands, way
) -> None:
    owner = store.join("w", ["q"], 1)
    job_id = _put(store)
    _step(store, take=Take(owner, ("q",), 1))
    hands.set_by(-3 * HOUR_MS)
    store.beat(owner)

    if way == "left":
        store.leave(owner)
    else:
        _step(store, acks=[Ack(job_id, 1, State.PENDING, 0, int(way == "crashed"))])

    assert _due_s(store) == 0


def test_an_unparked_job_is_due_at_once_though_the_clock_went_back(store: SqliteStore, hands: Hands) -> None:
    owner = store.join("w", ["q"], 1)
    _put(store)
    store.leave(owner)
    assert store.park({"t"}, ["q"], after_s=0, park_s=60) == {"t": 1}
    hands.set_by(-3 * HOUR_MS)
    store.beat(owner)

    assert store.unpark(None) == 1

    assert _due_s(store) == 0


def test_a_parked_job_with_run_at_is_looked_at_again_in_time(store: SqliteStore, hands: Hands) -> None:
    owner = store.join("w", ["q"], 1)
    _put(store, run_at=1)
    store.leave(owner)
    assert store.park({"t"}, ["q"], after_s=0, park_s=60) == {"t": 1}
    hands.set_by(-3 * HOUR_MS)

    assert _due_s(store) == 60
