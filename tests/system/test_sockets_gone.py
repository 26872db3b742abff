"""Sockets that somebody removed: made again, and nothing is lost meanwhile."""

import os
import shutil
import signal

import pytest

from tests.support.daemonbox import DaemonBox
from tests.support.waiting import wait_until
from ttrpc.api import process, shimd

WAITING = "while [ ! -e /go ]; do sleep 0.02; done; exit 42"


@pytest.mark.parametrize("is_whole_folder", [False, True])
@pytest.mark.parametrize("is_shim_killed", [False, True])
def test_every_socket_is_removed(box: DaemonBox, is_whole_folder: bool, is_shim_killed: bool) -> None:
    """Those of shims, keeper and daemon, with the daemon killed: found again, by the same shim where that lives."""
    pid = box.run("c1", "sh", "-c", WAITING)
    shim = box.shim("c1")
    path = shim.address.removeprefix("unix://")
    box.kill()
    if is_shim_killed:
        os.kill(shim.pid, signal.SIGKILL)
    if is_whole_folder:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    else:
        os.unlink(path)
    shutil.rmtree(f"{box.state}/shimd-keeper", ignore_errors=True)
    os.unlink(box.address)
    box.start(recovered=False)
    wait_until(lambda: box.shim("c1").health == shimd.HEALTH_SERVING, deadline_s=30, what="the shim to be found again")
    assert os.path.exists(path)
    assert (box.shim("c1").pid == shim.pid) == (not is_shim_killed)
    found = box.task("c1")
    assert (found.status, found.pid) == (process.RUNNING, pid)
    assert box.exec("c1", "e1", "true")
    assert box.wait("c1", "e1").exit_status == 0
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    assert box.wait("c1").exit_status == 42
    assert box.topics("c1").count("/tasks/exit") == 2  # of the exec and of init
    box.delete_task("c1")
    assert not os.path.exists(path)


def test_a_socket_of_another_is_not_taken(box: DaemonBox) -> None:
    """A shim told that its socket is gone, where somebody else's is."""
    box.run("c1", "sleep", "1000")
    shim = box.shim("c1")
    path = shim.address.removeprefix("unix://")
    os.rename(path, f"{path}.aside")
    with open(path, "w", encoding="utf-8"):
        pass
    os.kill(shim.pid, signal.SIGURG)
    assert box.task("c1").status == process.RUNNING  # over the connection there is
    assert os.path.isfile(path)
    os.rename(f"{path}.aside", path)
