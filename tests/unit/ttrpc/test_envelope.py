"""The hand-made protobuf: the same bytes and the same meaning as protobuf's own."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from ttrpc import envelope
from ttrpc.envelope import decode_request, decode_response, encode_request, encode_response, request_prefix, varint
from ttrpc.errors import PeerViolation
from ttrpc.status import Code, Status

STRING, BYTES, INT32, INT64, MESSAGE = 9, 12, 5, 3, 11


def google_messages() -> dict[str, Any]:
    """The three messages as protobuf itself makes them, from a description of our own."""
    file = descriptor_pb2.FileDescriptorProto(name="envelope_test.proto", package="t", syntax="proto3")

    def add(name: str, *fields: tuple[str, int, int, bool, str]) -> None:
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, type_name in fields:
            message.field.add(
                name=field, number=number, type=kind, label=3 if repeated else 1, type_name=type_name or None
            )

    add("Pair", ("key", 1, STRING, False, ""), ("value", 2, STRING, False, ""))
    add(
        "Request",
        ("service", 1, STRING, False, ""),
        ("method", 2, STRING, False, ""),
        ("payload", 3, BYTES, False, ""),
        ("timeout_nano", 4, INT64, False, ""),
        ("metadata", 5, MESSAGE, True, ".t.Pair"),
    )
    add("Detail", ("type_url", 1, STRING, False, ""), ("value", 2, BYTES, False, ""))
    add(
        "Status",
        ("code", 1, INT32, False, ""),
        ("message", 2, STRING, False, ""),
        ("details", 3, MESSAGE, True, ".t.Detail"),
    )
    add("Response", ("status", 1, MESSAGE, False, ".t.Status"), ("payload", 2, BYTES, False, ""))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("Pair", "Request", "Detail", "Status", "Response")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}")) for name in names}


GOOGLE = google_messages()
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
pairs = st.lists(st.tuples(text, text), max_size=3)
details = st.lists(st.tuples(text, st.binary(max_size=8)), max_size=3)
int64 = st.integers(-(2**63), 2**63 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)


# --- the bytes themselves


def test_a_request_is_literally_these_bytes() -> None:
    made = encode_request(request_prefix("Svc", "Do"), b"\x08\x01", 1_000_000, [("k", "v")])

    assert made == b"\x0a\x03Svc\x12\x02Do\x1a\x02\x08\x01\x20\xc0\x84\x3d\x2a\x06\x0a\x01k\x12\x01v"


def test_ok_has_no_status_and_an_empty_reply_no_payload() -> None:
    assert encode_response(None, b"") == b""
    assert encode_response(Status(Code.OK), b"x") == b"\x12\x01x"
    assert encode_response(Status(Code.NOT_FOUND, "no"), b"") == b"\x0a\x06\x08\x05\x12\x02no"


def test_an_absent_payload_is_not_an_empty_one() -> None:
    """A streaming caller's Request with an empty payload carries a message; one without carries none."""
    assert decode_request(b"\x0a\x01S").payload is None
    assert decode_request(b"\x0a\x01S\x1a\x00").payload == b""


@pytest.mark.parametrize(
    ("value", "coded"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (-1, b"\xff" * 9 + b"\x01"), (1 << 63, b"\x80" * 9 + b"\x01")],
)
def test_varints(value: int, coded: bytes) -> None:
    assert varint(value) == coded


# --- the same as protobuf's own


@given(text, text, st.binary(max_size=300), int64, pairs)
def test_protobuf_reads_our_requests_and_we_read_its(
    service: str, method: str, payload: bytes, timeout_ns: int, metadata: list[tuple[str, str]]
) -> None:
    theirs = GOOGLE["Request"](service=service, method=method, payload=payload, timeout_nano=timeout_ns)
    for key, value in metadata:
        theirs.metadata.add(key=key, value=value)
    ours = encode_request(request_prefix(service, method), payload, timeout_ns, metadata)
    read = decode_request(theirs.SerializeToString())

    assert GOOGLE["Request"].FromString(ours) == theirs
    assert (read.service, read.method, read.payload or b"") == (service, method, payload)
    assert (read.timeout_ns, list(read.metadata)) == (timeout_ns, metadata)


@given(int32, text, details, st.binary(max_size=300))
def test_protobuf_reads_our_responses_and_we_read_its(
    code: int, message: str, parts: list[tuple[str, bytes]], payload: bytes
) -> None:
    theirs = GOOGLE["Response"](payload=payload)
    status = Status(code, message, parts) if code else None
    if status is not None:
        theirs.status.code, theirs.status.message = code, message
        for type_url, value in parts:
            theirs.status.details.add(type_url=type_url, value=value)

    assert GOOGLE["Response"].FromString(encode_response(status, payload)) == theirs
    assert decode_response(theirs.SerializeToString()) == (status, payload or None)


# --- what comes from strangers


def test_unknown_fields_are_skipped_whatever_their_kind() -> None:
    unknown = b"\x30\x05" + b"\x39" + bytes(8) + b"\x45" + bytes(4) + b"\x4a\x02xx"

    assert decode_request(unknown + b"\x0a\x01S" + unknown).service == "S"


def test_a_known_field_of_another_kind_is_an_unknown_one() -> None:
    assert decode_request(b"\x08\x05\x0a\x01S").service == "S"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a", "ends inside a varint"),
        (b"\x0a\x05ab", "ends inside a field"),
        (b"\x0a\xff\xff\xff\xff\x0f", "ends inside a field"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "longer than ten bytes"),
        (b"\x0a\x02\xff\xfe", "not UTF-8"),
        (b"\x2a\x03\x0a\x05x", "ends inside a field"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x00\x00", "field number"),
        (b"\x39\x00", "ends inside a field"),
    ],
)
def test_a_damaged_request_is_the_peers_violation(data: bytes, reason: str) -> None:
    with pytest.raises(PeerViolation, match=reason):
        decode_request(data)


def test_an_error_text_that_is_not_utf8_is_not_lost() -> None:
    status, _ = decode_response(b"\x0a\x06\x08\x05\x12\x02n\xff")

    assert status == Status(Code.NOT_FOUND, "n\ufffd")


def test_a_lone_surrogate_in_an_error_text_does_not_lose_the_error() -> None:
    assert decode_response(encode_response(Status(5, "a\udcff"), b"")) == (Status(5, "a?"), None)


def test_an_unknown_code_is_kept_as_it_is() -> None:
    status, _ = decode_response(b"\x0a\x02\x08\x63")

    assert status is not None
    assert (status.code, type(status.code)) == (99, int)


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_violate_and_nothing_else(data: bytes) -> None:
    for decode in (decode_request, decode_response, envelope.decode_status):
        try:
            made: Any = decode(data)
        except PeerViolation:
            continue
        assert made is not None
