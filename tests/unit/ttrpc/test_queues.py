"""Outbox and inbox: order, counting, bounds. The socket is scripted."""

import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ttrpc.inbox import MESSAGE_OVERHEAD_BYTES, Inbox
from ttrpc.outbox import Outbox


class ScriptedSocket:
    """Takes as many bytes per call as the script says; 0 is a full buffer. Past the script it takes everything."""

    def __init__(self, *takes: int) -> None:
        self.takes = list(takes)
        self.taken = b""
        self.calls = 0

    def send(self, data: Any, flags: int) -> int:
        assert flags & socket.MSG_DONTWAIT
        assert flags & socket.MSG_NOSIGNAL
        self.calls += 1
        room = self.takes.pop(0) if self.takes else len(data)
        if not room:
            raise BlockingIOError
        self.taken += bytes(data[:room])
        return min(room, len(data))

    def sendmsg(self, chunks: list[Any], ancillary: tuple[()], flags: int) -> int:
        return self.send(b"".join(chunks), flags)


def test_what_the_socket_takes_at_once_is_never_queued() -> None:
    outbox, sock = Outbox(), ScriptedSocket()
    outbox.send(sock, b"hello")

    assert (sock.taken, sock.calls, outbox.unsent_bytes) == (b"hello", 1, 0)


def test_the_rest_waits_in_order_and_is_counted() -> None:
    outbox, sock = Outbox(), ScriptedSocket(2, 0, 0, 4, 0)
    outbox.send(sock, b"hello")
    outbox.send(sock, b"world")
    assert (sock.taken, outbox.unsent_bytes, outbox.unsent()) == (b"he", 8, b"lloworld")

    assert outbox.flush(sock) is False
    assert outbox.flush(sock) is False
    assert (sock.taken, outbox.unsent_bytes) == (b"hellow", 4)
    assert outbox.flush(sock) is True
    assert (sock.taken, outbox.unsent_bytes) == (b"helloworld", 0)


def test_many_small_frames_share_a_system_call() -> None:
    outbox, sock = Outbox(), ScriptedSocket(0)
    outbox.send(sock, b"0")
    for _ in range(15):
        outbox.put(b"x")
    sock.calls = 0

    assert outbox.flush(sock) is True
    assert (sock.taken, sock.calls) == (b"0" + b"x" * 15, 1)


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=30), st.lists(st.integers(0, 20), max_size=60))
def test_however_the_socket_takes_it_the_bytes_stay_the_same(frames: list[bytes], takes: list[int]) -> None:
    outbox, sock = Outbox(), ScriptedSocket(*takes)
    for frame in frames:
        outbox.send(sock, frame)
        assert len(outbox.unsent()) == outbox.unsent_bytes
    while not outbox.flush(sock):
        assert outbox.unsent_bytes > 0

    assert sock.taken == b"".join(frames)
    assert outbox.unsent_bytes == 0


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.binary(max_size=9)), max_size=20),
    st.lists(st.integers(0, 20), max_size=60),
)
def test_what_is_sent_in_two_parts_arrives_as_one(frames: list[tuple[bytes, bytes]], takes: list[int]) -> None:
    outbox, sock = Outbox(), ScriptedSocket(*takes)
    sent = b""
    for head, bulk in frames:
        outbox.send(sock, head, bulk)
        sent += head + bulk
        assert sock.taken + outbox.unsent() == sent
        assert len(outbox.unsent()) == outbox.unsent_bytes
    while not outbox.flush(sock):
        assert outbox.unsent_bytes > 0

    assert sock.taken == sent


def test_an_inbox_is_full_by_bytes_or_by_number() -> None:
    by_bytes, by_number = Inbox(1000), Inbox(1000)
    by_bytes.put(bytes(1000))
    for _ in range(1000 // MESSAGE_OVERHEAD_BYTES):
        by_number.put(b"")

    assert by_bytes.is_full
    assert not by_number.is_full
    by_number.put(b"")
    assert by_number.is_full


def test_an_inbox_gives_in_order_and_has_room_again() -> None:
    inbox = Inbox(100)
    inbox.put(bytes(100))
    inbox.put(b"next")
    assert (inbox.is_full, len(inbox)) == (True, 2)

    assert inbox.take() == bytes(100)
    assert not inbox.is_full
    assert inbox.take() == b"next"
    assert (inbox.held_bytes, len(inbox)) == (0, 0)
