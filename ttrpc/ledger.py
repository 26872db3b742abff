"""What one connection has taken in and not yet answered, and what it has answered and not yet sent, in a memory file.

The file and the socket outlive the process that serves them if somebody else holds both. Each step below is one system
call, and between any two of them file and socket together say exactly what was done:

- An answer is given when the whole of its frame is in the file, and sent as far as the file's own position says:
  sendfile(2) moves bytes into the socket and the position over them in one step, whatever becomes of the caller.
- A request is read with MSG_PEEK, and stays in the socket until it was answered or noted here. Whoever comes later
  finds it there, in the notes, or among the answers given, and knows it by its stream id, which never comes twice.
- Of a frame that is not complete the beginning is noted and then taken from the socket. Whether it was taken tells the
  socket's SO_PEEK_OFF, which a read lowers in the same step.

Sent bytes are pages that the socket borrows until the peer has read them. So nothing sent is ever written over: answers
are put one behind the other at offsets that only rise, and what is over is cut off, which leaves borrowed pages alone.
"""

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Final

MAGIC: "Final" = b"ttrpcL01"
_RETIRED_AT, _DONE_AT, _INPUT_AT, _NOTES_AT = 8, 16, 32, 64
# Offsets of a sparse file, no sizes: notes, twice the beginning of a frame, and answers.
_PARTIAL_AT: "Final" = 64 << 20
_PARTIAL_BYTES: "Final" = 8 << 20
OUTPUT_AT: "Final" = _PARTIAL_AT + 2 * _PARTIAL_BYTES
# So much of what is sent may lie here before it is cut off: a system call or two each time.
TIDY_BYTES: "Final" = 16 << 10
# A peer that lets so many answers go by without once having read them all is too much to keep.
KEPT_BYTES: "Final" = 32 << 20
SENDFILE_BYTES: "Final" = 1 << 20

_pair = struct.Struct("=QQ")
_note = struct.Struct("=BBHIII")  # kind, class of its block's size, fact, stream id, length, nothing
_frame = struct.Struct(">IIBB")
_END, _FREE, _REQUEST, _PROMISE = range(4)
_BLOCK_BYTES = 128  # of class 0; each next one is twice as long
NO_FACT: "Final" = 0xFFFF


class Unanswered:
    """A request that was noted: its encoded Request, what was known when it was begun, and the answer promised."""

    __slots__ = ("fact", "promise", "request", "stream_id")

    def __init__(self, stream_id: int, fact: int, request: bytes) -> None:
        self.stream_id = stream_id
        self.fact = fact
        self.request = request
        self.promise: bytes | None = None


class Found:
    """What a ledger says of the connection."""

    __slots__ = ("answered", "is_taking", "last_id", "partial", "unanswered")

    def __init__(self, last_id: int, answered: "set[int]", unanswered: "list[Unanswered]") -> None:
        self.last_id = last_id
        self.answered = answered  # of the answers that are still here
        self.unanswered = unanswered
        self.partial = b""
        self.is_taking = False  # what SO_PEEK_OFF says was noted, and is still to be taken from the socket


