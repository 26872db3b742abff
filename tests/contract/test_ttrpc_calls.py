"""What every client may expect of every server: both clients against both servers, over a real socket."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.ttrpc_service import DETAILS, Text
from tests.contract.ttrpc_sides import CLIENTS, DEADLINE_S, SERVERS
from tests.support.waiting import wait_until
from ttrpc.errors import ConnectionLost, DeadlineExceeded, LocalMisuse, StatusError
from ttrpc.frames import MAX_DATA_BYTES
from ttrpc.status import Code

FITS = MAX_DATA_BYTES - 64  # a message of this much data, with its envelope, is under the limit


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, short_dir: str) -> Iterator[Any]:
    side = SERVERS[request.param](f"{short_dir}/s")
    yield side
    side.close()


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest, server: Any) -> Iterator[Callable[..., Any]]:
    """Opens clients of the server; all are closed afterwards."""
    opened = []

    def open_one(**options: Any) -> Any:
        opened.append(CLIENTS[request.param](f"unix://{server.address}", **options))
        return opened[-1]

    yield open_one
    for client in opened:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()


# --- the four kinds of call -------------------------------------------------------------------------------------------


def test_a_unary_call(client: Any) -> None:
    assert client.call("Say", Text(data=b"hi", number=-7)) == Text(data=b"hi", number=-7)
    assert client.call("Say", Text()) == Text()


def test_many_calls_one_after_another(client: Any) -> None:
    assert [client.call("Say", Text(number=n)).number for n in range(200)] == list(range(200))


def test_the_longest_message_travels_both_ways(client: Any) -> None:
    reply = client.call("Say", Text(data=bytes(FITS)), timeout_s=DEADLINE_S)

    assert len(reply.data) == FITS


@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_server_stream(client: Any, count: int) -> None:
    assert [message.number for message in client.stream("Count", Text(number=count))] == list(range(count))


def test_empty_messages_are_messages(client: Any) -> None:
    stream = client.stream("Count", Text(number=1))  # number 0, no data: nothing on the wire but a header

    assert (stream.receive(), stream.receive(), stream.receive()) == (Text(), None, None)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_client_stream(client: Any, count: int) -> None:
    stream = client.stream("Sum")
    for _ in range(count):
        stream.send(Text(number=1))
    stream.close_send()

    assert (stream.receive(), stream.receive()) == (Text(number=count), None)


@pytest.mark.parametrize("first", [Text(number=5), Text()])
def test_a_first_message_may_come_with_the_request(client: Any, first: Any) -> None:
    stream = client.stream("Chat", first)

    assert stream.receive() == first
    stream.close_send()
    assert stream.receive() is None


def test_a_bidirectional_stream(client: Any) -> None:
    stream = client.stream("Chat")
    for number in range(20):
        stream.send(Text(number=number))
        assert stream.receive() == Text(number=number)
    stream.close_send()

    assert stream.receive() is None


def test_streams_and_calls_share_a_connection(client: Any) -> None:
    first, second = client.stream("Chat"), client.stream("Chat")
    first.send(Text(data=b"1"))
    second.send(Text(data=b"2"))

    assert client.call("Say", Text(data=b"3")).data == b"3"
    assert (second.receive().data, first.receive().data) == (b"2", b"1")


def test_a_server_may_end_a_stream_first(client: Any) -> None:
    stream = client.stream("Chat")
    stream.send(Text(wish="bye"))

    assert stream.receive() is None
    with pytest.raises(StatusError, match="has ended the stream"):
        stream.send(Text())
    stream.close_send()  # nothing to say any more, and no error
    assert client.call("Say", Text(number=1)).number == 1


# --- metadata, deadlines, errors --------------------------------------------------------------------------------------


def test_metadata_reaches_the_handler(client: Any) -> None:
    metadata = {"containerd-namespace-ttrpc": "k8s.io", "empty": "", "schlüssel": "wert"}
    reply = client.call("Say", Text(wish="metadata"), metadata=metadata)

    assert reply.data.decode() == repr(sorted(metadata.items()))
    assert client.call("Say", Text(wish="metadata")).data == b"[]"


def test_the_handler_is_told_what_time_is_left(client: Any) -> None:
    left_ns = client.call("Say", Text(wish="deadline"), timeout_s=DEADLINE_S).number

    assert 0 < left_ns <= DEADLINE_S * 1e9
    assert client.call("Say", Text(wish="deadline")).number == -1


def test_a_deadline_that_passes_costs_the_call_alone(server: Any, client: Any) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as late:
        client.call("Say", Text(wish="wait"), timeout_s=0.05)

    assert 0.05 <= time.monotonic() - began < DEADLINE_S
    assert late.value.code == Code.DEADLINE_EXCEEDED
    assert client.call("Say", Text(number=1)).number == 1


def test_no_time_left_is_not_even_asked(server: Any, client: Any) -> None:
    for timeout_s in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            client.call("Say", Text(), timeout_s=timeout_s)

    assert client.call("Say", Text(number=1)).number == 1
    assert server.log.count("said") == 1


def test_a_streams_deadline_ends_it(client: Any) -> None:
    stream = client.stream("Chat", timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        stream.receive()
    with pytest.raises(DeadlineExceeded):
        stream.receive()

    assert client.call("Say", Text(number=1)).number == 1


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.UNAVAILABLE, 99])
def test_an_error_comes_with_code_words_and_details(client: Any, code: int) -> None:
    with pytest.raises(StatusError, match=r"^as you wish$") as failed:
        client.call("Say", Text(wish="fail", number=code))

    assert (failed.value.code, failed.value.status.details) == (code, DETAILS)


def test_a_handler_that_crashes_is_an_internal_error(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StatusError, match="as you wish") as failed:
        client.call("Say", Text(wish="crash"))

    assert failed.value.code == Code.INTERNAL
    assert client.call("Say", Text(number=1)).number == 1


def test_an_error_ends_a_stream_after_what_it_had_said(client: Any) -> None:
    stream = client.stream("Chat")
    stream.send(Text(number=1))
    stream.send(Text(wish="no"))

    assert stream.receive() == Text(number=1)
    for _ in range(2):
        with pytest.raises(StatusError, match=r"^no$") as failed:
            stream.receive()
        assert failed.value.code == Code.ABORTED
    with pytest.raises(StatusError, match=r"^no$"):
        stream.send(Text())


def test_unknown_methods_and_services_are_named(client: Any) -> None:
    with pytest.raises(StatusError, match=r"^method Missing$") as no_method:
        client.call("Missing", Text())
    with pytest.raises(StatusError, match=r"^service containerd\.task\.v2\.Task$") as no_service:
        client.call("State", Text(), service="containerd.task.v2.Task")

    assert (no_method.value.code, no_service.value.code) == (Code.UNIMPLEMENTED, Code.UNIMPLEMENTED)


def test_calling_a_stream_or_a_method_that_is_not_is_misuse(client: Any) -> None:
    with pytest.raises(LocalMisuse):
        client.call("Count", Text())
    with pytest.raises(LocalMisuse):
        client.stream("Count")
    with pytest.raises(LocalMisuse):
        client.call("Nope", Text())


# --- over the limit ---------------------------------------------------------------------------------------------------


def test_a_request_too_long_is_not_sent(server: Any, client: Any) -> None:
    with pytest.raises(StatusError, match="over the limit") as refused:
        client.call("Say", Text(data=bytes(MAX_DATA_BYTES)))

    assert refused.value.code == Code.RESOURCE_EXHAUSTED
    assert client.call("Say", Text(number=1)).number == 1
    assert server.log.count("said") == 1


def test_a_message_too_long_is_not_sent_and_its_stream_goes_on(client: Any) -> None:
    stream = client.stream("Chat")
    with pytest.raises(StatusError, match="over the limit"):
        stream.send(Text(data=bytes(MAX_DATA_BYTES)))
    stream.send(Text(number=1))

    assert stream.receive().number == 1


def test_a_reply_too_long_fails_its_call_not_the_connection(client: Any) -> None:
    with pytest.raises(StatusError, match="over the limit") as refused:
        client.call("Say", Text(wish="big", number=MAX_DATA_BYTES))

    assert refused.value.code == Code.RESOURCE_EXHAUSTED
    assert client.call("Say", Text(number=1)).number == 1


def test_a_streamed_reply_too_long_fails_its_stream_alone(client: Any) -> None:
    stream = client.stream("Count", Text(number=3, wish="too long"))
    with pytest.raises(StatusError, match="over the limit") as refused:
        stream.receive()

    assert refused.value.code == Code.RESOURCE_EXHAUSTED
    assert client.call("Say", Text(number=1)).number == 1


# --- slow and unread streams ------------------------------------------------------------------------------------------

MANY = 8000  # with CHUNK, twice the receive window
CHUNK = bytes(1024)


def test_a_stream_nobody_reads_is_failed_and_blocks_no_call(server: Any, connect: Callable[..., Any]) -> None:
    client = connect()
    unread = client.stream("Count", Text(number=MANY, data=CHUNK))
    other = client.stream("Chat")

    def all_counted_after_a_round() -> bool:
        assert client.call("Say", Text(number=1), timeout_s=DEADLINE_S).number == 1
        other.send(Text(data=CHUNK * 32))
        assert len(other.receive().data) == len(CHUNK) * 32
        return bool(server.log.count("counted") == MANY)

    wait_until(all_counted_after_a_round, what="more to have come than a stream may hold")
    with pytest.raises(StatusError, match="left unread") as cut:
        list(iter(unread.receive, None))

    assert cut.value.code == Code.RESOURCE_EXHAUSTED
    assert client.call("Say", Text(number=1)).number == 1


def test_a_stream_alone_on_its_connection_is_never_cut(server: Any, client: Any) -> None:
    """Nobody else is held up, so its server is: what is read late is read whole."""
    stream = client.stream("Count", Text(number=MANY, data=CHUNK))
    wait_until(lambda: server.log.count("counted") > 100, what="the server to be ahead")

    assert [message.number for message in stream] == list(range(MANY))


def talk_to_the_deaf(stream: Any) -> None:
    """Send twice what the other side keeps, and have its answer."""
    for _ in range(MANY):
        stream.send(Text(data=CHUNK))
    stream.receive()


def test_a_handler_that_reads_nothing_loses_its_stream_and_blocks_no_call(server: Any, client: Any) -> None:
    other = client.stream("Chat")
    stream = client.stream("Chat")
    stream.send(Text(wish="wait"))
    wait_until(lambda: server.log.count("paused"), what="the handler to stop listening")
    with pytest.raises(StatusError, match="left unread") as cut:
        talk_to_the_deaf(stream)

    assert cut.value.code == Code.RESOURCE_EXHAUSTED
    assert client.call("Say", Text(number=1), timeout_s=DEADLINE_S).number == 1
    other.send(Text(number=2))
    assert other.receive().number == 2


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_cancels_its_calls(server: Any, connect: Callable[..., Any]) -> None:
    leaving, staying = connect(), connect()
    leaving.stream("Chat")
    leaving.call("Say", Text())
    with pytest.raises(DeadlineExceeded):
        leaving.call("Say", Text(wish="wait"), timeout_s=0.05)
    leaving.close()
    wait_until(lambda: server.log.count("cancelled") >= 1, what="the handlers to be told")

    assert staying.call("Say", Text(number=1)).number == 1


def test_a_server_that_goes_away_ends_every_call(server: Any, client: Any) -> None:
    stream = client.stream("Chat")
    stream.send(Text(number=1))
    assert stream.receive().number == 1
    server.close()

    with pytest.raises(ConnectionLost):
        stream.receive()
    with pytest.raises(ConnectionLost):
        client.call("Say", Text())


def test_what_arrived_before_the_end_is_still_received(server: Any, client: Any) -> None:
    stream = client.stream("Count", Text(number=3))
    wait_until(lambda: server.log.count("ended"), what="the handler to return")
    assert client.call("Say", Text(number=1)).number == 1  # its answer comes after the stream's end
    server.close()

    assert [message.number for message in stream] == [0, 1, 2]


def test_a_closed_client_says_so(client: Any) -> None:
    stream = client.stream("Chat")
    stream.close()
    client.call("Say", Text())

    with pytest.raises(StatusError, match="closed here"):
        stream.receive()
