"""The Task service on a real container: what each request does, in which state, and in what words it refuses."""

import os
import signal
import stat
from collections.abc import Iterator

import pytest

from tests.support import leaks
from tests.support.shimbox import ShimBox, running
from tests.support.waiting import wait_until
from ttrpc.api import cgroups1, cgroups2, runc, shim, task, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
LOOP = ("sh", "-c", "while :; do sleep 0.01; done")


@pytest.fixture
def box() -> Iterator[ShimBox]:
    with running() as made:
        yield made


def refused(error: pytest.ExceptionInfo[StatusError]) -> tuple[int, str]:
    return error.value.code, error.value.message


def topics(records: list[object]) -> list[str]:
    return [getattr(record, "topic").removeprefix("/tasks/") for record in records]  # noqa: B009 - messages are untyped here


# --- one container's life


def test_life_of_a_container_from_create_to_delete() -> None:
    """States, pids, exit status and events of an ordinary run, each after the other."""
    with ShimBox(["sh", "-c", "exit 42"]) as box:
        pid = box.create().pid
        state = box.state()
        assert (state.id, state.pid, state.status, state.bundle) == ("box", pid, CREATED, box.bundle)
        assert (state.exit_status, state.exited_at.seconds) == (0, -62135596800)

        assert box.start().pid == pid
        ended = box.wait()
        assert ended.exit_status == 42
        state = box.state()
        assert (state.status, state.pid, state.exit_status, state.exited_at) == (STOPPED, pid, 42, ended.exited_at)

        deleted = box.delete()
        assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (pid, 42, ended.exited_at)
        assert topics(box.events("/tasks/delete")) == ["create", "start", "exit", "delete"]
        with pytest.raises(StatusError) as error:
            box.state()
        assert error.value.code == Code.NOT_FOUND


def test_task_service_answers_as_version_3_too(box: ShimBox) -> None:
    """containerd 2.x asks for containerd.task.v3.Task; the messages are the same."""
    state = box.call("State", task.StateRequest(id="box"), service="containerd.task.v3.Task")

    assert state.pid == box.state().pid


def test_exit_record_tells_code_identity_and_times() -> None:
    """The record on disk, in Exits and in the journal is one and the same, and complete."""
    with ShimBox(["sh", "-c", "exit 3"]) as box:
        pid = box.create().pid
        box.start()
        box.wait()

        (record,) = box.call("Exits", shim.ExitsRequest(), service="shimd.shim.v1.Shim").exits
        told = box.events("/tasks/exit")[-1].exit
        assert record == told
        assert (record.code, record.HasField("signal"), record.source, record.pid) == (3, False, 1, pid)
        assert record.pid_start_ticks > 0
        assert record.boot_id == leaks.read("/proc/sys/kernel/random/boot_id").strip()
        assert record.started_at.ToNanoseconds() <= record.exited_at.ToNanoseconds()
        assert record.seq == 3
        on_disk = box.read("exits", "init.json")
        assert '"code": 3' in on_disk
        assert stat.S_IMODE(os.stat(box.path("exits", "init.json")).st_mode) == 0o600


def test_death_by_signal_is_128_plus_it_and_a_signal_in_the_record(box: ShimBox) -> None:
    box.kill(signal.SIGKILL)

    assert box.wait().exit_status == 137
    record = box.events("/tasks/exit")[-1].exit
    assert (record.signal, record.HasField("code"), record.core_dumped) == (9, False, False)


def test_signals_a_container_handles_reach_it() -> None:
    """SIGTERM by its number, caught by the program."""
    with running(["sh", "-c", "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.01; done"]) as box:
        box.kill(0)
        wait_until(lambda: os.path.exists(f"{box.rootfs}/ready"), what="the trap")
        box.kill(signal.SIGTERM)
        assert box.wait().exit_status == 5


# --- refusals


def test_requests_before_create_are_not_found() -> None:
    with ShimBox() as box:
        box.launch()
        for method, request in (
            ("State", task.StateRequest(id="box")),
            ("Start", task.StartRequest(id="box")),
            ("Wait", task.WaitRequest(id="box")),
            ("Kill", task.KillRequest(id="box", signal=9)),
            ("Delete", task.DeleteRequest(id="box")),
            ("Pids", task.PidsRequest(id="box")),
            ("Stats", task.StatsRequest(id="box")),
        ):
            with pytest.raises(StatusError) as error:
                box.call(method, request)
            assert refused(error) == (Code.NOT_FOUND, "container not created"), method


