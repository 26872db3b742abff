"""What the runtime options of a daemon do, and what a shim says of itself and its runtime, with real runc."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shim.actions.info import FEATURES_URL, NAME
from shim.task.runc import DEFAULT_ROOT
from shim.version import VERSION
from tests.support import leaks
from tests.support.shimbox import NAMESPACE, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import runc, task, wkt
from ttrpc.errors import StatusError

# A runtime that writes down how it was called and whose its stderr and its stdin are, and has runc do it. What needs
# systemd as process 1 is not passed on.
RECORDER = """#!/bin/sh
echo "$@" >>{log}
stat -Lc "%u:%g" /proc/$$/fd/2 >>{log}.owners
stat -Lc "%F %u:%g" /proc/$$/fd/0 >>{log}.inputs
for word; do
    shift
    [ "$word" = --systemd-cgroup ] || set -- "$@" "$word"
done
exec runc "$@"
"""


class Recorded:
    """A box whose runtime writes down how it is called."""

    def __init__(self, box: ShimBox) -> None:
        self.box = box
        self.path = os.path.join(box.folder, "recorder")
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(RECORDER.format(log=f"{self.path}.log"))
        os.chmod(self.path, 0o755)

    def lines(self, suffix: str = "") -> list[str]:
        with open(f"{self.path}.log{suffix}", encoding="utf-8") as file:
            return file.read().splitlines()

    def command(self, verb: str) -> str:
        (line,) = [line for line in self.lines() if f" {verb} " in line]
        return line

    def live(self) -> None:
        """Start, exec, end and delete."""
        self.box.start()
        self.box.run_exec("e1", ["true"])
        self.box.kill(9)
        self.box.wait()
        self.box.delete()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with ShimBox() as box:
        yield Recorded(box)


def test_the_binary_and_the_root_are_the_ones_named(recorded: Recorded) -> None:
    box = recorded.box
    own_root = os.path.join(box.folder, "own")
    box.create(options=runc.Options(binary_name=recorded.path, root=own_root))
    assert os.listdir(os.path.join(own_root, NAMESPACE)) == ["box"]
    recorded.live()

    assert os.listdir(os.path.join(own_root, NAMESPACE)) == []
    verbs = [
        next(word for word in line.split() if word in ("create", "start", "exec", "delete"))
        for line in recorded.lines()
    ]
    assert verbs == ["create", "start", "exec", "delete"]
    assert all(line.startswith(f"--root {own_root}/{NAMESPACE} ") for line in recorded.lines())


def test_systemd_is_asked_for_the_cgroup_in_every_call(recorded: Recorded) -> None:
    """Also by `delete`, which has only what the shim wrote down."""
    box = recorded.box
    box.create(options=runc.Options(root=box.runc_root, binary_name=recorded.path, systemd_cgroup=True))
    box.start()
    box.run_exec("e1", ["true"])
    os.kill(box.shim_pid, signal.SIGKILL)
    box.wait_for_shim_end()
    done = box.run_shim("-bundle", box.bundle, "delete")

    assert task.DeleteResponse.FromString(done.stdout).exit_status == 137
    assert [" --systemd-cgroup " in line for line in recorded.lines()] == [True] * 4


def test_no_pivot_root_and_no_new_keyring_reach_the_runtime(recorded: Recorded) -> None:
    box = recorded.box
    options = runc.Options(root=box.runc_root, binary_name=recorded.path, no_pivot_root=True, no_new_keyring=True)
    box.create(options=options)
    recorded.live()

    assert " --no-pivot " in recorded.command("create")
    assert " --no-new-keyring " in recorded.command("create")


@pytest.mark.parametrize(("is_kept", "keyrings"), [(False, 1), (True, 0)])
def test_a_container_has_a_keyring_of_its_own_unless_told_not_to(is_kept: bool, keyrings: int) -> None:
    container_id = f"keys-{os.getpid()}-{keyrings}"  # a keyring outlives its session for a while
    with ShimBox(["cat", "/proc/keys"], container_id=container_id) as box:
        out = os.path.join(box.folder, "out")
        box.create(options=runc.Options(root=box.runc_root, no_new_keyring=is_kept), stdout=f"file://{out}")
        box.start()
        box.wait()

        assert leaks.read(out).count(f" _ses.{container_id}: ") == keyrings


@pytest.mark.parametrize("scheme", ["log://", "file://", ""])
def test_the_io_belongs_to_whom_the_options_say(recorded: Recorded, scheme: str) -> None:
    """A client's own FIFO stays the client's: its output is copied then."""
    box = recorded.box
    out = os.path.join(box.folder, "out")
    if not scheme:
        os.mkfifo(out)
    options = runc.Options(root=box.runc_root, binary_name=recorded.path, io_uid=1234, io_gid=5678)
    box.create(options=options, stdout=scheme + out, stderr=scheme + out)
    recorded.live()

    assert recorded.lines(".owners")[0] == "1234:5678"
    assert (os.stat(out).st_uid, os.stat(out).st_gid) == (0, 0)


def test_a_clients_input_is_given_to_whom_the_options_say(recorded: Recorded) -> None:
    """As what containerd's shim makes in its place: the process can open /dev/stdin again. A file stays whose it is."""
    box = recorded.box
    fifo, file = os.path.join(box.folder, "in"), os.path.join(box.folder, "file")
    os.mkfifo(fifo)
    with open(file, "w", encoding="ascii") as made:
        made.write("text")
    options = runc.Options(root=box.runc_root, binary_name=recorded.path, io_uid=1234, io_gid=5678)
    box.create(options=options, stdin=fifo)
    box.start()
    for exec_id, path in (("e1", fifo), ("e2", file)):
        box.run_exec(exec_id, ["true"], stdin=path)

    given = [line for line in recorded.lines(".inputs") if not line.startswith("character")]
    assert given == ["fifo 1234:5678", "fifo 1234:5678", "regular file 0:0"]


