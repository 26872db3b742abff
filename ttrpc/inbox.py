"""Messages of one stream that nobody has taken yet: bounded, so that a stream nobody reads costs a known amount."""

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# One message of the longest kind always fits an empty window.
RECEIVE_WINDOW_BYTES: "Final" = 4 << 20
MESSAGE_OVERHEAD_BYTES: "Final" = 64  # what an empty message costs: bounds their number too


class Inbox:
    """Payloads in order. `put` never refuses; whoever fills it asks `is_full` first and decides what fullness means."""

    __slots__ = ("_payloads", "held_bytes", "window_bytes")

    def __init__(self, window_bytes: int = RECEIVE_WINDOW_BYTES) -> None:
        self._payloads: deque[bytes] = deque()
        self.held_bytes = 0
        self.window_bytes = window_bytes

    def put(self, payload: bytes) -> None:
        self._payloads.append(payload)
        self.held_bytes += len(payload) + MESSAGE_OVERHEAD_BYTES

    def take(self) -> bytes:
        """The oldest payload. Raises: IndexError when there is none."""
        payload = self._payloads.popleft()
        self.held_bytes -= len(payload) + MESSAGE_OVERHEAD_BYTES
        return payload

    @property
    def is_full(self) -> bool:
        return self.held_bytes >= self.window_bytes

    def waiting(self) -> "list[bytes]":
        """What nobody took yet, oldest first."""
        return list(self._payloads)

    def clear(self) -> None:
        self._payloads.clear()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._payloads)
