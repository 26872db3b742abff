"""The small parts around a shim: places in a queue, undoing, waiting, processes by identity, bundles, programs."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon import procfs
from daemon.config import DEFAULT_RUNTIME, Config, Runtime
from daemon.errors import StoreFailed, unavailable
from daemon.events import EventLog
from daemon.procfs import Identity
from daemon.shims import asking, bundle, evidence, forcing, keeping, launch, raising, terms
from daemon.shims.client import earlier
from daemon.shims.handle import Handle, Health
from daemon.shims.manager import Manager
from daemon.shims.pulse import PulseWatch
from daemon.shims.turnstile import Turnstile
from daemon.shims.undo import UndoStack
from daemon.store import containers as table
from daemon.store import tasks as rows
from daemon.store.database import Database
from daemon.store.records import CREATING, RUNNING, TaskRow
from tests.support.fds import no_free_fd
from tests.support.waiting import wait_until
from ttrpc.api import containers, runc, shim, tasks, wkt
from ttrpc.errors import DeadlineExceeded, StatusError
from ttrpc.status import Code


def a_row(**changes: object) -> TaskRow:
    values: dict[str, object] = {
        "ns": "default",
        "id": "c1",
        "state": RUNNING,
        "runtime": "r",
        "shim_path": "/s",
        "bundle": "/no/such/bundle",
        "boot_id": procfs.boot_id(),
        "request": b"",
        "created_at_ns": 1,
        **changes,
    }
    return TaskRow(**values)  # type: ignore[arg-type]


# --- the turnstile


async def test_a_slow_one_gives_up_its_place(autojump_clock: trio.testing.MockClock) -> None:
    """Two places, two that never move: the third waits for their patience, not for them."""
    turnstile = Turnstile(2, patience_s=0.2)
    passed: list[tuple[str, float]] = []

    async def pass_through(name: str, *, leaves: bool) -> None:
        place = await turnstile.enter(nursery)
        passed.append((name, trio.current_time() - began))
        if leaves:
            place.leave()
            place.leave()  # twice gives back one place

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        for name in ("stuck-1", "stuck-2"):
            await pass_through(name, leaves=False)
        for name in ("third", "fourth", "fifth"):
            await pass_through(name, leaves=True)
    assert [name for name, at in passed if at < 0.1] == ["stuck-1", "stuck-2"]
    assert all(0.2 <= at < 0.3 for name, at in passed[2:])


# --- creating


@contextlib.asynccontextmanager
async def a_manager(directory: str) -> AsyncIterator[Manager]:
    """With an empty store and nothing to recover."""
    config = Config(root_dir=directory, state_dir=directory)
    database = Database(config.database_path)
    try:
        async with trio.open_nursery() as nursery:
            yield Manager(config, database, nursery, procfs.boot_id(), "/publish")
            nursery.cancel_scope.cancel()
    finally:
        database.close()


async def a_container(manager: Manager) -> "containers.Container":
    made = containers.Container(id="c1")
    made.runtime.name = DEFAULT_RUNTIME
    await manager.database.write(lambda connection: table.insert(connection, "default", made))
    return made


async def test_a_create_whose_caller_is_gone_before_it_begins_leaves_the_id_free(short_dir: str) -> None:
    """Whatever was taken for it is given back: no handle stays that nobody would ever settle."""
    async with a_manager(short_dir) as manager:
        made = await a_container(manager)
        with trio.CancelScope() as caller:
            caller.cancel()
            await manager.create("default", made, tasks.CreateTaskRequest(container_id="c1"), None)
        assert caller.cancelled_caught
        assert manager.handles == {}
        assert manager.database.read(rows.list_all) == []


async def test_the_id_of_a_stray_bundle_is_free_once_somebody_has_removed_it(short_dir: str) -> None:
    """And not only after a restart of the daemon."""
    async with a_manager(short_dir) as manager:
        made = await a_container(manager)
        path = manager.config.bundle("default", "c1")
        os.makedirs(path)
        manager.strays["default", "c1"] = "its shim may be running"
        with pytest.raises(StatusError, match=r"may be running.*shimctl doctor"):
            await manager.create("default", made, tasks.CreateTaskRequest(container_id="c1"), None)
        os.rmdir(path)
        assert manager.present_strays() == {}


# --- whose pid it is


def test_the_init_a_shim_tells_of_is_the_one_it_has_noted(tmp_path: Path) -> None:
    """Not whoever has that pid by the time we look: a later `rm -f` would kill that one."""
    (tmp_path / "state.json").write_text(
        json.dumps({"boot_id": procfs.boot_id(), "init": {"pid": os.getpid(), "start_ticks": 1}})
    )
    assert evidence.identify_init(str(tmp_path), os.getpid()) == Identity(os.getpid(), 1)
    assert evidence.identify_init(str(tmp_path), os.getppid()) == procfs.identify(os.getppid())
    assert evidence.identify_init(str(tmp_path / "none"), os.getpid()) == procfs.identify(os.getpid())


def a_sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "1000"])


def test_the_shim_is_who_has_signed_the_bundle_last(tmp_path: Path) -> None:
    """A successor that goes on with its predecessor's connections is noticed by nobody: the row names the old one."""
    me, dead = procfs.identify(os.getpid()), Identity(os.getpid(), 1)
    assert me is not None
    row = a_row(bundle=str(tmp_path), shim_pid=dead.pid, shim_start_ticks=dead.start_ticks)
    assert evidence.present_shim(row) == dead
    signed = {"boot_id": procfs.boot_id(), "shim_pid": me.pid, "shim_start_ticks": me.start_ticks}
    (tmp_path / "state.json").write_text(json.dumps(signed))
    assert evidence.present_shim(row) == me
    (tmp_path / "state.json").write_text(json.dumps({**signed, "boot_id": "another"}))
    assert evidence.present_shim(row) == dead
    assert evidence.present_shim(a_row(bundle=str(tmp_path))) is None


