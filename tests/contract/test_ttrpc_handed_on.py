"""A server's connections go on in another one, wherever in a frame the first was left. Here both are in one process."""

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.contract.ttrpc_service import NAME, Log, Text, TrioEcho
from tests.contract.ttrpc_sides import DEADLINE_S, listen
from ttrpc.aio import Door, KeptConnection, serve_ttrpc
from ttrpc.connection import CALLER, Connection
from ttrpc.frames import HEADER_BYTES, MAX_DATA_BYTES, REQUEST, pack_header
from ttrpc.service import Registry, find_method
from ttrpc.streams import REQUEST_OPEN, REQUEST_UNARY
from ttrpc.wire_events import ResponseReceived

TEXT = b"a text of some length"


class Caller:
    """A peer that writes what, and as much, as the test wants."""

    def __init__(self, address: str) -> None:
        self.core = Connection(CALLER)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.heard: list[Any] = []

    def request(self, number: int) -> bytes:
        message = Text(number=number, data=TEXT).SerializeToString()
        return self.core.send_request(REQUEST_UNARY, find_method(NAME, "Say").prefix, message)[1]

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            await trio.lowlevel.wait_writable(self.sock)
            view = view[self.sock.send(view) :]

    async def hear(self) -> ResponseReceived:
        with trio.fail_after(DEADLINE_S):
            while not self.heard:
                await trio.lowlevel.wait_readable(self.sock)
                self.heard += self.core.receive_bytes(self.sock.recv(1 << 16))
        answer = self.heard.pop(0)
        assert isinstance(answer, ResponseReceived)
        return answer

    async def hear_number(self) -> int:
        answer = await self.hear()
        assert answer.status is None
        return int(Text.FromString(answer.payload).number)


class Servers:
    """One server, and then its successor, at one address."""

    def __init__(self, address: str) -> None:
        self.listener = listen(address)
        self.registry = Registry()
        self.log = Log()
        self.registry.register(NAME, TrioEcho(self.log))

    async def first(self, act: "Callable[[Door], Any]") -> list[KeptConnection]:
        """Serve for as long as ``act`` takes; what can be handed on then, as it comes out of the channel."""
        door = Door()
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **given: serve_ttrpc(self.listener, self.registry, door=door, **given))
            await act(door)
            kept = door.detach()
            nursery.cancel_scope.cancel()
        return [KeptConnection.from_json(json.loads(json.dumps(one.as_json())), one.fd) for one in kept]

    async def second(self, kept: list[KeptConnection], act: "Callable[[], Any]") -> None:
        async with trio.open_nursery() as nursery:
            door = Door(tuple(kept))
            await nursery.start(lambda **given: serve_ttrpc(self.listener, self.registry, door=door, **given))
            with trio.fail_after(DEADLINE_S):
                await act()
            nursery.cancel_scope.cancel()


async def until(condition: "Callable[[], Any]") -> None:
    """Let the other tasks run until it holds."""
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


async def until_read(door: Door, unparsed: bytes, skip: int = 0) -> None:
    """Until the one connection has taken so much of a frame."""

    def readers() -> list[tuple[bytes, int]]:
        found = [one.core.reader for server in door._servers for one in server.open]
        return [(reader.unparsed, reader.skipping_bytes) for reader in found]

    await until(lambda: readers() == [(unparsed, skip)])


@pytest.mark.parametrize("cut", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 5, -1])
async def test_half_a_frame_is_completed_in_the_other_server(short_dir: str, cut: int) -> None:
    """What the first has read, the second has read; the rest comes on the same socket, and so does the answer."""
    servers = Servers(f"{short_dir}/s")
    caller = Caller(f"{short_dir}/s")
    before, whole, after = caller.request(1), caller.request(2), caller.request(3)

    async def begin(door: Door) -> None:
        await caller.write(before + whole[:cut])
        assert await caller.hear_number() == 1
        await until_read(door, whole[:cut])

    async def go_on() -> None:
        await caller.write(whole[cut:] + after)
        assert sorted([await caller.hear_number(), await caller.hear_number()]) == [2, 3]

    kept = await servers.first(begin)
    assert [(one.unparsed, one.skip, one.calls) for one in kept] == [(whole[:cut], 0, ())]
    await servers.second(kept, go_on)
    caller.sock.close()
    servers.listener.close()


async def test_the_rest_of_a_frame_that_is_thrown_away_is_thrown_away_by_the_other(short_dir: str) -> None:
    """A frame over the limit is refused by its header; its bytes must not be taken for frames by whoever reads on."""
    servers = Servers(f"{short_dir}/s")
    caller = Caller(f"{short_dir}/s")
    caller.request(0)  # its id is what the long one is sent with
    length, some = MAX_DATA_BYTES + 9, 1000
    rest = length - some

    async def begin(door: Door) -> None:
        await caller.write(pack_header(length, 1, REQUEST, 0) + bytes(some))
        assert (await caller.hear()).status is not None
        await until_read(door, b"", rest)

    async def go_on() -> None:
        await caller.write(bytes(rest) + caller.request(7))
        assert await caller.hear_number() == 7

    kept = await servers.first(begin)
    assert [(one.unparsed, one.skip) for one in kept] == [(b"", rest)]
    await servers.second(kept, go_on)
    caller.sock.close()
    servers.listener.close()


@pytest.mark.parametrize(("method", "shape", "kept"), [("Say", REQUEST_UNARY, 1), ("Sum", REQUEST_OPEN, 0)])
async def test_a_call_under_way_is_begun_anew_unless_its_messages_are_gone(
    short_dir: str, method: str, shape: str, kept: int
) -> None:
    """What the peer streamed to the first handler no second one can read: that connection ends, as with a restart."""
    servers = Servers(f"{short_dir}/s")
    caller = Caller(f"{short_dir}/s")
    message = Text(wish="wait").SerializeToString()
    stream_id, data = caller.core.send_request(shape, find_method(NAME, method).prefix, message)

    async def begin(door: Door) -> None:
        await caller.write(data)
        await until(lambda: any(one.calls for server in door._servers for one in server.open))
        await until(lambda: method != "Say" or servers.log.count("said"))

    async def go_on() -> None:
        await until(lambda: servers.log.count("said") == 2)

    found = await servers.first(begin)
    assert [[call.stream_id for call in one.calls] for one in found] == [[stream_id]] * kept
    if kept:
        await servers.second(found, go_on)
    with trio.fail_after(DEADLINE_S):
        await trio.lowlevel.wait_readable(caller.sock)
    assert caller.sock.recv(1) == b""
    caller.sock.close()
    servers.listener.close()


@pytest.mark.parametrize(
    "change",
    [
        {"calls": [{"stream_id": 1}]},
        {"unparsed": "not base64!"},
        {"calls": None},
        {"calls": [{"surprise": 1, "payload": "", "metadata": []}]},
    ],
)
def test_what_is_no_connection_is_refused(change: dict[str, Any]) -> None:
    made = KeptConnection(-1, 7, b"half", 0, b"", ()).as_json()
    with pytest.raises((KeyError, TypeError, ValueError)):
        KeptConnection.from_json({**made, **change}, -1)
