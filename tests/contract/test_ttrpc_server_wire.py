"""Both servers against callers that are not our clients: bytes on a socket, right, wrong, half, or too many."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.ttrpc_service import NAME, Text
from tests.contract.ttrpc_sides import DEADLINE_S, SERVERS, BlockingSide
from tests.support.waiting import wait_until
from ttrpc.connection import CALLER, Connection
from ttrpc.frames import DATA, MAX_DATA_BYTES, REQUEST, RESPONSE, pack_header
from ttrpc.service import find_method
from ttrpc.status import Code
from ttrpc.streams import REQUEST_UNARY
from ttrpc.wire_events import EndReceived, MessageReceived, ResponseReceived

NOBODY = 65534


class RawCaller:
    """A socket and the protocol's bookkeeping, with nothing between the test and the wire."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(address)
        self.socket.settimeout(DEADLINE_S)
        self.core = Connection(CALLER)
        self.heard: list[Any] = []

    def request(self, method: str, request: Any, shape: str | None = None) -> tuple[int, bytes]:
        found = find_method(NAME, method)
        return self.core.send_request(shape or found.shape, found.prefix, request.SerializeToString())

    def say(self, request: Any) -> int:
        stream_id, data = self.request("Say", request)
        self.socket.sendall(data)
        return stream_id

    def hear(self) -> Any:
        """The next event; None when the server closed."""
        while not self.heard:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.heard += self.core.receive_bytes(data)
        return self.heard.pop(0)

    def hear_status(self, stream_id: int) -> int | None:
        event = self.hear()
        assert isinstance(event, ResponseReceived)
        assert event.stream_id == stream_id
        return event.status.code if event.status is not None else None

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> Any:
    return SERVERS[request.param]


@pytest.fixture
def server(kind: Any, short_dir: str) -> Iterator[Any]:
    side = kind(f"{short_dir}/s")
    yield side
    side.close()


@pytest.fixture
def caller(server: Any) -> Iterator[RawCaller]:
    raw = RawCaller(server.address)
    yield raw
    raw.close()


def works(server: Any) -> bool:
    """Whether a well-behaved client is served at once."""
    client = BlockingSide(server.address)
    try:
        return bool(client.call("Say", Text(number=7), timeout_s=DEADLINE_S).number == 7)
    finally:
        client.close()


# --- wrong frames -----------------------------------------------------------------------------------------------------


def expect_refusal(caller: RawCaller, stream_id: int, frame: bytes, code: int) -> None:
    """This frame is answered so on this stream, and the connection goes on."""
    caller.core.open_streams[stream_id] = "OPEN"  # the raw caller wants to hear of it
    caller.socket.sendall(frame)
    assert caller.hear_status(stream_id) == code
    caller.core.last_id = 99
    assert caller.hear_status(caller.say(Text())) is None


@pytest.mark.parametrize(
    ("stream_id", "frame", "code"),
    [
        pytest.param(2, pack_header(0, 2, REQUEST, 0), Code.INVALID_ARGUMENT, id="even id"),
        pytest.param(9, pack_header(0, 9, DATA, 0), Code.INVALID_ARGUMENT, id="data unbegun"),
        pytest.param(1, pack_header(2, 1, REQUEST, 0) + b"\x0a\x09", Code.INVALID_ARGUMENT, id="request damaged"),
        pytest.param(1, pack_header(0, 1, REQUEST, 0), Code.UNIMPLEMENTED, id="request empty"),
        pytest.param(
            1,
            pack_header(MAX_DATA_BYTES + 9, 1, REQUEST, 0) + bytes(MAX_DATA_BYTES + 9),
            Code.RESOURCE_EXHAUSTED,
            id="too long",
        ),
    ],
)
def test_a_wrong_frame_is_answered_on_its_stream(caller: RawCaller, stream_id: int, frame: bytes, code: int) -> None:
    expect_refusal(caller, stream_id, frame, code)


def test_a_request_whose_message_is_none_is_the_callers_fault(caller: RawCaller) -> None:
    _, data = caller.core.send_request(REQUEST_UNARY, find_method(NAME, "Say").prefix, b"\x0a\x09x")
    caller.socket.sendall(data)

    assert caller.hear_status(1) == Code.INVALID_ARGUMENT
    assert caller.hear_status(caller.say(Text())) is None


