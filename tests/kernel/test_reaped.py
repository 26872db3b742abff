"""A shim is killed when it knows how a process ended and has not put that on disk: its keeper knows it, without a pin.

The zombie stays until the record is on disk, and falls to the next subreaper: exact on any kernel, not only where
pins keep a status (6.15).
"""

import os
from collections.abc import Iterator

import pytest

from shim import faults
from shim.core import pidfds
from tests.support.keptbox import KeptBox
from tests.support.shimbox import ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim

WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]
EXEC = ["sh", "-c", "while [ ! -e /go-exec ]; do usleep 10000; done; exit 7"]


class TrapBox(KeptBox):
    """Owns the folder of traps: a file there kills the shim that passes its point."""

    def __init__(self) -> None:
        super().__init__(WAITER)
        self.traps = os.path.join(self.folder, "traps")
        os.mkdir(self.traps)
        self.environment |= {"SHIMD_SHIM_FAULTS": self.traps, "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}

    def lay(self, name: str) -> None:
        touch(self.traps, name)


def touch(folder: str, name: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8"):
        pass


def unpin(box: ShimBox) -> None:
    """An older kernel has no pins: there this changes nothing."""
    pins = f"{box.sockets}/pins"
    assert os.path.ismount(pins) == pidfds.keeps_exit_status()
    assert not os.path.ismount(pins) or os.system(f"umount -R {pins}") == 0


def exits(box: ShimBox) -> list[tuple[str, int, int]]:
    found = [record.exit for record in box.events("/tasks/exit") if record.HasField("exit")]
    return [(record.exec_id, record.code, record.source) for record in found]


@pytest.fixture
def box() -> Iterator[TrapBox]:
    with TrapBox() as box:
        box.create()
        box.start()
        yield box


@pytest.mark.parametrize("step", ["reaped", "drained"])
def test_how_init_ended_is_known_without_a_pin(box: TrapBox, step: str) -> None:
    unpin(box)
    box.lay(f"exit.{step}.init")
    touch(box.rootfs, "go")

    assert box.wait().exit_status == 42
    box.find_shim()
    assert exits(box) == [("", 42, shim.EXIT_SOURCE_KEEPER)]


@pytest.mark.parametrize("step", ["reaped", "drained"])
def test_how_an_exec_ended_is_known_without_a_pin(box: TrapBox, step: str) -> None:
    box.add_exec("e1", EXEC)
    box.start("e1")
    unpin(box)
    box.lay(f"exit.{step}.exec.e1")
    touch(box.rootfs, "go-exec")

    assert box.wait("e1").exit_status == 7
    box.find_shim()
    touch(box.rootfs, "go")
    assert box.wait().exit_status == 42
    assert exits(box)[0] == ("e1", 7, shim.EXIT_SOURCE_KEEPER)


def test_nothing_is_left_unreaped(box: TrapBox) -> None:
    """Fifty execs later the shim has no zombie."""
    touch(box.rootfs, "go-exec")
    for number in range(50):
        box.add_exec(f"e{number}", EXEC)
        box.start(f"e{number}")
    assert [box.wait(f"e{number}").exit_status for number in range(50)] == [7] * 50
    children = f"/proc/{box.info().pid}/task/{box.info().pid}/children"

    def only_init() -> bool:
        with open(children, encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()] == [box.state().pid]

    wait_until(only_init, what="the shim to have no child but init")
