"""The first promise: the daemon, or a shim, may be killed at any time, and what runs runs on and ends exactly."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.shims import asking, recovery
from daemon.store.records import STOPPED, TaskRow
from tests.support.daemonbox import NAMESPACE, SHIMD, DaemonBox, refused
from tests.support.waiting import wait_until
from ttrpc.api import process, shim, shimd, tasks
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.fixture
def box() -> Iterator[DaemonBox]:
    """A stopped shim is to stay stopped here."""
    with DaemonBox(config="wedged.after_s = 0") as made:
        yield made


COUNTING = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.02; done"


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_a_killed_daemon_finds_its_containers_again(box: DaemonBox) -> None:
    """Same init, same shim, output without a hole, and no event told twice."""
    pid = box.run("c1", "sh", "-c", COUNTING)
    shim_pid = box.shim("c1").pid
    wait_until(lambda: len(box.output("c1").split()) > 5, what="output")
    box.kill()
    before = len(box.output("c1").split())
    wait_until(lambda: len(box.output("c1").split()) > before + 5, what="output while the daemon is down")
    box.start()

    found = box.task("c1")
    assert (found.pid, found.status) == (pid, process.RUNNING)
    assert box.shim("c1").pid == shim_pid
    assert box.shim("c1").health == shimd.HEALTH_SERVING
    assert box.info().adopted == 1
    assert box.topics("c1") == ["/tasks/create", "/tasks/start"]
    box.signal("c1")
    assert box.wait("c1").exit_status == 137
    numbers = [int(word) for word in box.output("c1").split()]
    assert numbers == list(range(len(numbers)))


def test_an_exit_while_the_daemon_is_down_is_recorded_exactly_once(box: DaemonBox) -> None:
    """Code, time and event, also after yet another restart."""
    box.run("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 42")
    wait_until(lambda: box.topics("c1") == ["/tasks/create", "/tasks/start"], what="its start to be told")
    cursor = box.info().newest_event_seq
    box.kill()
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    wait_until(lambda: os.path.exists(f"{box.bundle('c1')}/exits/init.json"), what="the exit")
    exited_before_s = time.time()
    box.start()

    answer = box.wait("c1")
    assert answer.exit_status == 42
    assert answer.exited_at.seconds <= exited_before_s
    assert [event.topic for event in box.events(after_seq=cursor)] == ["/tasks/exit"]
    box.restart()
    box.restart()
    assert [event.topic for event in box.events(after_seq=cursor)] == ["/tasks/exit"]
    (record,) = box.exits("c1")
    assert (record.code, record.source) == (42, shim.EXIT_SOURCE_WAITID)
    assert box.task("c1").status == process.STOPPED


def test_execs_survive_and_end_exactly(box: DaemonBox) -> None:
    """An exec that ends while the daemon is down is told before init's end, with its own code."""
    box.run("c1", "sleep", "1000")
    box.exec("c1", "e1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 7")
    box.kill()
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    wait_until(lambda: os.path.exists(f"{box.bundle('c1')}/exits/exec.e1.json"), what="the exec's exit")
    box.start()
    assert box.wait("c1", "e1").exit_status == 7
    assert box.task("c1").status == process.RUNNING
    assert box.topics("c1") == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
    ]


def test_twenty_containers_are_adopted_whatever_they_do(box: DaemonBox) -> None:
    """Running ones by pid, ended ones by code: all of them, in one restart."""
    running = {f"r{number}": box.run(f"r{number}", "sleep", "1000") for number in range(10)}
    for number in range(10):
        box.run(f"e{number}", "sh", "-c", f"exit {number}")
    box.restart()
    for container_id, pid in running.items():
        assert box.task(container_id).pid == pid
    assert [box.wait(f"e{number}").exit_status for number in range(10)] == list(range(10))
    listed = box.tasks("List", tasks.ListTasksRequest()).tasks
    assert len(listed) == 20
    assert box.info().adopted == 20


