"""The seeds of the corpus, by name: one per thing worth starting from. `python -m tests.fuzz.corpus` writes them."""

import os

from ttrpc import frames
from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.envelope import request_prefix
from ttrpc.frames import DATA, MAX_DATA_BYTES, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, REQUEST, RESPONSE
from ttrpc.status import Code, Status
from ttrpc.streams import REQUEST_UNARY

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "ttrpc")

PREFIX = request_prefix("containerd.task.v2.Task", "State")
TO_CALLEE, TO_CALLER = b"\x01\x04", b"\x02\x04"  # see ttrpc_target: role, and whole reads
ANSWERED, BY_BYTE = b"\x05\x04", b"\x01\x00"


def frame(stream_id: int, type_: int, flags: int = 0, data: bytes = b"") -> bytes:
    return frames.pack_header(len(data), stream_id, type_, flags) + data


def response(stream_id: int, status: Status | None, payload: bytes = b"") -> bytes:
    callee = Connection(CALLEE)
    callee.receive_bytes(frame(stream_id, REQUEST))
    return callee.send_response(stream_id, status, payload)


def seeds() -> dict[str, bytes]:
    """What a correct peer says, and each way to be wrong."""
    caller = Connection(CALLER)
    metadata = (("containerd-namespace-ttrpc", "default"),)
    _, full = caller.send_request(REQUEST_UNARY, PREFIX, b"\x0a\x01c", 5_000_000_000, metadata)
    request = frame(1, REQUEST, 0, PREFIX)
    opened = frame(1, REQUEST, REMOTE_OPEN, PREFIX)
    end = frame(1, DATA, REMOTE_CLOSED | NO_DATA)
    not_found = Status(Code.NOT_FOUND, "no", [("t", b"v")])
    return {
        "request": TO_CALLEE + full,
        "request-by-byte": BY_BYTE + full,
        "requests-answered": ANSWERED + request + opened.replace(b"\x00\x01\x01", b"\x00\x03\x01"),
        "stream": TO_CALLEE + opened + frame(1, DATA, 0, b"a") + frame(1, DATA) + end,
        "id-reused": TO_CALLEE + request + request,
        "id-even": TO_CALLEE + frame(2, REQUEST, 0, PREFIX),
        "data-on-unary": TO_CALLEE + request + frame(1, DATA, 0, b"a"),
        "data-after-end": TO_CALLEE + opened + end + frame(1, DATA, 0, b"a"),
        "data-unbegun": TO_CALLEE + frame(9, DATA, 0, b"a"),
        "unknown-type": TO_CALLEE + frame(1, 0x2A, 0xFF, b"abc") + request,
        "too-long": TO_CALLEE + frames.pack_header(MAX_DATA_BYTES + 1, 1, REQUEST, 0) + b"abc",
        "half": TO_CALLEE + request[:-1],
        "request-damaged": TO_CALLEE + frame(1, REQUEST, 0, b"\x0a\xff\xff\xff\xff\x0f"),
        "response": TO_CALLER + response(1, None, b"\x0a\x01c"),
        "response-error": TO_CALLER + response(1, not_found),
        "response-damaged": TO_CALLER + frame(1, RESPONSE, 0, b"\x0a\x05\x08"),
        "messages": TO_CALLER + frame(3, DATA, 0, b"a") + frame(5, DATA, REMOTE_CLOSED, b"b"),
        "answer-too-long": TO_CALLER + frames.pack_header(MAX_DATA_BYTES + 1, 5, RESPONSE, 0),
    }


if __name__ == "__main__":
    os.makedirs(CORPUS, exist_ok=True)
    for name, data in seeds().items():
        with open(os.path.join(CORPUS, name), "wb") as file:
            file.write(data)
