"""containerd's API as its clients rely on it: what is refused, with which kind, and what is promised."""

import contextlib
import json
import os
import signal
import threading
import time
from typing import Any

import pytest

from tests.support.daemonbox import CONTAINERS, NAMESPACE, SHIMD, SPEC_URL, TASKS, DaemonBox, refused
from tests.support.waiting import wait_until
from ttrpc.api import (
    cgroups1,
    cgroups2,
    containers,
    events_service,
    process,
    runc,
    shim,
    shimd,
    task,
    tasks,
    wkt,
)
from ttrpc.blocking import BlockingClient
from ttrpc.errors import DeadlineExceeded, StatusError
from ttrpc.status import Code

NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
EVENTS = "containerd.services.events.v1.Events"


# --- tasks


def test_a_life_by_the_api(box: DaemonBox) -> None:
    """What each state allows and refuses, and what everybody is told on the way."""
    with refused(Code.NOT_FOUND, "container nobody"):
        box.create_task("nobody")
    box.create_container("c1", "sh", "-c", "echo out; sleep 1000")
    with refused(Code.NOT_FOUND, "task c1"):
        box.task("c1")
    pid = box.create_task("c1")
    with refused(Code.ALREADY_EXISTS, "task c1"):
        box.create_task("c1")
    with refused(Code.FAILED_PRECONDITION, "delete the task first"):
        box.delete_container("c1")
    assert box.start_task("c1") == pid
    wait_until(lambda: box.output("c1") == "out\n", what="output")
    with refused(Code.UNKNOWN, "cannot delete a running"):
        box.delete_task("c1")
    assert box.task("c1").status == process.RUNNING

    box.exec("c1", "e1", "sh", "-c", "exit 4")
    assert box.wait("c1", "e1").exit_status == 4
    assert box.task("c1", "e1").status == process.STOPPED
    answer = box.tasks("DeleteProcess", tasks.DeleteProcessRequest(container_id="c1", exec_id="e1"))
    assert (answer.id, answer.exit_status) == ("e1", 4)
    with refused(Code.NOT_FOUND):
        box.task("c1", "e1")
    assert box.wait("c1", "e1").exit_status == 4  # stored, so also after its deletion

    box.signal("c1", signal.SIGKILL)
    assert box.wait("c1").exit_status == 137
    with refused(Code.NOT_FOUND, "already finished"):
        box.signal("c1")
    answer = box.delete_task("c1")
    assert (answer.pid, answer.exit_status) == (pid, 137)
    with refused(Code.NOT_FOUND):
        box.task("c1")
    assert [record.exec_id for record in box.exits("c1")] == ["e1", ""]
    box.delete_container("c1")
    assert box.topics("c1") == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ]


def test_what_can_be_done_to_a_running_task(box: DaemonBox) -> None:
    """Its processes, pause and resume, limits, metrics."""
    pid = box.run("c1", "sleep", "1000")
    pids = box.tasks("ListPids", tasks.ListPidsRequest(container_id="c1")).processes
    assert pid in [one.pid for one in pids]
    box.tasks("Pause", tasks.PauseTaskRequest(container_id="c1"))
    assert box.task("c1").status == process.PAUSED
    paused = box.tasks("List", tasks.ListTasksRequest(filter="status==paused")).tasks
    assert [one.id for one in paused] == ["c1"]
    box.tasks("Resume", tasks.ResumeTaskRequest(container_id="c1"))
    limits = wkt.any_of("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", b'{"pids":{"limit":99}}')
    box.tasks("Update", tasks.UpdateTaskRequest(container_id="c1", resources=limits))
    (metric,) = box.tasks("Metrics", tasks.MetricsRequest(filters=["id==c1"])).metrics
    messages = {
        "io.containerd.cgroups.v1.Metrics": cgroups1.Metrics,
        "io.containerd.cgroups.v2.Metrics": cgroups2.Metrics,
    }
    assert messages[metric.data.type_url].FromString(metric.data.value).pids.limit == 99
    assert list(box.tasks("Metrics", tasks.MetricsRequest(filters=["id==other"])).metrics) == []
    wait_until(lambda: box.topics("c1")[-2:] == ["/tasks/paused", "/tasks/resumed"], what="both to be told")


def test_a_created_task_that_was_never_started_can_be_deleted(box: DaemonBox) -> None:
    """Killed first; the id is free again at once."""
    box.create_container("c1", "sleep", "1000")
    for _ in range(2):
        box.create_task("c1")
        assert box.delete_task("c1").exit_status == 137


def spec_of(box: DaemonBox, **changes: Any) -> bytes:
    return json.dumps(box.spec("bad", ["true"], **changes)).encode()


