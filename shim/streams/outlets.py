"""Where bytes leave by a non-blocking fd: a bounded queue in front of a pipe, a FIFO or a pty master."""

import errno
import os
import select

from shim.core import pipes
from shim.core.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop, Timer
    from shim.recovery.spares import Share

# A splice takes a slot of the FIFO, of which there are 16 by default, whatever its size (fcntl(2), F_SETPIPE_SZ). When
# this many are unread, small chunks wait so long for more of their kind, with which they share a slot.
CROWDED = ((200, 1.0), (64, 0.1), (8, 0.01))
LIMIT_BYTES = 1 << 16  # beyond this `full` asks the giver to stop


class Outlet:
    """Owns the fd it is given and what could not be written to it yet.

    The queue grows past its limit only by what the giver had in hand when `full` turned true.
    Order: bytes leave in the order in which they came; `close_when_empty` closes after the last of them.
    """

    __slots__ = (
        "_callbacks",
        "_choked",
        "_closing",
        "_edge",
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
        self._choked = False
        self._closing = False
        self._edge = False
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

    @property
    def takes_splice(self) -> bool:
        """Whether `splice` would move something now, as far as is known."""
        return self._fd is not None and not self._choked and not self.pending_bytes

    def splice(self, source_fd: int) -> "int | None":
        """Move a chunk from a FIFO, past the queue, which is empty; 0 is the source's end, None that there is no room.

        Raises: BlockingIOError when the source is empty; OSError EINVAL where the kernel cannot.
        """
        assert self._fd is not None
        assert not self.pending_bytes, "bytes leave in the order in which they came"
        try:
            return pipes.splice_to_pipe(source_fd, self._fd, pipes.CHUNK_BYTES)
        except BlockingIOError:
            if pipes.waiting_bytes(source_fd) == 0:
                raise
        self._choked = self._owes_word = True
        self._watch()
        return None

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

    def _ready(self, mask: int) -> None:
        if mask & WRITE or mask & select.EPOLLERR or self._fd is None:
            self._flush()
        elif not self._edge:  # a terminal nobody has open: no room until somebody has, which is the next edge
            self._edge = True
            self._loop.modify(self._fd, WRITE | select.EPOLLET)

    def _flush(self) -> None:
        """Write until done or refused. Source: write(2): EPIPE once a pipe has no reader, EIO once a pty hung up."""
        if self._fd is None:
            return
        self._choked = False
        try:
            self._write_pending(self._fd)
        except BlockingIOError:
            self._watch()
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

    def _write_pending(self, fd: int) -> None:
        while self._pending:
            head = self._pending[0]
            sent = os.write(fd, head)
            self.pending_bytes -= sent
            if sent < len(head):
                self._pending[0] = head[sent:]
                continue
            del self._pending[0]

    def _watch(self) -> None:
        if not self._watching and self._fd is not None:
            self._loop.register(self._fd, WRITE, self._ready)
            self._watching, self._edge = True, False

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
    """A client's FIFO as the end of a `Pump`: bytes are moved by splice, or written where it is no FIFO.

    Owns the outlet with the fd, which is opened for reading too: a client that went away is a full pipe, not an EPIPE.
    The keeper has it open too: the client would take our death for the end of its input.
    """

    reads_back = takes_sources = False
    take_bytes = pipes.CHUNK_BYTES

    __slots__ = (
        "_fd", "_loop", "_name", "_on_room", "_pause", "_share", "_unread_chunks", "_watching", "blocked", "outlet",
        "takes_splice",
    )  # fmt: skip

    def __init__(self, loop: "Loop", fd: int, share: "Share", stream: str) -> None:
        self._loop = loop
        self._share = share
        self._name = f"{stream}.out"
        share.hold(self._name, fd)
        self._fd = fd
        self._watching = False
        self._on_room: Callable[[], None] = _nothing
        self.outlet = Outlet(loop, fd)
        self.outlet.on_room(self._room)
        self.takes_splice = pipes.is_fifo(fd)
        self.blocked = False
        self._unread_chunks = 0
        self._pause: Timer | None = None

    @property
    def idle(self) -> bool:
        return self.outlet.idle

    def on_room(self, callback: "Callable[[], None]") -> None:
        self._on_room = callback

    def splice(self, source_fd: int, _tell: "Callable[[bytes], None] | None" = None, _count: int = 0) -> "int | None":
        """Move a chunk; 0 is the source's end, None a full FIFO (`on_room` tells when it no longer is).

        Raises: BlockingIOError when the source is empty.
        """
        if not self.outlet.is_open:
            return len(os.read(source_fd, pipes.CHUNK_BYTES))
        if pipes.waiting_bytes(self._fd) == 0:
            self._unread_chunks = 0
        elif self._unread_chunks >= CROWDED[-1][0] and self._waits_for_more(source_fd):
            return None
        self._unread_chunks += 1
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

    def _waits_for_more(self, source_fd: int) -> bool:
        """Whether a small chunk is left where it is for a moment, instead of using up the FIFO's slots."""
        if self._pause is not None or not 0 < pipes.waiting_bytes(source_fd) <= pipes.ATOMIC_BYTES:
            self._pause = None  # it has waited
            return False
        if self._unread_chunks == CROWDED[-1][0]:
            pipes.enlarge(self._fd)
        pause_s = next(pause_s for chunks, pause_s in CROWDED if self._unread_chunks >= chunks)
        self.blocked = True
        self._pause = self._loop.call_later(pause_s, self._room)
        return True

    def take(self, _stream: str, _source_fd: int, _count: int, _tell: "Callable[[bytes], None]") -> int:
        raise AssertionError("the pump reads for it")

    def write(self, _stream: str, data: bytes) -> None:
        self.outlet.write(data)
        self.blocked = self.outlet.full

    def settle(self, _stream: str) -> None:
        """Nothing is held back here."""

    def end(self, _stream: str) -> None:
        """The source ended: the client sees the end of file once it has read what is there."""
        self._unwatch()
        self._share.drop(self._name, self._fd)
        self.outlet.close_when_empty()

    def close(self) -> None:
        self._unwatch()
        self._share.drop(self._name, self._fd)
        self.outlet.close()

    def _ready(self, _mask: int) -> None:
        self._unwatch()
        self._room()

    def _room(self) -> None:
        self.blocked = False
        if not self.outlet.is_open:
            self._share.drop(self._name, self._fd)
        self._on_room()

    def _unwatch(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._watching:
            self._loop.unregister(self._fd)
            self._watching = False


class Feed:
    """An outlet as the end of a `Pump`: a client's stdin FIFO into the terminal, which has no end of file."""

    __slots__ = ("_outlet", "takes_splice")

    reads_back = takes_sources = False
    take_bytes = pipes.CHUNK_BYTES

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self.takes_splice = True

    @property
    def blocked(self) -> bool:
        return not self._outlet.takes_splice if self.takes_splice else self._outlet.full

    @property
    def idle(self) -> bool:
        return self._outlet.idle

    def splice(self, source_fd: int, _tell: "Callable[[bytes], None] | None" = None, _count: int = 0) -> "int | None":
        """Move a chunk; 0 is the source's end, None that there is no room. Raises: BlockingIOError, it is empty."""
        if self._outlet.broken:
            return len(os.read(source_fd, pipes.CHUNK_BYTES))
        try:
            return self._outlet.splice(source_fd)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            self._outlet.broken = error.errno == errno.EIO  # the terminal hung up
            self.takes_splice = error.errno not in (errno.EINVAL, errno.ENOSYS)  # before Linux 5.11: by hand
            return None

    def take(self, _stream: str, _source_fd: int, _count: int, _tell: "Callable[[bytes], None]") -> int:
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
