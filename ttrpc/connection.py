"""One connection without its socket: bytes in, events out; moves in, bytes out. Either role.

Stream ids are given out by the same call that makes the request's bytes, so whoever writes byte strings in the order
it got them keeps ids rising on the wire, as the protocol demands.
"""

from ttrpc import streams
from ttrpc.envelope import decode_request, decode_response, encode_request, encode_response
from ttrpc.errors import ConnectionLost, LocalMisuse, PeerViolation, StatusError
from ttrpc.frames import (
    DATA,
    MAX_DATA_BYTES,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    FrameReader,
    pack_header,
)
from ttrpc.status import Code, Status
from ttrpc.wire_events import EndReceived, MessageReceived, Refused, RequestReceived, ResponseReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Final

    from ttrpc.frames import Frame
    from ttrpc.wire_events import Event

CALLER: "Final" = "caller"
CALLEE: "Final" = "callee"

MAX_STREAM_ID: "Final" = 0xFFFF_FFFF
# A caller that gives up leaves its call behind with the callee (ttrpc has no cancel), so many are legitimate; this is
# two orders above what one containerd was seen to leave, and some 20 MB of state.
MAX_OPEN_STREAMS: "Final" = 65_536

_FLAGS = {streams.REQUEST_UNARY: 0, streams.REQUEST_OPEN: REMOTE_OPEN, streams.REQUEST_CLOSED: REMOTE_CLOSED}
_MESSAGE = {CALLER: streams.CALLER_MESSAGE, CALLEE: streams.CALLEE_MESSAGE}
_END = {CALLER: streams.CALLER_END, CALLEE: streams.CALLEE_END}
_OTHER = {CALLER: CALLEE, CALLEE: CALLER}


