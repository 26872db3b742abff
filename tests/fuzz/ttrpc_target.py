"""What the fuzzers throw bytes at: a connection of either role, and what must hold whatever they are.

The first byte picks the role and what is under way, the second how the rest is cut into reads.
"""

from ttrpc import streams
from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.envelope import decode_request, decode_response, decode_status, encode_request, encode_response
from ttrpc.errors import LocalMisuse, PeerViolation
from ttrpc.frames import HEADER_BYTES, MAX_DATA_BYTES, FrameReader
from ttrpc.wire_events import Refused, RequestReceived

PREFIX = b"\x0a\x01S\x12\x01M"
READ_SIZES = (1, 3, 10, 64, 1 << 16)


def run(data: bytes) -> None:
    """One input. Raises: AssertionError, or whatever the library lets out that it should not."""
    if len(data) < 2:
        return
    choice, size, wire = data[0], READ_SIZES[data[1] % len(READ_SIZES)], data[2:]
    connection = begin(choice)
    whole = begin(choice)
    in_pieces = []
    for at in range(0, len(wire), size):
        piece = wire[at : at + size]
        for event in connection.receive_bytes(piece):
            in_pieces.append(event)
            answer(connection, event, choice)
        check(connection, at + len(piece))
    if not choice & 4:  # answers change what follows, so only without them the two can be compared
        assert whole.receive_bytes(wire) == in_pieces, "how reads cut the bytes changed what they mean"
    connection.receive_eof()
    decode_all(wire)


def begin(choice: int) -> Connection:
    """A connection in the state the first byte names."""
    connection = Connection(CALLEE if choice & 1 else CALLER)
    if connection.role == CALLER and choice & 2:
        for shape in (streams.REQUEST_UNARY, streams.REQUEST_OPEN, streams.REQUEST_CLOSED):
            connection.send_request(shape, PREFIX, b"")
    return connection


def answer(connection: Connection, event: object, choice: int) -> None:
    """Let a callee answer some of its calls, and read every refusal back."""
    if isinstance(event, Refused):
        (frame,) = FrameReader().feed(event.answer)
        assert frame.data is not None
        status, _ = decode_response(frame.data)
        assert (frame.stream_id, status) == (event.stream_id, event.status)
    if choice & 4 and isinstance(event, RequestReceived) and event.stream_id in connection.open_streams:
        try:
            connection.send_message(event.stream_id, b"x")
            connection.send_end(event.stream_id)
        except LocalMisuse:
            connection.send_response(event.stream_id, None, b"x")


def check(connection: Connection, received: int) -> None:
    """Memory is bounded by what was received and by one frame; every stream is in a state of the table."""
    assert len(connection.reader.unparsed) <= min(received, HEADER_BYTES + MAX_DATA_BYTES)
    assert len(connection.open_streams) <= 3 + received // HEADER_BYTES
    assert set(connection.open_streams.values()) <= set(streams.STATES) - {streams.IDLE, streams.DONE}


def decode_all(data: bytes) -> None:
    """Every decoder of the envelope; what decodes survives being encoded and decoded again."""
    try:
        request = decode_request(data)
    except PeerViolation:
        pass
    else:
        prefix = encode_request(b"", b"") + PREFIX
        again = decode_request(encode_request(prefix, request.payload or b"", request.timeout_ns, request.metadata))
        assert (again.payload or b"", again.timeout_ns) == (request.payload or b"", request.timeout_ns)
        assert list(again.metadata) == list(request.metadata)
    try:
        status, payload = decode_response(data)
    except PeerViolation:
        pass
    else:
        assert decode_response(encode_response(status, payload or b"")) == (status, payload or None)
    try:
        decode_status(data)
    except PeerViolation:
        pass
