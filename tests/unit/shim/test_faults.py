"""Fault points of the shim: inert unless armed twice by the environment of its own start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from shim import faults

CODE = "import os\nfrom shim import faults\nfaults.arm(os.environ)\nfaults.point('here', '/x')\n"


def passes(environ: dict[str, str]) -> int:
    return subprocess.run([sys.executable, "-c", CODE], env=environ, check=False).returncode


def test_it_dies_where_a_trap_lies_and_only_once(tmp_path: Path) -> None:
    armed = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    (tmp_path / "here.x").touch()

    assert passes(armed) == -signal.SIGKILL
    assert passes(armed) == 0
    assert [name.rpartition(".")[0] for name in os.listdir(tmp_path)] == ["here.x.hit"]


def test_one_variable_alone_arms_nothing(tmp_path: Path) -> None:
    (tmp_path / "here.x").touch()

    assert passes({"SHIMD_SHIM_FAULTS": str(tmp_path)}) == 0
    assert passes({"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": "yes"}) == 0
    assert passes({"SHIMD_FAULTS_ARMED": faults.ARMED, "SHIMD_SHIM_FAULTS": str(tmp_path)}) == 0
    assert os.listdir(tmp_path) == ["here.x"]


def test_it_stops_at_a_fifo_until_that_is_opened_for_writing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "here.x")
    environ = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    with subprocess.Popen([sys.executable, "-c", CODE], env=environ) as process:
        with open(tmp_path / f"here.x.hit.{process.pid}", "wb") if _is_taken(tmp_path, process.pid) else None:  # type: ignore[union-attr]
            assert process.poll() is None
        assert process.wait(10) == 0


def test_it_loops_for_ever_at_a_directory(tmp_path: Path) -> None:
    (tmp_path / "here.x").mkdir()
    environ = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    with subprocess.Popen([sys.executable, "-c", CODE], env=environ) as process:
        assert _is_taken(tmp_path, process.pid)
        assert process.poll() is None
        process.kill()


def _is_taken(folder: Path, pid: int) -> bool:
    from tests.support.waiting import wait_until

    return wait_until(lambda: (folder / f"here.x.hit.{pid}").exists(), what="the trap to be taken")