class ShimThatSaysItIsUs:
    """On the connection of one that is gone."""

    is_foreign = False

    async def shim(self, method: str, _request: object, _timeout_s: float) -> "shim.InfoResponse":
        assert method == "Info"
        return shim.InfoResponse(pid=os.getpid())


async def test_a_shim_that_was_replaced_unnoticed_is_recognised(short_dir: str) -> None:
    """Its pulse is looked at again, and the row names it."""
    with a_sleeper() as gone:
        gone.kill()
    async with a_manager(short_dir) as manager:
        row = a_row(bundle=short_dir, shim_pid=gone.pid, shim_start_ticks=7)
        await manager.database.write(lambda connection: rows.insert(connection, row))
        handle = manager.handles["default", "c1"] = Handle(row)
        handle.now_serving(ShimThatSaysItIsUs(), shim.InfoResponse(pid=gone.pid))  # type: ignore[arg-type]
        watch = PulseWatch(manager.config.wedged, manager, EventLog(manager.database, manager.config.events))
        await watch._look(handle, 0.0)
        with trio.fail_after(10):
            await handle.wait_until(lambda: handle.row.shim_pid == os.getpid())
        assert handle.info is not None
        assert handle.info.pid == os.getpid()
        (stored,) = manager.database.read(rows.list_all)
        assert Identity(stored.shim_pid, stored.shim_start_ticks) == procfs.identify(os.getpid())