def test_a_stopped_shim_delays_nobody(box: DaemonBox) -> None:
    """A shim that does not move is listed as unreachable; the others answer at once, and it is found again later."""
    box.run("sick", "sleep", "1000")
    box.run("well", "sleep", "1000")
    sick_pid = box.shim("sick").pid
    os.kill(sick_pid, signal.SIGSTOP)
    try:
        box.kill()
        box.start(recovered=False)
        began = time.monotonic()
        assert box.task("well").status == process.RUNNING
        assert time.monotonic() - began < 1.5
        wait_until(lambda: not box.info().recovering, what="recovery")
        assert box.shim("sick").health == shimd.HEALTH_UNREACHABLE
        assert "not answer" in box.shim("sick").reason
        began = time.monotonic()
        listed = {one.id: one.status for one in box.tasks("List", tasks.ListTasksRequest()).tasks}
        assert time.monotonic() - began < 1.0
        assert listed == {"sick": process.RUNNING, "well": process.RUNNING}
        with pytest.raises(StatusError) as caught:
            box.task("sick")
        assert caught.value.code == Code.UNAVAILABLE
    finally:
        os.kill(sick_pid, signal.SIGCONT)
    wait_until(lambda: box.shim("sick").health == shimd.HEALTH_SERVING, what="the shim to be found again")
    assert box.task("sick").status == process.RUNNING


def test_a_shim_stopped_while_we_run_costs_a_list_its_budget_and_no_more(box: DaemonBox) -> None:
    """Two seconds for List, the last known state for the silent one."""
    pid = box.run("sick", "sleep", "1000")
    box.run("well", "sleep", "1000")
    sick_pid = box.shim("sick").pid
    os.kill(sick_pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        listed = {one.id: one for one in box.tasks("List", tasks.ListTasksRequest()).tasks}
        assert time.monotonic() - began < 3.5
        assert (listed["sick"].pid, listed["sick"].status) == (pid, process.RUNNING)
        assert box.task("well").status == process.RUNNING
    finally:
        os.kill(sick_pid, signal.SIGCONT)


def kill_shim(box: DaemonBox, container_id: str) -> int:
    """SIGKILL; returns once it is gone, with its pid."""
    pid = box.shim(container_id).pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), what="the shim to be gone")
    return pid


def test_a_shim_that_is_killed_gets_a_successor_and_the_status_is_exact(box: DaemonBox) -> None:
    """The container does not notice, a Wait under way is answered, every event is told once."""
    pid = box.run("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 9")
    for _ in range(3):
        dead = kill_shim(box, "c1")
        wait_until(lambda dead=dead: box.shim("c1").pid not in (0, dead), what="a successor")
        assert box.task("c1").status == process.RUNNING
        assert box.task("c1").pid == pid
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    assert box.wait("c1").exit_status == 9
    (record,) = box.exits("c1")
    assert record.source in (shim.EXIT_SOURCE_PIDFD, shim.EXIT_SOURCE_KEEPER)
    assert box.topics("c1") == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    assert box.delete_task("c1").exit_status == 9
    assert not os.path.exists(box.bundle("c1"))


def test_all_killed_at_once_and_the_status_is_exact(box: DaemonBox) -> None:
    """Daemon and shim are dead when the container ends: the kernel keeps its status for the next daemon."""
    pid = box.run("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 9")
    box.run("c2", "sleep", "1000")
    shims = [box.shim(name).pid for name in ("c1", "c2")]
    box.kill()
    for shim_pid in shims:
        os.kill(shim_pid, signal.SIGKILL)
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="PID 1 to reap it")
    box.start()
    assert box.wait("c1").exit_status == 9
    (record,) = box.exits("c1")
    assert (record.code, record.source) == (9, shim.EXIT_SOURCE_PIDFD)
    assert box.topics("c1") == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    assert box.task("c2").status == process.RUNNING
    assert box.shim("c2").health == shimd.HEALTH_SERVING


