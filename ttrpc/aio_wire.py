"""A connected socket under trio: reading, and writing through an outbox that any task may fill without waiting."""

import select
import socket

import trio

from ttrpc.outbox import HIGH_WATER_BYTES, LOW_WATER_BYTES, Outbox

READ_BYTES = 64 << 10


class Wire:
    """Owns the socket and what is unsent on it.

    `write` is synchronous on purpose: whoever takes a stream id and writes its bytes without a checkpoint between has
    the write lock by construction, and a cancelled task never leaves half a frame behind.
    """

    def __init__(self, sock: "socket.socket | trio.SocketStream") -> None:
        if isinstance(sock, trio.SocketStream):
            sock = socket.socket(fileno=sock.socket.detach())
        sock.setblocking(False)
        self.sock = sock
        self.outbox = Outbox()
        self.failure: str | None = None  # why nothing more can be written or read
        self.on_failure = _nothing
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    def write(self, data: bytes) -> None:
        """Send now what the socket takes, leave the rest to `flush_forever`. Never blocks, never raises."""
        if self.failure is not None:
            return
        try:
            self.outbox.send(self.sock, data)
        except OSError as error:
            self.fail(f"the connection broke: {error}")
            return
        if self.outbox.unsent_bytes:
            self._work.unpark_all()

    @property
    def is_crowded(self) -> bool:
        return self.outbox.unsent_bytes > HIGH_WATER_BYTES

    async def wait_room(self) -> None:
        """Wait while more than the high-water mark is unsent: the peer's slowness reaches the sender here."""
        while self.is_crowded:
            await self._room.park()

    async def flush_forever(self) -> None:
        """Write what `write` had to leave; ends when the connection fails."""
        while self.failure is None:
            if not self.outbox.unsent_bytes:
                await self._work.park()
                continue
            try:
                await trio.lowlevel.wait_writable(self.sock.fileno())
                self.outbox.flush(self.sock)
            except (OSError, trio.ClosedResourceError) as error:
                self.fail(f"the connection broke: {error}")
            if self.outbox.unsent_bytes <= LOW_WATER_BYTES:
                self._room.unpark_all()

    async def receive(self) -> bytes:
        """The next bytes; empty at the end, however it came."""
        while self.failure is None:
            try:
                await trio.lowlevel.wait_readable(self.sock.fileno())
                return self.sock.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError) as error:
                self.fail(f"the connection broke: {error}")
        return b""

    def is_hung_up(self) -> bool:
        """Whether the peer closed altogether, not only its sending side. Source: poll(2), POLLHUP."""
        if self.failure is not None:
            return True
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(0))

    def fail(self, reason: str) -> None:
        """Note that the connection is over. Idempotent: the first reason stays."""
        if self.failure is None:
            self.failure = reason
            self.outbox.clear()
            self._work.unpark_all()
            self._room.unpark_all()
            self.on_failure()

    def close(self) -> None:
        """Close the socket; tasks waiting on it are told. Idempotent."""
        self.fail("this side closed the connection")
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock.fileno())
            self.sock.close()


def _nothing() -> None:
    """Nobody asked to be told."""
