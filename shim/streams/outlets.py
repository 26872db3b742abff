"""Where bytes leave by a non-blocking fd: a bounded queue in front of a pipe, a FIFO or a pty master."""

import os

from shim.core import pipes
from shim.core.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.recovery.spares import Share

# A splice takes a slot of the FIFO, of which there are 16 by default, whatever its size (fcntl(2), F_SETPIPE_SZ). When
# this many are unread, small chunks are written instead: those share slots, at the risk of one should we be killed.
CROWDED_CHUNKS = 8
LIMIT_BYTES = 1 << 16  # beyond this `full` asks the giver to stop


class Outlet:
    """Owns the fd it is given and what could not be written to it yet.

    The queue grows past its limit only by what the giver had in hand when `full` turned true.
    Order: bytes leave in the order in which they came; `close_when_empty` closes after the last of them.
    """

    __slots__ = (
        "_callbacks",
        "_closing",
        "_fd",
        "_loop",
        "_owes_word",
        "_pending",
        "_watching",
        "broken",
        "pending_bytes",
    )

    def __init__(self, loop: "Loop", fd: "int | None" = None) -> None:
        self._loop = loop
        self._fd = fd
        self._pending: list[bytes] = []
        self._watching = False
        self._closing = False
        self._owes_word = False
        self._callbacks: list[Callable[[], None]] = []
        self.pending_bytes = 0
        self.broken = False  # the other side is gone for good: everything is taken and discarded

    @property
    def full(self) -> bool:
        return self.pending_bytes >= LIMIT_BYTES

    @property
    def is_open(self) -> bool:
        return self._fd is not None and not self._closing

    @property
    def idle(self) -> bool:
        return self.pending_bytes == 0

    def on_room(self, callback: "Callable[[], None]") -> None:
        """Call it when the queue has emptied after a write that left something in it, or the outlet broke or closed."""
        self._callbacks.append(callback)

    def unsent(self) -> bytes:
        """What was not written yet."""
        return b"".join(self._pending)

    def connect(self, fd: int) -> None:
        """Give the fd later than the first bytes, as for a terminal whose master is not there yet."""
        assert self._fd is None, "an outlet has one fd in its life"
        self._fd = fd
        self._flush()

    def write(self, data: bytes) -> None:
        """Write what the fd takes now, keep the rest."""
        if self.broken or self._closing or not data:
            return
        self._pending.append(data)
        self.pending_bytes += len(data)
        if not self._watching:
            self._flush()
        self._owes_word = self.pending_bytes > 0

    def close_when_empty(self) -> None:
        """Take nothing more; close after what is queued is out."""
        self._closing = True
        if not self.pending_bytes:
            self.close()

    def close(self) -> None:
        """Close now, queue or not. Idempotent."""
        fd, self._fd = self._fd, None
        self._closing = True
        if fd is not None:
            if self._watching:
                self._loop.unregister(fd)
                self._watching = False
            os.close(fd)
        self._discard()

    def _ready(self, _mask: int) -> None:
        self._flush()

    def _flush(self) -> None:
        """Write until done or refused. Source: write(2): EPIPE once a pipe has no reader, EIO once a pty hung up."""
        if self._fd is None:
            return
        try:
            while self._pending:
                head = self._pending[0]
                sent = os.write(self._fd, head)
                self.pending_bytes -= sent
                if sent < len(head):
                    self._pending[0] = head[sent:]
                    continue
                del self._pending[0]
        except BlockingIOError:
            if not self._watching:
                self._loop.register(self._fd, WRITE, self._ready)
                self._watching = True
            return
        except OSError:
            self.broken = True
            self._unwatch()
            self._discard()
        self._unwatch()
        if self._closing:
            self.close()
        elif self._owes_word:
            self._tell()

    def _unwatch(self) -> None:
        if self._watching and self._fd is not None:
            self._loop.unregister(self._fd)
            self._watching = False

    def _discard(self) -> None:
        self._pending.clear()
        self.pending_bytes = 0
        self._tell()

    def _tell(self) -> None:
        self._owes_word = False
        for callback in list(self._callbacks):
            callback()


