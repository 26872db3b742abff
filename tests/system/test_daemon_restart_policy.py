"""Restart policies on real containers."""

import os
import signal

from tests.support.daemonbox import CONTAINERS, DaemonBox, restart_labels
from tests.support.waiting import wait_until
from tests.system.test_daemon_recovery import end_without_daemon, pretend_reboot
from ttrpc.api import containers, process, shimd
from ttrpc.errors import StatusError

STOPPED = "containerd.io/restart.explicitly-stopped"


def update_label(box: DaemonBox, container_id: str, key: str, value: str) -> None:
    request = containers.UpdateContainerRequest(container=containers.Container(id=container_id, labels={key: value}))
    request.update_mask.paths.append(f"labels.{key}")
    box.call(CONTAINERS, "Update", request)


def labels_of(box: DaemonBox, container_id: str) -> dict[str, str]:
    return dict(box.call(CONTAINERS, "Get", containers.GetContainerRequest(id=container_id)).container.labels)


def is_running_again(box: DaemonBox, container_id: str, before: int) -> bool:
    try:
        found = box.task(container_id)
    except StatusError:  # between the old task and the new one
        return False
    return found.status == process.RUNNING and found.pid != before


def test_always_brings_it_back_with_the_same_request(box: DaemonBox) -> None:
    """A new task, counted, its output appended to the same log, its exits all on record."""
    pid = box.run("c1", "sh", "-c", "echo up; exec sleep 1000", labels=restart_labels("always"))
    wait_until(lambda: box.output("c1") == "up\n", what="its output")
    box.signal("c1")
    wait_until(lambda: is_running_again(box, "c1", pid), what="the restart")
    wait_until(lambda: box.output("c1") == "up\nup\n", what="its output")
    assert box.shim("c1").restarts == 1
    assert labels_of(box, "c1")["containerd.io/restart.count"] == "1"
    assert [record.signal for record in box.exits("c1")] == [9]
    wait_until(lambda: box.topics("c1").count("/tasks/start") == 2, what="its start to be told")
    life = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert box.topics("c1") == [*life, "/tasks/create", "/tasks/start"]


def test_on_failure_stops_at_its_limit(box: DaemonBox) -> None:
    """Two restarts, then it stays as it ended."""
    box.run("c1", "sh", "-c", "exit 3", labels=restart_labels("on-failure:2"))
    wait_until(lambda: len(box.exits("c1")) == 3, what="three exits")
    wait_until(lambda: box.shim("c1").restarts == 2 and box.task("c1").status == process.STOPPED, what="its rest")
    assert not box.shim("c1").HasField("next_restart_at")
    assert [record.code for record in box.exits("c1")] == [3, 3, 3]


def test_success_is_not_a_failure(box: DaemonBox) -> None:
    """on-failure leaves a zero exit alone."""
    box.run("c1", "true", labels=restart_labels("on-failure"))
    assert box.wait("c1").exit_status == 0
    box.restart()
    assert box.task("c1").status == process.STOPPED
    assert box.shim("c1").restarts == 0


def test_a_container_the_user_stopped_stays_stopped_until_started(box: DaemonBox) -> None:
    """The label before the kill, as containerd's clients do it; starting it anew takes the label away."""
    box.run("c1", "sleep", "1000", labels=restart_labels("unless-stopped"))
    update_label(box, "c1", STOPPED, "true")
    box.signal("c1", signal.SIGKILL)
    assert box.wait("c1").exit_status == 137
    box.restart()
    assert box.task("c1").status == process.STOPPED
    box.delete_task("c1")
    box.create_task("c1")
    pid = box.start_task("c1")
    assert STOPPED not in labels_of(box, "c1")
    box.signal("c1", signal.SIGKILL)
    wait_until(lambda: is_running_again(box, "c1", pid), what="the restart")


def test_a_crash_loop_slows_down_and_can_be_stopped(box: DaemonBox) -> None:
    """The pause is shown, survives a restart of the daemon, and the label ends it."""
    box.run("c1", "false", labels=restart_labels("always"))
    wait_until(lambda: box.shim("c1").restarts >= 3, what="some restarts")
    box.restart()
    wait_until(lambda: box.shim("c1").HasField("next_restart_at"), what="the next restart to be planned")
    update_label(box, "c1", STOPPED, "true")
    wait_until(lambda: not box.shim("c1").HasField("next_restart_at"), what="the plan to be dropped")
    assert box.task("c1").status == process.STOPPED
    assert len({record.incarnation for record in box.exits("c1")}) == len(box.exits("c1"))
    box.delete_task("c1")


def test_a_restart_that_cannot_be_is_tried_again(box: DaemonBox) -> None:
    """The rootfs is away for a while: the exit stays on record, and the container comes back when it can."""
    pid = box.run("c1", "sleep", "1000", labels=restart_labels("always"))
    os.rename(box.rootfs, f"{box.rootfs}.away")
    box.signal("c1")
    wait_until(lambda: box.shim("c1").restarts >= 2, what="attempts")
    assert box.wait("c1").exit_status == 137
    os.rename(f"{box.rootfs}.away", box.rootfs)
    wait_until(lambda: is_running_again(box, "c1", pid), deadline_s=20, what="the restart")


def test_after_a_reboot_policies_apply(box: DaemonBox) -> None:
    """always and unless-stopped come back, also without a known exit; what the user stopped only with always."""
    for name, policy in (
        ("a", "always"),
        ("u", "unless-stopped"),
        ("n", "no"),
        ("as", "always"),
        ("us", "unless-stopped"),
    ):
        box.run(name, "sleep", "1000", labels=restart_labels(policy))
    for name in ("as", "us"):
        update_label(box, name, STOPPED, "true")
        box.signal(name)
        box.wait(name)
    end_without_daemon(box, "a", "u", "n", "as", "us")
    pretend_reboot(box)
    box.start()
    for name in ("a", "u", "as"):
        wait_until(lambda name=name: is_running_again(box, name, 0), what=f"{name} to be back")
    for name in ("n", "us"):
        assert box.task(name).status == process.STOPPED
    assert box.shim("a").health == shimd.HEALTH_SERVING
