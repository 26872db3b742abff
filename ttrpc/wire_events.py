"""What `Connection.receive_bytes` tells: one value per thing that happened to a stream."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from ttrpc.envelope import Request
    from ttrpc.status import Status

    Event: TypeAlias = "RequestReceived | MessageReceived | EndReceived | ResponseReceived | Refused"


class _Value:
    """Equal and printable by its fields, so that a test states what it expects as a value."""

    __slots__: "Sequence[str]" = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


class RequestReceived(_Value):
    """A call began (callee only). ``shape`` is the fact of the table: may the caller send messages?"""

    __slots__ = ("metadata", "method", "payload", "service", "shape", "stream_id", "timeout_ns")

    def __init__(self, stream_id: int, shape: str, request: "Request") -> None:
        self.stream_id = stream_id
        self.shape = shape
        self.service = request.service
        self.method = request.method
        self.payload = request.payload
        self.timeout_ns = request.timeout_ns
        self.metadata = request.metadata


class MessageReceived(_Value):
    """One message of a stream; the payload may be empty, which is a message too."""

    __slots__ = ("payload", "stream_id")

    def __init__(self, stream_id: int, payload: bytes) -> None:
        self.stream_id = stream_id
        self.payload = payload


class EndReceived(_Value):
    """The peer sends no more messages. From a callee it ends the stream, with success."""

    __slots__ = ("stream_id",)

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


class ResponseReceived(_Value):
    """The stream's answer, which ends it (caller only). The status is None for OK.

    Also how the caller learns that its own side gave the stream up: what came was too long or broke the protocol.
    """

    __slots__ = ("payload", "status", "stream_id")

    def __init__(self, stream_id: int, status: "Status | None", payload: "bytes | None") -> None:
        self.stream_id = stream_id
        self.status = status
        self.payload = payload


class Refused(_Value):
    """The callee's side refused a frame: ``answer`` are the bytes that say so and must be sent.

    ``was_open`` tells that the refusal ended a call under way, which nobody waits for any more.
    """

    __slots__ = ("answer", "status", "stream_id", "was_open")

    def __init__(self, stream_id: int, status: "Status", answer: bytes, was_open: bool) -> None:
        self.stream_id = stream_id
        self.status = status
        self.answer = answer
        self.was_open = was_open
