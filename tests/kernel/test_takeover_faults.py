"""A shim that is killed on a sick host: its successor comes all the same, or as soon as it can."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.kernel.test_shim_disk import fill
from tests.support.keptbox import KeptBox
from tests.support.waiting import wait_until


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
