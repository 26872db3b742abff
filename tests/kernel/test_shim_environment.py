"""A host that fails the shim: no fds, no memory, a disk that errs or is read-only, numbers of processes used again."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.faultydisk import FaultyDisk
from tests.support.shimbox import ShimBox
from tests.support.source import ROOT
from tests.support.waiting import wait_until
from ttrpc.api import task
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError

ENOUGH_FDS = 4


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as made:
        yield made


def test_an_exit_that_the_disk_refuses_is_told_once_the_disk_is_well(disk: FaultyDisk) -> None:
    """EIO at the sync: nobody is told what a crash could take back."""
    with ShimBox(bundle_root=disk.path) as box:
        box.create()
        box.start()
        disk.fail()
        box.kill(9)

        waiting = box.wait_later(client=box.connect())
        wait_until(lambda: box.info().unwritten_exits == 1, what="the disk to refuse it")
        with pytest.raises(DeadlineExceeded):
            waiting.receive(timeout_s=0.1)
        assert "Input/output error" in box.read("shim.log")
        disk.heal()
        assert waiting.receive(timeout_s=10).exit_status == 137
        assert box.info().unwritten_exits == 0
        assert '"signal": 9' in box.read("exits", "init.json")
        assert box.delete().exit_status == 137


def test_an_exec_on_a_bad_disk_is_refused_and_leaves_the_container_alone(disk: FaultyDisk) -> None:
    with ShimBox(bundle_root=disk.path) as box:
        box.create()
        box.start()
        disk.fail()
        with pytest.raises(StatusError):
            box.run_exec("e1", ["true"])
        assert box.state().status == 2
        disk.heal()
        assert box.run_exec("e2", ["true"]).exit_status == 0


def test_a_file_system_that_turns_read_only_for_good(disk: FaultyDisk) -> None:
    """As ext4 does by itself when it finds an error: said, and cleared away by `delete` all the same."""
    with ShimBox(bundle_root=disk.path) as box:
        box.create()
        box.start()
        disk.turn_read_only()
        with pytest.raises(StatusError, match="Read-only file system"):
            box.run_exec("e1", ["true"])
        assert box.state().status == 2
        box.kill(9)
        wait_until(lambda: box.info().unwritten_exits == 1, what="the disk to refuse it")
        box.kill_shim()
        done = box.run_shim("-bundle", box.bundle, "delete")
        assert done.returncode == 0, done.stderr
        assert task.DeleteResponse.FromString(done.stdout).exit_status == 137


def limit(pid: int, kind: int, value: int) -> None:
    resource.prlimit(pid, kind, (value, resource.prlimit(pid, kind)[1]))


def test_a_shim_without_free_fds_refuses_what_needs_them_and_loses_no_exit() -> None:
    """EMFILE: the exit is told all the same, and when there are fds again everything goes on."""
    with ShimBox() as box:
        box.create()
        box.start()
        box.state()
        held = len(os.listdir(f"/proc/{box.shim_pid}/fd"))
        before = resource.prlimit(box.shim_pid, resource.RLIMIT_NOFILE)[0]
        limit(box.shim_pid, resource.RLIMIT_NOFILE, held)
        with pytest.raises(StatusError, match="Too many open files"):
            box.run_exec("e1", ["true"])
        assert box.state().status == 2
        box.kill(9)
        limit(box.shim_pid, resource.RLIMIT_NOFILE, before)
        assert box.wait().exit_status == 137
        assert box.delete().exit_status == 137


def test_connections_beyond_its_fds_wait_and_do_not_spin() -> None:
    """A client that opens more than the shim can take: those it has are served, and the processor is left alone."""
    with ShimBox() as box:
        box.create()
        box.start()
        box.state()
        before = resource.prlimit(box.shim_pid, resource.RLIMIT_NOFILE)[0]
        limit(box.shim_pid, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{box.shim_pid}/fd")) + ENOUGH_FDS)
        many = [BlockingClient.connect(box.address) for _ in range(3 * ENOUGH_FDS)]
        try:
            assert box.state().status == 2
            used = cpu_ticks(box.shim_pid)
            for _ in range(50):
                box.state()
            assert cpu_ticks(box.shim_pid) - used < 100  # a second's worth
        finally:
            for client in many:
                client.close()
        limit(box.shim_pid, resource.RLIMIT_NOFILE, before)
        box.disconnect()
        assert box.state().status == 2
        assert box.run_exec("e1", ["true"]).exit_status == 0


def cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_shim_without_memory_loses_no_exit() -> None:
    """RLIMIT_AS at what it has: what needs more is refused, or ends the shim; the exit is exact either way."""
    with ShimBox() as box:
        box.create()
        box.start()
        with open(f"/proc/{box.shim_pid}/statm", encoding="utf-8") as file:
            pages = int(file.read().split()[0])
        limit(box.shim_pid, resource.RLIMIT_AS, pages * 4096)
        with pytest.raises((StatusError, ConnectionLost)) as caught:
            box.call("Create", task.CreateTaskRequest(id=box.id, bundle="/x" * (1 << 20)), timeout_s=60)
        assert not isinstance(caught.value, DeadlineExceeded)
        box.disconnect()
        if box.is_shim_alive():
            limit(box.shim_pid, resource.RLIMIT_AS, resource.RLIM_INFINITY)
        else:
            box.launch()
        assert box.state().status == 2
        box.kill(9)
        assert box.wait().exit_status == 137


IN_SMALL_PID_SPACE = """
import os
with open("/proc/sys/kernel/pid_max", "w") as file:
    file.write("400")
while os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[0] < 310:  # numbers below 300 are given out only once
    pass
from tests.kernel.test_shim_environment import take_no_stranger_for_init
take_no_stranger_for_init()
"""


def take_no_stranger_for_init() -> None:
    """While no shim is there the container ends, and its number is given to somebody else: who is let live."""
    with ShimBox(["sleep", "1000"]) as box:
        box.create()
        box.start()
        pid = box.state().pid
        box.kill_shim()
        os.kill(pid, 9)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="its end")
        stranger = take_number(pid)
        try:
            box.launch()
            assert box.wait().exit_status in (137, 255)
            box.delete()
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


def take_number(pid: int) -> "subprocess.Popen[bytes]":
    """Start processes until one gets the number."""
    for _ in range(2000):
        process = subprocess.Popen(["/bin/sleep", "1000"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise AssertionError(f"nobody got number {pid}")


def test_numbers_of_processes_are_used_again() -> None:
    """In a pid namespace of 400 numbers (pid_namespaces(7); a limit of its own since Linux 6.14)."""
    # A shell as its init: that reaps whatever comes to it.
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]
    command += [sys.executable, "-c", IN_SMALL_PID_SPACE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