def test_wrong_states_are_refused_in_containerds_words(box: ShimBox) -> None:
    with pytest.raises(StatusError) as error:
        box.start()
    assert refused(error) == (Code.UNKNOWN, "cannot start a running process")
    with pytest.raises(StatusError) as error:
        box.delete()
    assert refused(error) == (Code.UNKNOWN, "cannot delete a running process")
    with pytest.raises(StatusError) as error:
        box.call("Resume", task.ResumeRequest(id="box"))
    assert refused(error) == (Code.UNKNOWN, "cannot resume a running container")
    with pytest.raises(StatusError) as error:
        box.state("nobody")
    assert refused(error) == (Code.NOT_FOUND, "process does not exist nobody")
    with pytest.raises(StatusError) as error:
        box.kill(99)
    assert error.value.code == Code.INVALID_ARGUMENT

    box.kill(signal.SIGKILL)
    box.wait()
    with pytest.raises(StatusError) as error:
        box.kill(signal.SIGTERM)
    assert refused(error) == (Code.NOT_FOUND, "process already finished")
    with pytest.raises(StatusError) as error:
        box.start()
    assert refused(error) == (Code.UNKNOWN, "cannot start a stopped process")


def test_requests_during_create_wait_for_its_end() -> None:
    """`ctr` asks for State and CloseIO as soon as the FIFOs are open, which is before runc is done."""
    with ShimBox(["cat"]) as box:
        box.launch()
        other = box.connect()
        creating = box.client.open_stream(
            "containerd.task.v2.Task",
            "Create",
            task.CreateTaskRequest(id="box", bundle=box.bundle, options=wkt.pack(runc.Options(root=box.runc_root))),
        )
        wait_until(lambda: os.path.exists(box.path("exits", "init.json.new")), what="the create to be under way")
        state = other.call("containerd.task.v2.Task", "State", task.StateRequest(id="box"), timeout_s=10)
        assert state.status == CREATED
        assert state.pid == creating.receive(timeout_s=10).pid


def test_second_create_is_refused(box: ShimBox) -> None:
    with pytest.raises(StatusError) as error:
        box.create()

    assert error.value.code == Code.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object"),
        (None, "write the OCI runtime spec there"),
    ],
)
def test_spec_that_is_no_spec_is_named(config: str | None, words: str) -> None:
    with ShimBox() as box:
        box.launch()
        os.unlink(box.path("config.json"))
        if config is not None:
            with open(box.path("config.json"), "w", encoding="utf-8") as file:
                file.write(config)

        with pytest.raises(StatusError) as error:
            box.create()

        assert words in error.value.message
        assert "config.json" in error.value.message


def test_create_can_be_tried_again_after_it_failed() -> None:
    """A failure is told in runc's words, leaves nothing behind, and does not use the shim up."""
    with ShimBox(["no-such-program"]) as box:
        with pytest.raises(StatusError) as error:
            box.create()
        assert error.value.code == Code.UNKNOWN
        assert error.value.message.startswith("OCI runtime create failed: ")
        assert '"no-such-program": executable file not found' in error.value.message
        assert os.listdir(os.path.join(box.runc_root, "test")) == []
        assert os.listdir(box.path("io")) == []

        box.spec["process"]["args"] = ["true"]
        box.write_spec()
        box.create()
        box.start()
        assert box.wait().exit_status == 0
        assert topics(box.events("/tasks/exit")) == ["create", "start", "exit"]


def test_missing_runtime_is_named() -> None:
    with ShimBox() as box:
        with pytest.raises(StatusError) as error:
            box.create(options=runc.Options(root=box.runc_root, binary_name="no-such-runtime"))

        assert error.value.code == Code.FAILED_PRECONDITION
        assert "'no-such-runtime' was not found in $PATH" in error.value.message


def test_another_runtime_can_be_named() -> None:
    """Options.binary_name: any program with runc's command line."""
    with ShimBox(["true"]) as box:
        wrapper = os.path.join(box.folder, "other")
        with open(wrapper, "w", encoding="ascii") as file:
            file.write(f'#!/bin/sh\necho "$@" >> {box.folder}/calls\nexec runc "$@"\n')
        os.chmod(wrapper, 0o755)

        box.create(options=runc.Options(root=box.runc_root, binary_name=wrapper))
        box.start()
        box.wait()
        box.delete()

        assert box.read("runtime") == wrapper
        verbs = [word for line in leaks.read(f"{box.folder}/calls").splitlines() for word in line.split()]
        assert [verb for verb in ("create", "start", "delete") if verb in verbs] == ["create", "start", "delete"]