class Connection:
    """The protocol state of one connection, as the caller or as the callee.

    Owns: nothing but values. `open_streams` maps the id of every stream under way to its state in `streams.TABLE`.
    Raises: LocalMisuse for a move the table forbids, StatusError RESOURCE_EXHAUSTED for a message over 4 MiB; both
    leave the state as it was. What the peer does wrong never raises: it becomes an event of its stream.
    """

    __slots__ = ("_seen", "_their_end", "_their_message", "last_id", "late_frames", "open_streams", "reader", "role")

    def __init__(
        self,
        role: str,
        *,
        unparsed: bytes = b"",
        skip: int = 0,
        last_id: int = 0,
        seen: "Collection[int]" = frozenset(),
    ) -> None:
        self.role = role
        self.reader = FrameReader(unparsed, skip=skip)
        self.last_id = last_id  # newest id given out (caller) or seen (callee)
        self.open_streams: dict[int, str] = {}
        self.late_frames = 0  # arrived for streams no longer open, or make no sense in this role; ignored
        self._seen = seen  # requests whose frames may come once more, and were dealt with; until the first other one
        self._their_message = _MESSAGE[_OTHER[role]]
        self._their_end = _END[_OTHER[role]]

    # --- sending

    def send_request(
        self,
        shape: str,
        prefix: bytes,
        payload: bytes,
        timeout_ns: int = 0,
        metadata: "Sequence[tuple[str, str]]" = (),
    ) -> "tuple[int, bytes]":
        """Begin a call; returns its stream id and the bytes to write.

        ``shape`` is one of streams.REQUEST_*; ``prefix`` is `envelope.request_prefix` of service and method.
        Raises: ConnectionLost when every stream id is used up (after 2^31 calls): connect anew.
        """
        if self.role is not CALLER:
            raise LocalMisuse("only the caller's side begins calls")
        data = encode_request(prefix, payload, timeout_ns, metadata)
        if len(data) > MAX_DATA_BYTES:
            raise _too_long(len(data))
        stream_id = self.last_id + 2 if self.last_id else 1
        if stream_id > MAX_STREAM_ID:
            raise ConnectionLost("this connection has used up its stream ids; connect anew")
        self.open_streams[stream_id] = streams.TABLE[streams.IDLE][shape]
        self.last_id = stream_id
        return stream_id, pack_header(len(data), stream_id, REQUEST, _FLAGS[shape]) + data

    def send_message(self, stream_id: int, payload: bytes) -> bytes:
        """One message on an open stream. An empty payload is a message like any other."""
        return self.send_message_head(stream_id, len(payload)) + payload

    def send_message_head(self, stream_id: int, length: int) -> bytes:
        """What goes before a message of that length, which is to be written next."""
        if length > MAX_DATA_BYTES:
            raise _too_long(length)
        self._move(stream_id, _MESSAGE[self.role])
        return pack_header(length, stream_id, DATA, 0)

    def send_end(self, stream_id: int) -> bytes:
        """No more messages from here: the caller's half-close, or the callee's successful end of the stream."""
        self._move(stream_id, _END[self.role])
        return pack_header(0, stream_id, DATA, REMOTE_CLOSED | NO_DATA)

    def send_response(self, stream_id: int, status: "Status | None", payload: bytes = b"") -> bytes:
        """Answer a call and so end it; a status of None is OK."""
        if self.role is not CALLEE:
            raise LocalMisuse("only the callee's side answers calls")
        data = encode_response(status, payload)
        if len(data) > MAX_DATA_BYTES:
            raise _too_long(len(data))
        self._move(stream_id, streams.RESPONSE)
        return pack_header(len(data), stream_id, RESPONSE, 0) + data

    def forget(self, stream_id: int) -> None:
        """Give a call up. The callee is not told (ttrpc has no frame for it); what it still sends is ignored."""
        if self.role is not CALLER:
            raise LocalMisuse("only the caller's side may forget a call")
        self._move(stream_id, streams.FORGOTTEN)

    def _move(self, stream_id: int, fact: str) -> None:
        state = self.open_streams.get(stream_id, streams.DONE)
        following = streams.TABLE[state].get(fact)
        if following is None:
            raise LocalMisuse(f"{fact} is not allowed on stream {stream_id}, which is {state}")
        self._set(stream_id, following)

    def _set(self, stream_id: int, state: str) -> None:
        if state is streams.DONE:
            del self.open_streams[stream_id]
        else:
            self.open_streams[stream_id] = state

    # --- receiving

    def receive_bytes(self, data: bytes) -> "list[Event]":
        """Take what the socket gave; return what it means, in order. How it was cut into reads changes nothing."""
        events: list[Event] = []
        receive = self._receive_as_callee if self.role is CALLEE else self._receive_as_caller
        for frame in self.reader.feed(data):
            receive(frame, events)
        return events

    def receive_eof(self) -> "list[Event]":
        """The peer sends nothing more at all: every caller that was still sending has ended. Half a frame is lost.

        A callee may go on answering; a caller's open streams will never be answered, which its driver tells them.
        """
        events: list[Event] = []
        if self.role is CALLEE:
            for stream_id, state in self.open_streams.items():
                if state is streams.OPEN:
                    self.open_streams[stream_id] = streams.CALLER_DONE
                    events.append(EndReceived(stream_id))
        return events

    def _receive_as_callee(self, frame: "Frame", events: "list[Event]") -> None:
        stream_id = frame.stream_id
        if self._seen:
            if stream_id in self._seen:
                return
            if frame.type == REQUEST:
                self._seen = frozenset()
        if frame.type == RESPONSE:
            self.late_frames += 1
        elif frame.data is None:
            self._refuse_too_long(frame, events)
        elif stream_id % 2 == 0:
            self._refuse(
                events, stream_id, Code.INVALID_ARGUMENT, f"stream id {stream_id} is even; callers' ids are odd"
            )
        elif frame.type == REQUEST:
            self._receive_request(frame, events)
        elif stream_id in self.open_streams:
            self._receive_data(frame, events)
        elif stream_id > self.last_id:
            self._refuse(events, stream_id, Code.INVALID_ARGUMENT, f"stream id {stream_id} was begun by no request")
        else:
            self.late_frames += 1  # we answered while the caller was still sending: it could not know

    def _receive_request(self, frame: "Frame", events: "list[Event]") -> None:
        stream_id = frame.stream_id
        if stream_id <= self.last_id:
            reason = f"stream id {stream_id} cannot be used again; ids must increase"
            self._refuse(events, stream_id, Code.INVALID_ARGUMENT, reason)
            return
        self.last_id = stream_id
        if len(self.open_streams) >= MAX_OPEN_STREAMS:
            self._refuse(events, stream_id, Code.RESOURCE_EXHAUSTED, f"{MAX_OPEN_STREAMS} calls are open already")
            return
        assert frame.data is not None
        try:
            request = decode_request(frame.data)
        except PeerViolation as violation:
            self._refuse(events, stream_id, Code.INVALID_ARGUMENT, f"the request cannot be read: {violation}")
            return
        if frame.flags & REMOTE_CLOSED:
            shape = streams.REQUEST_CLOSED
        elif frame.flags & REMOTE_OPEN:
            shape = streams.REQUEST_OPEN
        else:
            shape = streams.REQUEST_UNARY
        self.open_streams[stream_id] = streams.TABLE[streams.IDLE][shape]
        events.append(RequestReceived(stream_id, shape, request))

    def _receive_as_caller(self, frame: "Frame", events: "list[Event]") -> None:
        stream_id = frame.stream_id
        if stream_id not in self.open_streams or frame.type == REQUEST:
            self.late_frames += 1
        elif frame.data is None:
            self._give_up(events, stream_id, _too_long(frame.length).status)
        elif frame.type == DATA:
            self._receive_data(frame, events)
        else:
            try:
                status, payload = decode_response(frame.data)
            except PeerViolation as violation:
                self._give_up(events, stream_id, Status(Code.INTERNAL, f"the response cannot be read: {violation}"))
                return
            del self.open_streams[stream_id]
            events.append(ResponseReceived(stream_id, status, payload))

    def _receive_data(self, frame: "Frame", events: "list[Event]") -> None:
        stream_id = frame.stream_id
        assert frame.data is not None
        if not frame.flags & NO_DATA and not self._received(stream_id, self._their_message, events):
            return
        if not frame.flags & NO_DATA:
            events.append(MessageReceived(stream_id, frame.data))
        if frame.flags & REMOTE_CLOSED and self._received(stream_id, self._their_end, events):
            events.append(EndReceived(stream_id))

    def _received(self, stream_id: int, fact: str, events: "list[Event]") -> bool:
        """Move the stream by what the peer did; false, with the stream ended, when the table forbids it."""
        state = self.open_streams[stream_id]
        following = streams.TABLE[state].get(fact)
        if following is not None:
            self._set(stream_id, following)
            return True
        if self.role is CALLEE:
            reason = f"{fact} is not allowed on stream {stream_id}, which is {state}"
            self._refuse(events, stream_id, Code.INVALID_ARGUMENT, reason)
        else:
            self._give_up(events, stream_id, Status(Code.INTERNAL, f"the peer broke the protocol: {fact} in {state}"))
        return False

    def _refuse_too_long(self, frame: "Frame", events: "list[Event]") -> None:
        stream_id = frame.stream_id
        if frame.type == DATA and stream_id not in self.open_streams and stream_id <= self.last_id:
            self.late_frames += 1
            return
        if frame.type == REQUEST and stream_id % 2:
            self.last_id = max(self.last_id, stream_id)
        self._refuse(events, stream_id, Code.RESOURCE_EXHAUSTED, _too_long(frame.length).message)

    def _refuse(self, events: "list[Event]", stream_id: int, code: Code, text: str) -> None:
        """Answer a frame we do not accept on its own stream. The stream, if there was one, is over."""
        status = Status(code, text)
        data = encode_response(status, b"")
        answer = pack_header(len(data), stream_id, RESPONSE, 0) + data
        was_open = self.open_streams.pop(stream_id, None) is not None
        events.append(Refused(stream_id, status, answer, was_open))

    def _give_up(self, events: "list[Event]", stream_id: int, status: Status) -> None:
        del self.open_streams[stream_id]
        events.append(ResponseReceived(stream_id, status, None))


def _too_long(length: int) -> StatusError:
    reason = f"message of {length} bytes is over the limit of {MAX_DATA_BYTES} bytes"
    return StatusError(Code.RESOURCE_EXHAUSTED, reason)
