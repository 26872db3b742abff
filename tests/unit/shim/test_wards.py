"""What a keeper does for one shim: what it holds, and whether and when a dead one is followed."""

import errno
import os
import socket
from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from shim.actions import start
from shim.actions.start import publish_pid
from shim.keeper import keeper as keepers
from shim.keeper import wards
from shim.keeper.keeper import Keeper
from shim.keeper.looks import ended_child
from shim.keeper.wards import FAILURES_MAX, PAUSE_MAX_S, STEADY_S, Ward
from shim.params import Params
from shim.recovery.spares import NOT_PINNED, PIN, PINNED, SETTLED
from shim.recovery.successor import TRY_AGAIN, exit_code
from tests.support.waiting import wait_until

KILLED, BUG, HINDERED = 9, 1 << 8, TRY_AGAIN << 8


class Held:
    """A ward, and the shim's end of its connection."""

    def __init__(self, bundle: str) -> None:
        ours, self.shim = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        values: dict[str, Any] = dict.fromkeys(Params.__slots__, "")
        params = Params(**{**values, "bundle": bundle, "environment": {}, "debug": False})
        self.ward = Ward(1, params, 0o022, ours, {})
        self.said: list[str] = []
        self.ward.report = self.said.append

    def say(self, word: bytes, fd: int | None = None) -> None:
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        self.shim.sendmsg([word], ancillary)
        self.ward.read()


@pytest.fixture
def held(tmp_path: os.PathLike[str]) -> Iterator[Held]:
    made = Held(os.fspath(tmp_path))
    yield made
    made.ward.close()
    made.shim.close()


def test_a_held_fd_for_which_there_was_no_room_is_reported_and_the_old_one_let_go(held: Held) -> None:
    """The kernel drops it when the keeper has no fds left; what was held under the name is not the shim's any more."""
    held.say(b"hold init.stdout", 0)
    assert list(held.ward.spares) == ["init.stdout"]
    held.say(b"hold init.stdout")

    assert held.ward.spares == {}
    assert len(held.said) == 1
    assert "no room for init.stdout" in held.said[0]


def test_a_pin_is_answered_also_when_its_pidfd_did_not_arrive(held: Held) -> None:
    """Answers are counted: one that did not come would be taken for the next, ever after. Why it failed goes before."""
    held.say(PIN + b"/run/s/pins/x-1-1")

    assert held.shim.recv(64) == NOT_PINNED + b"the keeper has no room for its pidfd"
    assert held.shim.recv(64) == PINNED
    assert "no room for the pidfd" in held.said[0]


def test_a_pin_that_fails_is_answered_with_why(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_pidfd: int, _path: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(wards.pins, "pin", fail)
    held.say(PIN + b"/run/s/pins/x-1-1", 0)
    assert held.shim.recv(64) == NOT_PINNED + b"[Errno 1] Operation not permitted"
    assert held.shim.recv(64) == PINNED
    monkeypatch.setattr(wards.pins, "pin", lambda _pidfd, _path: None)
    held.say(PIN + b"/run/s/pins/x-1-1", 0)
    assert held.shim.recv(64) == PINNED


def test_only_what_cannot_take_over_is_given_up(held: Held) -> None:
    ward = held.ward
    assert [ward.next_pause_s(KILLED) for _ in range(20)] == [wards.PAUSE_FIRST_S] * 20
    assert None not in [ward.next_pause_s(HINDERED) for _ in range(20)]
    ward.failures = 0
    pauses = [ward.next_pause_s(BUG) for _ in range(FAILURES_MAX)]
    assert None not in pauses
    assert ward.next_pause_s(BUG) is None


def test_what_takes_over_and_then_fails_again_and_again_does_not_keep_us_busy(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(wards.time, "monotonic", lambda: now[0])
    pauses = []
    for _ in range(20):
        held.say(SETTLED)
        pauses.append(held.ward.next_pause_s(BUG))
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S
    assert held.ward.next_pause_s(KILLED) == 0.0

    held.say(SETTLED)
    now[0] += STEADY_S + 1
    assert held.ward.next_pause_s(BUG) == 0.0


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(24, "no fds"), TRY_AGAIN), (MemoryError(), TRY_AGAIN), (KeyError("pid"), 1)]
)
def test_what_hinders_a_successor_is_told_from_what_it_cannot_read(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_shim_that_is_not_our_child_yet_hides_no_other(tmp_path: os.PathLike[str]) -> None:
    """A copy's parent, the template's child, may end a little later than the copy is a shim."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    try:
        found = wait_until(lambda: ended_child(pid), what="the child to end")
        assert (found.si_pid, found.si_status) == (pid, 7)
        assert ended_child(os.getppid()) is None
    finally:
        os.waitpid(pid, 0)


class Waiting:
    """A nursery in which a successor waits for a copy."""

    def __init__(self) -> None:
        self.births: dict[object, object] = {object(): None}
        self.is_dismissed = False

    def pids(self) -> set[int]:
        return set(range(1 << 22))

    def dismiss(self) -> None:
        self.is_dismissed = True


def test_a_retiring_keeper_does_not_end_while_a_successor_waits_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, nursery = Keeper.__new__(Keeper), Waiting()
    keeper.is_retiring = True
    keeper.shims, keeper.adopted, keeper.resting = {}, {}, 0
    keeper.nursery = nursery  # type: ignore[assignment]
    monkeypatch.setattr(keepers, "has_children", lambda: True)
    keeper._end_if_done()
    assert not nursery.is_dismissed
    nursery.births.clear()
    keeper._end_if_done()
    assert nursery.is_dismissed


def test_the_pid_is_written_over_the_old_one_on_a_full_disk(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = os.fspath(tmp_path)
    publish_pid(bundle, 1234567)

    def full(_path: str, _text: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(start, "_write", full)
    publish_pid(bundle, 42)
    with open(os.path.join(bundle, "shim.pid"), encoding="utf-8") as file:
        assert int(file.read()) == 42
