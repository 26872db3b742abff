"""Waiting for a condition, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

FIRST_PAUSE_S = 0.001  # short, because most conditions hold at once
LONGEST_PAUSE_S = 0.05  # long enough that a waiting test leaves the processor to what it waits for


def wait_until(
    condition: Callable[[], Answer],
    *,
    deadline_s: float = 30.0,
    what: str = "the condition",
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Answer:
    """Ask until the answer is truthy, and return that answer.

    Blocks: at most deadline_s.
    Raises: AssertionError naming `what` and the last answer; whatever the condition raises.
    """
    ends_at = clock() + deadline_s
    pause_s = FIRST_PAUSE_S
    while True:
        is_last = clock() >= ends_at
        answer = condition()
        if answer:
            return answer
        if is_last:
            raise AssertionError(f"waited {deadline_s:g} s for {what}; last answer: {answer!r}")
        pause(min(pause_s, max(0.0, ends_at - clock())))
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
