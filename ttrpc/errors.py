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
    """What the peer sent is not what the protocol allows. The core turns it into an answer on its stream."""


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
    """A deadline passed before the answer: ours, or, a moment earlier, the peer's copy of it. It may still be at it."""

    def __init__(self, message: str, details: "Sequence[tuple[str, bytes]]" = ()) -> None:
        super().__init__(Code.DEADLINE_EXCEEDED, message, details)


def error_of(status: Status) -> StatusError:
    """A peer's non-OK answer as the error its caller catches."""
    if status.code == Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(status.message, status.details)
    return StatusError(status.code, status.message, status.details)


# --- refusals by kind, as handlers raise them


def invalid_argument(message: str) -> StatusError:
    """The request can never succeed as it is."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatusError:
    """What the request names is not there, or no longer."""
    return StatusError(Code.NOT_FOUND, message)


def already_exists(message: str) -> StatusError:
    """The id is taken."""
    return StatusError(Code.ALREADY_EXISTS, message)


def failed_precondition(message: str) -> StatusError:
    """Not in this state, or not on this machine as it is."""
    return StatusError(Code.FAILED_PRECONDITION, message)


def resource_exhausted(message: str) -> StatusError:
    """A bound was reached, of ours or of the machine's."""
    return StatusError(Code.RESOURCE_EXHAUSTED, message)


def unimplemented(message: str) -> StatusError:
    """We do not do this."""
    return StatusError(Code.UNIMPLEMENTED, message)


def unknown(message: str) -> StatusError:
    """An error of no class: so containerd's shim answers runc's failures and wrong states."""
    return StatusError(Code.UNKNOWN, message)