@pytest.mark.parametrize(
    ("name", "words"),
    [("no json", "JSON"), ("no object", "object"), ("no rootfs", "rootfs"), ("no program", "/no/such/program")],
)
def test_bad_specs_leave_nothing_and_say_why(box: DaemonBox, name: str, words: str) -> None:
    """The runtime's own words, and the id is free afterwards."""
    nowhere = box.spec("bad", ["/no/such/program"])
    raw = {
        "no json": b"{",
        "no object": b"[]",
        "no rootfs": spec_of(box, root={"path": "/no/such/rootfs"}),
        "no program": json.dumps(nowhere).encode(),
    }[name]
    box.create_container("bad", spec=raw)
    with pytest.raises(StatusError) as caught:
        box.create_task("bad")
    assert words in caught.value.message, caught.value.message
    with refused(Code.NOT_FOUND):
        box.task("bad")
    assert not os.path.exists(box.bundle("bad"))
    assert os.listdir(f"{box.state}/s") == []
    box.delete_container("bad")


def test_a_runtime_that_is_not_there(box: DaemonBox) -> None:
    """Named in the error; nothing is left, and another runtime may be tried."""
    made = containers.Container(id="c1")
    made.runtime.name = "io.containerd.nothing.v9"
    made.spec.CopyFrom(wkt.any_of(SPEC_URL, spec_of(box)))
    box.call(CONTAINERS, "Create", containers.CreateContainerRequest(container=made))
    with refused(Code.NOT_FOUND, "containerd-shim-nothing-v9"):
        box.create_task("c1")
    request = tasks.CreateTaskRequest(container_id="c1", runtime_path="/bin/false")
    with refused(Code.UNKNOWN, "shim start failed"):
        box.tasks("Create", request)
    assert not os.path.exists(box.bundle("c1"))
    wrong = tasks.CreateTaskRequest(container_id="c1", options=wkt.pack(runc.Options(binary_name="/no/runc")))
    wrong.runtime_path = f"{os.path.dirname(box.command()[0])}/containerd-shim-shimd-v2"
    with pytest.raises(StatusError, match="/no/runc"):
        box.tasks("Create", wrong)
    assert not os.path.exists(box.bundle("c1"))


