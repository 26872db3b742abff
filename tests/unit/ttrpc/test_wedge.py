"""When a shim is wedged: the rule, played with looks of our own. It must never hit one that is only slow."""

from typing import Any

import pytest

from ttrpc.api.pulse import Look
from ttrpc.api.wedge import (
    BUSY,
    CONTINUE,
    FROZEN,
    GONE,
    IDLE,
    KERNEL,
    NOTHING,
    RECOVERED,
    REPLACE,
    REPORT,
    STOPPED,
    STUCK,
    TRACED,
    WELL,
    Case,
    Limits,
    spell_of,
)

S = 1_000_000_000
AFTER_S, GRACE_S = 5, 30


def play(*looks: dict[str, Any], every_s: float = 1.0, stall_percent: float = 0.0) -> list[str]:
    """What is done at each look; its times are in seconds, cpu and queued what came to it."""
    limits, case, done = Limits(AFTER_S, GRACE_S), None, []
    cpu = queued = 0.0
    for number, given in enumerate(looks):
        made = {"state": "S", "busy": True, "turns": 7, "pid": 100, "ticks": 5, "cpu": 0.0, "queued": 0.0, **given}
        cpu, queued = cpu + made["cpu"], queued + made["queued"]
        look = Look(
            made["pid"],
            made["ticks"],
            at_ns=int((1 + number * every_s) * S),
            state=made["state"],
            cpu_ns=int(cpu * S),
            queued_ns=int(queued * S),
            busy_since_ns=S if made["busy"] else 0,
            turns=made["turns"],
            is_frozen=made.get("is_frozen", False),
        )
        if case is None:
            case = Case(look)
        else:
            done.append(case.judge(look, limits, stall_percent=stall_percent))
    return done


def moments(done: list[str]) -> dict[str, int]:
    """When each thing was first done: the number of the second."""
    return {what: done.index(what) + 1 for what in dict.fromkeys(done) if what != NOTHING}


LOOPING = {"state": "R", "cpu": 1.0}
BLOCKED = {"state": "S"}
STARVED = {"state": "R", "cpu": 0.01, "queued": 0.0}  # its waiting is told only when it has ended


@pytest.mark.parametrize(
    ("what", "looks", "expected"),
    [
        ("an endless loop", [LOOPING] * 60, {REPORT: 5, REPLACE: 35}),
        ("a call that does not return", [BLOCKED] * 60, {REPORT: 5, REPLACE: 35}),
        ("stopped", [{"state": "T", "busy": False}] * 60, {CONTINUE: 5, REPLACE: 35}),
        ("stopped at work", [{"state": "T"}] * 60, {CONTINUE: 5, REPLACE: 35}),
        ("a debugger is at it", [{"state": "t"}] * 60, {REPORT: 5}),
        ("frozen", [{"state": "S", "busy": False, "is_frozen": True}] * 60, {REPORT: 5}),
        ("an uninterruptible wait at work", [{"state": "D"}] * 60, {REPORT: 5}),
        ("an uninterruptible wait elsewhere", [{"state": "D", "busy": False}] * 60, {REPORT: 5}),
        ("idle for ever", [{"busy": False}] * 60, {}),
        ("busy, turn after turn", [{**LOOPING, "turns": n} for n in range(60)], {}),
        ("no processor at all", [STARVED] * 60, {}),
        ("a hundredth of a processor", [{"state": "R", "cpu": 0.01, "queued": 0.99}] * 300, {}),
        ("the same, seen asleep now and then", [STARVED, BLOCKED, STARVED] * 100, {}),
        ("a slow turn that ends in time", [LOOPING] * 5 + [{"busy": False, "turns": 8}] * 20, {}),
        ("dead", [{"state": "Z"}] * 60, {}),
        ("gone", [{"state": ""}] * 60, {}),
    ],
)
def test_what_is_done_and_when(what: str, looks: list[dict[str, Any]], expected: dict[str, int]) -> None:
    assert moments(play(*looks)) == expected, what


def test_an_endless_loop_with_a_third_of_a_processor_takes_three_times_as_long() -> None:
    looks = [{"state": "R", "cpu": 1 / 3, "queued": 2 / 3}] * 200

    found = moments(play(*looks))
    assert found[REPORT] == pytest.approx(15, abs=1)
    assert found[REPLACE] == pytest.approx(105, abs=1)


def test_a_host_without_memory_is_waited_for() -> None:
    """It is reported, and replaced only where waiting proves something."""
    assert moments(play(*[BLOCKED] * 60, stall_percent=50.0)) == {REPORT: 5}


def test_one_that_moves_again_is_told_once_and_may_be_reported_anew() -> None:
    well = {"busy": False, "turns": 8}
    done = play(*[LOOPING] * 7, well, well, *[{"state": "T", "busy": False, "turns": 8}] * 7)

    assert [what for what in done if what != NOTHING] == [REPORT, RECOVERED, CONTINUE]


def test_a_stopped_one_is_continued_once() -> None:
    done = play(*[{"state": "T", "busy": False}] * 34)

    assert done.count(CONTINUE) == 1
    assert REPLACE not in done


def test_another_process_under_the_same_pid_is_another_case() -> None:
    done = play(*[LOOPING] * 7, {**LOOPING, "ticks": 6}, *[{**LOOPING, "ticks": 6}] * 3)

    assert [what for what in done if what != NOTHING] == [REPORT]


def test_a_wait_in_the_kernel_that_becomes_a_loop_is_cured() -> None:
    found = play(*[{"state": "D"}] * 7, *[LOOPING] * 60)

    assert [what for what in found if what != NOTHING][:3] == [REPORT, REPORT, REPLACE]


def test_a_watcher_that_was_away_itself_does_not_kill_at_its_return() -> None:
    """Two looks an hour apart prove that it is wedged; what is done about it begins with telling."""
    looks = [{"state": "T", "busy": False}] * 3

    assert play(*looks, every_s=3600.0) == [CONTINUE, REPLACE]


@pytest.mark.parametrize(
    ("state", "busy_since_ns", "is_frozen", "expected"),
    [
        ("S", 0, False, IDLE),
        ("S", None, False, IDLE),  # no pulse: nothing is concluded from its absence
        ("R", S, False, BUSY),
        ("D", S, False, BUSY),
        ("D", 0, False, KERNEL),
        ("S", 0, True, FROZEN),
        ("T", S, False, STOPPED),
        ("t", 0, False, TRACED),
        ("Z", 0, False, GONE),
        ("", None, False, GONE),
    ],
)
def test_what_a_look_shows(state: str, busy_since_ns: int | None, is_frozen: bool, expected: str) -> None:
    look = Look(1, 1, at_ns=S, state=state, busy_since_ns=busy_since_ns, turns=0, is_frozen=is_frozen)

    assert spell_of(look) == expected


def test_the_words_say_what_and_for_how_long() -> None:
    case = Case(Look(1, 1, at_ns=2 * S, state="R", busy_since_ns=S, turns=3))
    assert case.fault == WELL
    case.judge(Look(1, 1, at_ns=9 * S, state="R", cpu_ns=7 * S, busy_since_ns=S, turns=3), Limits(AFTER_S, GRACE_S))

    assert case.fault == STUCK
    assert case.words() == "one turn of its loop does not end, for 8.0 s now (state R)"
