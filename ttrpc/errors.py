"""Whose fault an error is decides its class: ours, the peer's, the connection's, or the call's own answer."""

from ttrpc.status import Code, Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class TtrpcError(Exception):
    """Base of everything this library raises on purpose."""


class LocalMisuse(TtrpcError):
    """Our side asked for a move the stream's state does not allow: a bug here. The connection is unharmed."""


class PeerViolation(TtrpcError):
    """The peer broke the protocol so that framing or stream order can no longer be trusted: close the connection."""


class ConnectionLost(TtrpcError):
    """The connection ended with the call unanswered. Whether the call took effect is unknown."""


class StatusError(TtrpcError):
    """A call's own non-OK answer. Handlers raise it, callers receive it, with the same fields."""

    def __init__(self, code: int, message: str, details: "Sequence[tuple[str, bytes]]" = ()) -> None:
        super().__init__(message)
        self.status = Status(code, message, details)

    @property
    def code(self) -> int:
        return self.status.code

    @property
    def message(self) -> str:
        return self.status.message

    def __str__(self) -> str:
        return self.status.message

    def __repr__(self) -> str:
        return f"StatusError({self.status!r})"


class DeadlineExceeded(StatusError):
    """Our own deadline passed before the answer. The peer may still be at it."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.DEADLINE_EXCEEDED, message)