def test_where_no_shim_can_be_raised_the_container_is_watched_and_its_end_is_unknown(box: DaemonBox) -> None:
    """Nobody can say how it ended: source UNKNOWN, status 255, never a guess."""
    pid = box.run("c1", "sleep", "1000")
    os.unlink(f"{box.bundle('c1')}/state.json")
    kill_shim(box, "c1")
    wait_until(lambda: box.shim("c1").health == shimd.HEALTH_GONE, what="the loss to be noticed")
    assert is_alive(pid)
    assert "runs on" in box.shim("c1").reason
    with pytest.raises(StatusError) as caught:
        box.delete_task("c1")
    assert caught.value.code == Code.FAILED_PRECONDITION
    box.restart()
    assert is_alive(pid)
    assert box.shim("c1").health == shimd.HEALTH_GONE

    box.signal("c1", signal.SIGKILL)  # to its init: there is nobody else to ask
    assert box.wait("c1").exit_status == 255
    with refused(Code.NOT_FOUND, "already finished"):
        box.signal("c1")
    (record,) = box.exits("c1")
    assert record.source == shim.EXIT_SOURCE_UNKNOWN
    assert not record.HasField("code")
    assert not record.HasField("signal")
    assert box.task("c1").status == process.STOPPED
    assert box.topics("c1")[-1] == "/tasks/exit"
    assert box.delete_task("c1").exit_status == 255
    assert not os.path.exists(box.bundle("c1"))


def test_a_container_whose_shims_die_again_and_again_is_not_given_up() -> None:
    """Whatever ends them may pass; then the container has a shim again, and its status is exact."""
    with DaemonBox(config="keeper.enabled = false") as box:
        pid = box.run("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 9")
        state = Path(box.bundle("c1"), "state.json")
        text = state.read_text(encoding="utf-8")
        dead = box.shim("c1").pid
        state.write_text(text.replace('"shares_pids"', '"else"'), encoding="utf-8")  # no successor can read it
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: "again and again" in box.shim("c1").reason, what="the daemon to wait longer")
        assert is_alive(pid)
        state.write_text(text, encoding="utf-8")
        wait_until(lambda: box.shim("c1").health == shimd.HEALTH_SERVING, what="a successor")

        assert box.task("c1").status == process.RUNNING
        with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
            pass
        assert box.wait("c1").exit_status == 9


def test_an_exit_on_the_disk_of_a_dead_shim_counts(box: DaemonBox) -> None:
    """Daemon down, container ends, shim is killed: its record is found and told as what it is."""
    box.run("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 9")
    shim_pid = box.shim("c1").pid
    wait_until(lambda: box.topics("c1") == ["/tasks/create", "/tasks/start"], what="its start to be told")
    box.kill()
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    wait_until(lambda: os.path.exists(f"{box.bundle('c1')}/exits/init.json"), what="the exit")
    os.kill(shim_pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(shim_pid), what="the shim to be gone")
    box.start()
    assert box.wait("c1").exit_status == 9
    (record,) = box.exits("c1")
    assert record.source == shim.EXIT_SOURCE_WAITID
    assert box.topics("c1") == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    assert box.task("c1").status == process.STOPPED
    assert box.delete_task("c1").exit_status == 9


def pretend_reboot(box: DaemonBox) -> None:
    """What a reboot leaves: no process, no state directory, a store that speaks of another boot. The daemon is down."""
    os.system(f"umount -R -l {box.state}/s/pins 2>/dev/null")
    shutil.rmtree(box.state)
    with sqlite3.connect(f"{box.root}/shimd.db") as store:
        store.execute("UPDATE tasks SET boot_id = 'the boot before'")
    store.close()


