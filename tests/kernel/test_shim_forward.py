"""A real shim that tells its events to a containerd; ours here only takes them, and comes and goes as we like."""
# ruff: noqa: N802 - handlers are named like the rpcs they answer

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shim.serving.forwarder import HOMECOMING_S, SERVICE
from tests.support.shimbox import NAMESPACE, ShimBox
from tests.support.threadserver import AFTER, BEFORE, Call, ThreadServer
from tests.support.waiting import wait_until
from ttrpc.api import events, wkt
from ttrpc.errors import StatusError
from ttrpc.service import Registry
from ttrpc.status import Code

A_MOMENT_S = HOMECOMING_S + 15.0


class Containerd:
    """Owns the event socket. `envelopes` are all it was told, in order."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "events")
        self.envelopes: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        registry = Registry()
        registry.register(SERVICE, self)
        self.server = ThreadServer(self.path, registry)

    def Forward(self, call: Call) -> Any:
        self.envelopes.append(call.request.envelope)
        self.metadata.append(call.metadata)
        return wkt.Empty()

    def topics(self) -> list[str]:
        return [envelope.topic.removeprefix("/tasks/") for envelope in list(self.envelopes)]

    def wait_for(self, topic: str) -> None:
        wait_until(lambda: topic in self.topics(), deadline_s=A_MOMENT_S, what=f"{topic} to be told")


@pytest.fixture
def containerd(short_dir: str) -> Iterator[Containerd]:
    made = Containerd(short_dir)
    made.server.start()
    yield made
    made.server.stop()


def wait_acknowledged(box: ShimBox, seq: int) -> None:
    """Until all up to that is known to have been taken: what is taken and not answered is told again."""
    wait_until(lambda: box.info().acked_seq == seq, deadline_s=A_MOMENT_S, what=f"{seq} events to be acknowledged")


@contextlib.contextmanager
def box_for(containerd: Containerd, *args: str) -> Iterator[ShimBox]:
    with ShimBox(args or ("sleep", "1000"), environment={"TTRPC_ADDRESS": containerd.path}) as box:
        yield box


def test_a_whole_life_is_told_in_order_and_the_shim_ends_after_its_last_word(containerd: Containerd) -> None:
    with box_for(containerd) as box:
        box.create()
        box.start()
        box.run_exec("e1", ["sh", "-c", "exit 3"])
        box.kill(9)
        box.wait()
        box.delete()
        box.shutdown()
        box.wait_for_shim_end()

        assert containerd.topics() == ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
        assert {envelope.namespace for envelope in containerd.envelopes} == {NAMESPACE}
        assert all(envelope.timestamp.seconds > 0 for envelope in containerd.envelopes)
        assert all(found["containerd-namespace-ttrpc"] == NAMESPACE for found in containerd.metadata)
        of_exec, of_init = (
            events.TaskExit.FromString(envelope.event.value)
            for envelope in containerd.envelopes
            if envelope.topic == "/tasks/exit"
        )
        assert (of_exec.id, of_exec.exit_status, of_init.id, of_init.exit_status) == ("e1", 3, "box", 137)
        assert of_exec.pid
        assert of_init.exited_at.seconds > 0


def test_what_happened_while_containerd_was_away_is_told_when_it_is_back(containerd: Containerd) -> None:
    with box_for(containerd) as box:
        box.create()
        box.start()
        wait_acknowledged(box, 2)
        containerd.server.die()
        box.run_exec("e1", ["true"])
        box.kill(9)
        box.wait()
        assert containerd.topics() == ["create", "start"]
        containerd.server.start()
        wait_until(lambda: len(containerd.topics()) == 6, deadline_s=A_MOMENT_S, what="the rest to be told")

        assert containerd.topics()[2:] == ["exec-added", "exec-started", "exit", "exit"]
        wait_acknowledged(box, 6)


@pytest.mark.parametrize(("when", "told"), [(BEFORE, 1), (AFTER, 2)])
def test_a_connection_lost_over_an_exit_loses_no_exit(containerd: Containerd, when: str, told: int) -> None:
    """Lost after it took effect it is told once more: at least once."""
    with box_for(containerd) as box:
        box.create()
        box.start()
        containerd.wait_for("start")
        containerd.server.losses["Forward"] = when
        box.kill(9)
        box.wait()
        box.delete()
        containerd.wait_for("delete")

        assert containerd.topics() == ["create", "start", *["exit"] * told, "delete"]


def test_nobody_acknowledges_in_containerds_place(containerd: Containerd) -> None:
    """But anybody may follow what containerd has not taken yet."""
    with box_for(containerd) as box:
        containerd.server.die()
        box.create()
        assert box.events("/tasks/create")[-1].topic == "/tasks/create"
        with pytest.raises(StatusError, match="acknowledged by containerd") as refusal:
            box.ack(1)
        containerd.server.start()

        assert refusal.value.code == Code.FAILED_PRECONDITION


def test_a_shim_that_is_asked_to_end_while_containerd_is_away_waits_for_it(containerd: Containerd) -> None:
    """Its answer is at once, its socket free for the next shim; the last events are told by who is left."""
    with box_for(containerd) as box:
        box.create()
        box.start()
        box.kill(9)
        box.wait()
        wait_acknowledged(box, 3)
        containerd.server.die()
        box.delete()
        box.shutdown()
        wait_until(lambda: not os.listdir(box.sockets), what="the socket to be gone")
        assert box.is_shim_alive()
        containerd.server.start()
        box.wait_for_shim_end()

        assert containerd.topics() == ["create", "start", "exit", "delete"]


@contextlib.contextmanager
def box_beside(script: str, folder: str) -> Iterator[tuple[ShimBox, "subprocess.Popen[bytes]"]]:
    """A shim whose containerd is a program of the test's own; both are killed at the end."""
    path = os.path.join(folder, "other")
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            with ShimBox(environment={"TTRPC_ADDRESS": path}) as box:
                yield box, other
                os.kill(box.shim_pid, signal.SIGKILL)  # it would wait for its last events to be taken
        finally:
            other.kill()


MUTE = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
connections = []
while True:
    connections.append(listener.accept())
"""


def test_a_containerd_that_is_stopped_holds_nothing_up(short_dir: str) -> None:
    """It neither answers nor goes away: the shim serves on."""
    with box_beside(MUTE, short_dir) as (box, mute):
        box.create()
        mute.send_signal(signal.SIGSTOP)
        box.start()
        assert box.run_exec("e1", ["sh", "-c", "exit 3"]).exit_status == 3
        box.kill(9)

        assert box.wait().exit_status == 137
        assert box.info().acked_seq == 0


STRANGER = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
os.setgid(12345)
listener.listen()
print("ready", flush=True)
print(listener.accept()[0].recv(1000), flush=True)
"""


def test_a_stranger_on_containerds_socket_is_told_nothing(short_dir: str) -> None:
    with box_beside(STRANGER, short_dir) as (box, stranger):
        box.create()

        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"b''\n"
        wait_until(lambda: "not our own user and group" in box.read("shim.log"), what="the reason in the log")
