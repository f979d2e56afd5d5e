"""Where batches are gathered: nothing is lost, doubled or kept too long, whatever happens to the jobs."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful import Handler
from dutiful.core.pacing import AHEAD_BYTES_MAX
from dutiful.events import Events
from dutiful.job import Claim
from dutiful.registry import Registry
from dutiful.runner.batches import Batches, Place
from tests.worker.tools import Seen

LONG_S = 60.0


def batches(batch: int = 3, wait: float = LONG_S, offer=None, is_more_coming=lambda: False) -> Batches:
    registry = Registry({"t": Handler(print, batch=batch, wait=wait), "one": Handler(print)})
    offer = offer or (lambda _line: None)
    return Batches(registry, Events(), "w", offer=offer, is_more_coming=is_more_coming)


@pytest.fixture
def made():
    every: list[Batches] = []

    def made(**options) -> Batches:
        every.append(batches(**options))
        return every[-1]

    yield made
    for each in every:
        each.end()


def claim(number: int, task: str = "t", *, failures: int = 0, crashes: int = 0) -> Claim:
    return Claim(number, 1, failures, crashes, task, "default", "null")


def claims(*numbers: int) -> list[Claim]:
    return [claim(number) for number in numbers]


def ids(found: list[Claim]) -> list[int]:
    return [each.id for each in found]


def test_a_batch_stands_in_line_where_its_last_job_came(made):
    gathering = made()

    line = gathering.gather([claim(1), claim(9, "one"), claim(2), claim(3), claim(4), claim(8, "one")])

    assert [item.id for item in line] == [9, 0, 8]
    assert ids(gathering.draw(line[1])) == [1, 2, 3]
    assert (gathering.held, gathering.lacking) == (1, 2)


def test_what_comes_before_the_turn_goes_along(made):
    gathering = made(wait=0)
    (place,) = gathering.gather(claims(1))

    assert gathering.lacking == 2
    assert gathering.gather(claims(2)) == []
    assert ids(gathering.draw(place)) == [1, 2]


def test_a_batch_of_large_payloads_is_run_as_it_is(made):
    gathering = made(batch=100)
    large = Claim(1, 1, 0, 0, "t", "default", "x" * (AHEAD_BYTES_MAX // 2))

    line = gathering.gather([large] * 5)

    assert len(line) == 2
    assert len(gathering.draw(line[0])) == 5, "the first takes along what is there"
    assert gathering.draw(line[1]) == []


def test_a_suspect_is_not_gathered(made):
    suspect = claim(1, crashes=1)

    assert made().gather([suspect]) == [suspect]


def test_what_has_failed_is_gathered_with_its_like(made):
    gathering = made(batch=8)

    line = gathering.gather([claim(n, failures=2) for n in range(1, 5)] + claims(5))

    assert [place.size for place in line] == [2, 2]
    assert gathering.held == 5


def test_the_wait_ends_by_itself(made):
    offered = Seen()
    gathering = made(wait=0.01, offer=offered.add)

    assert gathering.gather(claims(1, 2)) == []

    ((place,),) = offered.wait(1)
    assert ids(gathering.draw(place)) == [1, 2]


def test_what_is_due_in_the_store_is_waited_for(made):
    offered = Seen()
    coming = [True, True]
    gathering = made(wait=0, offer=offered.add, is_more_coming=lambda: bool(coming and coming.pop()))

    assert gathering.gather(claims(1)) == []
    assert gathering.gather(claims(2)) == []

    ((place,),) = offered.wait(1)
    assert ids(gathering.draw(place)) == [1, 2]


def test_but_not_for_ever(made):
    offered = Seen()
    gathering = made(wait=0, offer=offered.add, is_more_coming=lambda: True)

    assert gathering.gather(claims(1)) == []

    ((place,),) = offered.wait(1)
    assert ids(gathering.draw(place)) == [1]


def test_after_the_end_nothing_waits(made):
    """Whatever comes then stands in line at once, and is given back from there."""
    gathering = made()
    gathering.end()

    (place,) = gathering.gather(claims(1))

    assert ids(gathering.draw(place)) == [1]


Step = st.one_of(
    st.tuples(st.just("gather"), st.integers(1, 9)),
    st.tuples(st.just("draw"), st.just(0)),
    st.tuples(st.just("take out"), st.integers(0, 5)),
    st.tuples(st.just("stale"), st.just(0)),
    st.tuples(st.just("hurry"), st.just(0)),
)


@given(size=st.integers(1, 5), steps=st.lists(Step, max_size=40))
def test_each_job_comes_out_once_and_no_batch_is_too_large(size, steps) -> None:
    line: list[Place] = []
    gathering = batches(batch=size, offer=line.extend)
    came, out = 0, []
    try:
        for step, number in steps:
            if step == "gather":
                line += gathering.gather(claims(*range(came, came + number)))
                came += number
            elif step == "draw" and line:
                drawn = gathering.draw(line.pop(0))
                assert len(drawn) <= size
                assert ids(drawn) == sorted(ids(drawn))
                out += ids(drawn)
            elif step == "take out":
                out += ids(gathering.take_out([each.id for each in gathering.waiting[:number]]))
            elif step == "stale":
                line.clear()
                out += ids(gathering.take_back(gathering=False))
                assert gathering.held < size
            assert gathering.held == came - len(out)
            assert 0 <= gathering.lacking <= size * (len(line) + 1)
            if gathering.held >= size:
                assert line, "a full batch has its place"
        line.clear()
        out += ids(gathering.take_back(gathering=True))
    finally:
        gathering.end()

    assert sorted(out) == list(range(came))
    assert gathering.held == 0


def test_a_wait_that_is_over_is_told_from_the_first_job(made):
    """The second does not begin it anew."""
    offered = Seen()
    gathering = made(wait=0.2, offer=offered.add)
    began = time.monotonic()
    gathering.gather(claims(1))
    gathering.gather(claims(2))

    ((place,),) = offered.wait(1)

    assert time.monotonic() - began >= 0.2
    assert ids(gathering.draw(place)) == [1, 2]
