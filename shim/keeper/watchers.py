"""Who wait for the keeper's end: a daemon, a test."""

import os

from shim.core.loop import READ
from shim.keeper.wire import BadRequest, pack_answer
from shim.launch import OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from shim.core.loop import Loop

WATCHERS_MAX = 16


class Watchers:
    """Owns their connections: each ends when the keeper does, or forks no more."""

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop
        self._connections: set[socket.socket] = set()

    @property
    def count(self) -> int:
        return len(self._connections)

    def let(self, connection: "socket.socket") -> bool:
        """Have one more: True, it is ours from here on. Raises: BadRequest, OSError."""
        if len(self._connections) >= WATCHERS_MAX:
            raise BadRequest(f"{WATCHERS_MAX} watch already")
        connection.send(pack_answer(OK, str(os.getpid())))
        self._connections.add(connection)
        self._loop.register(connection.fileno(), READ, lambda _mask: self._end(connection))
        return True

    def close(self) -> None:
        """Let all of them know. Idempotent."""
        for connection in tuple(self._connections):
            self._end(connection)

    def _end(self, connection: "socket.socket") -> None:
        self._connections.discard(connection)
        self._loop.unregister(connection.fileno())
        connection.close()
