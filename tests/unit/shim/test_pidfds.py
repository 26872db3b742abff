"""What this kernel is taken to be able to tell of an ended process."""

import os
import types

import pytest

from shim.core import pidfds


@pytest.mark.parametrize(
    ("release", "is_asked"),
    [
        ("6.1.0-56-amd64", False), ("6.14.0-33-generic", False), ("6.15.0", True), ("6.18.2+", True), ("7.0-rc1", True),
        ("odd", False), ("6", False), ("6.x.1", False),
    ],
)  # fmt: skip
def test_kernels_that_take_the_request_and_keep_no_status_are_not_relied_on(
    release: str, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(pidfds, "_knows_info", None)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(release=release))
    monkeypatch.setattr(pidfds.fcntl, "ioctl", lambda *request: asked.append(request))

    assert pidfds.keeps_exit_status() is is_asked
    assert bool(asked) is is_asked
    assert pidfds.keeps_exit_status() is is_asked


def test_what_the_kernel_says_of_the_request_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may forbid it, whatever the kernel is called."""

    def refuse(*_request: object) -> None:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(pidfds, "_knows_info", None)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(release="6.18.0"))
    monkeypatch.setattr(pidfds.fcntl, "ioctl", refuse)

    assert pidfds.keeps_exit_status() is False
