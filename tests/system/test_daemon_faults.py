"""SIGKILL at every step: each fault point is reached, the daemon dies there, and the client can go on afterwards."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from daemon.faults import ARMED, POINTS
from tests.support.daemonbox import (
    CONTAINERS,
    GO_RUNTIME,
    NAMESPACE,
    PROCESS_URL,
    RUNTIME,
    DaemonBox,
    restart_labels,
)
from tests.support.shimbox import make_process
from tests.support.waiting import wait_until
from ttrpc.api import containers, process, tasks, wkt
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

RESTART_POINTS = tuple(point for point in POINTS if point.startswith("restart."))
FOREIGN_POINTS = ("foreign.before_commit", "foreign.committed")
FOLLOW_POINTS = tuple(point for point in POINTS if point.startswith(("ingest.", "exit.")))
UPGRADE_POINTS = tuple(point for point in POINTS if point.startswith(("upgrade.", "successor.")))
LIFE_POINTS = tuple(point for point in POINTS if point not in (*RESTART_POINTS, *FOREIGN_POINTS, *UPGRADE_POINTS))
FOREIGN_LIFE_POINTS = tuple(
    point for point in POINTS if point not in (*RESTART_POINTS, *FOLLOW_POINTS, *UPGRADE_POINTS)
)

WHOLE_LIFE = [
    "/tasks/create",
    "/tasks/start",
    "/tasks/exec-added",
    "/tasks/exec-started",
    "/tasks/exit",
    "/tasks/exit",
    "/tasks/delete",
]


def armed(point: str) -> dict[str, str]:
    return {"SHIMD_FAULTS": f"{point}=kill", "SHIMD_FAULTS_ARMED": ARMED}


LOST = (ConnectionLost, ConnectionError, FileNotFoundError)


class Client:
    """A client that goes on after the daemon died under it: it looks what became of its request, and asks again."""

    def __init__(self, box: DaemonBox) -> None:
        self.box = box
        self.deaths = 0

    def settle(self, act: Callable[[], Any], is_done: Callable[[], bool]) -> None:
        """Do something; when the daemon dies meanwhile, look whether it is done before doing it again."""
        deaths = self.deaths
        while True:
            try:
                act()
            except LOST:
                self.revive()
                if is_done():
                    return
            else:
                return
            assert self.deaths < deaths + 3, "the daemon dies again and again"

    def look(self, question: Callable[[], Any]) -> Any:
        """Ask something that may be asked any number of times; None when it is not there."""
        while True:
            try:
                return question()
            except LOST:
                self.revive()
            except StatusError as error:
                if error.code != Code.NOT_FOUND:
                    raise
                return None

    def revive(self) -> None:
        assert self.box.gone() == -signal.SIGKILL, self.box.log()
        self.deaths += 1
        self.box.start()

    def status(self, exec_id: str = "") -> int | None:
        found = self.look(lambda: self.box.task("c1", exec_id))
        return None if found is None else int(found.status)

    def has_container(self) -> bool:
        get = containers.GetContainerRequest(id="c1")
        return self.look(lambda: self.box.call(CONTAINERS, "Get", get)) is not None

    def idempotent(self, act: Callable[[], Any], *expected: Code) -> Callable[[], None]:
        """For a second try: what it complains of is that it was done."""

        def again() -> None:
            try:
                act()
            except StatusError as error:
                if error.code not in expected:
                    raise

        return again


@pytest.mark.parametrize("point", LIFE_POINTS)
def test_killed_in_the_middle_of_a_life(point: str) -> None:
    """Create, start, exec, exit, delete: whatever step the daemon dies at, all of it happens, and once."""
    with DaemonBox(environ=armed(point)) as box:
        box.environ.clear()  # the next daemon is not armed
        client = Client(box)
        live_through(client)
        assert client.deaths == 1, f"{point} was never reached"
        assert box.topics("c1") == WHOLE_LIFE
        assert [(record.exec_id, record.code) for record in box.exits("c1")] == [("e1", 3), ("", 5)]
        left_of(box)


@pytest.mark.parametrize("point", [point for point in FOREIGN_LIFE_POINTS if not point.startswith("containers.")])
def test_killed_in_the_middle_of_a_life_under_containerd_s_shim(point: str) -> None:
    """The same with a shim that is not ours: every exit once. What it could not tell before it was ended, we miss."""
    with DaemonBox(environ=armed(point)) as box:
        box.environ.clear()
        client = Client(box)
        live_through(client, runtime=GO_RUNTIME)
        assert client.deaths == 1, f"{point} was never reached"
        assert sorted((record.exec_id, record.code) for record in box.exits("c1")) == [("", 5), ("e1", 3)]
        told = box.topics("c1")
        assert told.count("/tasks/exit") == 2
        assert all(told.count(topic) <= WHOLE_LIFE.count(topic) for topic in told)
        left_of(box)


def live_through(client: Client, runtime: str = RUNTIME) -> None:
    box = client.box
    args = ("sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 5")
    client.settle(
        client.idempotent(lambda: box.create_container("c1", *args, runtime=runtime), Code.ALREADY_EXISTS),
        client.has_container,
    )
    client.settle(
        lambda: box.create_task("c1", is_foreign=runtime != RUNTIME), lambda: client.status() == process.CREATED
    )
    assert client.status() == process.CREATED
    client.settle(lambda: box.start_task("c1"), lambda: client.status() == process.RUNNING)
    client.settle(lambda: box.tasks("Exec", exec_request()), lambda: client.status("e1") is not None)
    client.settle(lambda: box.start_task("c1", "e1"), lambda: client.status("e1") != process.CREATED)
    codes: list[int] = []
    client.settle(lambda: codes.append(box.wait("c1", "e1").exit_status), lambda: False)
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    client.settle(lambda: codes.append(box.wait("c1").exit_status), lambda: False)
    assert codes == [3, 5]
    client.settle(client.idempotent(lambda: box.delete_task("c1"), Code.NOT_FOUND), lambda: client.status() is None)
    assert client.status() is None
    client.settle(
        client.idempotent(lambda: box.delete_container("c1"), Code.NOT_FOUND), lambda: not client.has_container()
    )


def exec_request() -> "tasks.ExecProcessRequest":
    request = tasks.ExecProcessRequest(container_id="c1", exec_id="e1")
    request.spec.CopyFrom(wkt.any_of(PROCESS_URL, json.dumps(make_process(["sh", "-c", "exit 3"])).encode()))
    return request


def left_of(box: DaemonBox) -> None:
    """Nothing of the container is left: no bundle, no socket, no runc state, no record."""
    assert not os.path.exists(box.bundle("c1"))
    assert os.listdir(f"{box.state}/s") == []
    runc_root = f"{box.state}/runc/{NAMESPACE}"
    assert not os.path.exists(runc_root) or os.listdir(runc_root) == []
    assert list(box.tasks("List", tasks.ListTasksRequest()).tasks) == []


@pytest.mark.parametrize("point", RESTART_POINTS)
def test_killed_in_the_middle_of_a_restart_by_policy(point: str) -> None:
    """The container comes back in any case, by itself; here its shim is lost, and the restart the daemon's."""
    with DaemonBox(environ=armed(point)) as box:
        box.environ.clear()
        first = box.run("c1", "sleep", "1000", labels=restart_labels("always"))
        box.lose("c1", box.shim("c1").pid, first)
        wait_until(lambda: box.daemon is not None and box.daemon.poll() is not None, what=f"{point} to be reached")
        assert box.gone() == -signal.SIGKILL
        box.start()
        client = Client(box)
        wait_until(
            lambda: client.status() == process.RUNNING and box.task("c1").pid != first, what="the container to be back"
        )
        assert box.shim("c1").restarts >= 1
        labels = box.call(CONTAINERS, "Get", containers.GetContainerRequest(id="c1")).container.labels
        assert labels["containerd.io/restart.count"] == str(box.shim("c1").restarts)
