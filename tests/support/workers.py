"""Tests side by side (`pytest -n 2`): each worker in a world of its own, so that what is left behind is told exactly.

A worker has its own PID namespace and /proc, its own mounts, and its own of the folders that programs share by name:
it sees no process, no mount and no socket of a test that runs beside it. Cgroups are shared, and known by their names.
It is a `pytest` of its own: one session of tests/support/leaks.py, with one folder.
"""

import os
import sys
from typing import Any

import pytest

SHELL = "worker.sh"
LEFT = "left_behind"  # in a worker's last words


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Whether others run the tests, and this process only hands them out."""
    return not is_worker(config) and bool(getattr(config.option, "tx", None)) and config.option.dist != "no"


class Apart:
    """Hooks of the controller: how workers are started, and what they say at their end."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def pytest_xdist_setupnodes(self, specs: "list[Any]") -> None:
        """Without root there are no namespaces to be had, and no tests that need them either."""
        if os.geteuid() == 0:
            shell = os.path.join(os.path.dirname(os.path.abspath(__file__)), SHELL)
            for spec in specs:
                spec.python = f"bash {shell} {sys.executable}"

    def pytest_testnodedown(self, node: Any) -> None:
        left = getattr(node, "workeroutput", {}).get(LEFT, "")
        if left:
            self.left.append(left)
