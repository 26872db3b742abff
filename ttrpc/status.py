"""Status kinds of gRPC, as ttrpc carries them. Source: google.rpc.Code numbers; standard library only."""

import enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Code(enum.IntEnum):
    """The closed list of error kinds; the numbers are the wire's."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Status:
    """What a call ended with: a code, a sentence, and details as (type URL, bytes) pairs.

    An unknown code from a peer is kept as a plain int: never turned into another kind.
    """

    __slots__ = ("code", "details", "message")

    def __init__(self, code: int, message: str = "", details: "Sequence[tuple[str, bytes]]" = ()) -> None:
        try:
            self.code: int = Code(code)
        except ValueError:
            self.code = code
        self.message = message
        self.details = tuple(details)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Status):
            return NotImplemented
        return (self.code, self.message, self.details) == (other.code, other.message, other.details)

    def __hash__(self) -> int:
        return hash((self.code, self.message, self.details))

    def __repr__(self) -> str:
        name = self.code.name if isinstance(self.code, Code) else str(self.code)
        return f"Status({name}, {self.message!r})"
