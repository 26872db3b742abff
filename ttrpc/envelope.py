"""The three messages inside frames — Request, Response, google.rpc.Status — coded by hand, standard library only.

Fields (protobuf). Request: 1 service, 2 method, 3 payload, 4 timeout_nano, 5 metadata{1 key, 2 value}.
Response: 1 status, 2 payload. Status: 1 code, 2 message, 3 details{1 type_url, 2 value}.
"""

from ttrpc.errors import PeerViolation
from ttrpc.status import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types; the group types 3 and 4 are refused


class Request:
    """What a caller asked for. ``payload`` is None when the field was absent; ``timeout_ns`` 0 means no deadline."""

    __slots__ = ("metadata", "method", "payload", "service", "timeout_ns")

    def __init__(
        self,
        service: str,
        method: str,
        payload: "bytes | None" = None,
        timeout_ns: int = 0,
        metadata: "Sequence[tuple[str, str]]" = (),
    ) -> None:
        self.service = service
        self.method = method
        self.payload = payload
        self.timeout_ns = timeout_ns
        self.metadata = metadata


# --- encoding


def varint(value: int) -> bytes:
    """A protobuf varint; negative numbers as 64-bit two's complement."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))


def _field(key: bytes, value: bytes) -> bytes:
    return key + varint(len(value)) + value if value else b""


def bytes_field_head(number: int, length: int) -> bytes:
    """What goes before a bytes field's value, behind a message's other fields: their order is free."""
    return varint(number << 3 | _BYTES) + varint(length)


def request_prefix(service: str, method: str) -> bytes:
    """The part of a Request that is the same for every call of a method: worth keeping."""
    return _field(b"\x0a", service.encode()) + _field(b"\x12", method.encode())


def encode_request(
    prefix: bytes, payload: bytes, timeout_ns: int = 0, metadata: "Sequence[tuple[str, str]]" = ()
) -> bytes:
    """A Request; ``prefix`` comes from `request_prefix`."""
    if not timeout_ns and not metadata:
        return b"%b\x1a%b%b" % (prefix, varint(len(payload)), payload) if payload else prefix
    parts = [prefix, _field(b"\x1a", payload)]
    if timeout_ns:
        parts.append(b"\x20" + varint(timeout_ns))
    for key, value in metadata:
        pair = _field(b"\x0a", key.encode()) + _field(b"\x12", value.encode())
        parts.append(b"\x2a" + varint(len(pair)) + pair)
    return b"".join(parts)


def encode_response(status: "Status | None", payload: bytes) -> bytes:
    """A Response. OK has no status field at all, and an empty payload no payload field."""
    if status is None or status.code == 0:
        return b"\x12%b%b" % (varint(len(payload)), payload) if payload else b""
    coded = encode_status(status)
    return b"\x0a%b%b%b" % (varint(len(coded)), coded, _field(b"\x12", payload))


def encode_status(status: Status) -> bytes:
    """A google.rpc.Status. What of the text is no Unicode is replaced: an error must not fail."""
    parts = [b"\x08" + varint(int(status.code)), _field(b"\x12", status.message.encode("utf-8", "replace"))]
    for type_url, value in status.details:
        detail = _field(b"\x0a", type_url.encode()) + _field(b"\x12", value)
        parts.append(b"\x1a" + varint(len(detail)) + detail)
    return b"".join(parts)


# --- decoding: everything raises PeerViolation and nothing else


def _varint_at(data: bytes, at: int) -> "tuple[int, int]":
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
            shift += 7
            if shift > 63:
                raise PeerViolation("a varint is longer than ten bytes")
    except IndexError:
        raise PeerViolation("a message ends inside a varint") from None


def _fields(data: bytes) -> "Iterator[tuple[int, int | bytes]]":
    """Every field as (key, value); the key keeps its wire type, so a field of another type matches no known key."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint_at(data, at)
        if key < 8 or key > 0xFFFF_FFFF:
            raise PeerViolation("a message has a field number protobuf does not allow")
        wire_type = key & 7
        if wire_type == _VARINT:
            number, at = _varint_at(data, at)
            yield key, number
            continue
        if wire_type == _BYTES:
            length, at = _varint_at(data, at)
        elif wire_type == _FIXED64:
            length = 8
        elif wire_type == _FIXED32:
            length = 4
        else:
            raise PeerViolation("a message has a field of wire type %d" % wire_type)
        if length > end - at:
            raise PeerViolation("a message ends inside a field")
        yield key, data[at : at + length]
        at += length


def _text(value: "int | bytes") -> str:
    assert isinstance(value, bytes)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise PeerViolation("a string is not UTF-8") from None


def _signed(value: "int | bytes") -> int:
    assert isinstance(value, int)
    return value - (1 << 64) if value >> 63 else value


def decode_request(data: bytes) -> Request:
    """Raises: PeerViolation."""
    request = Request("", "")
    metadata: list[tuple[str, str]] = []
    for key, value in _fields(data):
        if key == 0x0A:
            request.service = _text(value)
        elif key == 0x12:
            request.method = _text(value)
        elif key == 0x1A:
            request.payload = value  # type: ignore[assignment]
        elif key == 0x20:
            request.timeout_ns = _signed(value)
        elif key == 0x2A:
            metadata.append(_pair(value))
    if metadata:
        request.metadata = tuple(metadata)
    return request


def _pair(data: "int | bytes") -> "tuple[str, str]":
    assert isinstance(data, bytes)
    key = value = ""
    for number, part in _fields(data):
        if number == 0x0A:
            key = _text(part)
        elif number == 0x12:
            value = _text(part)
    return key, value


def decode_response(data: bytes) -> "tuple[Status | None, bytes | None]":
    """(status, payload); the status is None for OK. Raises: PeerViolation."""
    status: Status | None = None
    payload: bytes | None = None
    for key, value in _fields(data):
        if key == 0x0A:
            assert isinstance(value, bytes)
            status = decode_status(value)
        elif key == 0x12:
            payload = value  # type: ignore[assignment]
    return (None if status is None or status.code == 0 else status), payload


def decode_status(data: bytes) -> Status:
    """Raises: PeerViolation. A message that is not UTF-8 is kept as far as it goes: an error must not get lost."""
    code, message = 0, ""
    details: list[tuple[str, bytes]] = []
    for key, value in _fields(data):
        if key == 0x08:
            assert isinstance(value, int)
            code = value & 0xFFFF_FFFF  # an int32: negative codes come sign-extended
            if code >> 31:
                code -= 1 << 32
        elif key == 0x12:
            assert isinstance(value, bytes)
            message = value.decode("utf-8", "replace")
        elif key == 0x1A:
            details.append(_detail(value))
    return Status(code, message, details)


def _detail(data: "int | bytes") -> "tuple[str, bytes]":
    assert isinstance(data, bytes)
    type_url, value = "", b""
    for key, part in _fields(data):
        if key == 0x0A:
            type_url = _text(part)
        elif key == 0x12:
            value = part  # type: ignore[assignment]
    return type_url, value
