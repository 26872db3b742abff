"""When a large shim wishes to be followed by a copy, and when it does not; what the keeper is asked and answers."""

from types import SimpleNamespace
from typing import Any

import pytest

from shim.core import pidfds
from shim.core.steps import Fired
from shim.recovery.spares import HANDOVER, KeeperLink
from shim.upgrade import relief
from shim.upgrade.relief import BEGIN_S, Relief


class Loop:
    """Notes what is to be called, and when."""

    def __init__(self) -> None:
        self.timers: list[float] = []

    def call_later(self, pause_s: float, _callback: Any) -> None:
        self.timers.append(pause_s)


class Spares:
    """A keeper that answers as it is told to."""

    is_connected = is_told = True

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.names: dict[str, int] = {}

    def hold(self, name: str, fd: int) -> None:
        self.names[name] = fd

    def drop(self, name: str) -> None:
        del self.names[name]

    def held(self) -> tuple[int, dict[str, int]]:
        return -1, dict(self.names)

    def ask_relief(self, _code: str, count: int) -> Any:
        assert count == len(self.names)
        return self


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, words: str) -> None:
        self.said.append(words)

    warning = info


def staged(answer: str = "", hinders: str = "", **environment: str) -> Any:
    """A shim that is quiet, unless something hinders."""
    upgrade = SimpleNamespace(processes=list, what_hinders=lambda **_: hinders)
    return SimpleNamespace(
        loop=Loop(), log=Log(), upgrade=upgrade, is_finishing=False, changed=[],
        params=SimpleNamespace(environment=environment), parts=SimpleNamespace(spares=Spares(answer)),
        tasks=SimpleNamespace(is_needed=True), wakeup=SimpleNamespace(fds=set()),
    )  # fmt: skip


def answer(handler: Any) -> list[Any]:
    """Play the loop for one try: the questions it waited for."""
    asked = []
    try:
        step = next(handler)
        while True:
            asked.append(step)
            step = handler.send(step.signal.answer)
    except StopIteration:
        return asked


@pytest.fixture(autouse=True)
def recent_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pidfds, "keeps_exit_status", lambda: True)
    monkeypatch.setattr(relief, "open_fifos", set)
    monkeypatch.setattr(relief.carriedcalls, "carry", lambda _shim, **_: ({}, set()))


@pytest.mark.parametrize(
    ("environment", "timers"),
    [
        ({"SHIMD_RELIEF_S": "2.5"}, [2.5]), ({"SHIMD_RELIEF_S": "0"}, [0.0]),
({"SHIMD_RELIEF_S": "off"}, []), ({"SCHED_CORE": "1"}, []),
    ],
)  # fmt: skip
def test_when_it_begins(environment: dict[str, str], timers: list[float]) -> None:
    shim = staged(**environment)
    Relief(shim).begin()

    assert shim.loop.timers == timers


@pytest.mark.parametrize("environment", [{}, {"SHIMD_RELIEF_S": "soon"}])
def test_not_all_shims_of_a_host_begin_at_once(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    for pid in range(1000, 1064):
        monkeypatch.setattr(relief.os, "getpid", lambda pid=pid: pid)
        shim = staged(**environment)
        Relief(shim).begin()
        begun += shim.loop.timers

    assert (min(begun), len(set(begun))) == (BEGIN_S, 64)
    assert max(begun) < 2 * BEGIN_S


def test_a_kernel_that_keeps_no_exit_status_leaves_the_shim_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pidfds, "keeps_exit_status", lambda: False)
    shim = staged()
    Relief(shim).begin()

    assert (shim.loop.timers, len(shim.log.said)) == ([], 1)


def test_what_hinders_is_said_once_and_tried_again_ever_later() -> None:
    shim = staged(hinders="under way is _run")
    wish = Relief(shim)
    asked = [answer(wish._try()) for _ in range(12)]

    assert asked == [[]] * 12
    assert shim.log.said == ["this shim stays as large as it is for now: under way is _run"]
    assert shim.loop.timers == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0]


def test_nobody_is_asked_when_the_container_is_gone_or_nobody_would_answer() -> None:
    gone, alone = staged(), staged()
    gone.tasks.is_needed = False
    alone.parts.spares.is_connected = False

    assert answer(Relief(gone)._try()) == answer(Relief(alone)._try()) == []
    assert gone.log.said[0].endswith("there is no container")
    assert alone.log.said[0].endswith("no keeper looks after it")


def test_a_keeper_of_other_code_is_left_for_one_of_ours() -> None:
    shim = staged(answer="other code")
    shim.rejoin = SimpleNamespace(change=lambda: shim.changed.append(True))
    (asked,) = answer(Relief(shim)._try())

    assert isinstance(asked, Fired)
    assert (shim.changed, shim.parts.spares.names) == ([True], {})
    assert shim.loop.timers == [1.0]


def test_a_keeper_that_does_not_want_to_is_asked_again() -> None:
    shim = staged(answer="the rehearsal is not over")
    answer(Relief(shim)._try())

    assert shim.log.said == ["this shim stays as large as it is for now: the rehearsal is not over"]


def test_something_that_begins_while_the_keeper_is_asked_hinders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief.os, "_exit", lambda _code: pytest.fail("it ended"))
    shim = staged()
    looks = iter(["", "a call has come"])
    shim.upgrade.what_hinders = lambda **_: next(looks)
    answer(Relief(shim)._try())

    assert shim.log.said == ["this shim stays as large as it is for now: a call has come"]


def test_a_successor_of_a_shim_that_was_killed_is_left_nothing() -> None:
    link = KeeperLink(spares={"init.master": 7, "conn.1": 8})

    assert relief.receive(link, Log()) == []  # type: ignore[arg-type]
    assert (link.carried, sorted(link.spares)) == (None, ["conn.1", "init.master"])
    assert not any(name.startswith(HANDOVER) for name in link.spares)
