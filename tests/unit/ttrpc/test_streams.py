"""The table of stream states is total, and says what the protocol says."""

import pytest

from ttrpc import streams
from ttrpc.streams import (
    CALLEE_END,
    CALLEE_MESSAGE,
    CALLER_DONE,
    CALLER_END,
    CALLER_MESSAGE,
    DONE,
    FACTS,
    FORGOTTEN,
    IDLE,
    OPEN,
    REQUEST_CLOSED,
    REQUEST_OPEN,
    REQUEST_UNARY,
    RESPONSE,
    STATES,
    TABLE,
    UNARY,
)


def test_every_state_has_a_row_and_every_cell_names_a_state() -> None:
    assert set(STATES) == set(TABLE)
    assert {fact for row in TABLE.values() for fact in row} == set(FACTS)
    assert {state for row in TABLE.values() for state in row.values()} == set(STATES) - {IDLE}


def test_every_name_of_a_state_or_fact_is_listed() -> None:
    names = {value for name, value in vars(streams).items() if name.isupper() and isinstance(value, str)}

    assert set(STATES) | set(FACTS) == names


def test_every_state_is_reached_and_can_end() -> None:
    reached, waiting = set(), [IDLE]
    while waiting:
        state = waiting.pop()
        if state not in reached:
            reached.add(state)
            waiting += TABLE[state].values()

    assert reached == set(STATES)
    assert all(DONE in TABLE[state].values() for state in STATES if state not in (IDLE, DONE))


@pytest.mark.parametrize(
    ("facts", "states"),
    [
        ([REQUEST_UNARY, RESPONSE], [UNARY, DONE]),
        ([REQUEST_CLOSED, CALLEE_MESSAGE, CALLEE_END], [CALLER_DONE, CALLER_DONE, DONE]),
        ([REQUEST_OPEN, CALLER_MESSAGE, CALLER_END, RESPONSE], [OPEN, OPEN, CALLER_DONE, DONE]),
        ([REQUEST_OPEN, CALLEE_MESSAGE, CALLER_MESSAGE, CALLEE_END], [OPEN, OPEN, OPEN, DONE]),
        ([REQUEST_OPEN, FORGOTTEN], [OPEN, DONE]),
    ],
)
def test_the_course_of_each_kind_of_call(facts: list[str], states: list[str]) -> None:
    state, course = IDLE, []
    for fact in facts:
        state = TABLE[state][fact]
        course.append(state)

    assert course == states


@pytest.mark.parametrize("fact", [CALLER_MESSAGE, CALLER_END, CALLEE_MESSAGE, CALLEE_END])
def test_a_unary_call_has_no_data(fact: str) -> None:
    assert fact not in TABLE[UNARY]


@pytest.mark.parametrize("fact", [CALLER_MESSAGE, CALLER_END])
def test_a_caller_that_is_done_sends_no_more(fact: str) -> None:
    assert fact not in TABLE[CALLER_DONE]
