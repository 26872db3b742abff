"""Containers that go with their end (label shimd.io/auto-remove=true): removed whole, whenever the daemon dies."""

import os
import signal

import pytest

from daemon.faults import ARMED
from tests.support.daemonbox import CONTAINERS, DaemonBox, restart_labels
from tests.support.waiting import wait_until
from ttrpc.api import containers, process, shim, shimd
from ttrpc.errors import StatusError

LABELS = {"shimd.io/auto-remove": "true"}
WAITING = "while [ ! -e /go ]; do sleep 0.02; done; exit 4"


def is_gone(box: DaemonBox) -> bool:
    """No record, no task, no log, no bundle."""
    try:
        box.call(CONTAINERS, "Get", containers.GetContainerRequest(id="c1"))
    except StatusError:
        shims = box.call("shimd.v1.Shimd", "Shims", shimd.ShimsRequest()).shims
        return not shims and not os.path.exists(box.bundle("c1")) and not os.path.exists(box.log_file("c1"))
    return False


def test_it_is_removed_at_its_end() -> None:
    """Its exit and events stay."""
    with DaemonBox() as box:
        box.run("c1", "sh", "-c", WAITING, labels=LABELS)
        assert box.task("c1").status == process.RUNNING
        box.let_go()
        wait_until(lambda: is_gone(box), what="its removal")
        assert [one.code for one in box.exits("c1")] == [4]
        assert [event.topic for event in box.events()][-3:] == ["/tasks/exit", "/tasks/delete", "/containers/delete"]


def test_it_is_removed_after_the_daemon_s_own_end() -> None:
    """Ended while the daemon was down: with its shim, and without."""
    with DaemonBox() as box:
        pid = box.run("c1", "sh", "-c", WAITING, labels=LABELS)
        box.kill()
        box.let_go()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="its end")
        box.start()
        wait_until(lambda: is_gone(box), what="its removal")
        os.unlink(f"{box.rootfs}/go")

        box.run("c1", "sh", "-c", WAITING, labels=LABELS)
        os.unlink(f"{box.bundle('c1')}/state.json")  # what another shim would need
        os.kill(box.shim("c1").pid, signal.SIGKILL)
        wait_until(lambda: box.shim("c1").health == shimd.HEALTH_GONE, what="the loss to be noticed")
        box.let_go()
        wait_until(lambda: is_gone(box), what="its removal")
        assert [(one.HasField("code"), one.source) for one in box.exits("c1")] == [
            (True, shim.EXIT_SOURCE_WAITID),
            (False, shim.EXIT_SOURCE_UNKNOWN),
        ]


@pytest.mark.parametrize(
    "point", ["exit.committed", "delete.task_deleted", "delete.marked", "delete.bundle_removed", "delete.row_removed"]
)
def test_it_is_removed_whole_whatever_step_the_daemon_dies_at(point: str) -> None:
    with DaemonBox(environ={"SHIMD_FAULTS": f"{point}=kill", "SHIMD_FAULTS_ARMED": ARMED}) as box:
        box.environ.clear()
        box.run("c1", "sh", "-c", WAITING, labels=LABELS)
        box.let_go()
        assert box.gone() == -signal.SIGKILL
        box.start()
        wait_until(lambda: is_gone(box), what="its removal")
        assert [one.code for one in box.exits("c1")] == [4]
        assert box.topics("c1").count("/tasks/exit") == 1


def test_what_is_to_come_back_or_never_ran_is_not_removed() -> None:
    """A restart policy wins; a created task that is deleted leaves its record."""
    with DaemonBox() as box:
        box.run("c1", "sh", "-c", "exit 1", labels={**LABELS, **restart_labels("on-failure:1")})
        wait_until(lambda: len(box.exits("c1")) == 2, what="its restart")
        wait_until(lambda: box.task("c1").status == process.STOPPED, what="its end")
        assert box.shim("c1").restarts == 1
        box.create_container("c2", "true", labels=LABELS)
        box.create_task("c2")
        assert box.task("c2").status == process.CREATED
        assert box.call(CONTAINERS, "Get", containers.GetContainerRequest(id="c2")).container.id == "c2"
