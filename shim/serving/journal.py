"""The event journal: every task event of one container on disk, in order, numbered, until someone has stored it.

The file is a header and frames, all little-endian:

    header  8 bytes "shimdjnl" · u32 version · u32 CRC-32 of these 12 bytes
    frame   u16 0x5AE7 · u8 kind · u8 zero · u32 payload length · u64 seq · u32 CRC-32 of
            those 16 bytes and the payload · payload

Kinds: 1 event, 2 exit, 3 acknowledgement (its seq: all up to it are stored elsewhere).
A frame that was being written when the shim died is at the end and is cut; damage before a good frame is reported.

Nothing here is synced. The journal serves a successor of the same boot, for which the page cache keeps it whatever
dies; after a power failure nobody reads it (successor.py looks at the boot id). What must outlive that, how a process
ended, is in the exit record, which is synced before it is told.
"""

import binascii
import os
import struct

from shim.bundle import remove, write_fully

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC = b"shimdjnl"
VERSION = 1
FRAME_MARK = 0x5AE7
EVENT, EXIT, ACK = 1, 2, 3

_HEADER = struct.Struct("<8sII")
_FRAME = struct.Struct("<HBBIQ")
_CRC = struct.Struct("<I")
FRAME_BYTES = _FRAME.size + _CRC.size

# One record is a few hundred bytes, a TaskCreate with many lower directories some kilobytes.
PAYLOAD_MAX_BYTES = 1024 * 1024
# Acknowledged frames are rewritten away when there are this many bytes of them and they are half of the file.
COMPACT_MIN_BYTES = 64 * 1024
# Nobody acknowledges: beyond this the oldest events go, then the oldest exits of execs. About 30,000 records.
FILE_MAX_BYTES = 8 * 1024 * 1024
# So much is in memory at a time: pieces of a quarter of a megabyte stayed with the shim as holes in its heap.
READ_BYTES = 32 * 1024
# Records that a full disk keeps in memory. At about 300 bytes each this is 1 MiB.
PENDING_MAX = 4096


class JournalVersion(Exception):
    """The file was written by a shim of another format; it is left as it is."""


class Frame:
    """One frame read back, and where it lies in the file."""

    __slots__ = ("end", "kind", "payload", "seq", "start")

    def __init__(self, start: int, end: int, kind: int, seq: int, payload: bytes) -> None:
        self.start = start
        self.end = end
        self.kind = kind
        self.seq = seq
        self.payload = payload


class Cursor:
    """Where one reader stands. Survives compaction: then it looks for its seq anew."""

    __slots__ = ("_generation", "_offset", "seq")

    def __init__(self, seq: int = 0) -> None:
        self.seq = seq
        self._generation = -1
        self._offset = 0

    def rewind(self, seq: int) -> None:
        """Stand right after an earlier record again."""
        self.seq = seq
        self._generation = -1


def encode_header() -> bytes:
    """The first bytes of a journal of our version. Pure."""
    start = _HEADER.pack(MAGIC, VERSION, 0)[:12]
    return start + _CRC.pack(binascii.crc32(start))


def encode_frame(kind: int, seq: int, payload: bytes) -> bytes:
    """One record as it lies in the file; the CRC covers everything but itself. Pure."""
    head = _FRAME.pack(FRAME_MARK, kind, 0, len(payload), seq)
    return head + _CRC.pack(binascii.crc32(payload, binascii.crc32(head))) + payload


def decode_frame(data: bytes, at: int) -> "Frame | None":
    """The frame that starts exactly there, or None when what is there is none, or not all of one. Pure."""
    if at + FRAME_BYTES > len(data):
        return None
    mark, kind, _zero, length, seq = _FRAME.unpack_from(data, at)
    end = at + FRAME_BYTES + length
    if mark != FRAME_MARK or length > PAYLOAD_MAX_BYTES or end > len(data):
        return None
    (crc,) = _CRC.unpack_from(data, at + _FRAME.size)
    payload = bytes(data[at + FRAME_BYTES : end])
    if binascii.crc32(payload, binascii.crc32(data[at : at + _FRAME.size])) != crc:
        return None
    return Frame(at, end, kind, seq, payload)


def check_header(data: bytes) -> bool:
    """Whether a journal begins there; False for one whose header was being written, which is an empty one. Pure.

    Raises: JournalVersion when the header is whole and of another version; ValueError when it is no journal.
    """
    if len(data) < _HEADER.size:
        if encode_header().startswith(data):
            return False
        raise ValueError("not a shimd journal")
    magic, version, crc = _HEADER.unpack_from(data, 0)
    if magic != MAGIC or crc != binascii.crc32(data[:12]):
        raise ValueError("not a shimd journal")
    if version != VERSION:
        raise JournalVersion(f"the journal has version {version}, this shim reads {VERSION}")
    return True


