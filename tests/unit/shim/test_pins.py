"""Taking pins away, where mounting plays no part."""

import fcntl
import os

import pytest

from shim.recovery import pins

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