async def test_cgroups_looked_up_by_a_pid_that_is_somebody_elses_by_then_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Init ends between the two looks at it: what is in those cgroups may be anybody."""
    with a_sleeper() as child, a_sleeper() as stranger:
        init = procfs.identify(child.pid)
        assert init is not None

        def look(_pid: int, _shim_pid: int) -> list[str]:
            child.kill()
            child.wait()
            return ["/its/cgroup/by/now"]

        monkeypatch.setattr(forcing, "own_cgroups", look)
        monkeypatch.setattr(forcing, "_members", lambda folders: [procfs.identify(stranger.pid)] if folders else [])
        assert await forcing.kill_container(a_row(pid=init.pid, pid_start_ticks=init.start_ticks))
        assert stranger.poll() is None
        stranger.kill()


# --- telling shims what labels say by now


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_shim_is_told_of_labels_whoever_changed_them_and_however_slow_it_is(
    short_dir: str, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """Or it would restart what is on record as stopped. The caller waits for the first attempt only."""
    async with a_manager(short_dir) as manager:
        handle = manager.handles["default", "c1"] = Handle(a_row())
        answers, begun = trio.Event(), trio.Event()
        told: list[str] = []

        async def give(*_: object, **__: object) -> None:
            begun.set()
            await answers.wait()
            told.append("late" if not told else "taken")
            if told == ["late"]:
                raise DeadlineExceeded("its shim did not answer SetRestart within 20 s")

        monkeypatch.setattr(terms, "give", give)
        async with trio.open_nursery() as callers:
            callers.start_soon(manager.policy_changed, "default", "c1")
            await begun.wait()
            if is_gone:
                callers.cancel_scope.cancel()
            answers.set()
        with trio.fail_after(10):
            while told != ["late", "taken"]:
                await trio.lowlevel.checkpoint()
        assert not handle.is_deleted


# --- what goes wrong with one is not everybody's trouble


async def test_a_removal_that_goes_wrong_in_whatever_way_is_tried_again(
    short_dir: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It runs in the daemon's own nursery: what it raised would end the daemon, again after each start."""
    async with a_manager(short_dir) as manager:
        handle = Handle(a_row())
        failures: list[Exception] = [unavailable("not now"), OSError(errno.EROFS, "read-only"), KeyError("a bug")]

        async def delete(wanted: Handle) -> None:
            if failures:
                raise failures.pop(0)
            wanted.committed(None)

        monkeypatch.setattr(manager, "delete", delete)
        with trio.fail_after(30):
            await manager._remove(handle)
        assert handle.is_deleted
        assert failures == []