def runtime(box: ShimBox, script: str) -> runc.Options:
    """A runtime that is a shell script around runc."""
    path = os.path.join(box.folder, "runtime")
    with open(path, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\n" + script)
    os.chmod(path, 0o755)
    return runc.Options(root=box.runc_root, binary_name=path)


def test_create_whose_runc_is_killed_after_its_work_is_undone() -> None:
    with ShimBox() as box:
        script = 'runc "$@"; case "$*" in *" create "*) kill -9 $$;; esac\n'
        with pytest.raises(StatusError) as error:
            box.create(options=runtime(box, script))

        assert refused(error) == (Code.UNKNOWN, "OCI runtime create failed: killed by signal 9")
        assert os.listdir(os.path.join(box.runc_root, "test")) == []
        assert leaks.read(f"/proc/{box.shim_pid}/task/{box.shim_pid}/children") == ""
        box.create()


def test_start_whose_runc_is_killed_after_its_work_is_a_start() -> None:
    with ShimBox() as box:
        box.create(options=runtime(box, 'runc "$@"; case "$*" in *" start "*) kill -9 $$;; esac\n'))
        box.start()

        assert box.state().status == RUNNING


def test_exec_whose_runc_is_killed_after_its_work_leaves_no_process() -> None:
    with ShimBox() as box:
        box.create(options=runtime(box, 'runc "$@"; case "$*" in *" exec "*) kill -9 $$;; esac\n'))
        box.start()
        with pytest.raises(StatusError) as error:
            box.run_exec("e1", ["sleep", "1000"])

        assert refused(error) == (Code.UNKNOWN, "OCI runtime exec failed: killed by signal 9")
        pid = box.state().pid
        wait_until(
            lambda: [p.pid for p in box.call("Pids", task.PidsRequest(id="box")).processes] == [pid],
            what="the exec to be gone",
        )
        assert box.state("e1").pid == 0
        box.delete("e1")


def test_ids_and_bundles_of_others_are_refused() -> None:
    with ShimBox() as box:
        box.launch()
        for fields in ({"id": "other"}, {"id": "../x"}, {"bundle": "relative"}, {"bundle": "/"}):
            request = task.CreateTaskRequest(**{"id": "box", "bundle": box.bundle, **fields})
            with pytest.raises(StatusError) as error:
                box.call("Create", request)
            assert error.value.code == Code.INVALID_ARGUMENT, fields


# --- created, never started


def test_delete_of_a_created_container_kills_it_first() -> None:
    with ShimBox() as box:
        box.create()

        assert box.delete().exit_status == 137
        assert topics(box.events("/tasks/delete")) == ["create", "exit", "delete"]


def test_created_container_can_be_killed() -> None:
    with ShimBox() as box:
        box.create()
        box.kill(signal.SIGKILL)

        assert box.wait().exit_status == 137
        assert box.delete().exit_status == 137


# --- execs


def test_exec_runs_and_is_told_in_order(box: ShimBox) -> None:
    box.add_exec("e1", ["sh", "-c", "exit 7"])
    state = box.state("e1")
    assert (state.id, state.exec_id, state.status, state.pid) == ("e1", "", CREATED, 0)
    pid = box.start("e1").pid
    assert box.wait("e1").exit_status == 7
    assert box.state("e1").status == STOPPED
    deleted = box.delete("e1")
    assert (deleted.pid, deleted.exit_status) == (pid, 7)

    records = box.events("/tasks/exit")
    assert topics(records) == ["create", "start", "exec-added", "exec-started", "exit"]
    assert (records[-1].exit.exec_id, records[-1].exit.pid) == ("e1", pid)
    assert os.listdir(box.path("execs")) == []
    assert os.listdir(box.path("exits")) == ["init.json.new"]  # init's reserve


def test_exec_refusals(box: ShimBox) -> None:
    box.add_exec("e1", LOOP)
    with pytest.raises(StatusError) as error:
        box.add_exec("e1", LOOP)
    assert refused(error) == (Code.ALREADY_EXISTS, "id e1")
    with pytest.raises(StatusError) as error:
        box.kill(9, "e1")
    assert refused(error) == (Code.FAILED_PRECONDITION, "process not created")
    box.start("e1")
    with pytest.raises(StatusError) as error:
        box.start("e1")
    assert refused(error) == (Code.UNKNOWN, "cannot start a running process")
    with pytest.raises(StatusError) as error:
        box.delete("e1")
    assert refused(error) == (Code.UNKNOWN, "cannot delete a running process")
    box.kill(9, "e1")
    assert box.wait("e1").exit_status == 137
    with pytest.raises(StatusError) as error:
        box.kill(9, "e1")
    assert refused(error) == (Code.NOT_FOUND, "process already finished")
    box.delete("e1")
    with pytest.raises(StatusError) as error:
        box.delete("e1")
    assert refused(error) == (Code.NOT_FOUND, "process does not exist e1")


@pytest.mark.parametrize(
    ("spec", "words"),
    [(b"{", "not valid JSON"), (b"{}", "args"), (b'{"args":["x"],"cwd":"here"}', "cwd")],
)
def test_exec_process_that_is_none_is_refused(box: ShimBox, spec: bytes, words: str) -> None:
    request = task.ExecProcessRequest(id="box", exec_id="e1", spec=wkt.any_of("x", spec))
    with pytest.raises(StatusError) as error:
        box.call("Exec", request)

    assert error.value.code == Code.INVALID_ARGUMENT
    assert words in error.value.message


def test_exec_of_a_missing_program_can_be_started_again(box: ShimBox) -> None:
    box.add_exec("e1", ["no-such-program"])
    for _ in range(2):
        with pytest.raises(StatusError) as error:
            box.start("e1")
        assert error.value.code == Code.UNKNOWN
        assert error.value.message.startswith("OCI runtime exec failed: ")
        assert "no-such-program" in error.value.message

    assert box.state("e1").status == CREATED
    assert box.delete("e1").exit_status == 0


def test_execs_are_told_before_init_and_none_starts_after(box: ShimBox) -> None:
    """When init dies its execs die with it, and every one of them is told first."""
    box.add_exec("late", LOOP)
    for number in range(3):
        box.add_exec(f"e{number}", LOOP)
        box.start(f"e{number}")
    box.kill(9)
    assert box.wait().exit_status == 137

    records = box.events(lambda record: record.topic == "/tasks/exit" and not record.exit.exec_id)
    exits = [record.exit.exec_id for record in records if record.topic == "/tasks/exit"]
    assert sorted(exits[:-1]) == ["e0", "e1", "e2"]
    assert [box.wait(f"e{number}").exit_status for number in range(3)] == [137] * 3
    with pytest.raises(StatusError) as error:
        box.start("late")
    assert error.value.code == Code.FAILED_PRECONDITION


def test_waiter_of_an_exec_that_never_ran_is_told_at_its_delete(box: ShimBox) -> None:
    box.add_exec("e1", LOOP)
    waiting = box.wait_later("e1")
    box.delete("e1")

    with pytest.raises(StatusError) as error:
        waiting.receive(timeout_s=10)
    assert error.value.code == Code.NOT_FOUND


# --- Wait


def test_waits_may_come_before_the_start_and_by_the_thousand() -> None:
    with ShimBox(["true"]) as box:
        box.create()
        client = box.connect()
        waiting = [box.wait_later(client=client) for _ in range(2000)]
        box.start()

        assert [stream.receive(timeout_s=20).exit_status for stream in waiting] == [0] * 2000


# --- signals to all, pause, update


def test_kill_of_all_reaches_every_process(box: ShimBox) -> None:
    box.add_exec("e1", LOOP)
    box.start("e1")
    box.kill(signal.SIGKILL, everyone=True)

    assert box.wait("e1").exit_status == 137
    assert box.wait().exit_status == 137


def test_pause_stops_and_resume_goes_on(box: ShimBox) -> None:
    box.add_exec("e1", LOOP)
    box.start("e1")
    box.call("Pause", task.PauseRequest(id="box"))
    assert (box.state().status, box.state("e1").status) == (PAUSED, PAUSED)
    with pytest.raises(StatusError) as error:
        box.add_exec("e2", LOOP)
    assert refused(error) == (Code.UNKNOWN, "cannot exec a paused container")
    box.call("Resume", task.ResumeRequest(id="box"))
    assert (box.state().status, box.state("e1").status) == (RUNNING, RUNNING)

    assert topics(box.events("/tasks/resumed"))[-2:] == ["paused", "resumed"]


def test_killed_while_paused_dies(box: ShimBox) -> None:
    """A frozen process takes SIGKILL only when it is thawed (cgroup v1)."""
    box.call("Pause", task.PauseRequest(id="box"))
    box.kill(signal.SIGKILL)

    assert box.wait().exit_status == 137
    assert box.delete().exit_status == 137


def test_init_of_a_shared_pid_namespace_takes_the_others_with_it() -> None:
    """Without a PID namespace the kernel leaves what init started; the shim does not."""
    with ShimBox(["sh", "-c", "sleep 1000 & echo $! > /pid; exit 3"]) as box:
        box.spec["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]
        box.create()
        box.start()
        assert box.wait().exit_status == 3
        with open(f"{box.rootfs}/pid", encoding="ascii") as file:
            orphan = int(file.read())
        wait_until(lambda: not os.path.exists(f"/proc/{orphan}"), what="the orphan to be killed and reaped")
        box.delete()


def test_pids_name_the_execs(box: ShimBox) -> None:
    box.add_exec("e1", ["sleep", "1000"])
    pid = box.start("e1").pid
    reply = box.call("Pids", task.PidsRequest(id="box"))

    found = {process.pid: process.info for process in reply.processes}
    assert set(found) == {box.state().pid, pid}
    assert found[pid].type_url == "containerd.runc.v1.ProcessDetails"
    assert runc.ProcessDetails.FromString(found[pid].value).exec_id == "e1"
    assert not found[box.state().pid].type_url


def test_pids_of_a_stopped_task_are_not_empty(box: ShimBox) -> None:
    """containerd 1.7 takes an empty list for a leak and would erase the exit status."""
    pid = box.state().pid
    box.kill(9)
    box.wait()

    assert [process.pid for process in box.call("Pids", task.PidsRequest(id="box")).processes] == [pid]


def test_update_changes_a_limit(box: ShimBox) -> None:
    url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    box.call("Update", task.UpdateTaskRequest(id="box", resources=wkt.any_of(url, b'{"pids":{"limit":77}}')))
    stats = box.call("Stats", task.StatsRequest(id="box")).stats

    kinds = {"io.containerd.cgroups.v1.Metrics": cgroups1.Metrics, "io.containerd.cgroups.v2.Metrics": cgroups2.Metrics}
    assert kinds[stats.type_url].FromString(stats.value).pids.limit == 77
    with pytest.raises(StatusError) as error:
        box.call("Update", task.UpdateTaskRequest(id="box", resources=wkt.any_of(url, b"nonsense")))
    assert error.value.code == Code.INVALID_ARGUMENT


def test_checkpoint_reports_what_criu_said(box: ShimBox) -> None:
    path = os.path.join(box.folder, "image")
    with pytest.raises(StatusError) as error:
        box.call("Checkpoint", task.CheckpointTaskRequest(id="box", path=path))

    assert error.value.code == Code.UNKNOWN
    assert error.value.message.startswith("OCI runtime checkpoint failed: ")
    assert box.state().status == RUNNING


def test_connect_never_fails() -> None:
    with ShimBox() as box:
        box.launch()
        assert box.call("Connect", task.ConnectRequest(id="whatever")).shim_pid == box.shim_pid
        pid = box.create().pid
        assert box.call("Connect", task.ConnectRequest(id="box")).task_pid == pid


# --- rootfs


def test_rootfs_mounts_are_made_in_order_and_undone() -> None:
    with ShimBox(["true"]) as box:
        box.spec["root"]["path"] = "rootfs"
        lower = box.rootfs
        upper, work = os.path.join(box.folder, "upper"), os.path.join(box.folder, "work")
        os.mkdir(upper)
        os.mkdir(work)
        options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]
        overlay = {"type": "overlay", "source": "overlay", "options": options}
        box.create(rootfs=[overlay])
        assert os.path.exists(box.path("rootfs", "bin", "busybox"))
        box.start()
        assert box.wait().exit_status == 0
        box.delete()
        assert os.listdir(box.path("rootfs")) == []


def test_read_only_bind_of_a_rootfs() -> None:
    with ShimBox(["touch", "/new"]) as box:
        box.spec["root"]["path"] = "rootfs"
        box.create(rootfs=[{"type": "bind", "source": box.rootfs, "options": ["rbind", "ro"]}])
        box.start()
        assert box.wait().exit_status == 1
        assert not os.path.exists(f"{box.rootfs}/new")
        box.delete()


def test_failing_mount_undoes_those_before_it() -> None:
    with ShimBox() as box:
        good = {"type": "bind", "source": box.rootfs, "options": ["rbind"]}
        bad = {"type": "bind", "source": "/no/such/place", "options": ["rbind"]}
        with pytest.raises(StatusError) as error:
            box.create(rootfs=[good, bad])

        assert "/no/such/place" in error.value.message
        assert os.listdir(box.path("rootfs")) == []


# --- the shim's end


def test_shutdown_waits_for_delete(box: ShimBox) -> None:
    box.shutdown()
    assert box.state().status == RUNNING
    box.kill(9)
    box.wait()
    box.shutdown()
    assert box.state().status == STOPPED
    box.delete()
    box.shutdown()

    box.wait_for_shim_end()
    assert os.listdir(box.sockets) == []
