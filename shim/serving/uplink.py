"""One connection to a ttrpc server, on the shim's own poll loop: bytes out, bytes in, and word of its end."""

import os
import select
import socket

from ttrpc.outbox import Outbox
from ttrpc.peer import check_peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop

READ_BYTES = 64 << 10


class Uplink:
    """Owns the socket and what is unsent on it. Nothing here blocks. ``on_lost`` is called once, unless closed before.

    Order: neither callback is called inside `send` or the constructor.
    """

    __slots__ = ("_loop", "_mask", "_on_bytes", "_on_lost", "_outbox", "_sock")

    def __init__(
        self, loop: "Loop", path: str, on_bytes: "Callable[[bytes], None]", on_lost: "Callable[[str], None]"
    ) -> None:
        """Connect, which a Unix socket does at once or not at all.

        Raises: OSError when nobody listens there or the backlog is full (BlockingIOError); PermissionError when the
        other side is not of our own user and group.
        """
        self._loop = loop
        self._on_bytes = on_bytes
        self._on_lost = on_lost
        self._outbox = Outbox()
        self._mask = select.EPOLLIN
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
            check_peer(sock)
            loop.register(sock.fileno(), self._mask, self._ready)
        except BaseException:
            sock.close()
            raise
        self._sock: socket.socket | None = sock

    def send(self, data: bytes) -> None:
        """Write now what the socket takes and queue the rest."""
        sock = self._sock
        if sock is None:
            return
        try:
            self._outbox.send(sock, data)
        except OSError as error:
            reason = error.strerror or str(error)
            self._loop.call_soon(lambda: self._lose(reason))
            return
        self._adjust()

    def close(self) -> None:
        """Idempotent; nobody is told."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            sock.close()

    def _ready(self, _mask: int) -> None:
        """Write, then read once. A hang-up is found by reading: what was sent before it still counts."""
        sock = self._sock
        if sock is None:
            return
        try:
            self._outbox.flush(sock)
            data = sock.recv(READ_BYTES)
        except BlockingIOError:
            self._adjust()
            return
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if not data:
            self._lose("the connection was closed")
            return
        self._adjust()
        self._on_bytes(data)

    def _adjust(self) -> None:
        mask = select.EPOLLIN | (select.EPOLLOUT if self._outbox.unsent_bytes else 0)
        if mask != self._mask and self._sock is not None:
            self._mask = mask
            self._loop.modify(self._sock.fileno(), mask)

    def _lose(self, reason: str) -> None:
        if self._sock is not None:
            self.close()
            self._on_lost(reason)


def plain_path(address: str) -> str:
    """A socket's path out of an address with or without its scheme. Pure."""
    return os.path.abspath(address.removeprefix("unix://")) if address else ""