async def test_a_store_that_fails_while_it_is_tidied_does_not_end_the_daemon(
    short_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's `sqlite3 shimd.db` holds the lock, or the disk is bad: recovery ends all the same."""
    async with a_manager(short_dir) as manager:

        async def fail(_work: object) -> None:
            raise StoreFailed("/r/shimd.db", "database is locked")

        monkeypatch.setattr(manager.database, "write", fail)
        await manager.recover()
        assert not manager.is_recovering


async def test_without_a_free_fd_the_keeper_is_asked_again_later(short_dir: str) -> None:
    """The failure is told as what it is, which its caller waits out."""
    with no_free_fd(), pytest.raises(keeping.Unwatched, match="no socket"):
        await keeping.watch(f"{short_dir}/keeper", Config().wedged)


# --- undoing


async def test_undo_runs_in_reverse_and_to_its_end() -> None:
    """What fails does not keep the rest from being undone, nor does the caller's cancellation."""
    undone: list[str] = []

    async def step(name: str, *, fails: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        undone.append(name)
        if fails:
            raise OSError(name)

    stack = UndoStack()
    stack.push("one", lambda: step("one"))
    stack.push("two", lambda: step("two", fails=True))
    stack.push("three", lambda: step("three"))
    with trio.CancelScope() as scope:
        scope.cancel()
        is_complete = await stack.unwind(5.0)
    assert undone == ["three", "two", "one"]
    assert is_complete is False
    assert await stack.unwind(5.0) is True  # nothing is undone twice


async def test_undo_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """A step that hangs costs its time, and is reported as not undone."""
    stack = UndoStack()
    stack.push("hangs", trio.sleep_forever)
    assert await stack.unwind(3.0) is False
    assert trio.current_time() == pytest.approx(3.0)


# --- the handle


async def test_callers_wait_for_a_connection_but_not_for_a_sick_shim(autojump_clock: trio.testing.MockClock) -> None:
    """Connecting is waited for, within the limit; unreachable and deleted are told at once."""
    handle = Handle(a_row())
    with pytest.raises(StatusError, match="not asked yet") as caught:
        await handle.connected(2.0)
    assert (caught.value.code, trio.current_time()) == (Code.UNAVAILABLE, pytest.approx(2.0))
    handle.now(Health.UNREACHABLE, "its socket does not answer")
    with pytest.raises(StatusError, match="its socket does not answer"):
        await handle.connected(2.0)
    assert trio.current_time() == pytest.approx(2.0)
    handle.committed(None)
    with pytest.raises(StatusError) as caught:
        await handle.connected(2.0)
    assert caught.value.code == Code.NOT_FOUND


async def test_one_operation_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """The second waits, and is told by what it was kept."""
    handle = Handle(a_row())

    async def try_restart() -> None:
        with pytest.raises(StatusError, match=r"another operation \(delete\)") as caught:
            async with handle.exclusively("restart", 1.0):
                pass
        assert caught.value.code == Code.ABORTED

    async with handle.exclusively("delete", 1.0), trio.open_nursery() as nursery:
        nursery.start_soon(try_restart)
    async with handle.exclusively("restart", 1.0):
        assert handle.operation == "restart"


# --- processes


async def test_a_pid_is_only_its_process_with_its_start_time() -> None:
    """Another start time is another process; a zombie is over; the wait ends with the process."""
    with subprocess.Popen(["sleep", "1000"]) as child:  # noqa: ASYNC220 - not trio's: its pid is what is tested
        found = procfs.identify(child.pid)
        assert found is not None
        assert found.is_running()
        assert not Identity(child.pid, found.start_ticks + 1).is_running()
        assert not procfs.kill(Identity(child.pid, found.start_ticks + 1))
        me = procfs.identify(os.getpid())
        assert me is not None
        assert procfs.identify_child(child.pid, me) == found
        assert procfs.identify_child(1, me) is None
        assert await procfs.wait_gone(found, 0.01) is False
        assert procfs.kill(found, signal.SIGKILL)
        with trio.fail_after(5):
            assert await procfs.wait_gone(found, 5.0) is True
        assert not found.is_running()
        child.wait()
    assert procfs.identify(child.pid) is None
    assert await procfs.wait_gone(found, 5.0) is True


def test_who_works_in_a_directory(tmp_path: Path) -> None:
    """By working directory, also after it was removed; nobody else."""
    work = tmp_path / "bundle"
    (work / "inner").mkdir(parents=True)
    with (
        subprocess.Popen(["sleep", "1000"], cwd=work) as here,
        subprocess.Popen(["sleep", "1000"], cwd=work / "inner") as inner,
    ):
        try:
            assert [process.pid for process in procfs.working_in(str(work))] == [here.pid]
            (work / "inner").rmdir()
            work.rmdir()
            assert [process.pid for process in procfs.working_in(str(work))] == [here.pid]
        finally:
            here.kill()
            inner.kill()


# --- bundles


def test_a_bundle_is_made_private_and_once(tmp_path: Path) -> None:
    """0700, the spec as it is and 0600 because it may hold secrets; a second one of the name is refused."""
    path = tmp_path / "ns" / "c1"
    bundle.make(str(path), b'{"x": 1}')
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "config.json").read_bytes() == b'{"x": 1}'
    assert (path / "config.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StatusError) as caught:
        bundle.make(str(path), b"{}")
    assert caught.value.code == Code.ALREADY_EXISTS
    assert bundle.list_bundles(str(tmp_path)) == [("ns", "c1")]
    bundle.remove(str(path))
    bundle.remove(str(path))
    assert os.listdir(tmp_path / "ns") == []


def test_a_removal_that_was_cut_is_finished_by_the_next_start(tmp_path: Path) -> None:
    """Dotted names are no containers."""
    (tmp_path / "ns" / ".c1.abcd" / "deep").mkdir(parents=True)
    assert bundle.list_bundles(str(tmp_path)) == []
    doomed = bundle.list_doomed(str(tmp_path))
    assert doomed == [str(tmp_path / "ns" / ".c1.abcd")]
    bundle.remove_doomed(doomed)
    assert os.listdir(tmp_path / "ns") == []


@pytest.mark.root
def test_removing_never_goes_through_a_mount(tmp_path: Path) -> None:
    """What was mounted keeps every file; the mount is gone."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    path = tmp_path / "ns" / "c1"
    bundle.make(str(path), b"{}")
    subprocess.run(["mount", "--bind", str(precious), str(path / "rootfs")], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path / "rootfs")], check=True)
    assert len(procfs.mounts_under(str(path))) == 2
    bundle.remove(str(path))
    assert (precious / "file").read_text() == "keep"
    assert procfs.mounts_under(str(path)) == []
    assert not path.exists()


# --- evidence


EXIT_FILE = (
    '{"version": 1, "container_id": "c1", "exec_id": "", "seq": 4, "pid": 7, "exited_at_ns": 5000000000, "code": 3,'
    '"signal": null, "source": 1, "oom": false, "core_dumped": false, "started_at_ns": 4000000000, "start_ticks": 9,'
    '"boot_id": "b", "incarnation": "i"}'
)


def test_exit_records_are_read_as_the_shim_wrote_them() -> None:
    """Code or signal, never both; a damaged or foreign one proves nothing."""
    record = evidence.exit_from_json(EXIT_FILE)
    assert record is not None
    assert (record.code, record.HasField("signal"), record.seq, record.incarnation) == (3, False, 4, "i")
    assert wkt.nanoseconds(record.exited_at) == 5_000_000_000
    for damaged in ("", "{", "[]", EXIT_FILE[:-5], EXIT_FILE.replace('"version": 1', '"version": 2'), '{"version": 1}'):
        assert evidence.exit_from_json(damaged) is None


def test_what_a_bundle_proves(tmp_path: Path) -> None:
    """Shim and init by their recorded identities; without any record only by who works there."""
    path = str(tmp_path / "c1")
    gone, me = Identity(2**22 - 1, 1), procfs.identify(os.getpid())
    assert me is not None
    boot_id = procfs.boot_id()
    nothing = evidence.gather(path, a_row(state=CREATING, bundle=path), boot_id)
    assert (nothing.has_bundle, nothing.shim.value, nothing.init.value) == (False, "gone", "unknown")
    bundle.make(path, b"{}")
    row = a_row(bundle=path, shim_pid=gone.pid, shim_start_ticks=1, pid=me.pid, pid_start_ticks=me.start_ticks)
    found = evidence.gather(path, row, boot_id)
    assert (found.shim.value, found.init.value, found.init_exit) == ("gone", "alive", None)
    Path(path, "state.json").write_text(
        f'{{"boot_id": "{boot_id}", "shim_pid": {me.pid}, "shim_start_ticks": {me.start_ticks}, "incarnation": "i"}}'
    )
    assert evidence.gather(path, row, boot_id).shim.value == "silent"  # a successor's
    Path(path, "exits").mkdir()
    Path(path, "exits", "init.json").write_text(EXIT_FILE)
    found = evidence.gather(path, row, "another boot")
    assert (found.init.value, found.incarnation) == ("dead", "i")
    assert found.init_exit is not None


# --- programs


def test_a_runtime_is_found_as_containerd_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration first, an absolute path as it is, else the last two parts of the name in PATH or beside us."""
    program = tmp_path / "containerd-shim-test-v2"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.resolve("io.containerd.test.v2", "", {}) == str(program)
    assert launch.resolve(str(program), "", {}) == str(program)
    assert launch.resolve("my.own", "", {"my.own": Runtime(shim=str(program))}) == str(program)
    assert launch.resolve("my.own", str(program), {"my.own": Runtime(shim="/other")}) == str(program)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "shimd")])
    assert launch.resolve("io.containerd.test.v2", "", {}) == str(program)
    for runtime, code in (("io.containerd.none.v2", Code.NOT_FOUND), ("plain", Code.INVALID_ARGUMENT)):
        with pytest.raises(StatusError) as caught:
            launch.resolve(runtime, "", {})
        assert caught.value.code == code


