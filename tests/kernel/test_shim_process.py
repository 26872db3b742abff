"""The shim as a process: how it is started, what it leaves on disk, how it dies, and what `delete` says afterwards."""

import contextlib
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from shim.actions.delete import END_S, RECORD_S, WHOLE_S
from shim.task.exits import DRAIN_S
from tests.support import leaks
from tests.support.shimbox import NAMESPACE, ShimBox, running
from tests.support.waiting import wait_until
from ttrpc.api import runc, shim, task, wkt
from ttrpc.blocking import BlockingClient
from ttrpc.errors import StatusError
from ttrpc.status import Code

# --- start


def test_start_prints_containerds_address_and_leaves_the_shim_alone_with_it() -> None:
    """stdout is the plain address by containerd's formula; the shim holds none of our fds and has its own session."""
    with ShimBox() as box:
        box.launch()

        digest = hashlib.sha256(f"{box.folder}/none.sock/{NAMESPACE}/box".encode()).hexdigest()
        assert box.address == f"unix://{box.sockets}/{digest}"
        assert box.read("address") == box.address
        assert stat.S_IMODE(os.stat(f"{box.sockets}/{digest}").st_mode) == 0o600
        assert stat.S_IMODE(os.stat(box.sockets).st_mode) == 0o700
        assert [os.readlink(f"/proc/{box.shim_pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
        assert os.getsid(box.shim_pid) == box.shim_pid
        assert box.info().pid == box.shim_pid
        assert leaks.read(f"/proc/{box.shim_pid}/comm").strip() == "shim:box"
        ours = int(leaks.read("/proc/self/oom_score_adj"))
        assert int(leaks.read(f"/proc/{box.shim_pid}/oom_score_adj")) == min(ours + 1, 1000)


def test_second_start_in_a_bundle_is_refused() -> None:
    with ShimBox() as box:
        box.launch()
        done = box.run_shim("start")

        assert done.returncode == 1
        assert done.stdout == b""
        assert b"running already" in done.stderr
        assert box.info().pid == box.shim_pid


def test_start_in_another_bundle_on_a_live_socket_is_refused() -> None:
    with ShimBox() as box:
        box.launch()
        other = os.path.join(box.folder, "other")
        os.mkdir(other)
        done = box.run_shim("start", cwd=other)

        assert done.returncode == 1
        assert b"a shim answers at" in done.stderr


def test_stale_socket_is_replaced() -> None:
    with ShimBox() as box:
        address = box.launch()
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        assert os.path.exists(address.removeprefix("unix://"))

        assert box.launch() == address
        assert box.info().pid == box.shim_pid


def test_options_on_stdin_are_read_and_foreign_ones_ignored() -> None:
    """containerd 1.6 writes an Any of the runtime options, newer ones other messages."""
    with ShimBox() as box:
        for stdin in (wkt.pack(runc.Options(binary_name="runc")).SerializeToString(), b"\xff\x00 nonsense"):
            box.launch(stdin=stdin)
            assert box.info().pid == box.shim_pid
            box.shutdown()
            box.client.close()
            box._client = None
            box.wait_for_shim_end()


def test_missing_shim_cgroup_is_an_error() -> None:
    with ShimBox() as box:
        options = runc.Options(shim_cgroup="/no/such/cgroup")
        done = box.run_shim("start", stdin=wkt.pack(options).SerializeToString())

        assert done.returncode == 1
        assert b"/no/such/cgroup" in done.stderr


def test_version_has_containerds_shape() -> None:
    done = subprocess.run([sys.executable, "-m", "shim", "-v"], capture_output=True, text=True, check=True)

    assert "\n  Version:  " in done.stdout
    assert done.stdout.splitlines()[0].endswith(":")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["-nonsense"], 2), (["-namespace", NAMESPACE], 1), (["-namespace", "..", "-id", "x", "start"], 1), (["-id"], 2)],
)
def test_bad_command_lines_are_refused_on_stderr(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-m", "shim", *arguments], capture_output=True)

    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr
    assert b"Traceback" not in done.stderr


IDLE = """
import os, socket, sys
from shim.serving import serve
from shim.params import Params

serve.IDLE_S = 0.3
path = os.path.join(sys.argv[1], "sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
pid = os.fork()
if pid == 0:
    code = serve.serve(listener.detach(), Params(namespace="test", id="c1", bundle=sys.argv[1], socket_path=path))
    os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.path.exists(path))
"""


def test_forgotten_shim_ends_by_itself(short_dir: str) -> None:
    """Nobody asked anything of it: whoever ran `start` is gone. Served in a forked child, as by a warm parent."""
    done = subprocess.run([sys.executable, "-c", IDLE, short_dir], capture_output=True, text=True, timeout=30)

    assert (done.stdout, done.stderr) == ("0 False\n", "")


# --- signals


def test_sigterm_ends_a_shim_without_a_container_only() -> None:
    with ShimBox() as box:
        box.create()
        os.kill(box.shim_pid, signal.SIGTERM)
        os.kill(box.shim_pid, signal.SIGINT)
        wait_until(lambda: box.read("shim.log").count("is ignored") == 2, what="both to be ignored")
        assert box.state().status == 1
        box.delete()

        os.kill(box.shim_pid, signal.SIGTERM)
        box.wait_for_shim_end()
        assert os.listdir(box.sockets) == []


def test_sigusr1_writes_the_stacks_to_the_log() -> None:
    with ShimBox() as box:
        box.launch()
        assert box.info().pid == box.shim_pid
        os.kill(box.shim_pid, signal.SIGUSR1)

        wait_until(lambda: "in run_once" in box.read("shim.log"), what="the stacks")
        assert box.info().pid == box.shim_pid


def test_log_goes_to_a_fifo_nobody_needs_to_read() -> None:
    """containerd's `log` FIFO: a shim neither waits for its reader nor dies of its absence."""
    with ShimBox() as box:
        os.mkfifo(box.path("log"))
        box.launch()
        fd = os.open(box.path("log"), os.O_RDONLY | os.O_NONBLOCK)
        try:
            text = wait_until(lambda: _read(fd), what="the shim's first line")
        finally:
            os.close(fd)
        assert 'msg="serving version=' in text
        assert not os.path.exists(box.path("shim.log"))
        assert box.info().pid == box.shim_pid


def _read(fd: int) -> str:
    try:
        return os.read(fd, 65536).decode()
    except BlockingIOError:
        return ""


# --- clients


def test_clients_that_send_garbage_or_vanish_harm_nobody() -> None:
    with running() as box:
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\x00\x00\x00\x05\x00\x00\x00\x01\x01\x00hello"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(box.address.removeprefix("unix://"))
                raw.sendall(data)
        for _ in range(50):
            box.connect().close()
        assert box.state().status == 2


def test_fds_do_not_grow_with_execs() -> None:
    with running() as box:
        box.run_exec("warm", ["true"])
        before = len(os.listdir(f"/proc/{box.shim_pid}/fd"))
        for number in range(20):
            box.run_exec(f"e{number}", ["true"])
        with pytest.raises(StatusError):
            box.run_exec("bad", ["no-such-program"])
        box.delete("bad")

        assert len(os.listdir(f"/proc/{box.shim_pid}/fd")) == before


def test_strays_are_reaped() -> None:
    """What an exec leaves behind in a shared PID namespace falls to the shim, which reaps it as nobody's."""
    with ShimBox() as box:
        box.spec["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
        box.create()
        box.start()
        box.run_exec("e1", ["sh", "-c", "sh -c 'sleep 0.2; exit 9' & echo $! > /pid"])
        orphan = int(leaks.read(f"{box.rootfs}/pid"))

        wait_until(lambda: not os.path.exists(f"/proc/{orphan}"), what="the stray to be reaped")
        box.kill(9)
        assert box.wait().exit_status == 137


# --- Follow and Ack


def test_follow_goes_on_from_a_cursor_and_ack_forgets() -> None:
    with running() as box:
        records = box.events("/tasks/start")
        assert [record.seq for record in records] == [1, 2]
        assert {record.incarnation for record in records} == {box.info().incarnation}
        box.ack(1)
        assert [record.seq for record in box.events("/tasks/start")] == [2]
        stream = box.client.open_stream("shimd.shim.v1.Shim", "Follow", shim.FollowRequest(after_seq=2))
        box.run_exec("e1", ["true"])
        assert [stream.receive(timeout_s=10).seq for _ in range(3)] == [3, 4, 5]
        stream.close()
        assert box.info().acked_seq == 1

        with pytest.raises(StatusError) as error:
            box.ack(99)
        assert error.value.code == Code.INVALID_ARGUMENT


def test_journal_of_a_long_life_stays_small_when_acknowledged() -> None:
    with running() as box:
        for number in range(60):
            box.run_exec(f"e{number}", ["true"])
            box.ack(box.info().journal_seq)

        assert os.path.getsize(box.path("journal")) < 128 * 1024


def is_running(pid: int) -> bool:
    try:
        return leaks.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- delete


def delete(box: ShimBox) -> task.DeleteResponse:
    done = box.run_shim("-bundle", box.bundle, "delete")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return task.DeleteResponse.FromString(done.stdout)


def test_delete_after_an_ordinary_end_reports_the_real_exit() -> None:
    with ShimBox(["sh", "-c", "exit 42"]) as box:
        box.create()
        box.start()
        ended = box.wait()
        box.delete()
        box.shutdown()
        box.wait_for_shim_end()

        answer = delete(box)
        assert (answer.exit_status, answer.exited_at) == (42, ended.exited_at)


def test_delete_behind_a_killed_shim_kills_the_container() -> None:
    with running() as box:
        pid = box.state().pid
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        assert os.path.exists(f"/proc/{pid}")

        answer = delete(box)
        assert (answer.pid, answer.exit_status) == (pid, 137)
        assert answer.exited_at.seconds == pytest.approx(time.time(), abs=5)
        assert os.listdir(os.path.join(box.runc_root, NAMESPACE)) == []
        assert os.listdir(box.sockets) == []


def test_delete_behind_a_shim_killed_after_the_exit_still_knows_it() -> None:
    """containerd's own shim would say 137: the record on disk says what happened."""
    with ShimBox(["sh", "-c", "exit 42"]) as box:
        box.create()
        box.start()
        box.wait()
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()

        assert delete(box).exit_status == 42


def test_delete_with_the_shim_alive_ends_both() -> None:
    """A daemon that lost only the connection: the shim tells the real exit, and does not stay behind."""
    with running() as box:
        assert delete(box).exit_status == 137
        box.wait_for_shim_end()


def test_delete_waits_for_an_exit_whose_output_nobody_takes() -> None:
    """For DRAIN_S the shim waits for the reader, before it writes down how init ended: `delete` must not guess."""
    assert DRAIN_S < RECORD_S < WHOLE_S - END_S
    with ShimBox(["sh", "-c", "echo the last words; exit 42"], terminal=True) as box:
        fifo = os.path.join(box.folder, "out")
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(reader, bytes(4096))
            box.create(stdout=fifo)
            pid = box.state().pid
            box.start()
            wait_until(lambda: not is_running(pid), what="init to be over")
            answer = delete(box)
        finally:
            os.close(reader)

        assert (answer.pid, answer.exit_status) == (pid, 42)
        box.wait_for_shim_end()


def test_delete_takes_the_socket_away_before_anything_that_takes_time() -> None:
    """containerd kills it after 5 s and removes the bundle: what is left then nobody removes."""
    with running() as box:
        slow = os.path.join(box.folder, "slow")
        with open(slow, "w", encoding="ascii") as file:
            file.write(f"#!/bin/sh\n: > {box.folder}/called\nexec sleep 1000\n")
        os.chmod(slow, 0o755)
        with open(box.path("runtime"), "w", encoding="ascii") as file:
            file.write(slow)
        with subprocess.Popen(
            box.command("-bundle", box.bundle, "delete"),
            env=box.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as deleting:
            wait_until(lambda: os.path.exists(f"{box.folder}/called"), what="the runtime to be asked")
            sockets = [name for name in os.listdir(box.sockets) if name != "pins"]
            _, words = deleting.communicate(timeout=30)

        assert sockets == []
        assert b"not done within 3 s" in words
        assert b"killing it" in words
        assert os.path.exists(box.path("doomed"))  # no keeper raises another
        box.wait_for_shim_end()


def test_delete_unmounts_what_a_dead_shim_left() -> None:
    with ShimBox() as box:
        box.spec["root"]["path"] = "rootfs"
        box.create(rootfs=[{"type": "bind", "source": box.rootfs, "options": ["rbind"]}])
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()

        delete(box)
        assert os.listdir(box.path("rootfs")) == []


def test_new_shim_in_a_bundle_it_cannot_understand_leaves_the_container_alone() -> None:
    """Without the state file nothing can be taken over, and nothing that is in use is touched."""
    with running() as box:
        pid = box.state().pid
        box.kill_shim()
        os.unlink(box.path("state.json"))
        box.launch()
        with pytest.raises(StatusError) as error:
            box.create()
        assert error.value.code == Code.ALREADY_EXISTS

        assert os.path.exists(f"/proc/{pid}")
        assert delete(box).exit_status == 137
        wait_until(lambda: not is_running(pid), what="the container to die")


def test_delete_before_any_create() -> None:
    with ShimBox() as box:
        answer = delete(box)

        assert (answer.pid, answer.exit_status) == (0, 137)


# --- a client that does not read


def test_follower_that_does_not_read_is_nobody_elses_trouble() -> None:
    with running() as box:
        with BlockingClient.connect(box.address) as deaf:
            deaf.open_stream("shimd.shim.v1.Shim", "Follow", shim.FollowRequest())
            for number in range(10):
                box.run_exec(f"e{number}", ["true"])
        assert box.events(lambda record: record.seq == 32)
