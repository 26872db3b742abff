"""A shim that is killed on a sick host: its successor comes all the same, or as soon as it can."""

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import faults
from shim.streams import console
from tests.kernel.test_shim_disk import fill
from tests.support.keeperbox import looked_after
from tests.support.keptbox import KeptBox
from tests.support.shimbox import ShimBox
from tests.support.waiting import wait_until
from ttrpc.errors import ConnectionLost, StatusError


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("small"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "small", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_does_not_keep_the_successor_away(small_disk: str) -> None:
    with KeptBox(bundle_root=small_disk) as box:
        box.create()
        box.start()
        pid = box.state().pid
        filler = fill(small_disk)
        for _ in range(3):
            dead = box.shim_pid
            box.kill_shim()
            assert box.shim_pid != dead
            assert box.state().pid == pid
        box.kill(9)
        assert box.wait().exit_status == 137
        os.unlink(filler)


LOGGER = """#!/bin/sh
cat <&3 >> {folder}/out 5>&- &
echo $! > {folder}/cat.pid
exec 5>&-
wait
"""


def test_a_log_programs_children_are_no_runtime_calls() -> None:
    with KeptBox(["sh", "-c", "while true; do echo line; sleep 0.1; done"]) as box:
        program = os.path.join(box.folder, "logger")
        with open(program, "w", encoding="utf-8") as file:
            file.write(LOGGER.format(folder=box.folder))
        os.chmod(program, 0o755)
        box.create(stdout=f"binary://{program}")
        box.start()
        wait_until(lambda: os.path.exists(f"{box.folder}/out") and os.path.getsize(f"{box.folder}/out"), what="output")
        with open(f"{box.folder}/cat.pid", encoding="utf-8") as file:
            child = file.read().strip()
        box.kill_shim()
        box.state()
        assert "waiting for process" not in box.read("shim.log")
        assert os.path.exists(f"/proc/{child}")


def test_what_hinders_a_successor_is_waited_out() -> None:
    with KeptBox() as box:
        box.create()
        box.start()
        keeper = box.keeper_pid
        os.kill(keeper, signal.SIGSTOP)
        os.kill(box.shim_pid, signal.SIGKILL)
        os.unlink(box.path("shim.pid"))
        os.mkdir(box.path("shim.pid"))  # nobody can write it now
        os.kill(keeper, signal.SIGCONT)
        wait_until(lambda: "no successor" in box.keeper_log(), what="the keeper to be refused")
        os.rmdir(box.path("shim.pid"))
        box.disconnect()

        box.find_shim()
        assert box.state().status == 2
        assert "given up" not in box.keeper_log()


@pytest.mark.parametrize("step", ["create.run", "create.pinned"])
def test_nothing_stays_of_a_shim_that_is_killed_while_it_gets_a_terminal(tmp_path: Path, step: str) -> None:
    """The runtime sends it to a socket outside the bundle, whose path would be too long."""
    traps = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    with KeptBox(terminal=True, environment=traps) as box:
        (tmp_path / step).touch()
        with contextlib.suppress(StatusError, ConnectionLost):
            box.create(stdout=f"log://{box.folder}/log")
        box.disconnect()
        box.find_shim()
        wait_until(lambda: "taken over" in box.read("shim.log"), what="the successor")

        assert not [name for name in os.listdir("/run") if name.startswith(console.prefix_of(box.path("io")))]


def test_delete_takes_away_what_a_dead_shim_left_of_a_terminal(tmp_path: Path) -> None:
    traps = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    with ShimBox(terminal=True, environment={**traps, "SHIMD_KEEPER": "off"}) as box:
        (tmp_path / "create.run").touch()
        with pytest.raises(ConnectionLost):
            box.create(stdout=f"log://{box.folder}/log")
        prefix = console.prefix_of(box.path("io"))
        assert [name for name in os.listdir("/run") if name.startswith(prefix)]
        assert box.run_shim("-bundle", box.bundle, "delete").returncode == 0
        assert not [name for name in os.listdir("/run") if name.startswith(prefix)]


def test_what_a_shim_was_writing_of_an_exec_goes_with_it() -> None:
    """The exec is deleted, and its name may never be used again: a file for each kill would pile up."""
    with KeptBox() as box:
        box.create()
        box.start()
        assert box.run_exec("e1", ["true"]).exit_status == 0
        Path(box.path("execs"), "e1.state.json.new").touch()
        box.kill_shim()
        assert box.state().status == 2
        assert os.listdir(box.path("execs")) == []


def test_a_state_file_that_cannot_be_read_now_is_no_word_about_the_task() -> None:
    """A successor that took it for none would end in order, and take address and connections with it."""
    with KeptBox() as box:
        box.create()
        box.start()
        keeper = box.keeper_pid
        os.kill(keeper, signal.SIGSTOP)
        os.kill(box.shim_pid, signal.SIGKILL)
        os.rename(box.path("state.json"), box.path("kept"))
        os.symlink("state.json", box.path("state.json"))  # ELOOP
        os.kill(keeper, signal.SIGCONT)
        wait_until(lambda: box.keeper_log().count("raising a successor") > 6, what="more tries than FAILURES_MAX")
        os.rename(box.path("kept"), box.path("state.json"))
        box.disconnect()

        box.find_shim()
        assert box.state().status == 2


def test_an_exec_whose_state_is_damaged_is_lost_alone() -> None:
    with KeptBox() as box:
        box.create()
        box.start()
        for name in ("e1", "e2"):
            box.add_exec(name, ["sleep", "1000"])
            box.start(name)
        Path(box.path("execs"), "e1.state.json").write_bytes(b"{")
        box.kill_shim()

        assert box.state().status == 2
        assert box.state("e2").status == 2
        with pytest.raises(StatusError, match="does not exist"):
            box.state("e1")
        assert "exec e1 is lost" in box.read("shim.log")


def test_a_keeper_without_fds_is_asked_again_soon() -> None:
    """Refused, a shim would stay away for minutes, and have no successor meanwhile."""
    with KeptBox() as other:
        other.create()
        keeper = other.keeper_pid
        os.kill(keeper, signal.SIGSTOP)  # so that the next shim is started cold
        with ShimBox(environment={"SHIMD_KEEPER": other.keepers, "SHIMD_KEEPER_CGROUP": ""}) as box:
            box.create()
            limits = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
            held = len(os.listdir(f"/proc/{keeper}/fd"))
            resource.prlimit(keeper, resource.RLIMIT_NOFILE, (held + 1, limits[1]))
            os.kill(keeper, signal.SIGCONT)
            wait_until(lambda: "no keeper looks after this shim" in box.read("shim.log"), what="the keeper's hang-up")
            resource.prlimit(keeper, resource.RLIMIT_NOFILE, limits)
            wait_until(lambda: box.shim_pid in looked_after(other.keeper_log(), keeper), what="the next try")
            assert "does not look after this shim" not in box.read("shim.log")
