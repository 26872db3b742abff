"""What only the blocking client has: use in a select loop, deadlines inside a write."""

import select
import socket
from collections.abc import Iterator

import pytest

from tests.contract.ttrpc_service import NAME, Text
from tests.contract.ttrpc_sides import DEADLINE_S, LoopSide
from tests.support.waiting import wait_until
from ttrpc.blocking import BlockingClient
from ttrpc.connection import CALLEE, Connection
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.wire_events import RequestReceived


@pytest.fixture
def client(short_dir: str) -> Iterator[BlockingClient]:
    side = LoopSide(f"{short_dir}/s")
    with BlockingClient.connect(side.address) as made:
        yield made
    side.close()


@pytest.fixture
def mute() -> Iterator[tuple[BlockingClient, socket.socket]]:
    """A client whose server reads only when the test does."""
    ours, theirs = socket.socketpair()
    with BlockingClient(ours, window_bytes=1 << 18) as made:
        yield made, theirs
    theirs.close()


def test_a_select_loop_over_one_stream(client: BlockingClient) -> None:
    stream, heard = client.open_stream(NAME, "Chat"), []
    with pytest.raises(BlockingIOError):
        stream.receive_nowait()
    assert stream.send_nowait(Text(number=1))
    stream.close_send()
    while True:
        ready, _, _ = select.select([client], [], [], DEADLINE_S)
        assert ready == [client]
        client.pump_nowait()
        try:
            while (message := stream.receive_nowait()) is not None:
                heard.append(message.number)
            break
        except BlockingIOError:
            continue

    assert heard == [1]


def test_what_cannot_be_sent_now_waits_for_the_pump(mute: tuple[BlockingClient, socket.socket]) -> None:
    client, server = mute
    stream = client.open_stream(NAME, "Chat")
    while stream.send_nowait(Text(data=bytes(1 << 16))):
        pass
    assert client.unsent_bytes > 0
    client.pump_nowait()
    assert client.unsent_bytes > 0

    server.setblocking(False)

    def read() -> bool:
        try:
            server.recv(1 << 20)
        except BlockingIOError:
            pass
        client.pump_nowait()
        return client.unsent_bytes == 0

    wait_until(read, what="the rest to go out")
    assert not client.is_closed


def test_a_deadline_inside_a_write_leaves_the_framing_whole(mute: tuple[BlockingClient, socket.socket]) -> None:
    """The frame begun goes out before the next one; the server sees two whole requests."""
    client, server = mute
    with pytest.raises(DeadlineExceeded):
        client.call(NAME, "Say", Text(data=bytes(3 << 20)), timeout_s=0.05)
    assert client.unsent_bytes > 0
    with pytest.raises(DeadlineExceeded):
        client.call(NAME, "Say", Text(number=2), timeout_s=0.05)

    callee, seen = Connection(CALLEE), []
    server.setblocking(False)

    def read() -> bool:
        try:
            for event in callee.receive_bytes(server.recv(1 << 20)):
                assert isinstance(event, RequestReceived)
                seen.append((event.stream_id, len(event.payload or b"") > 1 << 20))
        except BlockingIOError:
            client.pump_nowait()
        return len(seen) == 2

    wait_until(read, what="both requests")
    assert seen == [(1, True), (3, False)]


def test_a_wait_of_its_own_leaves_the_stream_open(client: BlockingClient) -> None:
    stream = client.open_stream(NAME, "Chat")
    with pytest.raises(DeadlineExceeded):
        stream.receive(timeout_s=0.02)
    stream.send(Text(number=1))

    assert stream.receive(timeout_s=DEADLINE_S) == Text(number=1)


def test_a_full_stream_is_not_pumped_while_it_is_alone(mute: tuple[BlockingClient, socket.socket]) -> None:
    client, server = mute
    stream = client.open_stream(NAME, "Count", Text())
    callee = Connection(CALLEE)
    callee.receive_bytes(server.recv(1 << 16))
    server.setblocking(False)
    frame = callee.send_message(1, Text(data=bytes(1 << 16)).SerializeToString())
    unsent = b""

    def push() -> bool:
        """Whether the server finds the socket full although the client pumps."""
        nonlocal unsent
        for _ in range(4):
            client.pump_nowait()
        unsent = unsent or frame
        try:
            unsent = unsent[server.send(unsent) :]
        except BlockingIOError:
            return stream.inbox.is_full
        return False

    wait_until(push, what="the window to be full")
    assert stream.inbox.held_bytes < stream.inbox.window_bytes + (1 << 18)
    assert stream.receive_nowait() == Text(data=bytes(1 << 16))


def test_a_hang_up_is_told_by_the_streams_not_by_the_pump(mute: tuple[BlockingClient, socket.socket]) -> None:
    client, server = mute
    stream = client.open_stream(NAME, "Chat")
    server.close()
    client.pump_nowait()
    client.pump_nowait()

    assert client.is_closed
    with pytest.raises(ConnectionLost):
        stream.receive_nowait()
    with pytest.raises(ConnectionLost):
        stream.send(Text())


def test_after_close_everything_says_so(client: BlockingClient) -> None:
    stream = client.open_stream(NAME, "Chat")
    client.close()
    client.close()

    with pytest.raises(ConnectionLost, match="closed"):
        client.call(NAME, "Say", Text())
    with pytest.raises(ConnectionLost, match="closed"):
        stream.receive()


def test_a_closed_stream_is_forgotten_and_the_connection_goes_on(client: BlockingClient) -> None:
    stream = client.open_stream(NAME, "Count", Text(number=50_000, data=bytes(100)))
    assert stream.receive() is not None
    stream.close()
    stream.close()

    assert client.call(NAME, "Say", Text(number=1), timeout_s=DEADLINE_S).number == 1
    with pytest.raises(StatusError, match="closed here"):
        stream.receive()
