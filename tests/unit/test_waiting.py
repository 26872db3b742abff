"""The helper every test waits with, on a fake clock."""

import pytest

from tests.support.waiting import LONGEST_PAUSE_S, wait_until


class Clock:
    """Time that passes only by pausing."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


def test_an_answer_that_is_there_is_given_without_a_pause() -> None:
    clock = Clock()

    assert wait_until(lambda: "yes", clock=clock, pause=clock.pause) == "yes"
    assert clock.pauses == []


def test_pauses_grow_to_their_longest_until_the_answer_comes() -> None:
    clock = Clock()

    assert wait_until(lambda: clock.now_s > 1, deadline_s=5, clock=clock, pause=clock.pause)
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == LONGEST_PAUSE_S


def test_the_deadline_names_what_was_waited_for_and_the_last_answer() -> None:
    clock = Clock()

    with pytest.raises(AssertionError, match=r"waited 2 s for the shim; last answer: 0"):
        wait_until(lambda: 0, deadline_s=2, what="the shim", clock=clock, pause=clock.pause)
    assert clock.now_s == pytest.approx(2)


def test_the_condition_is_asked_once_more_after_the_deadline() -> None:
    """An answer that came during the last pause counts."""
    clock = Clock()

    assert wait_until(lambda: clock.now_s >= 2, deadline_s=2, clock=clock, pause=clock.pause)
