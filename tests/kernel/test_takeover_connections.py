"""A client's connection outlives any number of shims: nothing on it is lost, answered twice, or torn."""

import os
import random
import signal
import socket
import threading
import time
from typing import Any

import pytest

from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, TASK
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.connection import CALLER, Connection
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.service import find_method
from ttrpc.status import Code
from ttrpc.wire_events import ResponseReceived

WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]
KILLS = int(os.environ.get("SHIMD_TEST_CONNECTION_KILLS", "30"))


def kill(box: KeptBox) -> None:
    """SIGKILL whoever serves; connections stay."""
    dead = box.shim_pid
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: read_pid(box) not in (0, dead), what="a successor")
    box.shim_pid = read_pid(box)


def read_pid(box: KeptBox) -> int:
    """Of the shim; 0 while the file is being written."""
    return int(box.read("shim.pid") or 0)


def test_one_connection_serves_a_life_over_many_shims() -> None:
    with KeptBox(WAITER) as box:
        pid = box.create().pid
        kill(box)
        assert box.start().pid == pid
        waits = box.wait_later()
        for number in range(3):
            kill(box)
            assert box.state().pid == pid
            kill(box)
            assert box.run_exec(f"e{number}", ["sh", "-c", f"exit {number}"]).exit_status == number
        kill(box)
        box.let_go()

        assert waits.receive(timeout_s=20).exit_status == 42
        kill(box)
        assert box.delete().exit_status == 42
        box.shutdown()


def test_requests_wait_in_the_socket_while_no_shim_lives() -> None:
    """The keeper is stopped, so no successor comes: what is asked meanwhile is answered when it does."""
    with KeptBox(WAITER) as box:
        box.create()
        box.start()
        keeper = box.keeper_pid
        os.kill(keeper, signal.SIGSTOP)
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        asked = [box.client.open_stream(TASK, "State", task.StateRequest(id=box.id)) for _ in range(50)]
        os.kill(keeper, signal.SIGCONT)

        pids = {stream.receive(timeout_s=20).pid for stream in asked}
        assert pids == {box.state().pid}
        box.find_shim()


def test_a_connection_that_streamed_ends_with_its_shim() -> None:
    with KeptBox(WAITER) as box:
        box.create()
        follower = box.connect()
        stream = follower.open_stream(SHIM, "Follow", shim.FollowRequest())
        assert stream.receive(timeout_s=20).seq == 1
        kill(box)
        with pytest.raises(ConnectionLost):
            stream.receive(timeout_s=20)
        assert box.state().pid


def test_more_connections_than_fit_one_message_go_on() -> None:
    with KeptBox(WAITER) as box:
        box.create()
        clients = [box.connect() for _ in range(126)]
        for client in clients:
            assert client.call(SHIM, "Info", shim.InfoRequest(), timeout_s=20).pid == box.shim_pid
        kill(box)
        for client in clients:
            assert client.call(TASK, "State", task.StateRequest(id=box.id), timeout_s=20).pid
        assert box.info().pid == box.shim_pid


def test_closed_connections_are_let_go() -> None:
    """By shim and keeper: their fds are as many as before."""
    with KeptBox(WAITER) as box:
        box.create()
        box.info()
        before = fds(box)
        for _ in range(20):
            client = box.connect()
            client.call(SHIM, "Info", shim.InfoRequest(), timeout_s=20)
            client.close()
        wait_until(lambda: fds(box) == before, what="the fds to be closed")
        kill(box)
        box.info()
        wait_until(lambda: fds(box)[1] == before[1], what="the keeper to hold no more")


def fds(box: KeptBox) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{box.shim_pid}/fd")), len(os.listdir(f"/proc/{box.keeper_pid}/fd"))


# --- at random


class Caller:
    """A raw client: knows of each request how often it was answered."""

    def __init__(self, box: KeptBox) -> None:
        self.box = box
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(box.address.removeprefix("unix://"))
        self.core = Connection(CALLER)
        self.pending: dict[int, str] = {}
        self.answers: dict[int, ResponseReceived] = {}
        self.twice: list[int] = []

    def ask(self, method: str, request: Any, service: str = TASK) -> int:
        found = find_method(service, method)
        stream_id, data = self.core.send_request(found.shape, found.prefix, request.SerializeToString())
        self.pending[stream_id] = method
        self.socket.sendall(data)
        return stream_id

    def receive(self, until: int, deadline_s: float = 60.0) -> Any:
        """Read until that one is answered; its answer as a message. Raises: StatusError with what it says."""
        self.socket.settimeout(deadline_s)
        while until not in self.answers:
            data = self.socket.recv(1 << 16)
            assert data, f"the connection ended; unanswered: {self.pending}"
            for event in self.core.receive_bytes(data):
                assert isinstance(event, ResponseReceived)
                if self.pending.pop(event.stream_id, None) is None:
                    self.twice.append(event.stream_id)
                self.answers[event.stream_id] = event
        return self.answers[until]

    def call(self, method: str, request: Any, service: str = TASK) -> Any:
        answer = self.receive(self.ask(method, request, service))
        if answer.status is not None:
            raise StatusError(answer.status.code, answer.status.message)
        return find_method(service, method).output.FromString(answer.payload or b"")


