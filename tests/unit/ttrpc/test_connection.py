"""Conversations between a caller and a callee, with the bytes written out."""

import pytest

from tests.unit.ttrpc.pair import PREFIX, ConnectionPair, refusals
from ttrpc import connection
from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.envelope import Request
from ttrpc.errors import ConnectionLost, LocalMisuse, StatusError
from ttrpc.frames import DATA, MAX_DATA_BYTES, NO_DATA, REMOTE_CLOSED, REQUEST, RESPONSE, pack_header
from ttrpc.status import Code, Status
from ttrpc.streams import CALLER_DONE, OPEN, REQUEST_CLOSED, REQUEST_OPEN, REQUEST_UNARY, UNARY
from ttrpc.wire_events import EndReceived, MessageReceived, Refused, RequestReceived, ResponseReceived

TOO_LONG = MAX_DATA_BYTES + 1
HALF_CLOSE = REMOTE_CLOSED | NO_DATA


# --- the four kinds of call -------------------------------------------------------------------------------------------


def test_a_unary_call() -> None:
    pair = ConnectionPair()

    stream_id, data = pair.caller.send_request(REQUEST_UNARY, PREFIX, b"\x08\x01")
    assert data == b"\x00\x00\x00\x0a\x00\x00\x00\x01\x01\x00" + b"\x0a\x01S\x12\x01M\x1a\x02\x08\x01"
    pair.to_callee(data, expect=[RequestReceived(1, REQUEST_UNARY, Request("S", "M", b"\x08\x01"))])
    assert pair.states(stream_id) == (UNARY, UNARY)

    data = pair.callee.send_response(1, None, b"\x10\x02")
    assert data == b"\x00\x00\x00\x04\x00\x00\x00\x01\x02\x00" + b"\x12\x02\x10\x02"
    pair.to_caller(data, expect=[ResponseReceived(1, None, b"\x10\x02")])
    assert pair.states(stream_id) == (None, None)


def test_an_empty_reply_is_a_bare_header() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)

    data = pair.callee.send_response(1, None)
    assert data == b"\x00\x00\x00\x00\x00\x00\x00\x01\x02\x00"
    pair.to_caller(data, expect=[ResponseReceived(1, None, None)])


def test_a_server_streaming_call() -> None:
    pair = ConnectionPair()

    _, data = pair.caller.send_request(REQUEST_CLOSED, PREFIX, b"q")
    assert data[8:10] == b"\x01\x01"  # Request, remote-closed
    pair.to_callee(data, expect=[RequestReceived(1, REQUEST_CLOSED, Request("S", "M", b"q"))])
    data = pair.callee.send_message(1, b"a")
    assert data == b"\x00\x00\x00\x01\x00\x00\x00\x01\x03\x00a"
    pair.to_caller(data, expect=[MessageReceived(1, b"a")])
    assert pair.states(1) == (CALLER_DONE, CALLER_DONE)
    data = pair.callee.send_end(1)
    assert data == b"\x00\x00\x00\x00\x00\x00\x00\x01\x03\x05"  # Data, remote-closed and no-data
    pair.to_caller(data, expect=[EndReceived(1)])
    assert pair.states(1) == (None, None)


def test_a_client_streaming_call() -> None:
    pair = ConnectionPair()

    _, data = pair.caller.send_request(REQUEST_OPEN, PREFIX, b"")
    assert data[8:10] == b"\x01\x02"  # Request, remote-open
    pair.to_callee(data, expect=[RequestReceived(1, REQUEST_OPEN, Request("S", "M"))])
    pair.to_callee(pair.caller.send_message(1, b"a"), expect=[MessageReceived(1, b"a")])
    pair.to_callee(pair.caller.send_end(1), expect=[EndReceived(1)])
    assert pair.states(1) == (CALLER_DONE, CALLER_DONE)
    pair.to_caller(pair.callee.send_response(1, None, b"sum"), expect=[ResponseReceived(1, None, b"sum")])
    assert pair.states(1) == (None, None)


def test_a_bidirectional_call_whose_callee_ends_first() -> None:
    """The callee's end ends the stream: what the caller then still sends is late, not wrong."""
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)

    pair.to_caller(pair.callee.send_message(1, b"a"), expect=[MessageReceived(1, b"a")])
    late = pair.caller.send_message(1, b"b")
    pair.to_caller(pair.callee.send_end(1), expect=[EndReceived(1)])
    pair.to_callee(late, expect=[])
    assert pair.callee.late_frames == 1


