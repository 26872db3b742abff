"""The poll-loop server turn by turn: no threads, the test runs the loop."""

import contextlib
import os
import resource
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shim.core.loop import Loop
from tests.contract.test_ttrpc_server_wire import RawCaller
from tests.contract.ttrpc_service import NAME, Text
from tests.contract.ttrpc_sides import listen
from tests.support.waiting import wait_until
from ttrpc.api import task, wkt
from ttrpc.errors import LocalMisuse, StatusError
from ttrpc.ledger import NO_FACT
from ttrpc.loopdriver import LoopServer
from ttrpc.outbox import HIGH_WATER_BYTES, LOW_WATER_BYTES
from ttrpc.server_call import ServerCall
from ttrpc.service import Registry, find_method
from ttrpc.status import Code
from ttrpc.wire_events import EndReceived, MessageReceived, ResponseReceived

TASK = "containerd.task.v2.Task"


class AnyHandler:
    """Every rpc is served: the test decides how."""

    def __getattr__(self, name: str) -> object:
        return object()


class Bench:
    """A server, its loop, and the calls it was handed."""

    def __init__(self, address: str) -> None:
        self.loop = Loop()
        self.loop.on_error = self.failed
        self.calls: list[ServerCall] = []
        self.errors: list[BaseException] = []
        self.on_start: Callable[[ServerCall], None] = self.calls.append
        registry = Registry()
        registry.register(NAME, AnyHandler())
        registry.register(TASK, AnyHandler())
        self.server = LoopServer(
            self.loop,
            registry,
            listener=listen(address),
            start=lambda call: self.on_start(call),
            on_error=self.errors.append,
            window_bytes=1 << 18,
        )
        self.address = address

    def failed(self, error: BaseException) -> None:
        raise error

    def run_until(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(lambda: (self.loop.run_once(0.01), condition())[1], what=what)

    def next_call(self) -> ServerCall:
        self.run_until(lambda: self.calls, "a call")
        return self.calls.pop(0)


@pytest.fixture
def bench(short_dir: str) -> Iterator[Bench]:
    made = Bench(f"{short_dir}/s")
    yield made
    made.server.close()
    made.loop.close()


@pytest.fixture
def caller(bench: Bench) -> Iterator[RawCaller]:
    raw = RawCaller(bench.address)
    yield raw
    raw.close()


def ask(caller: RawCaller, bench: Bench, method: str, request: Any = None) -> ServerCall:
    caller.socket.sendall(caller.request(method, request or Text())[1])
    return bench.next_call()


# --- what a call is ---------------------------------------------------------------------------------------------------


def test_a_call_carries_what_was_asked(bench: Bench, caller: RawCaller) -> None:
    found = find_method(NAME, "Say")
    payload = Text(number=3).SerializeToString()
    metadata = (("k", "first"), ("k", "second"), ("other", ""))
    _, data = caller.core.send_request(found.shape, found.prefix, payload, 2_000_000_000, metadata)
    caller.socket.sendall(data)
    call = bench.next_call()

    assert (call.service, call.method, call.request) == (NAME, found, Text(number=3))
    assert (call.metadata, call.deadline_s) == ({"k": "first", "other": ""}, 2.0)
    assert call.peer is not None
    assert (call.peer.pid, call.peer.uid, call.peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert call.is_open


def test_a_deadline_already_passed_is_none_left(bench: Bench, caller: RawCaller) -> None:
    found = find_method(NAME, "Say")
    caller.socket.sendall(caller.core.send_request(found.shape, found.prefix, b"", -5)[1])

    assert bench.next_call().deadline_s == 0.0


def test_a_call_is_answered_once(bench: Bench, caller: RawCaller) -> None:
    call = ask(caller, bench, "Say")
    call.reply(Text(number=1))

    assert not call.is_open
    for again in (lambda: call.reply(Text()), lambda: call.fail(Code.ABORTED, "")):
        with pytest.raises(LocalMisuse, match="answered already"):
            again()
    assert caller.hear() == ResponseReceived(1, None, Text(number=1).SerializeToString())


def test_only_what_streams_can_stream(bench: Bench, caller: RawCaller) -> None:
    unary, stream = ask(caller, bench, "Say"), ask(caller, bench, "Count")

    for wrong in (lambda: unary.send(Text()), unary.finish, lambda: stream.reply(Text())):
        with pytest.raises(LocalMisuse):
            wrong()
    unary.reply(Text())
    stream.finish()
    assert [type(caller.hear()), type(caller.hear())] == [ResponseReceived, EndReceived]


@pytest.mark.parametrize("wrong", [None, "text", task.StateRequest()])
def test_a_reply_of_another_kind_is_told_to_both(bench: Bench, caller: RawCaller, wrong: Any) -> None:
    call = ask(caller, bench, "Say")
    with pytest.raises(LocalMisuse, match="was answered with"):
        call.reply(wrong)

    assert caller.hear_status(1) == Code.INTERNAL


def test_nothing_is_a_reply_where_empty_is_due(bench: Bench, caller: RawCaller) -> None:
    found = find_method(TASK, "Kill")
    assert found.output is wkt.Empty
    caller.socket.sendall(caller.core.send_request(found.shape, found.prefix, b"")[1])
    bench.next_call().reply(None)

    assert caller.hear() == ResponseReceived(1, None, None)


def test_an_error_text_too_long_for_a_frame_is_cut(bench: Bench, caller: RawCaller) -> None:
    ask(caller, bench, "Say").fail(Code.ABORTED, "x" * (5 << 20), [("big", bytes(5 << 20))])
    event = caller.hear()

    assert isinstance(event, ResponseReceived)
    assert event.status is not None
    assert (event.status.code, event.status.message[:3], event.status.details) == (Code.ABORTED, "xxx", ())


def test_a_start_that_fails_is_answered_and_reported(bench: Bench, caller: RawCaller) -> None:
    def start(call: ServerCall) -> None:
        raise RuntimeError("no such luck")

    bench.on_start = start
    caller.say(Text())
    bench.run_until(lambda: bench.errors, "the report")

    assert caller.hear_status(1) == Code.INTERNAL
    assert [str(error) for error in bench.errors] == ["no such luck"]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_messages_wait_for_whoever_takes_them_and_the_end_comes_last(bench: Bench, caller: RawCaller) -> None:
    stream_id, data = caller.request("Sum", Text(number=1))
    core = caller.core
    caller.socket.sendall(data + core.send_message(stream_id, b"") + core.send_end(stream_id))
    call, heard = bench.next_call(), []
    call.on_half_close(lambda: heard.append("end"))
    call.on_message(lambda message: heard.append(message.number))

    assert heard == [1, 0, "end"]


class Pusher:
    """Sends numbered messages on one stream for as long as the socket takes them."""

    def __init__(self, caller: RawCaller, stream_id: int) -> None:
        self.caller, self.stream_id = caller, stream_id
        self.begun = 0
        self._rest = b""
        caller.socket.setblocking(False)

    def push(self) -> None:
        """Send until the socket is full; half a message may be left."""
        try:
            while True:
                if not self._rest:
                    message = Text(number=self.begun, data=bytes(1 << 16)).SerializeToString()
                    self._rest = self.caller.core.send_message(self.stream_id, message)
                    self.begun += 1
                self._rest = self._rest[self.caller.socket.send(self._rest) :]
        except BlockingIOError:
            pass


def test_a_paused_call_alone_holds_its_caller_and_loses_nothing(bench: Bench, caller: RawCaller) -> None:
    """The caller's socket fills up once the window is full, and goes on once messages are taken."""
    call, heard = ask(caller, bench, "Sum"), []
    assert call.inbox is not None
    call.on_message(lambda message: heard.append(message.number))
    call.pause()
    pusher = Pusher(caller, call.stream_id)
    wait_until(
        lambda: (pusher.push(), bench.loop.run_once(0), call.inbox and call.inbox.is_full)[2], what="a full window"
    )
    for _ in range(10):
        pusher.push()
        bench.loop.run_once(0)
    most = call.inbox.held_bytes
    assert most < call.inbox.window_bytes + (1 << 18)
    assert heard == []

    call.resume()
    first = pusher.begun
    wait_until(lambda: (pusher.push(), bench.loop.run_once(0.01), len(heard) > first)[2], what="it to go on")
    assert heard == list(range(len(heard)))
    assert call.is_open


def test_a_sender_is_told_to_wait_and_when_to_go_on(bench: Bench, caller: RawCaller) -> None:
    call, drained = ask(caller, bench, "Count"), []
    call.on_drain = lambda: drained.append(bench.server.unsent_bytes)
    sent = 1
    while call.send(Text(data=bytes(1 << 16))):
        sent += 1
    assert bench.server.unsent_bytes > HIGH_WATER_BYTES
    bench.loop.run_once(0)
    assert drained == []

    heard = 0
    caller.socket.setblocking(False)

    def hear() -> list[int]:
        nonlocal heard
        try:
            heard += len(caller.core.receive_bytes(caller.socket.recv(1 << 20)))
        except BlockingIOError:
            pass
        bench.loop.run_once(0.01)
        return drained

    wait_until(hear, what="the drain")
    assert drained[0] < HIGH_WATER_BYTES
    call.finish()
    wait_until(lambda: (hear(), heard == sent + 1)[1], what="all messages and the end")


def test_a_sender_is_told_to_go_on_when_the_answer_of_another_call_emptied_the_queue(
    bench: Bench, caller: RawCaller
) -> None:
    other = ask(caller, bench, "Say")
    call, drained = ask(caller, bench, "Count"), []
    call.on_drain = lambda: drained.append(True)
    while call.send(Text(data=bytes(1 << 16))):
        pass
    caller.socket.setblocking(False)

    def empty_the_socket() -> None:
        with contextlib.suppress(BlockingIOError):
            while caller.socket.recv(1 << 20):
                pass

    while bench.server.unsent_bytes > (HIGH_WATER_BYTES + LOW_WATER_BYTES) // 2:
        empty_the_socket()
        bench.loop.run_once(0)
    assert drained == []
    empty_the_socket()
    other.reply(Text())
    assert bench.server.unsent_bytes == 0
    empty_the_socket()  # unix(7) sockets are writable again only when three quarters of their buffer are free

    bench.run_until(lambda: drained, "the drain")


def test_a_callers_death_is_told_once_and_answers_are_dropped(bench: Bench, caller: RawCaller) -> None:
    call, told = ask(caller, bench, "Count"), []
    call.on_cancel(lambda: told.append("first"))
    call.on_cancel(lambda: told.append("second"))
    caller.close()
    bench.run_until(lambda: told, "the cancellation")
    call.on_cancel(lambda: told.append("late"))

    assert told == ["first", "second", "late"]
    assert (call.is_open, call.send(Text())) == (False, False)
    call.finish()
    assert bench.server.connections == set()


def test_callbacks_that_fail_are_reported_and_hurt_nobody(bench: Bench, caller: RawCaller) -> None:
    call = ask(caller, bench, "Chat")

    def hear(message: Any) -> None:
        raise RuntimeError("bad ear")

    call.on_message(lambda message: None)
    call.on_message(hear)
    caller.socket.sendall(caller.core.send_message(1, b""))
    bench.run_until(lambda: bench.errors, "the report")

    assert [str(error) for error in bench.errors] == ["bad ear"]
    assert call.send(Text(number=1))
    assert isinstance(caller.hear(), MessageReceived)


# --- the server -------------------------------------------------------------------------------------------------------


def test_everything_a_successor_needs_is_plain_data(bench: Bench, caller: RawCaller) -> None:
    call = ask(caller, bench, "Say", Text(number=3))
    half = caller.request("Say", Text(number=4))[1][:-1]
    caller.socket.sendall(half)
    (connection,) = bench.server.connections
    bench.run_until(lambda: connection.core.reader.unparsed, "half a frame")

    assert connection.snapshot() == {
        "last_id": 1,
        "unparsed": half,
        "skipping_bytes": 0,
        "unsent": b"",
        "at_eof": False,
        "calls": [
            {
                "stream_id": call.stream_id,
                "state": "UNARY",
                "service": NAME,
                "method": "Say",
                "payload": Text(number=3).SerializeToString(),
                "metadata": [],
                "deadline_s": None,
                "fact": NO_FACT,
                "half_closed": False,
                "inbox": [],
            }
        ],
    }


def test_another_server_goes_on_from_a_snapshot(bench: Bench, caller: RawCaller, short_dir: str) -> None:
    """Half a frame, a message nobody took, a stream at its pace and a unary call: on the same socket, nothing twice."""
    chat = ask(caller, bench, "Chat")
    chat.pause()
    caller.socket.sendall(caller.core.send_message(1, Text(data=b"unread").SerializeToString()))
    say = ask(caller, bench, "Say", Text(number=3))
    half = caller.core.send_message(1, Text(data=b"in halves").SerializeToString())
    caller.socket.sendall(half[:5])
    (connection,) = bench.server.connections
    bench.run_until(lambda: connection.core.reader.unparsed, "half a frame")
    sock, state = connection.sock.dup(), connection.snapshot()
    other = Bench(f"{short_dir}/other")
    other.server.trust_any_peer = True
    after = other.server.restore(sock, state)
    for call in tuple(after.calls.values()):
        after.begin(call)
    heard: list[Any] = []
    again = other.next_call()
    again.on_message(heard.append)
    assert heard == []
    again.resume()
    caller.socket.sendall(half[5:])
    other.run_until(lambda: len(heard) == 2, "both messages")
    answered = other.next_call()

    assert [message.data for message in heard] == [b"unread", b"in halves"]
    assert (answered.method.name, answered.request, answered.stream_id) == ("Say", Text(number=3), say.stream_id)
    answered.reply(Text(number=4))
    assert again.send(Text(number=5))
    assert isinstance(caller.hear(), ResponseReceived)
    assert isinstance(caller.hear(), MessageReceived)
    other.server.close()
    other.loop.close()


def test_finishing_lets_the_last_words_out(bench: Bench, caller: RawCaller) -> None:
    call, finished = ask(caller, bench, "Say"), []
    call.reply(Text(data=bytes(3 << 20)))
    assert bench.server.unsent_bytes > 0
    bench.server.finish(lambda: finished.append(True), deadline_s=30.0)
    assert finished == []

    heard: list[Any] = []
    caller.socket.setblocking(False)

    def hear() -> bool:
        try:
            heard.extend(caller.core.receive_bytes(caller.socket.recv(1 << 20)))
        except BlockingIOError:
            pass
        bench.loop.run_once(0.01)
        return bool(heard) and bool(finished)

    wait_until(hear, what="the answer and the end")
    assert len(heard[0].payload) > 3 << 20


def test_finishing_does_not_wait_for_those_who_do_not_read(bench: Bench, caller: RawCaller) -> None:
    finished: list[bool] = []
    ask(caller, bench, "Say").reply(Text(data=bytes(3 << 20)))
    bench.server.finish(lambda: finished.append(True), deadline_s=0.05)

    bench.run_until(lambda: finished, "the deadline")
    assert bench.server.connections == set()


def test_a_server_that_stopped_accepting_serves_those_it_has(bench: Bench, caller: RawCaller) -> None:
    ask(caller, bench, "Say").reply(Text())
    bench.server.stop_accepting()
    bench.server.stop_accepting()
    waiting = RawCaller(bench.address)

    ask(caller, bench, "Say").reply(Text())
    bench.loop.run_once(0)
    assert len(bench.server.connections) == 1
    waiting.close()


def test_a_process_out_of_descriptors_accepts_later(bench: Bench, caller: RawCaller) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    plugs = [os.dup(0) for _ in range(highest - len(os.listdir("/proc/self/fd")) + 2)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max([highest, *plugs]) + 1, limit[1]))
        bench.run_until(lambda: bench.errors, "accept to fail")
        assert "Too many open files" in str(bench.errors[0])
        told = len(bench.errors)
        bench.loop.run_once(0)
        bench.loop.run_once(0)
        assert len(bench.errors) == told
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for plug in plugs:
            os.close(plug)

    ask(caller, bench, "Say").reply(Text())
    assert caller.hear_status(1) is None


def test_a_hang_up_that_was_about_another_socket_is_not_believed(bench: Bench, caller: RawCaller) -> None:
    """Within one turn a closed connection's fd number may have become this one's."""
    call = ask(caller, bench, "Say")
    call.connection._on_ready(select.EPOLLHUP)
    assert call.is_open

    call.reply(Text())
    assert caller.hear_status(1) is None


def test_a_socket_that_came_another_way_can_be_adopted(bench: Bench) -> None:
    ours, theirs = socket.socketpair()
    connection = bench.server.adopt(ours)

    assert connection is not None
    assert connection.peer is not None
    assert bench.server.connections == {connection}
    theirs.close()
    bench.run_until(lambda: not bench.server.connections, "the end")


def test_a_message_too_long_is_refused_to_the_handler_first(bench: Bench, caller: RawCaller) -> None:
    call = ask(caller, bench, "Count")
    with pytest.raises(StatusError, match="over the limit"):
        call.send(Text(data=bytes(4 << 20)))

    assert call.send(Text(number=1))
    with pytest.raises(StatusError, match="over the limit"):
        call.send(Text(number=2), bytes(4 << 20), Text.DATA_FIELD_NUMBER)
    call.finish()
    assert [type(caller.hear()), type(caller.hear())] == [MessageReceived, EndReceived]


@pytest.mark.parametrize("size", [1, 127, 128, 1 << 16, 1 << 18])
def test_a_field_that_is_sent_beside_its_message_arrives_in_it(bench: Bench, caller: RawCaller, size: int) -> None:
    call = ask(caller, bench, "Count")
    data = os.urandom(size)
    call.send(Text(number=7), data, Text.DATA_FIELD_NUMBER)
    call.send(Text(number=8))
    heard: list[Any] = []
    caller.socket.setblocking(False)

    def hear() -> bool:
        bench.loop.run_once(0.01)
        with contextlib.suppress(BlockingIOError):
            heard.extend(caller.core.receive_bytes(caller.socket.recv(1 << 20)))
        return len(heard) == 2

    wait_until(hear, what="both messages")
    assert [Text.FromString(event.payload) for event in heard] == [Text(number=7, data=data), Text(number=8)]
