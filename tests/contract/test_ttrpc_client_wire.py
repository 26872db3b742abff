"""Both clients against a server that is not ours: answers that are late, too long, wrong, or never come."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.ttrpc_service import Text
from tests.contract.ttrpc_sides import CLIENTS, DEADLINE_S, listen, open_fds
from ttrpc.connection import CALLEE, Connection
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.frames import DATA, MAX_DATA_BYTES, REQUEST, RESPONSE, pack_header
from ttrpc.status import Code
from ttrpc.wire_events import RequestReceived

NOBODY = 65534
OK = Text(number=1).SerializeToString()


class RawServer:
    """Takes one connection and does what the test's script says for each request, in a thread."""

    def __init__(self, address: str) -> None:
        self.listener = listen(address)
        self.script: list[Callable[[RawServer, int], None]] = []
        self.core = Connection(CALLEE)
        self.seen: list[int] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.socket, _ = self.listener.accept()
        except OSError:
            return
        with self.socket:
            while data := self._read():
                for event in self.core.receive_bytes(data):
                    if isinstance(event, RequestReceived):
                        self.seen.append(event.stream_id)
                        step = self.script.pop(0) if self.script else answer
                        step(self, event.stream_id)

    def _read(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except OSError:
            return b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self.listener.close()


def answer(server: RawServer, stream_id: int) -> None:
    server.send(server.core.send_response(stream_id, None, OK))


def silence(server: RawServer, stream_id: int) -> None:
    """Say nothing."""


def close(server: RawServer, stream_id: int) -> None:
    server.socket.shutdown(socket.SHUT_RDWR)


def half_an_answer_and_close(server: RawServer, stream_id: int) -> None:
    server.send(server.core.send_response(stream_id, None, OK)[:-1])
    close(server, stream_id)


def frames(*data: Callable[[int], bytes]) -> Callable[[RawServer, int], None]:
    """Say these bytes, made for the request's stream."""
    return lambda server, stream_id: server.send(b"".join(make(stream_id) for make in data))


@pytest.fixture
def server(short_dir: str) -> Iterator[RawServer]:
    raw = RawServer(f"{short_dir}/s")
    yield raw
    raw.close()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, server: RawServer, short_dir: str) -> Iterator[Any]:
    side = CLIENTS[request.param](f"{short_dir}/s")
    yield side
    side.close()


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        pytest.param(
            frames(lambda n: pack_header(MAX_DATA_BYTES + 9, n, RESPONSE, 0) + bytes(MAX_DATA_BYTES + 9)),
            Code.RESOURCE_EXHAUSTED, "over the limit", id="too long",
        ),
        pytest.param(
            frames(lambda n: pack_header(1, n, RESPONSE, 0) + b"\x0a"), Code.INTERNAL, "cannot be read", id="damaged"
        ),
        pytest.param(
            frames(lambda n: pack_header(5, n, RESPONSE, 0) + b"\x12\x03\x0a\x09x"),
            Code.INTERNAL, "is no shimd.test.v1.Text", id="no message",
        ),
        pytest.param(
            frames(lambda n: pack_header(0, n, DATA, 0)), Code.INTERNAL, "broke the protocol", id="data on unary"
        ),
    ],
)  # fmt: skip
def test_a_wrong_answer_fails_its_call_alone(
    server: RawServer, client: Any, said: Callable[[RawServer, int], None], code: int, words: str
) -> None:
    server.script = [said]
    with pytest.raises(StatusError, match=words) as failed:
        client.call("Say", Text(), timeout_s=DEADLINE_S)

    assert failed.value.code == code
    assert client.call("Say", Text()) == Text(number=1)


def test_frames_nobody_asked_for_are_ignored(server: RawServer, client: Any) -> None:
    stray = (
        lambda n: pack_header(0, n + 100, RESPONSE, 0),
        lambda n: pack_header(0, 2, DATA, 0),
        lambda n: pack_header(0, n, REQUEST, 0),
        lambda n: pack_header(3, n, 0x55, 9) + b"abc",
        lambda n: pack_header(len(OK) + 2, n, RESPONSE, 0) + b"\x12" + bytes([len(OK)]) + OK,
    )
    server.script = [frames(*stray)]

    assert client.call("Say", Text()) == Text(number=1)