def test_options_are_the_clients_completed_by_ours() -> None:
    """Root and binary from the configuration where the client says nothing; foreign options as they are."""
    config = Config(state_dir="/run/x", runtimes={"r": Runtime(runc="crun", systemd_cgroup=True)})
    ours = runc.Options.FromString(launch.options_for(config, "r", None).value)
    assert (ours.root, ours.binary_name, ours.systemd_cgroup) == ("/run/x/runc", "crun", True)
    theirs = wkt.pack(runc.Options(root="/mine", binary_name="youki"))
    kept = runc.Options.FromString(launch.options_for(config, "r", theirs).value)
    assert (kept.root, kept.binary_name) == ("/mine", "youki")
    foreign = wkt.any_of("some.other.Options", b"\x01")
    assert launch.options_for(config, "r", foreign) is foreign
    with pytest.raises(StatusError):
        launch.options_for(config, "r", wkt.any_of("containerd.runc.v1.Options", b"\xff"))


def a_program(tmp_path: Path, script: str) -> launch.Program:
    path = tmp_path / "shim"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return launch.Program(str(path), "/run/x/shimd.sock", "/usr/bin/shimd", "/run/x/s")


async def test_start_is_containerds_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, working directory, options on stdin; what is ours alone is not in its environment."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/secret")
    monkeypatch.setenv("TTRPC_ADDRESS", "/other")
    script = 'echo "$@" > args; pwd > cwd; cat > stdin; env > env; echo unix:///run/x/s/hash'
    program = a_program(tmp_path, script)
    address = await launch.start(program, "ns", "c1", str(tmp_path), wkt.any_of("t", b"v"), 10.0)
    assert address == "/run/x/s/hash"
    expected = "-namespace ns -address /run/x/shimd.sock -publish-binary /usr/bin/shimd -id c1 start\n"
    assert (tmp_path / "args").read_text() == expected
    assert (tmp_path / "cwd").read_text() == f"{tmp_path}\n"
    assert (tmp_path / "stdin").read_bytes() == wkt.any_of("t", b"v").SerializeToString()
    environ = (tmp_path / "env").read_text()
    assert "SHIMD_SOCKET_DIR=/run/x/s\n" in environ
    assert "NOTIFY_SOCKET" not in environ
    assert "TTRPC_ADDRESS" not in environ


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo it is broken >&2; exit 3", Code.UNKNOWN, "it is broken: exit status 3"),
        ("exit 1", Code.UNKNOWN, "it said nothing"),
        ("echo hello", Code.UNKNOWN, "no socket address"),
        ("exec sleep 1000", Code.UNAVAILABLE, "was not done after"),
        ("sleep 1000 & echo unix:///x", Code.UNAVAILABLE, "was not done after"),  # keeps our pipe open
    ],
)
async def test_a_start_that_goes_wrong(tmp_path: Path, script: str, code: Code, words: str) -> None:
    """Its own words, or that it took too long; whatever it started is killed with it."""
    with pytest.raises(StatusError, match=words) as caught, trio.fail_after(20):
        await launch.start(a_program(tmp_path, script), "ns", "c1", str(tmp_path), wkt.any_of("t", b""), 0.5)
    assert caught.value.code == code
    wait_until(lambda: not list(procfs.working_in(str(tmp_path))), what="all it started to be gone")


