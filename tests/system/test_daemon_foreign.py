"""containerd's own shim under our daemon, beside ours: what it tells is on record once, whatever dies."""

import os
import signal

from tests.support.daemonbox import DaemonBox, refused, restart_labels
from tests.support.waiting import wait_until
from ttrpc.api import process, shim, shimd, tasks
from ttrpc.status import Code

WAITING = "while [ ! -e /go ]; do sleep 0.02; done"
EXEC_WAITING = "while [ ! -e /exec-go ]; do sleep 0.02; done"
LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit"]


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def go(box: DaemonBox, *pids: int, word: str = "go") -> None:
    """Let those end that wait for it; these are gone when this returns, their zombies too."""
    with open(f"{box.rootfs}/{word}", "w", encoding="utf-8"):
        pass
    for pid in pids:
        wait_until(lambda pid=pid: not is_alive(pid), what=f"the end of {pid}")


def test_a_life_under_containerd_s_shim(box: DaemonBox) -> None:
    """Events in order, the exit with its source, output in its file, everything gone after the delete."""
    pid = box.run_foreign("c1", "sh", "-c", "echo out; while [ ! -e /go ]; do :; done; exit 3")
    found = box.shim("c1")
    assert found.health == shimd.HEALTH_SERVING
    assert found.version.startswith("containerd-shim-runc-v2")
    assert os.path.basename(os.readlink(f"/proc/{found.pid}/exe")) == "containerd-shim-runc-v2"
    assert (box.task("c1").pid, box.task("c1").status) == (pid, process.RUNNING)
    wait_until(lambda: box.output("c1") == "out\n", what="its output")
    (only,) = box.tasks("ListPids", tasks.ListPidsRequest(container_id="c1")).processes
    assert only.pid == pid
    (metric,) = box.tasks("Metrics", tasks.MetricsRequest(filters=["id==c1"])).metrics
    assert metric.data.type_url.startswith("io.containerd.cgroups.v")
    with refused(Code.FAILED_PRECONDITION, "keeps no log"):
        stream = box.client.open_stream(
            "shimd.v1.Shimd",
            "Logs",
            shimd.LogsRequest(container_id="c1"),
            metadata={"containerd-namespace-ttrpc": "default"},
        )
        stream.receive(timeout_s=5)

    go(box)
    answer = box.wait("c1")
    assert answer.exit_status == 3
    assert box.task("c1").status == process.STOPPED
    (record,) = box.exits("c1")
    assert (record.code, record.pid, record.source) == (3, pid, shim.EXIT_SOURCE_WAITID)
    assert box.topics("c1") == LIFE
    deleted = box.delete_task("c1")
    assert (deleted.exit_status, deleted.exited_at) == (3, answer.exited_at)
    wait_until(lambda: box.topics("c1") == [*LIFE, "/tasks/delete"], what="its delete to be told")
    assert not os.path.exists(box.bundle("c1"))
    assert not os.path.exists(found.address)
    wait_until(lambda: not is_alive(found.pid), what="the shim to be gone")
    assert "level=info" in box.log()  # its log is in ours


def test_an_exit_while_the_daemon_is_down_is_recorded_exactly_once(box: DaemonBox) -> None:
    """Also when the shim gives up telling it: the answer to Wait counts. An exec's, too; and no event is told twice."""
    pid = box.run_foreign("c1", "sh", "-c", f"{WAITING}; exit 42")
    exec_pid = box.exec("c1", "e1", "sh", "-c", f"{EXEC_WAITING}; exit 7")
    wait_until(lambda: "/tasks/exec-started" in box.topics("c1"), what="what began to be told")
    cursor = box.info().newest_event_seq
    box.kill()
    go(box, exec_pid, word="exec-go")
    go(box, pid)
    box.start()
    assert box.wait("c1").exit_status == 42
    assert box.wait("c1", "e1").exit_status == 7
    # The shim tells both again within seconds: known by what is in them, they are not news.
    os.kill(box.shim("c1").pid, 0)
    box.restart()
    assert box.wait("c1").exit_status == 42
    assert sorted(event.topic for event in box.events(after_seq=cursor)) == ["/tasks/exit", "/tasks/exit"]
    assert {(one.exec_id, one.code, one.source) for one in box.exits("c1")} == {
        ("", 42, shim.EXIT_SOURCE_WAITID),
        ("e1", 7, shim.EXIT_SOURCE_WAITID),
    }
    assert len(box.exits("c1")) == 2
    assert box.delete_task("c1").exit_status == 42


def test_an_exit_told_twice_is_stored_once(box: DaemonBox) -> None:
    """The shim tells it again to a daemon that stored it and died before it could say so."""
    box.kill()
    box.start({"SHIMD_FAULTS": "foreign.committed=kill@3", "SHIMD_FAULTS_ARMED": "yes-kill-me"})
    pid = box.run_foreign("c1", "sh", "-c", f"{WAITING}; exit 5")
    go(box, pid)
    box.gone()
    box.start()
    assert box.wait("c1").exit_status == 5
    wait_until(lambda: "forwarded again" in box.log(), what="the shim to tell it again")
    assert box.topics("c1") == LIFE
    assert [one.code for one in box.exits("c1")] == [5]


