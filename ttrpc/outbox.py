"""Bytes not yet written to a socket, in order and counted."""

import socket
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HIGH_WATER_BYTES: "Final" = 256 << 10  # above: senders of streams are asked to wait
LOW_WATER_BYTES: "Final" = 64 << 10  # below: they are told to go on
# A server closes a connection whose peer lets this much pile up: four of the longest messages there are.
HARD_LIMIT_BYTES: "Final" = 16 << 20

_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_BATCH = 16  # frames per system call


class Outbox:
    """A queue of byte strings and the writing of it. Whole frames in, in the order in which ids were given out."""

    __slots__ = ("_chunks", "unsent_bytes")

    def __init__(self) -> None:
        self._chunks: deque[bytes | memoryview] = deque()
        self.unsent_bytes = 0

    def put(self, data: bytes) -> None:
        self._chunks.append(data)
        self.unsent_bytes += len(data)

    def send(self, sock: socket.socket, data: bytes, bulk: bytes = b"") -> None:
        """Write now what the socket takes of both, queue the rest. Never blocks, whatever the socket's mode.

        Raises: OSError when the connection is gone.
        """
        if self._chunks:
            self.put(data)
            if bulk:
                self.put(bulk)
            self.flush(sock)
            return
        try:
            sent = sock.sendmsg((data, bulk), (), _SEND_FLAGS) if bulk else sock.send(data, _SEND_FLAGS)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.put(memoryview(data)[sent:] if sent else data)  # type: ignore[arg-type]
        sent = max(0, sent - len(data))
        if sent < len(bulk):
            self.put(memoryview(bulk)[sent:] if sent else bulk)  # type: ignore[arg-type]

    def flush(self, sock: socket.socket) -> bool:
        """Write what the socket takes; true when nothing is left. Never blocks. Raises: OSError."""
        chunks = self._chunks
        while chunks:
            try:
                if len(chunks) == 1:
                    sent = sock.send(chunks[0], _SEND_FLAGS)
                else:
                    batch = [chunks[index] for index in range(min(len(chunks), _BATCH))]
                    sent = sock.sendmsg(batch, (), _SEND_FLAGS)
            except BlockingIOError:
                return False
            self.unsent_bytes -= sent
            while sent:
                first = chunks[0]
                if sent < len(first):
                    chunks[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                chunks.popleft()
        return True

    def unsent(self) -> bytes:
        """Everything not yet written, as one byte string."""
        return b"".join(self._chunks)

    def clear(self) -> None:
        self._chunks.clear()
        self.unsent_bytes = 0
