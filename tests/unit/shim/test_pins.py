"""Making pins and taking them away, where mounting plays no part."""

import fcntl
import os
from types import SimpleNamespace
from typing import Any

import pytest

from shim.core import pidfds
from shim.core.loop import Loop
from shim.core.steps import Signal
from shim.recovery import pins
from shim.task import pinning
from tests.support.streams import play

SOCKET = "0123456789abcdef" * 4


@pytest.mark.parametrize(("held_s", "is_gone"), [(1.0, True), (10.0, False)])
def test_who_is_the_last_to_look_after_a_pin_waits_for_the_others(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch, held_s: float, is_gone: bool
) -> None:
    """`delete` is run once: on a crowded machine another may hold the lock for longer than a shim would wait."""
    sockets = os.fspath(tmp_path)
    path = pins.pin_path(os.path.join(sockets, SOCKET), 7, 8)
    other = pins.pin_path(os.path.join(sockets, "f" * 64), 7, 8)
    os.mkdir(os.path.dirname(path))
    for name in (path, other):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    holder = os.open(sockets, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now >= held_s:
            fcntl.flock(holder, fcntl.LOCK_UN)

    monkeypatch.setattr(pins.time, "sleep", sleep)
    monkeypatch.setattr(pins.time, "monotonic", lambda: now)
    monkeypatch.setattr(pins.mounts, "unmount_all", lambda path: None)
    try:
        pins.unpin_all(os.path.join(sockets, SOCKET))
    except TimeoutError:
        assert not is_gone
    finally:
        os.close(holder)

    assert os.path.exists(path) is not is_gone
    assert os.path.exists(other)


@pytest.mark.parametrize(("answer", "made_here"), [("", False), ("no room", True), (None, True)])
def test_a_pin_the_keeper_cannot_make_is_made_here(
    monkeypatch: pytest.MonkeyPatch, answer: str | None, made_here: bool
) -> None:
    """None: there is no keeper."""
    monkeypatch.setattr(pidfds, "keeps_exit_status", lambda: True)
    made, warned = [], []
    asked = None
    if answer is not None:
        asked = Signal()
        asked.fire(answer)
    parts = SimpleNamespace(
        params=SimpleNamespace(socket_path="/run/s/x"),
        spares=SimpleNamespace(pin=lambda _path, _pidfd: asked),
        pin=lambda pidfd, _path: made.append(pidfd),
        log=SimpleNamespace(warning=warned.append),
    )
    process: Any = SimpleNamespace(pidfd=7, inode=8, pid=9, name="init")
    container: Any = SimpleNamespace(parts=parts)
    loop = Loop()
    play(loop, pinning.pin(container, process))
    loop.close()

    assert made == ([7] if made_here else [])
    assert warned == []