def scan(data: bytes) -> "tuple[list[Frame], list[tuple[int, int]], int]":
    """All good frames, the damaged stretches between them, and where the last good frame ends. Pure.

    Raises: as `check_header`.
    """
    if not check_header(data):
        return [], [], 0
    frames, damage, at, good_end = [], [], _HEADER.size, _HEADER.size
    mark = FRAME_MARK.to_bytes(2, "little")
    while at < len(data):
        frame = decode_frame(data, at)
        if frame is None:
            at = data.find(mark, at + 1)
            if at < 0:
                break
            continue
        if frame.start != good_end:
            damage.append((good_end, frame.start))
        frames.append(frame)
        at = good_end = frame.end
    return frames, damage, good_end


class Journal:
    """Owns the journal file. Sequence numbers rise by one from 1; an acknowledgement frees what it covers.

    A write that fails (full disk) keeps the record in memory, where `read` finds it; `flush` tries again.
    """

    def __init__(self, path: str) -> None:
        """Open or begin the journal. Raises: OSError, JournalVersion, ValueError (no journal at all)."""
        self.path = path
        self.last_seq = 0
        self.acked_seq = 0
        self.dropped = 0
        self.damage: list[tuple[int, int]] = []
        self._pending: list[tuple[int, int, bytes]] = []  # kind, seq, frame: not on disk yet
        self._live_bytes = 0
        self._generation = 0
        self._listeners: dict[object, Callable[[], None]] = {}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._size = self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self) -> int:
        """Cut a torn tail, take note of damage, and answer with the file's size from here on."""
        self._size = os.fstat(self._fd).st_size
        good_end = 0
        if check_header(os.pread(self._fd, _HEADER.size, 0)):
            good_end = _HEADER.size
            for frame in self._frames():
                if frame.start != good_end:
                    self.damage.append((good_end, frame.start))
                good_end = frame.end
                self.last_seq = max(self.last_seq, frame.seq)
                if frame.kind == ACK:
                    self.acked_seq = max(self.acked_seq, frame.seq)
            self._live_bytes = sum(frame.end - frame.start for frame in self._frames() if self._is_live(frame))
        if good_end != self._size:
            os.ftruncate(self._fd, good_end)
        if good_end == 0:
            try:
                self._append_bytes(encode_header(), 0)
            except OSError:
                os.ftruncate(self._fd, 0)
                return 0
            return _HEADER.size
        return good_end

    def _is_live(self, frame: Frame) -> bool:
        return frame.kind in (EVENT, EXIT) and frame.seq > self.acked_seq

    # --- writing

    @property
    def pending(self) -> int:
        """Records that are in memory only, because the disk took them not."""
        return len(self._pending)

    def append(self, kind: int, payload: bytes) -> int:
        """Add a record and answer with its seq. It is in the file when this returns, if the disk takes it.

        Never raises: a record the disk refuses waits in memory (see `pending`).
        """
        self.last_seq += 1
        self._pending.append((kind, self.last_seq, encode_frame(kind, self.last_seq, payload)))
        if len(self._pending) > PENDING_MAX:
            self._drop_pending()
        self.flush()
        for listener in tuple(self._listeners.values()):
            listener()
        return self.last_seq

    def flush(self) -> bool:
        """Write what is pending, in order. False when the disk still refuses; call again later."""
        try:
            if self._pending and self._size + len(self._pending[0][2]) > FILE_MAX_BYTES:
                self._bound()
            if self._size == 0:
                self._size = self._append_bytes(encode_header(), 0)
            while self._pending:
                frame = self._pending[0][2]
                self._size = self._append_bytes(frame, self._size)
                self._live_bytes += len(frame)
                del self._pending[0]
        except OSError:
            return False
        return True

    def ack(self, seq: int) -> None:
        """Everything up to and including seq is stored elsewhere: forget it. Lower ones than before say nothing new."""
        if seq <= self.acked_seq:
            return
        seq = min(seq, self.last_seq)
        # Counted as if all records were equally long: it only decides when to compact, and costs no reading.
        self._live_bytes = self._live_bytes * (self.last_seq - seq) // (self.last_seq - self.acked_seq)
        self.acked_seq = seq
        self._pending = [item for item in self._pending if item[1] > seq]
        try:
            self._size = self._append_bytes(encode_frame(ACK, seq, b""), self._size)
            dead_bytes = self._size - self._live_bytes
            if dead_bytes >= COMPACT_MIN_BYTES and dead_bytes >= self._live_bytes:
                self._rewrite(self._is_live)
        except OSError:
            pass  # only the note is missing: after a crash these would be told again, which every reader must bear

    def _append_bytes(self, data: bytes, at: int) -> int:
        """Write at the end and answer with the new end; a part that was written is taken back. Raises: OSError."""
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], at + done)
        except OSError:
            os.ftruncate(self._fd, at)
            raise
        return at + len(data)

    def _rewrite(self, is_kept: "Callable[[Frame], bool]") -> None:
        """Replace the file by one with these frames only. Raises: OSError; the old file is then still the journal."""
        fresh = self.path + ".new"
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        size = live_bytes = 0
        try:
            unwritten = bytearray(encode_header())
            if self.acked_seq:
                unwritten += encode_frame(ACK, self.acked_seq, b"")
            for frame in self._frames():
                if not is_kept(frame):
                    continue
                live_bytes += frame.end - frame.start
                unwritten += encode_frame(frame.kind, frame.seq, frame.payload)
                if len(unwritten) >= READ_BYTES:
                    write_fully(fd, unwritten)
                    size += len(unwritten)
                    unwritten.clear()
            write_fully(fd, unwritten)
            os.rename(fresh, self.path)
        except OSError:
            os.close(fd)
            remove(fresh)
            raise
        os.close(self._fd)
        self._fd = fd
        self._size = size + len(unwritten)
        self._live_bytes = live_bytes
        self._generation += 1

    def _bound(self) -> None:
        """Nobody acknowledges: keep half the bound, exits before events, newer before older. Raises: as `_rewrite`."""
        surplus = {EXIT: -FILE_MAX_BYTES // 2, EVENT: 0}  # of each kind, what has to go: the oldest
        for frame in self._frames():
            if self._is_live(frame):
                surplus[frame.kind] += frame.end - frame.start
        surplus[EVENT] += min(surplus[EXIT], 0)  # what the exits leave is theirs
        dropped = 0

        def is_kept(frame: Frame) -> bool:
            nonlocal dropped
            if not self._is_live(frame) or surplus[frame.kind] <= 0:
                return self._is_live(frame)
            surplus[frame.kind] -= frame.end - frame.start
            dropped += 1
            return False

        self._rewrite(is_kept)
        self.dropped += dropped

    def _drop_pending(self) -> None:
        for index, (kind, _seq, _frame) in enumerate(self._pending):
            if kind != EXIT:
                del self._pending[index]
                break
        else:
            del self._pending[0]
        self.dropped += 1

    # --- reading

    def read(self, cursor: Cursor, limit: int = 64) -> "list[tuple[int, bytes]]":
        """The next records after the cursor, at most ``limit``, as (seq, payload); the cursor moves past them."""
        found: list[tuple[int, bytes]] = []
        if cursor.seq >= self.last_seq:
            return found
        if cursor._generation != self._generation:
            cursor._generation, cursor._offset = self._generation, _HEADER.size
        for frame in self._frames(cursor._offset):
            cursor._offset = frame.end
            if self._is_live(frame) and frame.seq > cursor.seq:
                found.append((frame.seq, frame.payload))
                cursor.seq = frame.seq
                if len(found) >= limit:
                    break
        else:
            for _kind, seq, raw in self._pending:
                if seq > cursor.seq and len(found) < limit:
                    found.append((seq, raw[FRAME_BYTES:]))
                    cursor.seq = seq
        return found

    def subscribe(self, listener: "Callable[[], None]") -> "Callable[[], None]":
        """Call back after each append; returns what takes it back."""
        key = object()
        self._listeners[key] = listener
        return lambda: self._unsubscribe(key)

    def _unsubscribe(self, key: object) -> None:
        self._listeners.pop(key, None)

    def _frames(self, offset: int = _HEADER.size) -> "Iterator[Frame]":
        """The file's frames from an offset on, read in pieces; damaged stretches are skipped."""
        piece, at = b"", 0  # `at` is where we stand within the piece, which begins at file offset `offset`
        mark = FRAME_MARK.to_bytes(2, "little")
        while True:
            frame = decode_frame(piece, at)
            if frame is not None:
                at = frame.end
                yield Frame(offset + frame.start, offset + frame.end, frame.kind, frame.seq, frame.payload)
                continue
            unread = self._size - offset - len(piece)
            if unread > 0:
                piece, offset = (
                    piece[at:] + os.pread(self._fd, min(unread, READ_BYTES), offset + len(piece)),
                    offset + at,
                )
                at = 0
                continue
            at = piece.find(mark, at + 1)
            if at < 0:
                return

    def close(self) -> None:
        os.close(self._fd)
        self._listeners.clear()
