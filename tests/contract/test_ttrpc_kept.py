"""A connection that is gone on with by another server: killed between any two system calls, each request is answered
once, and nothing is torn.

The kill is played: a wrapped system call raises what nothing catches, and the next server gets copies of the fds.
"""

import contextlib
import os
import random
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from shim.core.loop import Loop
from tests.contract.ttrpc_service import NAME, Text
from ttrpc import ledger
from ttrpc.connection import CALLER, Connection
from ttrpc.ledger import Ledger
from ttrpc.loopdriver import LoopServer
from ttrpc.server_call import ServerCall
from ttrpc.service import Registry, find_method
from ttrpc.wire_events import ResponseReceived

BIG = 300_000  # more than a socket takes at once
ROUNDS = int(os.environ.get("SHIMD_TEST_KEPT_ROUNDS", "150"))


class Killed(BaseException):
    """The process is gone."""


class Fuse:
    """Counts system calls; the one it is set for is not made, or if it writes, is made half."""

    def __init__(self) -> None:
        self.count = 0
        self.kill_at = -1
        self.is_torn = False

    def step(self) -> bool:
        """Whether this call dies half-way."""
        self.count += 1
        if self.count - 1 == self.kill_at:
            if self.is_torn:
                return True
            raise Killed
        return False


class FusedOs:
    """The os module as the ledger uses it."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        if self._fuse.step():
            if len(data) > 16:  # less is never torn
                os.pwrite(fd, data[: len(data) // 2], at)
            raise Killed
        return os.pwrite(fd, data, at)

    def sendfile(self, out: int, fd: int, offset: None, count: int) -> int:
        if self._fuse.step():
            with contextlib.suppress(BlockingIOError):
                os.sendfile(out, fd, offset, max(1, count // 2))
            raise Killed
        return os.sendfile(out, fd, offset, count)

    def ftruncate(self, fd: int, length: int) -> None:
        if self._fuse.step():
            raise Killed
        os.ftruncate(fd, length)


class FusedSocket(socket.socket):
    """Its reads and options can be the last thing done."""

    fuse = Fuse()

    def recv_into(self, *arguments: Any) -> int:
        if self.fuse.step():
            raise Killed
        return super().recv_into(*arguments)

    def setsockopt(self, *arguments: Any) -> None:
        if self.fuse.step():
            raise Killed
        super().setsockopt(*arguments)


class Nobody:
    """Holds nothing: the test copies the fds."""

    def hold(self, sock: socket.socket, ledger: Ledger) -> None: ...
    def drop(self, ledger: Ledger) -> None: ...


class World:
    """A client, and the servers that follow each other on its one connection."""

    def __init__(self) -> None:
        self.fuse = FusedSocket.fuse = Fuse()
        self.client, ours = socket.socketpair(socket.AF_UNIX)
        self.client.setblocking(False)
        self.caller = Connection(CALLER)
        self.asked: list[int] = []
        self.answers: list[ResponseReceived] = []
        self.effects: dict[int, int] = {}
        self.parked: list[ServerCall] = []
        self.is_released = False
        self.kills = 0
        self.errors: list[BaseException] = []
        self.sock_fd, self.ledger_fd = ours.detach(), Ledger.create().fd
        self.owned: list[Any] = []
        self.serve()

    # --- the servers

    def serve(self) -> None:
        """A server takes the connection, and may be killed while it does."""
        self.parked.clear()
        self.loop = Loop()
        self.loop.on_error = self.errors.append
        self.owned.append(self.loop)
        registry = Registry()
        registry.register(NAME, type("Any", (), {"__getattr__": lambda *_: object()})())
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")  # a name of the kernel's choice
        listener.listen(1)
        server = LoopServer(
            self.loop, registry, listener=listener, start=self.start, on_error=self.errors.append, holder=Nobody()
        )
        sock = FusedSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(self.sock_fd))
        ours = Ledger(os.dup(self.ledger_fd))
        self.owned += [listener, sock, ours]
        server.resume(sock, ours)

    def start(self, call: ServerCall) -> None:
        wish = call.request.wish
        if wish == "wait" and not self.is_released:
            self.parked.append(call)
            return
        if wish == "change":
            recovered, call.recovered = call.recovered, None
            is_done = recovered is not None and recovered.fact == 1 and call.stream_id in self.effects
            if not is_done:
                call.begin(1)
                self.effects[call.stream_id] = self.effects.get(call.stream_id, 0) + 1
        length = call.request.number // (1 + self.kills if wish == "shrink" else 1)
        call.reply(Text(data=call.request.data + bytes(length)))

    def survive(self, act: Any) -> None:
        """Do it; if that kills the server, another follows, and another."""
        try:
            act()
        except Killed:
            self.kills += 1
            while True:
                try:
                    self.serve()
                    return
                except Killed:
                    self.kills += 1

    def run(self) -> None:
        self.survive(lambda: self.loop.run_once(0))

    # --- the client

    def request(self, wish: str = "", data: bytes = b"", number: int = 0) -> bytes:
        found = find_method(NAME, "Say")
        text = Text(wish=wish, data=data, number=number)
        stream_id, raw = self.caller.send_request(found.shape, found.prefix, text.SerializeToString())
        self.asked.append(stream_id)
        return raw

    def read(self) -> None:
        try:
            while data := self.client.recv(1 << 20):
                self.answers += self.caller.receive_bytes(data)  # type: ignore[arg-type]
        except BlockingIOError:
            pass

    def release(self) -> None:
        self.is_released = True

        def reply() -> None:
            for call in tuple(self.parked):
                call.reply(Text(data=call.request.data))

        self.survive(reply)

    def close(self) -> None:
        for fd in (self.sock_fd, self.ledger_fd):
            os.close(fd)
        self.client.close()
        for owned in self.owned:
            owned.close()


def play(world: World) -> None:
    """Requests one by one, in batches, in pieces; some wait, some change something, some answers are long."""
    send = world.client.send
    batch = world.request("wait", b"first") + world.request(data=b"a") + world.request("change", b"b")
    long = world.request(data=b"x" * 9000)
    pieces = [
        batch, long[:4], long[4:4000], long[4000:],
        world.request("wait", b"c") + world.request("change", b"d", 7000),
        *(world.request(data=b"e", number=5000) for _ in range(5)),
    ]  # fmt: skip
    three = b"".join(world.request("shrink", bytes([number]) * 3000, 4000) for number in range(3))
    pieces += [three[:1000], three[1000:4000], three[4000:]]
    two = world.request("change", b"f") + world.request("wait", b"g" * 3000)
    pieces += [two[:90], two[90:200], two[200:], world.request("", b"h", BIG), world.request("change", b"i")]
    for piece in pieces:
        send(piece)
        world.run()
        world.run()
    for _ in range(6):
        world.read()
        world.run()
    world.release()
    for _ in range(6):
        world.run()
        world.read()


def check(world: World) -> None:
    """Every request has one answer, whole and its own; every change was made once."""
    assert world.errors == []
    assert sorted(answer.stream_id for answer in world.answers) == world.asked
    assert {answer.status for answer in world.answers} == {None}
    assert (world.caller.late_frames, world.caller.reader.unparsed) == (0, b"")
    assert set(world.effects.values()) == {1}
    longest = max(len(answer.payload or b"") for answer in world.answers)
    assert longest > BIG


def fused(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(ledger, "os", os)
    made = World()
    made.fuse.count = 0
    monkeypatch.setattr(ledger, "os", FusedOs(made.fuse))
    return made


def test_killed_before_each_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = number_of_steps(monkeypatch)
    assert steps > 100
    for is_torn in (False, True):
        for at in range(steps):
            play_killed(monkeypatch, [at], is_torn=is_torn)


def number_of_steps(monkeypatch: pytest.MonkeyPatch) -> int:
    world = fused(monkeypatch)
    play(world)
    check(world)
    world.close()
    return world.fuse.count


def play_killed(monkeypatch: pytest.MonkeyPatch, kills: Sequence[int], *, is_torn: bool = False) -> None:
    """``kills``: how many system calls each server gets to make."""
    world = fused(monkeypatch)
    later = list(kills)
    world.fuse.kill_at, world.fuse.is_torn = later.pop(0), is_torn
    serve = world.serve

    def serve_next() -> None:
        world.fuse.count, world.fuse.kill_at = 0, later.pop(0) if later else -1
        serve()

    world.serve = serve_next  # type: ignore[method-assign]
    try:
        play(world)
        assert world.kills >= 1
        check(world)
    except BaseException as error:
        error.add_note(f"killed at {kills}, torn: {is_torn}; errors: {world.errors}")
        raise
    finally:
        world.close()


def test_killed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that get to make few system calls each, or none but those of taking over."""
    assert ROUNDS > 0
    seed = int(os.environ.get("SHIMD_TEST_SEED", "0")) or random.randrange(1 << 30)
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        kills = [chance.choice((chance.randrange(6), chance.randrange(60))) for _ in range(chance.randrange(1, 30))]
        play_killed(monkeypatch, kills, is_torn=chance.random() < 0.5)