def test_wait_is_answered_for_everyone_and_outlives_the_daemon(box: DaemonBox) -> None:
    """Many waiters, before start and after exit; a client's deadline is the shim's, too."""
    box.create_container("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 6")
    box.create_task("c1")
    statuses: list[int] = []

    def wait_once() -> None:
        with BlockingClient.connect(box.address) as client:
            request = tasks.WaitRequest(container_id="c1")
            metadata = {"containerd-namespace-ttrpc": NAMESPACE}
            statuses.append(client.call(TASKS, "Wait", request, timeout_s=20, metadata=metadata).exit_status)

    waiters = [threading.Thread(target=wait_once) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    box.start_task("c1")
    with pytest.raises(DeadlineExceeded):
        box.tasks("Wait", tasks.WaitRequest(container_id="c1"), timeout_s=0.2)
    with refused(Code.NOT_FOUND, "nobody"):
        box.wait("c1", "nobody")
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    for waiter in waiters:
        waiter.join()
    assert statuses == [6] * 5
    box.restart()
    assert box.wait("c1").exit_status == 6


def test_an_exec_id_may_be_used_again(box: DaemonBox) -> None:
    """Wait tells the present one's exit, not the last one's, before, while and after it runs; also after a restart."""
    box.run("c1", "sleep", "1000")
    for code in (3, 4):
        box.exec("c1", "e", "sh", "-c", f"exit {code}")
        assert box.wait("c1", "e").exit_status == code
        box.tasks("DeleteProcess", tasks.DeleteProcessRequest(container_id="c1", exec_id="e"))
    box.add_exec("c1", "e", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 5")
    box.restart()
    with pytest.raises(DeadlineExceeded):
        box.tasks("Wait", tasks.WaitRequest(container_id="c1", exec_id="e"), timeout_s=0.2)
    box.start_task("c1", "e")
    with pytest.raises(DeadlineExceeded):
        box.tasks("Wait", tasks.WaitRequest(container_id="c1", exec_id="e"), timeout_s=0.2)
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    assert box.wait("c1", "e").exit_status == 5
    assert [record.code for record in box.exits("c1", "e")] == [3, 4, 5]


def test_checkpoint_needs_a_directory_and_reports_what_criu_says(box: DaemonBox) -> None:
    """Without image_path it is refused as unimplemented; with one, runc is asked."""
    box.run("c1", "sleep", "1000")
    with refused(Code.UNIMPLEMENTED, "image_path"):
        box.tasks("Checkpoint", tasks.CheckpointTaskRequest(container_id="c1"))
    options = wkt.pack(runc.CheckpointOptions(image_path=f"{box.folder}/image"))
    with pytest.raises(StatusError) as caught:
        box.tasks("Checkpoint", tasks.CheckpointTaskRequest(container_id="c1", options=options))
    assert "checkpoint" in caught.value.message or "criu" in caught.value.message
    assert box.task("c1").status == process.RUNNING


# --- streams


def test_subscribe_and_forward(box: DaemonBox) -> None:
    """Live events of a filter; an event forwarded by another shim reaches subscribers and the journal."""
    with BlockingClient.connect(box.address) as subscriber:
        request = events_service.SubscribeRequest(filters=["topic~=/^.tasks.(start|exit)$/"])
        stream = subscriber.open_stream(EVENTS, "Subscribe", request, timeout_s=20)
        told = events_service.Envelope(
            timestamp=wkt.timestamp(time.time_ns()),
            namespace="other",
            topic="/tasks/start",
            event=wkt.any_of("t", b"x"),
        )

        def forward_and_receive() -> bool:
            """The subscription begins when the daemon has read it, so ask until it has."""
            box.call(EVENTS, "Forward", events_service.ForwardRequest(envelope=told))
            with contextlib.suppress(TimeoutError, DeadlineExceeded):
                return stream.receive(timeout_s=0.2).namespace == "other"
            return False

        wait_until(forward_and_receive, what="the subscription")
        box.run("c1", "true")
        topics: list[str] = []
        while len(topics) < 2:
            envelope = stream.receive(timeout_s=10)
            if envelope.namespace == NAMESPACE:
                topics.append(envelope.topic)
        assert topics == ["/tasks/start", "/tasks/exit"]


def test_logs_and_attach_pass_through(box: DaemonBox) -> None:
    """The container's log by Logs; its stdin and output by Attach, with the exit as the last word."""
    box.create_container("c1", "sh", "-c", "echo begin; read word; echo got $word; exit 3")
    log = f"log://{box.log_file('c1')}"
    box.tasks("Create", tasks.CreateTaskRequest(container_id="c1", stdin="attach:", stdout=log, stderr=log))
    metadata = {"containerd-namespace-ttrpc": NAMESPACE}
    with BlockingClient.connect(box.address) as client:
        stream = client.open_stream(SHIMD, "Attach", None, timeout_s=20, metadata=metadata)
        opening = shim.AttachInput(open=shim.AttachOpen(stdin=True, output=True))
        stream.send(shimd.AttachInput(container_id="c1", input=opening))
        assert stream.receive(timeout_s=10).WhichOneof("output") == "opened"
        box.start_task("c1")
        stream.send(shimd.AttachInput(input=shim.AttachInput(stdin=b"word\n")))
        output, last = b"", None
        for message in stream:
            output, last = output + message.stdout, message
        assert output == b"begin\ngot word\n"
        assert last is not None
        assert (last.WhichOneof("output"), last.exited.code) == ("exited", 3)
        logs = client.open_stream(SHIMD, "Logs", shimd.LogsRequest(container_id="c1"), timeout_s=10, metadata=metadata)
        assert b"".join(record.data for record in logs) == b"begin\ngot word\n"
        bad = client.open_stream(SHIMD, "Attach", None, timeout_s=10, metadata=metadata)
        bad.send(shimd.AttachInput(container_id="c1"))
        with refused(Code.INVALID_ARGUMENT, "input.open"):
            bad.receive(timeout_s=10)


def test_a_client_that_goes_away_in_the_middle_of_create_leaves_nothing(box: DaemonBox) -> None:
    """The half-made task is undone, and the next client can create it."""
    box.create_container("c1", "sleep", "1000")
    with pytest.raises(DeadlineExceeded):
        box.tasks("Create", tasks.CreateTaskRequest(container_id="c1"), timeout_s=0.03)

    # It is found in the way for as long as it is being undone.
    wait_until(lambda: not box.call(SHIMD, "Shims", shimd.ShimsRequest()).shims, what="the half-made one to be undone")
    box.create_task("c1")
    assert box.task("c1").status == process.CREATED


def test_the_state_of_a_foreign_shim_call_is_not_ours_to_change(box: DaemonBox) -> None:
    """Deleted directly in the shim: the store still tells how it ended, and Delete finishes the rest."""
    box.run("c1", "sh", "-c", "exit 8")
    assert box.wait("c1").exit_status == 8
    with BlockingClient.connect(box.shim("c1").address) as direct:
        direct.call("containerd.task.v2.Task", "Delete", task.DeleteRequest(id="c1"), timeout_s=10)
    found = box.task("c1")
    assert (found.status, found.exit_status) == (process.STOPPED, 8)
    assert box.delete_task("c1").exit_status == 8
