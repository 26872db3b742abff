"""The keeper with real processes: who is forked by whom, and what a forked shim is."""

import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest

from shim import launch, launcher
from tests.support import leaks
from tests.support.keeperbox import KeeperBox, finish, open_files, state_of
from tests.support.waiting import wait_until
from ttrpc.api import runc

COLD = "started without the keeper"


# --- a start and its keeper


def test_a_start_that_finds_no_keeper_starts_one_and_is_served_by_it() -> None:
    """The keeper is nobody's child that `start` would have to wait for, and its socket is ours alone."""
    with KeeperBox() as keeper:
        bundle = keeper.bundle("c1")
        bundle.start()

        assert keeper.is_parent_of(bundle.shim_pid)
        assert bundle.info().pid == bundle.shim_pid
        assert COLD not in bundle.read("shim.log")
        assert os.getsid(keeper.pid) == keeper.pid
        (path,) = keeper.sockets()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(keeper.directory).st_mode) == 0o700


def test_starts_that_race_for_the_first_keeper_get_one() -> None:
    with KeeperBox() as keeper:
        bundles = [keeper.bundle(f"c{number}") for number in range(8)]
        for process in [bundle.begin() for bundle in bundles]:
            finish(process)

        assert len(keeper.pids()) == 1
        assert all(keeper.is_parent_of(bundle.shim_pid) for bundle in bundles)


def test_fifty_starts_at_once() -> None:
    """Each gets its own shim; none is left over when all have ended."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        keeper.wait_ready()
        bundles = [keeper.bundle(f"c{number}") for number in range(50)]
        for process in [bundle.begin() for bundle in bundles]:
            finish(process, timeout_s=60)
        assert len({bundle.shim_pid for bundle in bundles}) == 50
        assert {bundle.info().container_id for bundle in bundles} == {bundle.id for bundle in bundles}
        before = len(os.listdir(f"/proc/{keeper.pid}/fd"))

        for bundle in keeper.started:
            bundle.close()
        wait_until(lambda: len(keeper.children()) == 3, what="the template and two spares to be all that is left")
        assert len(os.listdir(f"/proc/{keeper.pid}/fd")) <= before


def test_switched_off_there_is_none_and_nothing_is_said() -> None:
    with KeeperBox() as keeper:
        bundle = keeper.bundle("c1")
        bundle.start(environment={"SHIMD_KEEPER": "off"})

        assert bundle.info().pid == bundle.shim_pid
        assert COLD not in bundle.read("shim.log")
        assert keeper.sockets() == []


# --- what a forked shim is


def test_ps_tells_which_container_a_shim_serves() -> None:
    """Also with the longest names there are: the keeper's command line has room for them."""
    with KeeperBox() as keeper:
        name = "i" * 76
        bundle = keeper.bundle(name)
        bundle.start()
        bundle.info()
        keeper.wait_ready()

        title = leaks.read(f"/proc/{bundle.shim_pid}/cmdline").rstrip("\0")
        assert title == f"shim:{name} -namespace test"
        assert leaks.read(f"/proc/{bundle.shim_pid}/comm") == "shim:iiiiiiiiii\n"
        assert leaks.read(f"/proc/{keeper.pid}/cmdline").startswith("shimd-keeper ")
        assert leaks.read(f"/proc/{keeper.template()}/comm") == "shimd-template\n"


