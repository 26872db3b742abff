"""How often a shim looks at its keeper, and what it makes of what it sees."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from shim.keeper.pulse import limits_of
from shim.recovery import keeperwatch
from shim.recovery.keeperwatch import KeeperWatch
from tests.support.stage import StagedLog
from ttrpc.api.pulse import Look

S = 1_000_000_000


class Staged:
    """Owns the clock: the watch, its keeper as each look finds it, and what is done to that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.paused_s: list[float] = []
        self.seen: dict[str, Any] | None = {}
        self.sent: list[int] = []
        self.timer: Any = None
        monkeypatch.setattr(keeperwatch, "look_at", lambda _path: self.look())
        monkeypatch.setattr(keeperwatch.pulse, "glance", lambda _path: self.glance())
        monkeypatch.setattr(keeperwatch, "send", lambda _look, signum: self.sent.append(signum))
        monkeypatch.setattr(keeperwatch.pulse, "memory_stall_percent", lambda: 0.0)
        loop: Any = self
        log: Any = StagedLog()
        self.watch = KeeperWatch(loop, lambda: "/k", log, limits_of({}))

    def look(self) -> Look | None:
        if self.seen is None:
            return None
        shown = {"busy_since_ns": 0, "turns": 7, **self.seen}
        return Look(9, 1, at_ns=int(self.now_s * S), **shown)

    def glance(self) -> tuple[int, bytes, int, int] | None:
        found = self.look()
        if found is None:
            return None
        assert found.busy_since_ns is not None
        assert found.turns is not None
        return found.pid, found.state.encode(), found.busy_since_ns, found.turns

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        class Timer:
            def cancel(self) -> None:
                pass

        self.timer = (delay_s, callback)
        return Timer()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            delay_s, callback = self.timer
            self.paused_s.append(delay_s)
            self.now_s += delay_s
            callback()


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Staged:
    return Staged(monkeypatch)


@pytest.mark.parametrize("seen", [{}, None])
def test_a_shim_with_nothing_to_do_wakes_once_a_minute(staged: Staged, seen: dict[str, Any] | None) -> None:
    """Whether the keeper waits, as it should, or there is none."""
    staged.seen = seen
    staged.step(20)
    assert min(staged.paused_s) >= 60
    assert staged.sent == []


def test_one_that_is_stopped_is_continued_soon_and_killed_when_that_does_not_help(staged: Staged) -> None:
    staged.step()
    staged.seen = {"state": "T"}
    began_s = staged.now_s
    while not staged.sent:
        staged.step()
    assert staged.sent == [signal.SIGCONT]
    assert staged.now_s - began_s < 100
    while staged.sent == [signal.SIGCONT]:
        staged.step()
    assert staged.sent[-1] == signal.SIGKILL
    assert staged.now_s - began_s < 250


def test_one_turn_without_an_end_is_ended_and_a_long_one_let_be(staged: Staged) -> None:
    busy = {"busy_since_ns": 1, "state": "R"}
    staged.seen = {**busy, "cpu_ns": 0}
    staged.step()
    for turn in range(30):  # it is busy, but not in the same turn
        staged.seen = {**busy, "turns": turn, "cpu_ns": turn * 5 * S}
        staged.step()
    assert staged.sent == []
    for number in range(30):
        staged.seen = {**busy, "turns": 100, "cpu_ns": number * 5 * S}
        staged.step()
    assert staged.sent[0] == signal.SIGKILL


def test_another_keeper_is_another_case(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    staged.seen = {"state": "T"}
    staged.step()
    monkeypatch.setattr(
        keeperwatch, "look_at", lambda _path: Look(10, 2, at_ns=int(staged.now_s * S), state="T", turns=7)
    )
    staged.step()
    assert staged.sent == []