def test_a_streamed_message_that_is_none_fails_its_stream(caller: RawCaller) -> None:
    stream_id, data = caller.request("Chat", Text())
    caller.socket.sendall(data + caller.core.send_message(stream_id, b"\x0a\x09x"))

    assert caller.hear_status(stream_id) == Code.INVALID_ARGUMENT
    assert caller.hear_status(caller.say(Text())) is None


def test_a_streaming_method_wants_a_streaming_request(caller: RawCaller) -> None:
    _, data = caller.request("Count", Text(number=1), REQUEST_UNARY)
    caller.socket.sendall(data)

    assert caller.hear_status(1) == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("shape", ["request_open", "request_closed"])
def test_a_unary_method_answers_a_streaming_request_too(caller: RawCaller, shape: str) -> None:
    _, data = caller.request("Say", Text(number=3), shape)
    caller.socket.sendall(data)

    event = caller.hear()
    assert isinstance(event, ResponseReceived)
    assert Text.FromString(event.payload) == Text(number=3)


def test_an_id_used_again_ends_the_call_it_belonged_to(server: Any, caller: RawCaller) -> None:
    caller.say(Text(wish="wait"))
    wait_until(lambda: server.log.count("said") == 1, what="the call to begin")
    caller.socket.sendall(pack_header(0, 1, REQUEST, 0))

    assert caller.hear_status(1) == Code.INVALID_ARGUMENT
    wait_until(lambda: server.log.count("cancelled") == 1, what="the handler to be told")
    assert caller.hear_status(caller.say(Text())) is None


def test_unknown_frames_and_stray_responses_are_skipped(caller: RawCaller) -> None:
    caller.socket.sendall(pack_header(3, 1, 0x7F, 0xFF) + b"abc" + pack_header(0, 1, RESPONSE, 0))

    assert caller.hear_status(caller.say(Text())) is None


def test_a_message_after_the_answer_is_nobodys_fault(caller: RawCaller) -> None:
    stream_id, data = caller.request("Chat", Text(wish="bye"))
    caller.socket.sendall(data)
    assert caller.hear() == EndReceived(stream_id)
    caller.socket.sendall(pack_header(0, stream_id, DATA, 0))

    assert caller.hear_status(caller.say(Text())) is None


def test_request_and_end_in_pieces_of_one_byte(caller: RawCaller) -> None:
    stream_id, data = caller.request("Chat", Text(number=1))
    for byte in data + caller.core.send_end(stream_id):
        caller.socket.sendall(bytes([byte]))

    assert caller.hear() == MessageReceived(stream_id, Text(number=1).SerializeToString())
    assert caller.hear() == EndReceived(stream_id)


# --- the connection ---------------------------------------------------------------------------------------------------


def test_a_caller_that_shut_its_sending_side_is_still_answered(server: Any, caller: RawCaller) -> None:
    """A half-open connection: what was asked is answered, the open stream sees its caller's end, then it closes."""
    total = caller.request("Sum", Text(number=4))[1]
    caller.socket.sendall(total + caller.request("Say", Text(number=5))[1])
    caller.socket.shutdown(socket.SHUT_WR)

    answers = {}
    while (event := caller.hear()) is not None:
        answers[event.stream_id] = Text.FromString(event.payload).number
    assert answers == {1: 4, 3: 5}
    assert works(server)


def test_a_half_open_caller_that_vanishes_cancels_its_calls(server: Any, caller: RawCaller) -> None:
    caller.say(Text(wish="wait"))
    wait_until(lambda: server.log.count("said") == 1, what="the call to begin")
    caller.socket.shutdown(socket.SHUT_WR)
    assert works(server)
    assert server.log.count("cancelled") == 0
    caller.close()

    wait_until(lambda: server.log.count("cancelled") == 1, what="the handler to be told")


def test_a_caller_that_stops_inside_a_frame_holds_only_its_own_connection(server: Any) -> None:
    slow = [RawCaller(server.address) for _ in range(20)]
    halves = [raw.request("Say", Text(number=1, data=b"x"))[1] for raw in slow]
    for raw, data in zip(slow, halves, strict=True):
        raw.socket.sendall(data[:-1])

    assert works(server)
    for raw, data in zip(slow, halves, strict=True):
        raw.socket.sendall(data[-1:])
        assert raw.hear_status(1) is None
        raw.close()


def test_half_a_frame_before_the_end_is_nothing(server: Any, caller: RawCaller) -> None:
    caller.socket.sendall(caller.request("Say", Text(number=1))[1][:-1])
    caller.socket.shutdown(socket.SHUT_WR)

    assert caller.hear() is None
    assert server.log.count("said") == 0