def test_an_empty_message_is_a_message() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)

    data = pair.caller.send_message(1, b"")
    assert data == b"\x00\x00\x00\x00\x00\x00\x00\x01\x03\x00"
    pair.to_callee(data, expect=[MessageReceived(1, b"")])


def test_a_message_and_the_end_in_one_frame() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)

    both = pack_header(1, 1, DATA, REMOTE_CLOSED) + b"z"
    pair.to_callee(both, expect=[MessageReceived(1, b"z"), EndReceived(1)])
    pair.to_caller(both, expect=[MessageReceived(1, b"z"), EndReceived(1)])


def test_no_data_alone_says_nothing() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)

    pair.to_callee(pack_header(2, 1, DATA, NO_DATA) + b"xx", expect=[])
    assert pair.states(1) == (OPEN, OPEN)


def test_metadata_timeout_status_and_details_travel() -> None:
    pair = ConnectionPair()

    metadata = (("containerd-namespace-ttrpc", "k8s.io"), ("k", ""))
    _, data = pair.caller.send_request(REQUEST_UNARY, PREFIX, b"", 1_500_000_000, metadata)
    request = Request("S", "M", None, 1_500_000_000, metadata)
    pair.to_callee(data, expect=[RequestReceived(1, REQUEST_UNARY, request)])
    status = Status(Code.NOT_FOUND, "no such task", [("type.example/Why", b"\x08\x01")])
    pair.to_caller(pair.callee.send_response(1, status), expect=[ResponseReceived(1, status, None)])


def test_calls_are_answered_in_any_order() -> None:
    pair = ConnectionPair()
    for _ in range(3):
        pair.begin(REQUEST_UNARY)

    pair.to_caller(pair.callee.send_response(5, None, b"c"), expect=[ResponseReceived(5, None, b"c")])
    pair.to_caller(pair.callee.send_response(1, None, b"a"), expect=[ResponseReceived(1, None, b"a")])
    assert set(pair.callee.open_streams) == {3}


def test_a_forgotten_calls_answer_is_ignored() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)

    pair.caller.forget(1)
    assert pair.states(1) == (None, UNARY)  # the callee never learns
    pair.to_caller(pair.callee.send_response(1, None, b"late"), expect=[])
    assert pair.caller.late_frames == 1


# --- stream ids -------------------------------------------------------------------------------------------------------


def test_ids_are_odd_and_rise_by_two_in_the_order_of_the_bytes() -> None:
    caller = Connection(CALLER)
    ids = [caller.send_request(REQUEST_UNARY, PREFIX, b"")[0] for _ in range(4)]

    assert ids == [1, 3, 5, 7]


def test_a_request_too_long_to_send_takes_no_id() -> None:
    caller = Connection(CALLER)

    with pytest.raises(StatusError) as refused:
        caller.send_request(REQUEST_UNARY, PREFIX, bytes(MAX_DATA_BYTES))
    assert refused.value.code == Code.RESOURCE_EXHAUSTED
    assert caller.open_streams == {}
    assert caller.send_request(REQUEST_UNARY, PREFIX, b"")[0] == 1


def test_used_up_ids_end_the_connection_not_the_protocol() -> None:
    caller = Connection(CALLER, last_id=connection.MAX_STREAM_ID - 2)

    assert caller.send_request(REQUEST_UNARY, PREFIX, b"")[0] == connection.MAX_STREAM_ID
    with pytest.raises(ConnectionLost, match="connect anew"):
        caller.send_request(REQUEST_UNARY, PREFIX, b"")


def request_frame(stream_id: int, flags: int = 0) -> bytes:
    return pack_header(len(PREFIX), stream_id, REQUEST, flags) + PREFIX


@pytest.mark.parametrize("stream_id", [1, 3, 5])
def test_an_id_must_rise(stream_id: int) -> None:
    callee = Connection(CALLEE)
    callee.receive_bytes(request_frame(5))
    callee.send_response(5, None)

    assert list(refusals(callee.receive_bytes(request_frame(stream_id)))) == [(stream_id, Code.INVALID_ARGUMENT, False)]


def test_a_skipped_id_cannot_be_used_later() -> None:
    callee = Connection(CALLEE)

    assert len(callee.receive_bytes(request_frame(7))) == 1
    assert list(refusals(callee.receive_bytes(request_frame(3)))) == [(3, Code.INVALID_ARGUMENT, False)]