def make_cgroup(root: str, group: str) -> None:
    """One that can be joined at once. Source: cpuset(7): its CPUs and memory nodes must be set first."""
    os.mkdir(root + group)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if os.path.exists(f"{root}/{name}"):
            with open(f"{root}{group}/{name}", "w", encoding="ascii") as file:
                file.write(leaks.read(f"{root}/{name}"))


def test_the_shim_joins_its_cgroup_in_every_hierarchy_that_has_it() -> None:
    with ShimBox() as box:
        group = f"{box.cgroup_parent}-shims"
        made = []
        try:
            for root in leaks.cgroup_roots():
                made.append(root + group)
                make_cgroup(root, group)
            box.launch(stdin=wkt.pack(runc.Options(shim_cgroup=group)).SerializeToString())
            joined = [line for line in leaks.read(f"/proc/{box.shim_pid}/cgroup").splitlines() if line.endswith(group)]
            box.shutdown()
            box.wait_for_shim_end()

            assert len(joined) >= len(made) > 0
        finally:
            for path in made:
                wait_until(lambda path=path: not leaks.read(f"{path}/cgroup.procs"), what="the cgroup to be empty")  # type: ignore[misc]
                os.rmdir(path)


def test_options_of_another_type_are_not_ours_to_read() -> None:
    """Docker sends `containerd.linux.runc.CreateOptions`; the container runs with what is usual."""
    with ShimBox(["true"]) as box:
        box.launch()
        foreign = wkt.any_of("containerd.linux.runc.CreateOptions", b"\x0a\x04\xff\xff\xff\xff" * 3)
        box.call("Create", task.CreateTaskRequest(id="box", bundle=box.bundle, options=foreign))
        box.start()

        assert box.wait().exit_status == 0
        assert json.loads(box.read("options.json")) == {}
        box.delete()
    with contextlib.suppress(OSError):  # runc's default root, unless somebody else uses it
        os.rmdir(os.path.join(DEFAULT_ROOT, NAMESPACE))


# --- what it says of itself


def info(stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-m", "shim", "-info"], input=stdin, capture_output=True, env=env)


def fields(data: bytes) -> dict[int, bytes]:
    """Fields of a message that has each but once; lengths are read by protobuf's own code, as those of an Any's."""
    from shim.actions.bootstrap import each_field

    return dict(each_field(data))


def test_info_tells_name_version_options_and_what_runc_can_do() -> None:
    options = wkt.pack(runc.Options(systemd_cgroup=True)).SerializeToString()
    done = info(options)
    said = fields(done.stdout)
    features = wkt.Any.FromString(said[4])

    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(said) == [1, 2, 3, 4]
    assert (said[1].decode(), fields(said[2])[1].decode(), said[3]) == (NAME, VERSION, options)
    assert features.type_url.encode() == FEATURES_URL
    assert "pid" in json.loads(features.value)["linux"]["namespaces"]


def test_info_of_a_runtime_that_knows_no_features_has_none(tmp_path: os.PathLike[str]) -> None:
    options = wkt.pack(runc.Options(binary_name=shutil.which("false") or "false"))

    assert sorted(fields(info(options.SerializeToString()).stdout)) == [1, 2, 3]
    assert 3 not in fields(info().stdout)


def test_info_of_a_runtime_that_is_not_there_is_an_error() -> None:
    done = info(wkt.pack(runc.Options(binary_name="no-such-runtime")).SerializeToString())

    assert (done.returncode, done.stdout) == (1, b"")
    assert b"'no-such-runtime'" in done.stderr


# --- core scheduling


def cookie(pid: int) -> int | None:
    """The core scheduling cookie of a process; None where the kernel has none. Source: prctl(2), PR_SCHED_CORE_GET."""
    found = ctypes.c_ulong()
    done: int = ctypes.CDLL(None).prctl(62, 0, pid, 0, ctypes.byref(found))
    return found.value if done == 0 else None


def test_sched_core_is_given_or_refused_never_passed_over() -> None:
    """containerd's `sched_core`; a kernel may be built without it, and then the Go shim does not start either."""
    with ShimBox(environment={"SCHED_CORE": "1"}) as box:
        box.write_spec()
        done = box.run_shim("start")
        if cookie(os.getpid()) is None:
            assert (done.returncode, done.stdout) == (1, b"")
            assert b"core scheduling, which SCHED_CORE asks for, is not to be had" in done.stderr
            assert os.listdir(box.sockets) == []
        else:
            assert done.returncode == 0, done.stderr
            box.address, box.shim_pid = done.stdout.decode(), int(box.read("shim.pid"))
            assert cookie(box.shim_pid) not in (0, cookie(os.getpid()))


# --- newer daemons


def test_a_daemon_that_sends_bootstrap_parameters_gets_the_plain_address() -> None:
    """Which containerd 2.3 and later take as well: it is no BootstrapResult, nor JSON."""
    with ShimBox() as box:
        directory = os.path.join(box.folder, "short")
        del box.environment["SHIMD_SOCKET_DIR"]
        parts = ((1, b"box"), (2, NAMESPACE.encode()), (5, b"/no/events"), (9, directory.encode()))
        stdin = b"".join(bytes([number << 3 | 2, len(value)]) + value for number, value in parts)
        address = box.launch(stdin=stdin)

        assert address.startswith(f"unix://{directory}/")
        with pytest.raises(StatusError, match="acknowledged by containerd"):
            box.ack(0)
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        box.run_shim("-bundle", box.bundle, "delete")
        assert os.listdir(directory) == []