def takes_one_more(side: Any) -> bool:
    """Whether, before long, one more connection is served."""

    def is_served() -> bool:
        raw = RawCaller(side.address)
        try:
            raw.socket.sendall(raw.request("Say", Text())[1])
            return raw.hear() is not None
        except OSError:
            return False
        finally:
            raw.close()

    return wait_until(is_served, what="a free place")


def test_connections_over_the_limit_are_closed_at_once(kind: Any, short_dir: str) -> None:
    side = kind(f"{short_dir}/s", max_connections=2)
    try:
        first, second, third = (RawCaller(side.address) for _ in range(3))
        assert first.hear_status(first.say(Text())) is None
        assert third.hear() is None
        first.close()
        assert takes_one_more(side)
        assert second.hear_status(second.say(Text())) is None
        second.close()
        third.close()
    finally:
        side.close()


def test_thousands_of_calls_nobody_waits_for(server: Any, caller: RawCaller) -> None:
    """ttrpc has no cancel: a supervisor leaves Waits behind, and they must cost next to nothing."""
    count = 3000
    caller.socket.sendall(b"".join(caller.request("Say", Text(wish="wait"))[1] for _ in range(count)))
    wait_until(lambda: server.log.count("said") == count, what="all to be under way")

    assert caller.hear_status(caller.say(Text())) is None
    caller.close()
    wait_until(lambda: server.log.count("cancelled") == count, what="all to be told")


# --- callers that do not read -----------------------------------------------------------------------------------------


def test_an_unread_stream_waits_in_the_server_and_others_are_served(server: Any, caller: RawCaller) -> None:
    """The handler is asked to wait: what piles up is the high-water mark and the socket's own buffer."""
    caller.socket.sendall(caller.request("Count", Text(number=100_000, data=bytes(1024)))[1])
    assert works(server)
    wait_until(lambda: server.log.count("counted") > 200, what="the server to fill the buffers")
    for _ in range(20):
        assert works(server)
    assert server.log.count("counted") < 2000

    heard = 0
    while isinstance(caller.hear(), MessageReceived):
        heard += 1
    assert heard == 100_000


def test_a_caller_that_never_reads_is_cut_at_the_hard_limit(kind: Any, short_dir: str) -> None:
    """Answers that cannot wait pile up to the limit, then the connection goes; its unread answers with it."""
    side = kind(f"{short_dir}/s", hard_limit_bytes=4 << 20)
    caller = RawCaller(side.address)
    try:
        asked = b"".join(caller.request("Say", Text(wish="big", number=1 << 20))[1] for _ in range(40))
        caller.socket.sendall(asked)
        wait_until(lambda: side.log.count("said") >= 4, what="the answers to pile up")
        answers = 0
        while caller.hear() is not None:
            answers += 1

        assert answers < 40
        assert works(side)
    finally:
        caller.close()
        side.close()


def ask_for_ever(caller: RawCaller) -> None:
    """Send requests until the socket takes no more, or a quarter of a gigabyte is out."""
    sent = 0
    while sent < 256 << 20:
        sent += caller.socket.send(caller.request("Say", Text(data=bytes(8192)))[1])


def test_requests_are_not_read_while_their_answers_are_not(server: Any, caller: RawCaller) -> None:
    """A caller that sends and never reads is stopped by its own socket, far from any limit of memory."""
    caller.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        ask_for_ever(caller)

    caller.socket.setblocking(True)
    assert works(server)
    assert server.log.count("said") * 8192 < 16 << 20


# --- who is at the other end ------------------------------------------------------------------------------------------

ASK = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[4])); os.setuid(int(sys.argv[3]))
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
try:
    sock.sendall(bytes.fromhex(sys.argv[2]))
    print(len(sock.recv(100)))
except OSError:
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("user", "group", "is_served"), [(0, 0, True), (NOBODY, NOBODY, False), (0, NOBODY, False), (NOBODY, 0, False)]
)
def test_peers_of_another_user_or_group_are_turned_away(
    kind: Any, short_dir: str, user: int, group: int, is_served: bool
) -> None:
    """The address is abstract, so nothing but the server's own check stands in their way."""
    name = f"shimd-test-{os.path.basename(short_dir)}"
    side = kind(f"\0{name}")
    try:
        frame = pack_header(0, 1, REQUEST, 0)
        command = [sys.executable, "-I", "-S", "-c", ASK, name, frame.hex(), str(user), str(group)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)

        assert (int(done.stdout) > 0) is is_served
        assert works(side)
    finally:
        side.close()
