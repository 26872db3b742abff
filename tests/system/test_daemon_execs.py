"""Execs that nobody comes back for: their shim forgets them, the store does not."""

import os

import pytest

from tests.support.daemonbox import GO_RUNTIME, RUNTIME, DaemonBox, refused
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.blocking import BlockingClient
from ttrpc.errors import StatusError
from ttrpc.status import Code

KEPT = 64


@pytest.mark.parametrize(("runtime", "count"), [(RUNTIME, 100), (GO_RUNTIME, 80)])
def test_detached_execs_do_not_stay_for_ever(runtime: str, count: int) -> None:
    """The newest 64 that are over stay to be asked about; the exit of every one can be waited for."""
    with DaemonBox() as box:
        (box.run if runtime == RUNTIME else box.run_foreign)("c1", "sleep", "1000")
        box.exec("c1", "stays", "sleep", "1000")
        for number in range(count):
            box.exec("c1", f"e{number}", "sh", "-c", f"exit {number % 100}")
        wait_until(lambda: len(box.exits("c1")) == count, deadline_s=30, what="every exit")
        with BlockingClient.connect(box.shim("c1").address) as client:
            wait_until(lambda: not is_there(client, f"e{count - KEPT - 1}"), what="old ones to be forgotten")
            assert is_there(client, "stays")
            assert is_there(client, f"e{count - 1}")
            assert sum(is_there(client, f"e{number}") for number in range(count)) == KEPT
            if runtime == RUNTIME:
                info = client.call("shimd.shim.v1.Shim", "Info", shim.InfoRequest(), timeout_s=5)
                assert info.processes == KEPT + 2
                files = [name for name in os.listdir(f"{box.bundle('c1')}/exits") if name.endswith(".json")]
                assert len(files) == KEPT
        assert [box.wait("c1", f"e{number}").exit_status for number in range(0, count, 9)] == [
            number % 100 for number in range(0, count, 9)
        ]
        with refused(Code.NOT_FOUND):
            box.task("c1", "e0")
        box.restart()
        assert box.wait("c1", "e0").exit_status == 0
        assert len(box.exits("c1")) == count


def is_there(client: BlockingClient, exec_id: str) -> bool:
    """Whether the shim itself knows this exec."""
    try:
        client.call("containerd.task.v2.Task", "State", task.StateRequest(id="c1", exec_id=exec_id), timeout_s=5)
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise
        return False
    return True
