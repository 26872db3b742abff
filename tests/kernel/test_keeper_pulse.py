"""The keeper, where no daemon is: it sees by the pulse that a shim hangs, and replaces it under its container."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.kernel.test_shim_forward import Containerd
from tests.support.keeperbox import state_of
from tests.support.keptbox import KeptBox
from tests.support.waiting import wait_until
from ttrpc.api import task
from ttrpc.errors import TtrpcError

WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]


@contextlib.contextmanager
def pulsed(**environment: str) -> Iterator[KeptBox]:
    with KeptBox(WAITER) as made:
        traps = os.path.join(made.folder, "traps")
        os.mkdir(traps)
        made.environment |= {"SHIMD_WEDGED_S": "0.5", "SHIMD_WEDGED_GRACE_S": "1"}
        made.environment |= {"SHIMD_SHIM_FAULTS": traps, "SHIMD_SHIM_FAULTS_ARMED": "yes-kill-me"}
        made.environment |= environment
        yield made


@pytest.fixture
def box() -> Iterator[KeptBox]:
    with pulsed() as made:
        yield made


def test_a_shim_that_does_not_move_is_replaced_and_the_daemon_is_left_a_note(box: KeptBox) -> None:
    """Whoever stops it does so again whenever the keeper has it go on."""
    box.create()
    box.start()
    pid, stopped, over = box.state().pid, box.shim_pid, threading.Event()

    def stop() -> None:
        while not over.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGSTOP)
            over.wait(0.0005)

    stopper = threading.Thread(target=stop)
    stopper.start()
    note = box.path(f"keeper-wedged.{stopped}")
    try:
        wait_until(lambda: os.path.exists(note), deadline_s=60, what="the note")
        wait_until(lambda: state_of(stopped) in ("", "Z"), what="the shim to be gone")
    finally:
        over.set()
        stopper.join()
    with open(note, encoding="utf-8") as file:
        said = json.load(file)
    assert (said["pid"], said["kind"]) == (stopped, "stopped")
    assert "stopped by a signal" in said["reason"]
    box.disconnect()
    box.find_shim()
    assert box.shim_pid != stopped
    assert box.state().pid == pid
    with open(os.path.join(box.rootfs, "go"), "w", encoding="utf-8"):
        pass
    assert box.wait().exit_status == 42
    assert "replacing shim" in box.keeper_log()


def test_one_that_hangs_is_replaced_and_its_stack_noted(box: KeptBox) -> None:
    box.create()
    box.start()
    pid, hanging = box.state().pid, box.shim_pid
    os.mkdir(os.path.join(box.folder, "traps", "pause.begun"))  # an endless loop: see shim/faults.py
    with contextlib.suppress(TtrpcError):
        box.call("Pause", task.PauseRequest(id=box.id), timeout_s=0.2)
    box.disconnect()

    note = box.path(f"keeper-wedged.{hanging}")
    wait_until(lambda: os.path.exists(note), deadline_s=100, what="the note")
    with open(note, encoding="utf-8") as file:
        said = json.load(file)
    assert (said["pid"], said["kind"]) == (hanging, "stuck")
    assert "faults.py" in said["stack"]
    wait_until(lambda: state_of(hanging) in ("", "Z"), what="the shim to be gone")
    box.find_shim()
    assert box.state().pid == pid


def test_a_stopped_shim_is_continued(box: KeptBox) -> None:
    box.create()
    pid = box.shim_pid
    os.kill(pid, signal.SIGSTOP)

    wait_until(lambda: "moves again" in box.keeper_log(), deadline_s=60, what="the shim to move again")
    assert box.info().pid == pid
    assert "stopped by a signal" in box.keeper_log()
    assert not [name for name in os.listdir(box.bundle) if name.startswith("keeper-wedged")]


# --- the keeper itself, where no daemon is: under containerd


@pytest.fixture
def alone(short_dir: str) -> Iterator[KeptBox]:
    """As containerd starts a shim, of which here is what takes its events."""
    containerd = Containerd(short_dir)
    containerd.server.start()
    try:
        with pulsed(TTRPC_ADDRESS=containerd.path) as made:
            yield made
    finally:
        containerd.server.stop()


def test_a_stopped_keeper_is_continued_by_its_shims(alone: KeptBox) -> None:
    alone.create()
    keeper = alone.keeper_pid
    os.kill(keeper, signal.SIGSTOP)

    wait_until(lambda: "it is continued" in alone.read("shim.log"), deadline_s=100, what="the shim to continue it")
    wait_until(lambda: state_of(keeper) not in ("T", ""), what="the keeper to go on")
    assert f"the keeper, {keeper}: it is stopped by a signal" in alone.read("shim.log")


def test_a_keeper_that_hangs_is_killed_and_another_raises_successors(alone: KeptBox) -> None:
    """It loops without end over what it is to hold, for which no shim waits."""
    alone.create()
    alone.start()
    pid, keeper = alone.state().pid, alone.keeper_pid
    os.mkdir(os.path.join(alone.folder, "traps", "keeper.held"))
    alone.add_exec("e", WAITER, stdin="attach:", stdout="attach:", stderr="attach:")
    alone.start("e")

    wait_until(lambda: "it is killed" in alone.read("shim.log"), deadline_s=100, what="the shim to kill it")
    alone.wait_refilled(but=keeper)
    alone.kill_shim()
    assert alone.state().pid == pid
    alone.let_go()
    assert alone.wait().exit_status == 42


# --- and nobody


def test_nobody_looks_where_that_is_not_wanted(box: KeptBox) -> None:
    box.environment["SHIMD_WEDGED_S"] = "0"
    box.create()
    os.kill(box.shim_pid, signal.SIGSTOP)
    wait_until(lambda: state_of(box.shim_pid) == "T", what="the stop")
    other = KeptBox(WAITER)  # as long as this takes, one that looked had seen it
    with other:
        other.environment |= {"SHIMD_WEDGED_S": "0.5", "SHIMD_WEDGED_GRACE_S": "1"}
        other.create()
        os.kill(other.shim_pid, signal.SIGSTOP)
        wait_until(lambda: "moves again" in other.keeper_log(), deadline_s=60, what="the other's shim to move again")
    assert state_of(box.shim_pid) == "T"
    os.kill(box.shim_pid, signal.SIGCONT)
