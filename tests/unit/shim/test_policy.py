"""Restart policies as the shim decides them: who comes back after which pause, and when it is enough."""

import ast

import pytest

from shim import policy
from shim.policy import ALWAYS, NO, ON_FAILURE, UNLESS_STOPPED, Backoff, Ended, Policy, decide

BACKOFF = Backoff(min_s=0.1, max_s=60.0, reset_after_s=10.0)


@pytest.mark.parametrize(
    ("chosen", "is_stopped", "ended", "comes_back", "gave_up"),
    [
        (Policy(NO), False, Ended(1, 1.0, 0, 0), False, False),
        (Policy(ALWAYS), False, Ended(0, 1.0, 0, 0), True, False),
        (Policy(ALWAYS), True, Ended(137, 1.0, 0, 0), False, False),
        (Policy(UNLESS_STOPPED), False, Ended(None, 1.0, 99, 99), True, False),
        (Policy(UNLESS_STOPPED), True, Ended(1, 1.0, 0, 0), False, False),
        (Policy(ON_FAILURE), False, Ended(0, 1.0, 0, 0), False, False),
        (Policy(ON_FAILURE), False, Ended(None, 1.0, 0, 0), True, False),
        (Policy(ON_FAILURE, 3), False, Ended(1, 1.0, 2, 2), True, False),
        (Policy(ON_FAILURE, 3), False, Ended(1, 1.0, 3, 3), False, True),
        (Policy(ON_FAILURE, 3), False, Ended(1, 99.0, 3, 3), False, True),  # the number is of all restarts
        (Policy(ON_FAILURE, 3), False, Ended(0, 1.0, 3, 3), False, False),  # it has come to a good end
    ],
)
def test_who_comes_back(chosen: Policy, is_stopped: bool, ended: Ended, comes_back: bool, gave_up: bool) -> None:
    decision = decide(chosen, ended, BACKOFF, is_stopped=is_stopped)

    assert (decision.pause_s is not None, decision.gave_up) == (comes_back, gave_up)
    assert decision.reason


def test_pauses_double_and_a_good_run_begins_anew() -> None:
    pauses = [decide(Policy(ALWAYS), Ended(1, 1.0, n, n), BACKOFF).pause_s for n in range(4)]
    good = decide(Policy(ALWAYS), Ended(1, 10.0, 9, 9), BACKOFF)

    assert pauses == [0.1, 0.2, 0.4, 0.8]
    assert (good.pause_s, good.streak) == (0.1, 0)


def test_the_budget_is_of_restarts_in_a_row_whatever_the_policy() -> None:
    backoff = Backoff(0.1, 60.0, 10.0, budget=3)

    assert decide(Policy(ALWAYS), Ended(1, 1.0, 50, 2), backoff).pause_s is not None
    spent = decide(Policy(ALWAYS), Ended(1, 1.0, 50, 3), backoff)
    assert (spent.pause_s, spent.gave_up) == (None, True)
    assert decide(Policy(ALWAYS), Ended(1, 10.0, 50, 3), backoff).pause_s == 0.1


def test_it_imports_nothing() -> None:
    """The daemon takes it too: it must bring nothing of the shim with it."""
    with open(policy.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
