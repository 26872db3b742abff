"""Tests side by side (`pytest -n 2`): each worker in a world of its own, so that what is left behind is told exactly.

A worker has its own PID namespace and /proc, its own mounts, and its own of the folders that programs share by name:
it sees no process, no mount and no socket of a test that runs beside it. Cgroups are shared, and known by their names.
It is a `pytest` of its own: one session of tests/support/leaks.py, with one folder.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest

SHELL = "worker.sh"
LEFT = "left_behind"  # in a worker's last words
PLACES = ("/run/containerd", "/run/shimd", "/run/netns")  # that programs share by name


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Whether others run the tests, and this process only hands them out."""
    return not is_worker(config) and bool(getattr(config.option, "tx", None)) and config.option.dist != "no"


class Places:
    """Folders to mount something on in other mount namespaces: there while this is, and gone with it if they were not.

    Owns: a shared lock on each. One that another run has locked as well stays: taking it away would undo that run's
    mounts on it. Source: rmdir(2) of what is a mount point elsewhere only, since Linux 3.18.
    """

    def __init__(self, paths: Sequence[str] = PLACES) -> None:
        self._ours: list[str] = []
        self._fds = {path: self._hold(path) for path in paths}

    def _hold(self, path: str) -> int:
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o755)
                self._ours.append(path)
            with contextlib.suppress(FileNotFoundError):  # another run has taken it away, just now
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(fd, fcntl.LOCK_SH)
                if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
                os.close(fd)

    def close(self) -> None:
        for path, fd in self._fds.items():
            if path in self._ours:
                with contextlib.suppress(OSError):  # somebody else uses it by now, or has put something there
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.rmdir(path)
            os.close(fd)


class Apart:
    """Hooks of the controller: how workers are started, and what they say at their end."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self._places: Places | None = None

    def pytest_xdist_setupnodes(self, specs: "list[Any]") -> None:
        """Without root there are no namespaces to be had, and no tests that need them either."""
        if os.geteuid() == 0:
            self._places = Places()
            shell = os.path.join(os.path.dirname(os.path.abspath(__file__)), SHELL)
            for spec in specs:
                spec.python = f"bash {shell} {':'.join(PLACES)} {sys.executable}"

    def pytest_unconfigure(self) -> None:
        if self._places is not None:
            self._places.close()

    def pytest_testnodedown(self, node: Any) -> None:
        left = getattr(node, "workeroutput", {}).get(LEFT, "")
        if left:
            self.left.append(left)