def test_using_the_id_of_a_call_under_way_ends_that_call() -> None:
    """The refusal is a Response on that id: for the caller the call is answered, so nobody waits for its handler."""
    callee = Connection(CALLEE)
    callee.receive_bytes(request_frame(1))

    assert list(refusals(callee.receive_bytes(request_frame(1)))) == [(1, Code.INVALID_ARGUMENT, True)]
    assert callee.open_streams == {}


@pytest.mark.parametrize("type_", [REQUEST, DATA])
def test_an_even_id_is_refused(type_: int) -> None:
    callee = Connection(CALLEE)
    events = callee.receive_bytes(pack_header(0, 2, type_, 0))

    assert list(refusals(events)) == [(2, Code.INVALID_ARGUMENT, False)]


def test_a_refusal_is_literally_these_bytes() -> None:
    (event,) = Connection(CALLEE).receive_bytes(pack_header(0, 2, REQUEST, 0))

    text = b"stream id 2 is even; callers' ids are odd"
    status = b"\x08\x03\x12" + bytes([len(text)]) + text
    body = b"\x0a" + bytes([len(status)]) + status
    assert isinstance(event, Refused)
    assert event.answer == bytes([0, 0, 0, len(body), 0, 0, 0, 2, RESPONSE, 0]) + body


def test_too_many_calls_open_refuses_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_OPEN_STREAMS", 2)
    callee = Connection(CALLEE)
    callee.receive_bytes(request_frame(1) + request_frame(3))

    assert list(refusals(callee.receive_bytes(request_frame(5)))) == [(5, Code.RESOURCE_EXHAUSTED, False)]
    callee.send_response(1, None)
    assert list(refusals(callee.receive_bytes(request_frame(7)))) == []


# --- what a callee refuses --------------------------------------------------------------------------------------------


def test_data_for_a_stream_never_begun() -> None:
    callee = Connection(CALLEE)

    assert list(refusals(callee.receive_bytes(pack_header(0, 9, DATA, 0)))) == [(9, Code.INVALID_ARGUMENT, False)]


def test_data_on_a_unary_call_ends_it() -> None:
    callee = Connection(CALLEE)
    callee.receive_bytes(request_frame(1))

    assert list(refusals(callee.receive_bytes(pack_header(0, 1, DATA, 0)))) == [(1, Code.INVALID_ARGUMENT, True)]


def test_data_after_the_callers_own_end_ends_the_call() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)
    pair.to_callee(pair.caller.send_end(1), expect=[EndReceived(1)])

    assert list(refusals(pair.callee.receive_bytes(pack_header(0, 1, DATA, 0)))) == [(1, Code.INVALID_ARGUMENT, True)]


def test_a_request_that_cannot_be_read_is_refused_and_uses_up_its_id() -> None:
    callee = Connection(CALLEE)

    assert list(refusals(callee.receive_bytes(pack_header(1, 1, REQUEST, 0) + b"\x0a"))) == [
        (1, Code.INVALID_ARGUMENT, False)
    ]
    assert list(refusals(callee.receive_bytes(request_frame(1)))) == [(1, Code.INVALID_ARGUMENT, False)]


def test_a_request_too_long_is_refused_and_the_connection_goes_on() -> None:
    callee = Connection(CALLEE)

    assert list(refusals(callee.receive_bytes(pack_header(TOO_LONG, 1, REQUEST, 0)))) == [
        (1, Code.RESOURCE_EXHAUSTED, False)
    ]
    (event,) = callee.receive_bytes(bytes(TOO_LONG) + request_frame(3))
    assert event == RequestReceived(3, REQUEST_UNARY, Request("S", "M"))


def test_a_message_too_long_ends_its_stream_alone() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)
    pair.begin(REQUEST_UNARY)

    (refused,) = pair.callee.receive_bytes(pack_header(TOO_LONG, 1, DATA, 0))
    assert isinstance(refused, Refused)
    assert (refused.status.code, refused.was_open) == (Code.RESOURCE_EXHAUSTED, True)
    assert set(pair.callee.open_streams) == {3}
    pair.to_caller(refused.answer, expect=[ResponseReceived(1, refused.status, None)])


def test_too_long_a_message_for_an_answered_call_is_ignored() -> None:
    callee = Connection(CALLEE)
    callee.receive_bytes(request_frame(1))
    callee.send_response(1, None)

    assert callee.receive_bytes(pack_header(TOO_LONG, 1, DATA, 0)) == []


def test_responses_sent_to_a_callee_are_ignored() -> None:
    callee = Connection(CALLEE)

    assert callee.receive_bytes(pack_header(0, 1, RESPONSE, 0)) == []
    assert callee.late_frames == 1


