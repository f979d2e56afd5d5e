"""Claims of a step of which nobody could say whether it was done."""

from dutiful.job import Claim
from dutiful.runner.doubts import Doubts


def claim(job_id: int, attempt: int = 1) -> Claim:
    return Claim(job_id, attempt, 0, 0, "t", "default", "1", 0, 0)


def test_what_the_store_says_is_ours_is_found_once() -> None:
    doubts = Doubts()
    doubts.add([claim(1), claim(2)])

    assert doubts.found({(1, 1), (9, 1)}) == [claim(1)]
    assert doubts
    assert doubts.found({(1, 1)}) == []
    assert doubts.found({(2, 1)}) == [claim(2)]
    assert not doubts


def test_another_attempt_at_the_job_is_not_the_one() -> None:
    doubts = Doubts()
    doubts.add([claim(1, attempt=1)])

    assert doubts.found({(1, 2)}) == []


def test_what_came_with_a_later_step_is_in_good_hands() -> None:
    doubts = Doubts()
    doubts.add([claim(1)])
    doubts.received([claim(1), claim(3)])

    assert not doubts
    assert doubts.found({(1, 1)}) == []
