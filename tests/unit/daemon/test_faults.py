"""Fault points: inert unless armed twice, and never silently misspelt."""

import signal
import subprocess
import sys

import pytest

from daemon import faults


def survives(environ: dict[str, str], passes: int) -> bool:
    """Whether a process with this environment gets past a point so many times."""
    code = (
        "import os\nfrom daemon import faults\nfaults.arm(os.environ)\n"
        f"for _ in range({passes}): faults.point('create.begin')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode == 0


def test_kills_at_the_pass_that_was_asked_for() -> None:
    """SIGKILL, at the third pass and not before."""
    armed = {"SHIMD_FAULTS": "create.begin=kill@3", "SHIMD_FAULTS_ARMED": faults.ARMED}
    assert survives(armed, 2)
    assert not survives(armed, 3)


def test_one_variable_alone_arms_nothing() -> None:
    """A stray variable in a production environment kills nobody."""
    assert survives({"SHIMD_FAULTS": "create.begin=kill"}, 1)
    assert survives({"SHIMD_FAULTS": "create.begin=kill", "SHIMD_FAULTS_ARMED": "yes"}, 1)


@pytest.mark.parametrize("text", ["create.bgin=kill", "create.begin", "create.begin=kill@0", "create.begin=kill@x"])
def test_a_misspelt_fault_refuses_to_start(text: str) -> None:
    """A test that kills nowhere must not pass for one that survived."""
    with pytest.raises(faults.UnknownFault):
        faults.arm({"SHIMD_FAULTS": text, "SHIMD_FAULTS_ARMED": faults.ARMED})
    faults.arm({})


def test_points_are_named_once() -> None:
    """Each name is one place."""
    assert len(set(faults.POINTS)) == len(faults.POINTS)