def test_a_late_answer_is_nobodys(server: RawServer, client: Any) -> None:
    """The client forgot the call; the server answers it just before the next one."""

    def both(raw: RawServer, stream_id: int) -> None:
        raw.send(raw.core.send_response(stream_id - 2, None, Text(number=99).SerializeToString()))
        answer(raw, stream_id)

    server.script = [silence, both]
    with pytest.raises(DeadlineExceeded):
        client.call("Say", Text(), timeout_s=0.05)

    assert client.call("Say", Text()) == Text(number=1)
    assert server.seen == [1, 3]


@pytest.mark.parametrize("end", [close, half_an_answer_and_close])
def test_an_end_instead_of_an_answer_is_a_lost_connection(
    server: RawServer, client: Any, end: Callable[[RawServer, int], None]
) -> None:
    server.script = [answer, end]
    client.call("Say", Text())

    for _ in range(2):
        with pytest.raises(ConnectionLost):
            client.call("Say", Text())


def test_a_streaming_answer_may_come_as_one_response(server: RawServer, client: Any) -> None:
    server.script = [answer]
    stream = client.stream("Count", Text())

    assert (stream.receive(), stream.receive()) == (Text(number=1), None)


def test_an_empty_response_ends_a_stream_without_a_message(server: RawServer, client: Any) -> None:
    server.script = [frames(lambda n: pack_header(0, n, RESPONSE, 0))]

    assert client.stream("Count", Text()).receive() is None


def test_a_message_and_the_end_may_share_a_frame(server: RawServer, client: Any) -> None:
    server.script = [frames(lambda n: pack_header(len(OK), n, DATA, 1) + OK)]
    stream = client.stream("Count", Text())

    assert (stream.receive(), stream.receive()) == (Text(number=1), None)


def test_a_client_reads_while_it_writes(server: RawServer, client: Any) -> None:
    """The server takes no more of the request until its own words are taken: both would wait for ever otherwise."""
    message = Text(data=bytes(1 << 20)).SerializeToString()
    begun = threading.Event()

    def talk(raw: RawServer, stream_id: int) -> None:
        assert begun.wait(DEADLINE_S)
        for _ in range(3):
            raw.send(raw.core.send_message(stream_id, message))
        raw.send(raw.core.send_end(stream_id))

    server.script = [talk]
    stream = client.stream("Count", Text())
    begun.set()

    assert client.call("Say", Text(data=bytes(3 << 20)), timeout_s=DEADLINE_S) == Text(number=1)
    assert [len(heard.data) for heard in stream] == [1 << 20] * 3


# --- connecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", CLIENTS)
def test_nobody_there_is_the_systems_own_error(side: str, short_dir: str) -> None:
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        CLIENTS[side](f"{short_dir}/none")
    listen(f"{short_dir}/dead").close()
    with pytest.raises(ConnectionRefusedError):
        CLIENTS[side](f"{short_dir}/dead")

    assert open_fds() <= before


@pytest.mark.parametrize(("side", "option"), [("blocking", "timeout_s"), ("trio", "connect_timeout_s")])
def test_a_full_backlog_is_waited_for_until_the_deadline(side: str, option: str, short_dir: str) -> None:
    crowded = socket.socket(socket.AF_UNIX)
    crowded.bind(f"{short_dir}/s")
    crowded.listen(0)
    first = socket.socket(socket.AF_UNIX)
    first.connect(f"{short_dir}/s")
    try:
        with pytest.raises(DeadlineExceeded):
            CLIENTS[side](f"{short_dir}/s", **{option: 0.1})
    finally:
        first.close()
        crowded.close()


LISTEN = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.bind("\\0" + sys.argv[1])
sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("side", CLIENTS)
@pytest.mark.parametrize(("user", "group", "is_trusted"), [(0, 0, True), (NOBODY, NOBODY, False), (0, NOBODY, False)])
def test_a_server_of_another_user_or_group_is_not_talked_to(
    side: str, short_dir: str, user: int, group: int, is_trusted: bool
) -> None:
    name = f"shimd-test-{os.path.basename(short_dir)}"
    command = [sys.executable, "-I", "-S", "-c", LISTEN, name, str(user), str(group)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        if is_trusted:
            CLIENTS[side](f"\0{name}").close()
        else:
            with pytest.raises(PermissionError, match="not our own user and group"):
                CLIENTS[side](f"\0{name}")
            CLIENTS[side](f"\0{name}", trust_any_peer=True).close()
        other.communicate()
    assert other.returncode == 0