class PipeSink:
    """A client's FIFO as the end of a `Pump`: bytes are moved by splice, or written where the source is a terminal.

    Owns the outlet with the fd, which is opened for reading too: a client that went away is a full pipe, not an EPIPE.
    The keeper has it open too: the client would take our death for the end of its input.
    """

    takes_sources = False

    __slots__ = (
        "_fd", "_loop", "_name", "_on_room", "_share", "_unread_chunks", "_watching", "blocked", "outlet",
        "takes_splice",
    )  # fmt: skip

    def __init__(self, loop: "Loop", fd: int, share: "Share", stream: str, *, takes_splice: bool) -> None:
        self._loop = loop
        self._share = share
        self._name = f"{stream}.out"
        share.hold(self._name, fd)
        self._fd = fd
        self._watching = False
        self._on_room: Callable[[], None] = _nothing
        self.outlet = Outlet(loop, fd)
        self.outlet.on_room(self._room)
        self.takes_splice = takes_splice
        self.blocked = False
        self._unread_chunks = 0

    @property
    def idle(self) -> bool:
        return self.outlet.idle

    def on_room(self, callback: "Callable[[], None]") -> None:
        self._on_room = callback

    def splice(self, source_fd: int) -> "int | None":
        """Move a chunk; 0 is the source's end, None a full FIFO (`on_room` tells when it no longer is).

        Raises: BlockingIOError when the source is empty.
        """
        if pipes.waiting_bytes(self._fd) == 0:
            self._unread_chunks = 0
        self._unread_chunks += 1
        if self._unread_chunks > CROWDED_CHUNKS and 0 < pipes.waiting_bytes(source_fd) <= pipes.ATOMIC_BYTES:
            data = os.read(source_fd, pipes.ATOMIC_BYTES)
            self.outlet.write(data)
            self.blocked = not self.outlet.idle
            return len(data)
        try:
            return pipes.splice_to_pipe(source_fd, self._fd, pipes.CHUNK_BYTES)
        except BlockingIOError:
            if pipes.waiting_bytes(source_fd) == 0:
                raise
            self.blocked = True
            if not self._watching:
                self._loop.register(self._fd, WRITE, self._ready)
                self._watching = True
            return None

    def take(self, _stream: str, _source_fd: int, _count: int) -> bytes:
        raise AssertionError("the pump reads for it")

    def write(self, _stream: str, data: bytes) -> None:
        self.outlet.write(data)
        self.blocked = self.outlet.full

    def settle(self, _stream: str) -> None:
        """Nothing is held back here."""

    def end(self, _stream: str) -> None:
        """The source ended: the client sees the end of file once it has read what is there."""
        self._unwatch()
        self._share.drop(self._name)
        self.outlet.close_when_empty()

    def close(self) -> None:
        self._unwatch()
        self._share.drop(self._name)
        self.outlet.close()

    def _ready(self, _mask: int) -> None:
        self._unwatch()
        self._room()

    def _room(self) -> None:
        self.blocked = False
        if not self.outlet.is_open:
            self._share.drop(self._name)
        self._on_room()

    def _unwatch(self) -> None:
        if self._watching:
            self._loop.unregister(self._fd)
            self._watching = False


class Feed:
    """An outlet as the end of a `Pump`: a client's stdin FIFO into the terminal, which has no end of file."""

    __slots__ = ("_outlet",)

    takes_splice = takes_sources = False

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    @property
    def blocked(self) -> bool:
        return self._outlet.full

    @property
    def idle(self) -> bool:
        return self._outlet.idle

    def splice(self, _source_fd: int) -> "int | None":
        raise AssertionError("a terminal is written, not spliced into")

    def take(self, _stream: str, _source_fd: int, _count: int) -> bytes:
        raise AssertionError("the pump reads for it")

    def write(self, _stream: str, data: bytes) -> None:
        self._outlet.write(data)

    def settle(self, _stream: str) -> None:
        """Nothing is held back here."""

    def end(self, _stream: str) -> None:
        """The client closed its end; the terminal stays."""

    def on_room(self, callback: "Callable[[], None]") -> None:
        self._outlet.on_room(callback)


def _nothing() -> None:
    """Nobody asked to be told."""