class Killer(threading.Thread):
    """Kills whoever serves the box, at random moments; ``pids`` are those it killed."""

    def __init__(self, box: KeptBox, count: int, chance: random.Random) -> None:
        super().__init__()
        self.box, self.count, self.chance = box, count, chance
        self.killed: list[int] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.count:
            self.is_over.wait(self.chance.choice((0.0, 0.005, 0.05, 0.2)) * self.chance.random())
            pid = read_pid(self.box)
            if pid and pid not in self.killed:
                os.kill(pid, signal.SIGKILL)
                self.killed.append(pid)
        self.is_over.set()


def test_every_request_is_answered_once_however_often_the_shim_is_killed() -> None:
    """Exec, Start, Wait, Delete, Kill and State in a mix; Waits are pending all the time. Every exec runs once."""
    seed = int(os.environ.get("SHIMD_TEST_SEED", "0")) or time.time_ns() % (1 << 30)
    chance = random.Random(seed)
    with KeptBox(["sh", "-c", "while :; do sleep 1; done"]) as box:
        box.create()
        box.start()
        pid = box.state().pid
        caller = Caller(box)
        caller.call("State", task.StateRequest(id=box.id))  # one that the shim has just accepted the keeper has not yet
        waits = [caller.ask("Wait", task.WaitRequest(id=box.id)) for _ in range(20)]
        killer = Killer(box, KILLS, chance)
        killer.start()
        rounds = 0
        try:
            while not killer.is_over.is_set():
                rounds += 1
                live_through(caller, box, f"e{rounds}", pid)
        except BaseException as error:
            error.add_note(f"seed {seed}, {len(killer.killed)} kills, round {rounds}; {box.read('shim.log')[-6000:]}")
            killer.count = 0
            raise
        finally:
            killer.join()
        caller.call("Kill", task.KillRequest(id=box.id, signal=signal.SIGKILL, all=True))
        for stream_id in waits:
            answer = caller.receive(stream_id)
            assert task.WaitResponse.FromString(answer.payload or b"").exit_status == 137
        box.find_shim()

        assert (caller.twice, caller.pending, caller.core.late_frames) == ([], {}, 0)
        assert caller.core.reader.unparsed == b""
        assert len(killer.killed) == KILLS
        with open(os.path.join(box.rootfs, "ran"), encoding="utf-8") as file:
            assert file.read().split() == [f"e{number}" for number in range(1, rounds + 1)]
        caller.socket.close()


def live_through(caller: Caller, box: KeptBox, exec_id: str, pid: int) -> None:
    """One exec's life, with questions in between."""
    process = box.exec_request(exec_id, ["sh", "-c", "echo $0 >>/ran; exit 7", exec_id])
    states = [caller.ask("State", task.StateRequest(id=box.id)) for _ in range(5)]
    caller.call("Exec", process)
    with pytest.raises(StatusError) as error:
        caller.call("Exec", process)
    assert error.value.code == Code.ALREADY_EXISTS
    waits = caller.ask("Wait", task.WaitRequest(id=box.id, exec_id=exec_id))
    exec_pid = caller.call("Start", task.StartRequest(id=box.id, exec_id=exec_id)).pid
    assert exec_pid > 0
    status = task.WaitResponse.FromString(caller.receive(waits).payload or b"").exit_status
    assert status == 7
    gone = caller.call("Delete", task.DeleteRequest(id=box.id, exec_id=exec_id))
    assert (gone.pid, gone.exit_status) == (exec_pid, status)
    for stream_id in states:
        state = task.StateResponse.FromString(caller.receive(stream_id).payload or b"")
        assert (state.pid, state.status) == (pid, 2)
    assert caller.call("Connect", task.ConnectRequest(id=box.id)).task_pid == pid
