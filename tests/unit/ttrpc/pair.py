"""Two connections and a wire one can look at: each test on them reads as a conversation."""

from collections.abc import Iterator
from typing import Any

from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.frames import FrameReader
from ttrpc.wire_events import Refused

PREFIX = b"\x0a\x01S\x12\x01M"  # a Request's service "S" and method "M"


class ConnectionPair:
    """A caller and a callee. What one sends reaches the other at once, unless the test holds it back."""

    def __init__(self) -> None:
        self.caller = Connection(CALLER)
        self.callee = Connection(CALLEE)

    def to_callee(self, data: bytes, *, expect: list[Any]) -> None:
        """The callee gets these bytes, and makes of them just that."""
        assert self.callee.receive_bytes(data) == expect

    def to_caller(self, data: bytes, *, expect: list[Any]) -> None:
        """The caller gets these bytes, and makes of them just that."""
        assert self.caller.receive_bytes(data) == expect

    def begin(self, shape: str, payload: bytes = b"", **options: Any) -> int:
        """A call both sides know of; returns its stream id."""
        stream_id, data = self.caller.send_request(shape, PREFIX, payload, **options)
        (event,) = self.callee.receive_bytes(data)
        assert event.stream_id == stream_id
        return stream_id

    def states(self, stream_id: int) -> tuple[str | None, str | None]:
        """What the two sides hold the stream to be; None once it is over."""
        return self.caller.open_streams.get(stream_id), self.callee.open_streams.get(stream_id)


def refusals(events: list[Any]) -> Iterator[tuple[int, int, bool]]:
    """Stream id, code, and whether a call was ended by it, of every refusal among the events."""
    for event in events:
        if isinstance(event, Refused):
            assert [frame.stream_id for frame in FrameReader().feed(event.answer)] == [event.stream_id]
            yield event.stream_id, event.status.code, event.was_open