def end_without_daemon(box: DaemonBox, *container_ids: str) -> None:
    """Kill daemon, shims and containers, in this order, as a power cut would."""
    pids = [(box.shim(container_id).pid, box.task(container_id).pid) for container_id in container_ids]
    box.kill()
    for shim_pid, init_pid in pids:
        os.kill(shim_pid, signal.SIGKILL)
        if init_pid and is_alive(init_pid):
            os.kill(init_pid, signal.SIGKILL)
        wait_until(lambda pid=init_pid: not is_alive(pid), what="the container to be gone")
    for container_id in container_ids:
        os.system(f"runc --root {box.state}/runc/{NAMESPACE} delete --force {container_id} >/dev/null 2>&1")


def test_after_a_reboot_nothing_is_taken_for_running(box: DaemonBox) -> None:
    """What ran is over, how it ended is unknown; what had ended keeps its status."""
    box.run("ran", "sleep", "1000")
    box.run("ended", "sh", "-c", "exit 5")
    assert box.wait("ended").exit_status == 5
    end_without_daemon(box, "ran", "ended")
    pretend_reboot(box)
    box.start()
    assert box.wait("ran").exit_status == 255
    assert box.exits("ran")[-1].source == shim.EXIT_SOURCE_UNKNOWN
    assert box.wait("ended").exit_status == 5
    assert {one.id: one.status for one in box.tasks("List", tasks.ListTasksRequest()).tasks} == {
        "ran": process.STOPPED,
        "ended": process.STOPPED,
    }
    with refused(Code.FAILED_PRECONDITION, "delete it and create a new one"):
        box.start_task("ran")
    with refused(Code.NOT_FOUND):
        box.task("ran", "some-exec")
    box.delete_task("ran")
    box.create_task("ran")
    assert box.start_task("ran") > 0


def test_bundles_nobody_has_on_record(box: DaemonBox) -> None:
    """A dead one is cleared; a live container is left alone and shown."""
    pid = box.run("live", "sleep", "1000")
    os.makedirs(f"{box.bundle('dead')}/rootfs")
    shim_pid = box.shim("live").pid
    box.kill()
    with sqlite3.connect(f"{box.root}/shimd.db") as store:
        rows = store.execute("SELECT * FROM tasks").fetchall()
        store.execute("DELETE FROM tasks")
    store.close()
    box.start()
    wait_until(lambda: not os.path.exists(box.bundle("dead")), what="the dead bundle to be cleared")
    (stray,) = box.call(SHIMD, "Shims", shimd.ShimsRequest()).shims
    assert (stray.container_id, stray.health) == ("live", shimd.HEALTH_UNKNOWN)
    assert "no record" in stray.reason
    assert is_alive(pid)
    assert is_alive(shim_pid)
    with pytest.raises(StatusError, match="no record"):
        box.create_task("live")
    box.kill()
    with sqlite3.connect(f"{box.root}/shimd.db") as store:
        store.executemany(f"INSERT INTO tasks VALUES ({', '.join('?' * len(rows[0]))})", rows)
    store.close()
    box.start()
    assert box.task("live").pid == pid


async def test_a_socket_that_takes_a_connection_and_says_nothing_is_a_silent_shim(tmp_path: Path) -> None:
    """The keeper holds a dead shim's listener while the successor takes over: whoever asks then must ask again."""
    bundle = str(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{bundle}/s")
        row = TaskRow("ns", "c", STOPPED, "r", "/p", bundle, "boot", b"", 0, address=f"{bundle}/s", shim_pid=2**22 + 1)
        async with contextlib.AsyncExitStack() as stack:
            refused = await asking.ask(stack, row, "boot", 0.2, exit_is_stored=True)
        listener.listen()
        async with contextlib.AsyncExitStack() as stack:
            unanswered = await asking.ask(stack, row, "boot", 0.2, exit_is_stored=True)

    assert (refused.facts.shim, unanswered.facts.shim) == (recovery.Shim.GONE, recovery.Shim.SILENT)