def test_a_shims_socket_is_where_containerds_rule_puts_it() -> None:
    """sha256 of address, namespace and id joined as paths; observed with containerd 1.6."""
    made = asking.socket_path("/run/containerd/s", "/run/containerd/containerd.sock", "default", "c1")
    # printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
    assert made == "/run/containerd/s/d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888"
    assert made == asking.socket_path("/run/containerd/s", "/run/containerd//containerd.sock/", "default", "c1")


async def test_the_earlier_deadline_wins(autojump_clock: trio.testing.MockClock) -> None:
    """Ours, or what is left of the client's; never nothing, so that a call is made with a deadline."""
    now = trio.current_time()
    assert earlier(20.0, None) == 20.0
    assert earlier(20.0, float("inf")) == 20.0
    assert earlier(20.0, now + 3.0) == pytest.approx(3.0)
    assert earlier(2.0, now + 30.0) == 2.0
    assert 0 < earlier(2.0, now - 5.0) < 0.01


def test_the_first_shims_are_raised_at_once_and_the_others_later_and_later() -> None:
    pauses = [raising.pause_s(raises, 0.25, 10.0) for raises in range(200)]
    assert pauses[:5] == [0.0, 0.0, 0.0, 0.25, 0.5]
    assert pauses[-1] == 10.0
    assert pauses == sorted(pauses)
