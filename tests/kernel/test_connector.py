"""A shim the keeper has only adopted is killed, on a kernel that keeps no exit statuses: the connector tells them.

This kernel is taken for such a one (shim/faults.py, lacks). What is marked needs the machine's own namespaces.
"""

import glob
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator

import pytest

from shim import faults
from shim.bundle import STATE_VERSION
from shim.core import kernel, pidfds
from shim.core.loop import Loop
from shim.core.shimlog import ShimLog
from shim.keeper import connector, distant, orphans
from tests.support import leaks
from tests.support.keeperbox import is_running
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim
from ttrpc.api.pulse import OF_KEEPER

WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]
EXEC = ["sh", "-c", "while [ ! -e /go-exec ]; do usleep 10000; done; exit 7"]
own_namespaces = pytest.mark.init_pid_ns


class OldBox(KeptBox):
    """Its shims and keepers take this kernel for one without exit statuses by pidfd."""

    def __init__(self, *lacks: str) -> None:
        super().__init__(WAITER)
        traps = os.path.join(self.folder, "traps")
        os.mkdir(traps)
        for name in (pidfds.EXIT_INFO, *lacks):
            touch(traps, f"lacks.{name}")
        self.environment |= {"SHIMD_SHIM_FAULTS": traps, "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
        self.environment["SHIMD_KEEPER_LIVES"] = "1"  # two keepers a test, and nobody measures their memory

    def replace_keeper(self) -> None:
        """From here on the shim is looked after by a keeper that did not fork it."""
        before = self.keeper_pid
        self.kill_keeper()
        self.wait_refilled(but=before)

    def stop_keeper(self) -> None:
        os.kill(self.keeper_pid, signal.SIGSTOP)

    def continue_keeper(self) -> None:
        os.kill(self.keeper_pid, signal.SIGCONT)


def touch(folder: str, name: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8"):
        pass


def exits(box: ShimBox) -> list[tuple[str, int, int]]:
    """Each exit on record, init's last: whose, code or negative signal, and how it became known."""
    records = box.call("Exits", shim.ExitsRequest(), service=SHIM).exits
    found = [(each.exec_id, each.code if each.HasField("code") else -each.signal, each.source) for each in records]
    return sorted(found, reverse=True)


@pytest.fixture
def box() -> Iterator[OldBox]:
    with OldBox() as box:
        box.create()
        box.start()
        box.replace_keeper()
        yield box


# --- containers


@own_namespaces
def test_a_container_whose_adopted_shim_was_killed_ends_exactly(box: OldBox) -> None:
    box.kill_shim()
    box.let_go()

    assert box.wait().exit_status == 42
    assert exits(box) == [("", 42, shim.EXIT_SOURCE_KEEPER)]


@own_namespaces
def test_so_does_one_that_is_killed(box: OldBox) -> None:
    box.kill_shim()
    box.kill(signal.SIGKILL)

    assert box.wait().exit_status == 128 + signal.SIGKILL
    assert exits(box) == [("", -signal.SIGKILL, shim.EXIT_SOURCE_KEEPER)]


@own_namespaces
def test_so_does_one_whose_shim_and_keeper_were_killed_together() -> None:
    """The next keeper has forked its shim, and neither is the parent of what the dead one left."""
    with OldBox() as box:
        box.create()
        box.start()
        for _ in range(2):
            keeper = box.keeper_pid
            os.kill(keeper, signal.SIGKILL)
            os.kill(box.shim_pid, signal.SIGKILL)
            box.wait_for_shim_end()
            wait_until(lambda keeper=keeper: not is_running(keeper), what="the keeper to be gone")  # type: ignore[misc]
            box.disconnect()
            box.launch()
        box.state()  # answered once it has taken over
        wait_until(lambda: "listening to the process connector" in box.keeper_log(), what="the keeper to have seen it")
        box.let_go()

        assert box.wait().exit_status == 42
        assert exits(box) == [("", 42, shim.EXIT_SOURCE_KEEPER)]


@own_namespaces
@pytest.mark.parametrize("is_first", ["the shim", "the exec"])
def test_so_do_one_and_its_exec_that_end_in_the_moment_of_their_shim(box: OldBox, is_first: str) -> None:
    """The keeper hears of both deaths when both are over; of a stopped shim's zombie, too."""
    init = box.state().pid
    box.add_exec("e1", EXEC)
    pid = box.start("e1").pid
    box.stop_keeper()
    if is_first == "the shim":
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        touch(box.rootfs, "go-exec")
        wait_until(lambda: not is_running(pid), what="the exec to end")
        box.let_go()
    else:
        os.kill(box.shim_pid, signal.SIGSTOP)
        touch(box.rootfs, "go-exec")
        wait_until(lambda: not is_running(pid), what="the exec to end")
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        box.let_go()  # before, its end would wait for the exec to be reaped
    wait_until(lambda: not is_running(init), what="the container to end")
    box.disconnect()
    box.continue_keeper()
    box.find_shim()

    assert (box.wait("e1").exit_status, box.wait().exit_status) == (7, 42)
    assert exits(box) == [("e1", 7, shim.EXIT_SOURCE_KEEPER), ("", 42, shim.EXIT_SOURCE_KEEPER)]


@own_namespaces
def test_so_do_one_and_its_exec_after_any_number_of_shims_and_keepers(box: OldBox) -> None:
    """The second shim is the keeper's child, the third adopted; what runs is nobody's child of ours all the time."""
    box.add_exec("e1", EXEC)
    box.start("e1")
    box.kill_shim()
    box.kill_shim()
    box.replace_keeper()
    touch(box.rootfs, "go-exec")
    assert box.wait("e1").exit_status == 7
    box.kill_shim()
    box.let_go()

    assert box.wait().exit_status == 42
    assert exits(box) == [("e1", 7, shim.EXIT_SOURCE_KEEPER), ("", 42, shim.EXIT_SOURCE_KEEPER)]


@own_namespaces
def test_a_host_that_forks_all_the_time_neither_wakes_the_keeper_nor_hides_an_end(box: OldBox) -> None:
    box.kill_shim()
    before = turns(box)
    busy = "i=0; while [ $i -lt 700 ]; do /bin/true; i=$((i+1)); done"
    crowd = [subprocess.Popen(["busybox", "sh", "-c", busy.replace("/bin/true", "busybox true")]) for _ in range(3)]
    for each in crowd:
        assert each.wait(timeout=100) == 0
    woken = turns(box) - before
    box.let_go()

    assert box.wait().exit_status == 42
    assert exits(box) == [("", 42, shim.EXIT_SOURCE_KEEPER)]
    assert woken < 300  # of 2,100: what happens on the machine meanwhile


def turns(box: OldBox) -> int:
    """How often the keeper's loop has been woken, by its pulse."""
    for path in glob.glob(f"{box.keepers}/*{OF_KEEPER}"):
        with open(path, "rb") as file:
            magic, _, pid, _, _, count = struct.unpack("=8s5Q", file.read(48))
        if magic == b"shimpuls" and pid == box.keeper_pid:
            return int(count)
    raise AssertionError("the keeper has no pulse")


# --- where there is none


def test_without_it_a_status_is_unknown_and_never_a_guess() -> None:
    with OldBox("connector") as box:
        box.create()
        box.start()
        box.replace_keeper()
        box.kill_shim()
        box.let_go()

        assert box.wait().exit_status == 255
        assert exits(box) == [("", 0, shim.EXIT_SOURCE_UNKNOWN)]
        assert "no process connector (a test wants it so)" in box.keeper_log()


ASK = "from shim.keeper.connector import Connector\ntry:\n Connector()\nexcept OSError as error:\n print(error)"


@pytest.mark.parametrize("namespace", ["--pid", "--net", "--user"])
def test_in_a_namespace_of_its_own_it_says_why(namespace: str) -> None:
    done = subprocess.run(
        ["unshare", "--fork", namespace, sys.executable, "-c", ASK], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("[Errno ")


# --- the filter


def end(pid: int, tgid: int, code: int, parent: int, what: int = connector.EXIT) -> bytes:
    return bytes(36) + struct.pack("=IIQIIiIII", what, 0, 1, pid, tgid, code, 17, parent, parent)


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        pytest.param(end(5, 5, 0, 77), True, id="a child of who is listened for"),
        pytest.param(end(5, 5, 0, 256), True, id="of the other"),
        pytest.param(end(5, 5, 9, 78), False, id="of anybody else"),
        pytest.param(end(5, 5, 0, 0), True, id="reaped already"),
        pytest.param(end(6, 5, 0, 0), False, id="a thread"),
        pytest.param(end(6, 5, 3 << 8, 0), True, id="a thread with a code"),
        pytest.param(end(5, 5, 0, 77, what=1), False, id="a fork"),
        pytest.param(end(0, 0, 0, 0, what=connector.NONE), True, id="an answer"),
    ],
)
def test_the_filter_lets_through_what_is_asked_for(message: bytes, passes: bool) -> None:
    """On a socket that anybody can make: the kernel runs the same program."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        code = array("B", connector.program([77, 256]))
        address, size = code.buffer_info()
        ours.setsockopt(socket.SOL_SOCKET, connector.SO_ATTACH_FILTER, struct.pack("@HP", size // 8, address))
        ours.setblocking(False)
        theirs.send(message)
        try:
            found = ours.recv(100)
        except BlockingIOError:
            found = b""

    assert found == (message if passes else b"")


# --- threads, as the kernel ends them

THREADED = """
import ctypes, os, signal, sys, threading, time
leave = {"x86_64": 60}.get(os.uname().machine, 93)
libc = ctypes.CDLL(None)
case, go = sys.argv[1:3]
def wait():
    while not os.path.exists(go):
        time.sleep(0.01)
def work():
    wait()
    if case == "execve by another":
        os.execv("/bin/sh", ["sh", "-c", f"while [ ! -e {go}.2 ]; do sleep 0.01; done; exit 9"])
    while case.startswith("left by the first") and open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    os._exit({"exit by another": 7, "left by the first, exit 3": 3}.get(case, 0))
def idle():
    signal.pause() if threading.current_thread() is threading.main_thread() else time.sleep(1000)
if case == "exit":
    wait()
    os._exit(5)
threading.Thread(target=idle if case == "killed" else work, daemon=True).start()
threading.Thread(target=idle, daemon=True).start() if not case.startswith("left") else None
wait()
if case == "killed":
    os.kill(os.getpid(), 9)
if case.startswith("left by the first"):
    libc.syscall(leave, 0)
time.sleep(1000)
"""
CASES = {
    "exit": 5 << 8,
    "killed": 9,
    "exit by another": 7 << 8,
    "execve by another": 9 << 8,
    "left by the first, exit 0": 0,
    "left by the first, exit 3": None,
}


@own_namespaces
@pytest.mark.parametrize("case", CASES)
def test_a_process_of_many_threads_is_known_exactly_or_not_at_all(short_dir: str, case: str) -> None:
    script, go, bundle = (os.path.join(short_dir, name) for name in ("script", "go", "bundle"))
    os.makedirs(os.path.join(bundle, "execs"))
    with open(script, "w", encoding="utf-8") as file:
        file.write(THREADED)
    words = '"$@" </dev/null >/dev/null 2>&1 & echo $!'
    started = subprocess.run(
        ["sh", "-c", words, "sh", sys.executable, script, case, go], capture_output=True, text=True, check=True
    )
    pid = int(started.stdout)
    ticks = kernel.start_ticks(pid)
    with open(os.path.join(bundle, "state.json"), "w", encoding="utf-8") as file:
        json.dump({"version": STATE_VERSION, "init": {"pid": pid, "start_ticks": ticks, "state": "running"}}, file)
    wait_until(lambda: orphans.parent_and_start(pid) != (os.getpid(), ticks), what="it to be nobody's child of ours")
    loop, log = Loop(), ShimLog(bundle, "test")
    far = distant.Distant(loop, orphans.Orphans("b"), log)
    far.adopted(os.getpid())
    far.settled(1 << 30, bundle)
    touch(short_dir, "go")
    deadline, replaced_at = time.monotonic() + 30, 0.0
    while f"process {pid} of" not in (said := log_of(bundle)) and time.monotonic() < deadline:
        loop.run_once(0.1)
        if name_of(pid) == "sh":
            replaced_at = replaced_at or time.monotonic()
            if time.monotonic() - replaced_at > 0.5:  # it has been seen to live
                touch(short_dir, "go.2")
    far.close()
    loop.close()
    log.close()
    note = orphans.read_note(bundle, pid, ticks, "b")

    assert (note["wait_status"] if note is not None else None) == CASES[case]
    assert (note is None) == ("is not known" in said)


def name_of(pid: int) -> str:
    try:
        return leaks.read(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""


def log_of(bundle: str) -> str:
    with open(os.path.join(bundle, "shim.log"), encoding="utf-8") as file:
        return file.read()
