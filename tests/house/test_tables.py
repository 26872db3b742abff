"""The two tables everything hangs on are total: every state answers every fact, or says why it cannot happen."""

import itertools

import pytest

from shim.task import lifecycle
from shim.task.lifecycle import (
    CREATED,
    CREATING,
    DELETED,
    FACTS,
    PARKED,
    PAUSED,
    REQUESTS,
    RUNNING,
    STOPPED,
    TRANSITIONS,
)

STATES = (CREATING, CREATED, RUNNING, PAUSED, STOPPED, DELETED)

# Why a fact cannot be reported in a state. Together with the table this covers every pair.
IMPOSSIBLE = {
    CREATING: {
        "runc is still creating; start, pause and resume are refused until it returned": (
            "started",
            "start_failed",
            "paused",
            "resumed",
        ),
        "delete is refused until create ended": ("deleted",),
    },
    CREATED: {
        "creating ended once already": ("created", "create_failed"),
        "only what runs can be paused": ("paused", "resumed"),
        "delete kills first, so the exit comes before": ("deleted",),
    },
    RUNNING: {
        "creating and starting ended already": ("created", "create_failed", "started", "start_failed"),
        "it is not paused": ("resumed",),
        "delete is refused while it runs": ("deleted",),
    },
    PAUSED: {
        "creating and starting ended already": ("created", "create_failed", "started", "start_failed"),
        "it is paused": ("paused",),
        "delete is refused while it lives": ("deleted",),
    },
    STOPPED: {
        "creating and starting ended already": ("created", "create_failed", "started", "start_failed"),
        "the dead are not paused": ("paused", "resumed"),
        "a process exits once, and the reaper reports it once": ("exited",),
    },
    DELETED: {"nothing happens after the end": FACTS},
}


@pytest.mark.parametrize(("state", "fact"), list(itertools.product(STATES, FACTS)))
def test_every_state_answers_every_fact_or_says_why_it_cannot(state: str, fact: str) -> None:
    has_cell = fact in TRANSITIONS[state]
    reasons = [reason for reason, facts in IMPOSSIBLE[state].items() if fact in facts]

    assert len(reasons) == (0 if has_cell else 1), f"{state} × {fact}: a cell {has_cell}, reasons {reasons}"


def test_the_lifecycle_table_names_known_states_and_facts_only() -> None:
    targets = {target for row in TRANSITIONS.values() for target in row.values()}
    asked = {state for states in REQUESTS.values() for state in states}

    assert set(TRANSITIONS) == set(STATES)
    assert targets <= {*STATES, PARKED}
    assert {fact for row in TRANSITIONS.values() for fact in row} == set(FACTS)
    assert asked <= set(STATES)


def test_every_state_but_the_last_can_be_left_and_reached() -> None:
    reached = {CREATING}
    for _ in STATES:
        reached |= {target for state in reached for target in TRANSITIONS[state].values() if target != PARKED}

    assert reached == set(STATES)
    assert [state for state in STATES if not TRANSITIONS[state]] == [DELETED]


def test_the_lifecycle_imports_nothing() -> None:
    assert [name for name in vars(lifecycle) if hasattr(vars(lifecycle)[name], "__spec__")] == []