def test_request_flags_decide_whether_messages_may_follow() -> None:
    """Remote-closed wins over remote-open; unknown flags mean nothing."""
    shapes = [
        event.shape
        for flags, stream_id in ((0, 1), (0x80, 3), (2, 5), (1, 7), (3, 9))
        for event in Connection(CALLEE).receive_bytes(request_frame(stream_id, flags))
        if isinstance(event, RequestReceived)
    ]

    assert shapes == [REQUEST_UNARY, REQUEST_UNARY, REQUEST_OPEN, REQUEST_CLOSED, REQUEST_CLOSED]


def test_a_peer_that_sends_nothing_more_has_ended_its_open_streams() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)
    pair.begin(REQUEST_UNARY)

    assert pair.callee.receive_eof() == [EndReceived(1)]
    assert pair.callee.open_streams == {1: CALLER_DONE, 3: UNARY}
    assert pair.caller.receive_eof() == []


# --- what a caller makes of a peer that errs --------------------------------------------------------------------------


def status_of(events: list[object]) -> int | None:
    (event,) = events
    assert isinstance(event, ResponseReceived)
    return event.status.code if event.status is not None else None


def test_an_answer_too_long_fails_its_call_alone() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)
    pair.begin(REQUEST_UNARY)

    assert status_of([*pair.caller.receive_bytes(pack_header(TOO_LONG, 1, RESPONSE, 0))]) == Code.RESOURCE_EXHAUSTED
    assert pair.caller.receive_bytes(bytes(TOO_LONG)) == []
    pair.to_caller(pair.callee.send_response(3, None), expect=[ResponseReceived(3, None, None)])


def test_messages_on_a_unary_call_fail_it() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)

    assert status_of([*pair.caller.receive_bytes(pack_header(0, 1, DATA, 0))]) == Code.INTERNAL
    assert pair.caller.open_streams == {}


def test_an_answer_that_cannot_be_read_fails_its_call() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)

    assert status_of([*pair.caller.receive_bytes(pack_header(1, 1, RESPONSE, 0) + b"\x0a")]) == Code.INTERNAL


@pytest.mark.parametrize("type_", [REQUEST, RESPONSE, DATA])
def test_frames_for_calls_a_caller_does_not_have_are_ignored(type_: int) -> None:
    caller = Connection(CALLER)

    assert caller.receive_bytes(pack_header(0, 1, type_, 0)) == []
    assert caller.late_frames == 1


# --- what our own side may not do -------------------------------------------------------------------------------------


def test_moves_the_table_forbids_are_our_bug_and_change_nothing() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)
    pair.begin(REQUEST_CLOSED)

    for move in (
        lambda: pair.caller.send_message(1, b""),
        lambda: pair.callee.send_message(1, b""),
        lambda: pair.callee.send_end(1),
        lambda: pair.caller.send_end(3),
        lambda: pair.callee.send_response(9, None),
        lambda: pair.caller.forget(9),
        lambda: pair.caller.send_response(1, None),
        lambda: pair.callee.forget(1),
        lambda: pair.callee.send_request(REQUEST_UNARY, PREFIX, b""),
    ):
        with pytest.raises(LocalMisuse):
            move()
    assert pair.states(1) == (UNARY, UNARY)
    assert pair.states(3) == (CALLER_DONE, CALLER_DONE)


def test_a_call_is_answered_once() -> None:
    pair = ConnectionPair()
    pair.begin(REQUEST_UNARY)
    pair.callee.send_response(1, None)

    with pytest.raises(LocalMisuse, match="DONE"):
        pair.callee.send_response(1, None)


def test_what_is_too_long_to_send_is_refused_before_anything_happens() -> None:
    """The callee can still answer that call, with the error itself."""
    pair = ConnectionPair()
    pair.begin(REQUEST_OPEN)

    for send in (
        lambda: pair.callee.send_message(1, bytes(TOO_LONG)),
        lambda: pair.callee.send_response(1, None, bytes(MAX_DATA_BYTES)),
        lambda: pair.caller.send_message(1, bytes(TOO_LONG)),
    ):
        with pytest.raises(StatusError) as refused:
            send()
        assert refused.value.code == Code.RESOURCE_EXHAUSTED
    assert pair.states(1) == (OPEN, OPEN)
    data = pair.callee.send_response(1, refused.value.status)
    pair.to_caller(data, expect=[ResponseReceived(1, refused.value.status, None)])