class Ledger:
    """Owns the memory file. Also the connection's outbox: see ttrpc.outbox.Outbox, whose methods it has.

    Every method but `close` raises OSError when the kernel has no memory left.
    """

    __slots__ = (
        "_base", "_end", "_free", "_notes", "_partial", "_partial_bytes", "_tail", "fd", "name", "unsent_bytes",
    )  # fmt: skip

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.name = ""  # for whoever holds it
        self._base = self._tail = OUTPUT_AT
        self.unsent_bytes = 0
        self._end = _NOTES_AT
        self._free: dict[int, list[int]] = {}
        self._notes: dict[int, list[tuple[int, int]]] = {}  # by stream id: offset and class of each block
        self._partial, self._partial_bytes = 0, 0

    @classmethod
    def create(cls) -> "Ledger":
        """A new one, for a connection of which nothing was read yet."""
        fd = os.memfd_create("ttrpc-connection", os.MFD_CLOEXEC)
        try:
            os.lseek(fd, OUTPUT_AT, os.SEEK_SET)
            os.pwrite(fd, MAGIC, 0)
            os.pwrite(fd, _pair.pack(OUTPUT_AT, 0), _DONE_AT)
        except OSError:
            os.close(fd)
            raise
        return cls(fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def retire(self) -> None:
        """Have nobody go on with this connection: from here on it is served without a ledger."""
        os.pwrite(self.fd, b"\1", _RETIRED_AT)

    # --- requests

    def note(self, stream_id: int, request: bytes, fact: int = NO_FACT) -> None:
        """Note a request, or what is known of one that is noted."""
        blocks = self._notes.get(stream_id)
        if blocks is None:
            self._put(_REQUEST, stream_id, request, fact)
            return
        at, size = blocks[0]
        length = _note.unpack(_read(self.fd, _note.size, at))[4]
        os.pwrite(self.fd, _note.pack(_REQUEST, size, fact, stream_id, length, 0), at)

    def promise(self, stream_id: int, answer: bytes) -> None:
        """Note the answer that a request gets if what it asks for turns out to be done."""
        self._put(_PROMISE, stream_id, answer, 0)

    def is_noted(self, stream_id: int) -> bool:
        return stream_id in self._notes

    def forget(self, stream_id: int) -> None:
        """The request was answered."""
        for at, size in self._notes.pop(stream_id, ()):
            os.pwrite(self.fd, _note.pack(_FREE, size, 0, 0, 0, 0), at)
            self._free.setdefault(size, []).append(at)

    def _put(self, kind: int, stream_id: int, data: bytes, fact: int) -> None:
        """Order: the data, then the header that makes it count."""
        size = max(0, (_note.size + len(data) - 1).bit_length() - 7)
        free = self._free.get(size)
        at = free[-1] if free else self._end
        if not free and at + (_BLOCK_BYTES << size) > _PARTIAL_AT:
            raise OSError(f"{len(self._notes)} requests are unanswered and noted: there is no room for more")
        _write(self.fd, data, at + _note.size)
        os.pwrite(self.fd, _note.pack(kind, size, fact, stream_id, len(data), 0), at)
        if free:
            free.pop()
        else:
            self._end = at + (_BLOCK_BYTES << size)
        self._notes.setdefault(stream_id, []).append((at, size))

    # --- the beginning of a frame

    @property
    def has_partial(self) -> bool:
        return self._partial_bytes > 0

    def keep_partial(self, partial: bytes, count: int) -> None:
        """Note the unfinished frame, which ends what was peeked; ``count`` bytes are to be taken from the socket next.

        Order: `partial_taken` follows. What was noted before stays until this counts.
        """
        added = len(partial) - self._partial_bytes
        if self._partial_bytes and added == count:
            _write(self.fd, partial[-count:], self._partial_at() + self._partial_bytes)
        else:
            self._partial ^= 1
            _write(self.fd, partial, self._partial_at())
        self._partial_bytes = len(partial)
        self._say_input(count)

    def partial_taken(self) -> None:
        self._say_input(0)

    def _partial_at(self) -> int:
        return _PARTIAL_AT + self._partial * _PARTIAL_BYTES

    def _say_input(self, count: int) -> None:
        os.pwrite(self.fd, _pair.pack(self._partial << 32 | self._partial_bytes, count), _INPUT_AT)

    # --- answers

    def append(self, data: bytes) -> None:
        """Put whole frames behind the others: with this they count as given."""
        _write(self.fd, data, self._tail)
        self._tail += len(data)
        self.unsent_bytes += len(data)

    def send(self, sock: "socket.socket", data: bytes, bulk: bytes = b"") -> None:
        """As Outbox.send."""
        if data or bulk:
            self.append(data + bulk)
        self.flush(sock)

    def flush(self, sock: "socket.socket") -> bool:
        """As Outbox.flush; the socket must not block."""
        while self.unsent_bytes:
            try:
                sent = os.sendfile(sock.fileno(), self.fd, None, min(self.unsent_bytes, SENDFILE_BYTES))
            except BlockingIOError:
                return False
            if not sent:
                raise OSError("the ledger is shorter than what was put into it")
            self.unsent_bytes -= sent
        return True

    def unsent(self) -> bytes:
        """As Outbox.unsent."""
        return _read(self.fd, self.unsent_bytes, self._tail - self.unsent_bytes)

    def clear(self) -> None:
        self.unsent_bytes = 0

    @property
    def given_bytes(self) -> int:
        """Of answers that are here, sent or not."""
        return self._tail - self._base

    def tidy(self, last_id: int) -> None:
        """Cut off what was sent. Order: every request peeked was taken from the socket; ``last_id`` is the newest."""
        if self.unsent_bytes:
            return
        self._base = self._tail
        os.pwrite(self.fd, _pair.pack(self._base, last_id), _DONE_AT)
        if self._notes or self._partial_bytes:
            os.ftruncate(self.fd, OUTPUT_AT)
            return
        os.ftruncate(self.fd, _NOTES_AT)
        self._free.clear()
        self._end = _NOTES_AT

    # --- afterwards

    def recover(self) -> "Found | None":
        """What another process left here, which this one goes on with; None when it had given the connection up.

        Raises: ValueError for what no ledger says.
        """
        head = _read(self.fd, _NOTES_AT, 0)
        if head[: len(MAGIC)] != MAGIC:
            raise ValueError("this file is no ledger of a connection")
        if head[_RETIRED_AT]:
            return None
        self._base, last_id = _pair.unpack_from(head, _DONE_AT)
        unanswered = self._recover_notes()
        answered = self._recover_answers()
        last_id = max([last_id, *answered, *self._notes])
        found = Found(last_id, answered, [each for each in unanswered if each.stream_id not in answered])
        for stream_id in answered:
            self.forget(stream_id)
        partial, count = _pair.unpack_from(head, _INPUT_AT)
        self._partial, self._partial_bytes = partial >> 32, partial & 0xFFFF_FFFF
        found.partial = _read(self.fd, self._partial_bytes, self._partial_at())
        found.is_taking = count > 0
        return found

    def _recover_notes(self) -> "list[Unanswered]":
        found: dict[int, Unanswered] = {}
        promises: dict[int, bytes] = {}
        while True:
            kind, size, fact, stream_id, length, _ = _note.unpack(_read(self.fd, _note.size, self._end))
            if kind == _END:
                break
            data = _read(self.fd, length, self._end + _note.size)
            if kind == _FREE:
                self._free.setdefault(size, []).append(self._end)
            else:
                blocks = self._notes.setdefault(stream_id, [])
                blocks.insert(0 if kind == _REQUEST else len(blocks), (self._end, size))
            if kind == _REQUEST:
                found[stream_id] = Unanswered(stream_id, fact, data)
            elif kind == _PROMISE:
                promises[stream_id] = data
            self._end += _BLOCK_BYTES << size
        for stream_id, answer in promises.items():
            if stream_id in found:
                found[stream_id].promise = answer
        return [found[stream_id] for stream_id in sorted(found)]

    def _recover_answers(self) -> "set[int]":
        """The stream ids of the whole frames; half a one was not given, and is cut off."""
        answered: set[int] = set()
        end = os.fstat(self.fd).st_size
        self._tail = self._base
        while self._tail + _frame.size <= end:
            length, stream_id, _, _ = _frame.unpack(_read(self.fd, _frame.size, self._tail))
            if self._tail + _frame.size + length > end:
                break
            answered.add(stream_id)
            self._tail += _frame.size + length
        if self._tail < end:
            os.ftruncate(self.fd, self._tail)
        self.unsent_bytes = self._tail - os.lseek(self.fd, 0, os.SEEK_CUR)
        return answered


def _write(fd: int, data: bytes, at: int) -> None:
    written = os.pwrite(fd, data, at)
    while written < len(data):
        written += os.pwrite(fd, data[written:], at + written)


def _read(fd: int, length: int, at: int) -> bytes:
    """Zeros where there is nothing."""
    data = os.pread(fd, length, at)
    while len(data) < length:
        more = os.pread(fd, length - len(data), at + len(data))
        if not more:
            return data + bytes(length - len(data))
        data += more
    return data