def test_a_forked_shim_has_the_fds_of_a_cold_one_and_no_other() -> None:
    """Whatever was open in `start`, in the keeper or in the template is not; its connection to the keeper is."""
    with KeeperBox() as keeper:
        read_fd, write_fd = os.pipe()
        cold, warm = keeper.bundle("cold"), keeper.bundle("warm")
        cold.start(environment={"SHIMD_KEEPER": "off"})
        warm.start(pass_fds=(read_fd, write_fd))
        cold.info(), warm.info()
        os.close(read_fd), os.close(write_fd)

        def seen(bundle: object) -> list[str]:
            path, pid = bundle.path, bundle.shim_pid  # type: ignore[attr-defined]
            return sorted(target.replace(path, "BUNDLE") for target in open_files(pid))

        wanted = sorted([*seen(cold), "socket"])
        wait_until(lambda: seen(warm) == wanted, what=f"{seen(warm)} to be as {wanted}")
        assert [os.readlink(f"/proc/{warm.shim_pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
        assert "BUNDLE" in seen(warm)


def test_a_forked_shim_is_what_the_callers_own_child_were() -> None:
    """Limits, nice, processors, umask, directory, session, oom score: the caller's, not the keeper's."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        keeper.wait_ready()
        bundle = keeper.bundle("c1")
        bundle.start(preexec_fn=_change_manners)
        bundle.info()
        pid = bundle.shim_pid

        assert keeper.is_parent_of(pid)
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (777, 888)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 7
        assert os.sched_getaffinity(pid) == {0}
        assert "Umask:\t0037\n" in leaks.read(f"/proc/{pid}/status")
        assert os.readlink(f"/proc/{pid}/cwd") == bundle.path
        assert os.getsid(pid) == pid
        ours = int(leaks.read("/proc/self/oom_score_adj"))
        assert int(leaks.read(f"/proc/{pid}/oom_score_adj")) == min(ours + 1, 1000)
        blocked = [line for line in leaks.read(f"/proc/{pid}/status").splitlines() if line.startswith("SigBlk")]
        assert blocked == ["SigBlk:\t0000000000000000"]


def _change_manners() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (777, 888))
    os.nice(7)
    os.sched_setaffinity(0, {0})
    os.umask(0o037)


def test_the_callers_path_finds_the_runtime() -> None:
    """The keeper was started with another PATH: what counts is the one of this `start`."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        keeper.wait_ready()
        folder = os.path.join(keeper.folder, "bin")
        os.mkdir(folder)
        os.symlink(subprocess.check_output(["which", "runc"], text=True).strip(), os.path.join(folder, "oddly-named"))
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        with keeper.shim(["sh", "-c", "exit 3"], environment={"PATH": path}) as box:
            box.create(options=runc.Options(root=box.runc_root, binary_name="oddly-named"))
            assert keeper.is_parent_of(box.shim_pid)
            box.start()
            assert box.wait().exit_status == 3


def test_shim_cgroup_is_joined() -> None:
    from ttrpc.api import wkt

    roots = [root for root in leaks.cgroup_roots() if os.path.exists(os.path.join(root, "cgroup.procs"))]
    with KeeperBox() as keeper:
        path = os.path.join(roots[-1], f"{keeper.cgroup}-shims")
        os.mkdir(path)
        try:
            with keeper.shim() as box:
                box.launch(stdin=wkt.pack(runc.Options(shim_cgroup=f"/{keeper.cgroup}-shims")).SerializeToString())
                assert keeper.is_parent_of(box.shim_pid)
                assert str(box.shim_pid) in leaks.read(os.path.join(path, "cgroup.procs")).split()
        finally:
            wait_until(lambda: _removed(path), what="the cgroup to be empty")


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def test_keeper_and_shims_are_out_of_the_callers_cgroup() -> None:
    """Whoever ends or limits the caller's service does not mean them."""
    with KeeperBox() as keeper:
        bundle = keeper.bundle("c1")
        bundle.start()

        ours = leaks.read("/proc/self/cgroup").splitlines()
        for pid in (keeper.pid, bundle.shim_pid):
            moved = [line for line in leaks.read(f"/proc/{pid}/cgroup").splitlines() if line not in ours]
            assert moved != []
            # Where systemd runs it is a scope that it gave.
            scope = f"/{keeper.cgroup}-{keeper.pid}.scope"
            assert all(line.endswith((f":/{keeper.cgroup}", scope)) for line in moved)


def test_where_systemd_runs_it_is_asked_for_a_scope(short_dir: str) -> None:
    """It owns the tree of cgroups there. One that gives none, fails, or is not there leaves us where we are; that it
    does give one is seen in tests/system/test_systemd.py.
    """
    code = "import sys; from shim.keeper import home; print(home.move_out('kept', systemd_runs=sys.argv[1]))"
    said = []
    os.symlink(
        shutil.which("cat") or "", f"{short_dir}/cat"
    )  # and nothing else: a systemd-run of the machine's own is not meant
    for answer in ("exec cat", "exit 1", ""):
        with open(f"{short_dir}/systemd-run", "w", encoding="ascii") as file:
            file.write(f'#!/bin/sh\necho "$@" > {short_dir}/asked\n{answer}\n' if answer else "#!/none\n")
        os.chmod(f"{short_dir}/systemd-run", 0o755)
        environment = {**os.environ, "PATH": short_dir}
        command = [sys.executable, "-c", code, short_dir]
        said.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    asked = leaks.read(f"{short_dir}/asked").split()
    assert re.fullmatch(r"--unit=kept-\d+\.scope", asked[asked.index("--scope") + 1])
    assert {"--property=Delegate=yes", "--property=TasksMax=infinity", "--collect"} < set(asked)
    assert ["left as it is" in words for words in said] == [True, True, True]


# --- the life of a container


def test_a_whole_life_under_a_forked_shim() -> None:
    with KeeperBox() as keeper, keeper.shim(["sh", "-c", "echo out; exit 42"]) as box:
        box.create(stdout=f"file://{box.folder}/out")
        box.start()
        assert box.wait().exit_status == 42
        assert leaks.read(f"{box.folder}/out") == "out\n"
        box.delete()
        box.shutdown()
        box.wait_for_shim_end()

        done = box.run_shim("-bundle", box.bundle, "delete")
        assert (done.returncode, done.stderr) == (0, b"")
        wait_until(lambda: box.shim_pid not in keeper.children(), what="the keeper to reap it")


def test_memory_of_a_forked_shim_is_a_fraction_of_a_cold_ones() -> None:
    """The figures are bench/keeper.py's; this only notices when the sharing is lost."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        keeper.wait_ready()
        cold, warm = keeper.bundle("cold"), keeper.bundle("warm")
        cold.start(environment={"SHIMD_KEEPER": "off"})
        warm.start()
        cold.info(), warm.info()

        assert private_dirty_kib(warm.shim_pid) < private_dirty_kib(cold.shim_pid) / 3


def private_dirty_kib(pid: int) -> int:
    for line in leaks.read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1])
    raise AssertionError("no Private_Dirty")


def test_a_shim_imports_nothing_after_it_was_forked(short_dir: str) -> None:
    """What `preload` and a rehearsal have in memory is all a life needs: an upgrade cannot mix two versions."""
    code = (
        "import sys\n"
        "from shim.keeper.code import preload\n"
        "preload()\n"
        "from shim.keeper import nursery, rehearsal\n"
        "before = set(sys.modules)\n"
        "rehearsal.rehearse(sys.argv[1], 2)\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, short_dir], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_a_unit_can_run_the_keeper_in_the_foreground() -> None:
    """The program a user installs, as `ExecStart=… keeper` has it: that process is it, and a `start` finds it."""
    with KeeperBox() as keeper:
        program = launcher.install(keeper.folder)
        unit = subprocess.Popen([program, "keeper"], env={**os.environ, **keeper.environment}, stdin=subprocess.DEVNULL)
        try:
            wait_until(keeper.is_ready, what="the keeper")
            bundle = keeper.bundle("c1")
            bundle.start()

            assert keeper.pids() == [unit.pid]
            assert keeper.is_parent_of(bundle.shim_pid)
            bundle.close()
        finally:
            unit.terminate()
            assert unit.wait(20) == 0


def test_a_unit_whose_keeper_was_replaced_waits_for_its_turn() -> None:
    """A supervisor that starts it while another serves, as one of the shims' own may, is not told of a failure."""
    with KeeperBox() as keeper:
        program = launcher.install(keeper.folder)
        command, environment = [program, "keeper"], {**os.environ, **keeper.environment}
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as first:
            wait_until(keeper.is_ready, what="the keeper")
            with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as second:
                assert second.stderr is not None
                assert b"one serves at" in second.stderr.readline()
                first.kill()
                first.wait()
                wait_until(lambda: keeper.pid == second.pid, what="the second one to be the keeper")
                wait_until(keeper.is_ready, what="it to serve")
                second.terminate()
                assert second.wait(20) == 0


def test_the_rehearsal_succeeds_and_leaves_nothing() -> None:
    with KeeperBox() as keeper:
        keeper.bundle("c1").start()
        keeper.wait_ready()

        assert "lives rehearsed in" in keeper.log()
        assert "failed" not in keeper.log()
        mine = f"shimd-stage-{keeper.template()}-"
        assert [name for name in os.listdir("/dev/shm") if name.startswith(mine)] == []
        wait_until(lambda: len(keeper.children()) == 4, what="template, two spares, and the shim")


# --- who asks


def test_garbage_silence_and_farewells_harm_nobody() -> None:
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        (path,) = keeper.sockets()
        silent = [_connected(path) for _ in range(100)]
        for message in (b"x", b"shimd-keeper 1\0start\0", b"\0" * 1000, os.urandom(4000)):
            with _connected(path) as client:
                client.send(message)
                answer = client.recv(4096)
                assert answer.startswith(b"shimd-keeper 1\0refused\0")
        for client in silent:
            client.close()

        bundle = keeper.bundle("c1")
        bundle.start()
        assert keeper.is_parent_of(bundle.shim_pid)


def _connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(path)
    return client


def test_who_gives_up_leaves_bundle_and_address_free() -> None:
    """The answer is the commitment: who is not there to get it has asked for nothing."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        (path,) = keeper.sockets()
        bundle = keeper.bundle("c1")
        environment = {
            os.fsencode(name): os.fsencode(value) for name, value in {**os.environ, **keeper.environment}.items()
        }
        request = launch.pack_request(os.fsencode(bundle.path), bundle.arguments("start"), environment, b"")
        with _connected(path) as client:
            client.shutdown(socket.SHUT_RD)
            client.send(request)
        again = keeper.bundle("c2")
        again.start()  # served after the other: one keeper, one thing at a time

        assert keeper.is_parent_of(again.shim_pid)
        assert len(os.listdir(keeper.environment["SHIMD_SOCKET_DIR"])) == 2
        bundle.start()
        assert keeper.is_parent_of(bundle.shim_pid)


def test_another_user_is_not_let_in() -> None:
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        (path,) = keeper.sockets()
        os.chmod(keeper.directory, 0o755)
        os.chmod(path, 0o666)

        assert _answer_to_nobody(path) == b"hung up"
        assert "is not our own user" in keeper.log()


def _answer_to_nobody(path: str) -> bytes:
    """What a process of another user gets, which somebody has let into the directory."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.chdir(os.path.dirname(path))
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with _connected(os.path.basename(path)) as client:
            try:
                client.send(b"x")
                os.write(write_fd, client.recv(99) or b"hung up")
            except OSError:
                os.write(write_fd, b"hung up")
        os._exit(0)
    os.close(write_fd)
    answer = os.read(read_fd, 99)
    os.close(read_fd)
    os.waitpid(pid, 0)
    return answer


def test_a_caller_in_another_mount_namespace_starts_its_shim_itself() -> None:
    """A copy of the keeper would see other mounts than the caller: it is no shim for it."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        bundle = keeper.bundle("c1")
        bundle.start(prefix=["unshare", "--mount"])

        assert bundle.info().pid == bundle.shim_pid
        assert not keeper.is_parent_of(bundle.shim_pid)
        assert f"{COLD}: the keeper is in another mnt namespace" in bundle.read("shim.log")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_goes_and_takes_its_socket_along(signum: int) -> None:
    with KeeperBox() as keeper:
        bundle = keeper.bundle("c1")
        bundle.start()
        template = keeper.wait_ready() and keeper.template()
        bundle.close()  # else it would start another
        keeper.kill(signum)

        assert keeper.sockets() == []
        wait_until(lambda: state_of(template) in ("", "Z"), what="the template to follow")