def test_execs(box: DaemonBox) -> None:
    """Code and events of each; an id may be used again, and each use has its own exit."""
    box.run_foreign("c1", "sleep", "1000")
    for code in (3, 4):
        box.exec("c1", "e1", "sh", "-c", f"exit {code}")
        assert box.wait("c1", "e1").exit_status == code
        deleted = box.tasks("DeleteProcess", tasks.DeleteProcessRequest(container_id="c1", exec_id="e1"))
        assert deleted.exit_status == code
    assert [one.code for one in box.exits("c1", "e1")] == [3, 4]
    assert box.topics("c1").count("/tasks/exit") == 2
    box.add_exec("c1", "e2", "/no/such/program")
    with refused(Code.UNKNOWN, "no such file"):
        box.start_task("c1", "e2")
    box.tasks("DeleteProcess", tasks.DeleteProcessRequest(container_id="c1", exec_id="e2"))
    with refused(Code.NOT_FOUND):
        box.wait("c1", "e2")
    assert os.listdir(f"{box.bundle('c1')}/shimd.execs") == []
    box.exec("c1", "e3", "sleep", "1000")
    box.tasks("Kill", tasks.KillRequest(container_id="c1", exec_id="e3", signal=signal.SIGKILL))
    assert box.wait("c1", "e3").exit_status == 137


def test_a_killed_daemon_finds_both_kinds_again(box: DaemonBox) -> None:
    """Same inits, same shims, side by side; pause and resume go on."""
    pids = {"ours": box.run("ours", "sleep", "1000"), "theirs": box.run_foreign("theirs", "sleep", "1000")}
    shims = {name: box.shim(name).pid for name in pids}
    box.tasks("Pause", tasks.PauseTaskRequest(container_id="theirs"))
    box.restart()
    assert box.info().adopted == 2
    assert {name: box.task(name).pid for name in pids} == pids
    assert {name: box.shim(name).pid for name in pids} == shims
    assert box.task("theirs").status == process.PAUSED
    box.tasks("Resume", tasks.ResumeTaskRequest(container_id="theirs"))
    for name in pids:
        box.signal(name)
        assert box.wait(name).exit_status == 137
    assert [topic for topic in box.topics("theirs") if topic != "/tasks/paused"] == [
        *LIFE[:2],
        "/tasks/resumed",
        LIFE[2],
    ]


def test_a_container_outlives_its_shim_and_its_end_is_unknown(box: DaemonBox) -> None:
    """containerd would kill it and say 137: here it is listed as without a shim, can be ended; nothing is guessed."""
    pid = box.run_foreign("c1", "sleep", "1000")
    os.kill(box.shim("c1").pid, signal.SIGKILL)
    wait_until(lambda: box.shim("c1").health == shimd.HEALTH_GONE, what="the loss to be noticed")
    assert is_alive(pid)
    with refused(Code.FAILED_PRECONDITION, "runs on"):
        box.delete_task("c1")
    box.restart()
    assert is_alive(pid)
    box.signal("c1")
    assert box.wait("c1").exit_status == 255
    (record,) = box.exits("c1")
    assert (record.source, record.HasField("code")) == (shim.EXIT_SOURCE_UNKNOWN, False)
    assert box.delete_task("c1").exit_status == 255
    assert not os.path.exists(box.bundle("c1"))


def test_an_exit_known_before_the_shim_was_lost_stays_exact(box: DaemonBox) -> None:
    """The daemon has it: the dead shim's `delete`, which always says 137, is not asked."""
    pid = box.run_foreign("c1", "sh", "-c", f"{WAITING}; exit 6")
    go(box, pid)
    assert box.wait("c1").exit_status == 6
    os.kill(box.shim("c1").pid, signal.SIGKILL)
    wait_until(lambda: box.shim("c1").health == shimd.HEALTH_GONE, what="the loss to be noticed")
    assert box.delete_task("c1").exit_status == 6
    assert [one.code for one in box.exits("c1")] == [6]


def test_a_restart_policy_works_under_it(box: DaemonBox) -> None:
    """Each run with a shim of its own and an exit of its own."""
    box.run_foreign("c1", "sh", "-c", "exit 9", labels=restart_labels("on-failure:2"))
    wait_until(lambda: [one.code for one in box.exits("c1")] == [9, 9, 9], what="two restarts")
    assert len({one.incarnation for one in box.exits("c1")}) == 3
    wait_until(lambda: box.task("c1").status == process.STOPPED, what="the end")
    assert box.shim("c1").restarts == 2


def test_containers_of_a_group_share_a_shim_and_not_their_end(box: DaemonBox) -> None:
    """containerd's shim serves all containers of a group annotation: deleting one leaves the others and their shim."""
    group = {"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}
    first = box.run_foreign("first", "sleep", "1000", **group)
    second = box.run_foreign("second", "sleep", "1000", **group)
    shim_pid = box.shim("first").pid
    assert box.shim("second").pid == shim_pid
    box.signal("first")
    assert box.wait("first").exit_status == 137
    box.delete_task("first")
    assert not is_alive(first)
    assert is_alive(shim_pid)
    box.restart()
    assert (box.task("second").pid, box.task("second").status) == (second, process.RUNNING)
    box.signal("second")
    assert box.wait("second").exit_status == 137
    box.delete_task("second")
    wait_until(lambda: not is_alive(shim_pid), what="the empty shim to end")


def test_a_create_that_fails_leaves_nothing(box: DaemonBox) -> None:
    """runc's words, and the id is free again."""
    with refused(Code.UNKNOWN, "no-such-program"):
        box.run_foreign("c1", "no-such-program")
    if box.call("shimd.v1.Shimd", "Shims", shimd.ShimsRequest()).shims:  # runc may find out at the start only
        box.delete_task("c1")
    assert not os.path.exists(box.bundle("c1"))
    box.delete_container("c1")
    box.run_foreign("c1", "true")
    assert box.wait("c1").exit_status == 0
