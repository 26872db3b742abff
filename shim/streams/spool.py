"""Why a JSON log loses nothing when its shim is killed: output is in a spool file before it is formatted.

The kernel moves bytes from the FIFO into the spool (splice), whose size is the truth about what was taken. A page of
notes says how much of it the log has, and how long the log was then. A successor cuts the log back to that length and
formats on from there: each byte once, whenever the kill came.

What is formatted is a function of the bytes alone but for the times, which have one length: so a batch of records that
was written in part can be made again, and its first part skipped.
"""

import binascii
import os
import struct

from shim.bundle import remove
from shim.core import pipes
from shim.streams.jsonlines import STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMS = (STDOUT, STDERR)
# A spool that holds more is begun anew, with what is not in the log yet: it lies in memory where the bundle does.
# The one before is kept, for attach clients that come back (attach.py): they are never further behind than that.
ROLL_BYTES = 1 << 19
# Once the process has exited nobody holds up what it left in its pipes, and none of that is begun anew over.
LAST_ROLL_BYTES = 1 << 22
# serial, inode and size of the log, whether it is being rotated; per stream generation, start, skip; and a checksum.
_NOTE = struct.Struct("<QQQQ" + "QQQ" * len(STREAMS))
_CRC = struct.Struct("<I")
# Behind a note and its checksum, for attach clients: which process, how many of them are waited for; per stream the
# count of bytes at which the spool begins, and the one before. A checksum of the note and this.
_COUNTS = struct.Struct("<IH" + "QQ" * len(STREAMS))
# Two notes take turns: one that a kill tore is known by its checksum, and the one before it counts.
_SLOT_BYTES = 128


class Spool:
    """One stream's bytes since the last roll. Owns the file.

    ``start`` is the offset of the first byte that is not in the log with its whole batch, ``skip`` how many formatted
    bytes from there on the log has all the same.
    """

    __slots__ = ("_path", "base", "base_before", "fd", "generation", "is_on", "size", "skip", "start", "to_skip")

    def __init__(
        self, path: str, generation: int, start: int, skip: int, *, base: int = 0, base_before: int = 0
    ) -> None:
        """``base``: at which byte of the stream it begins. Raises: OSError."""
        self.base = base
        self.base_before = base_before
        self._path = path
        self.generation = generation
        self.start = start
        self.skip = self.to_skip = skip
        self.is_on = True
        self.fd = self._open(generation)
        self.size = os.fstat(self.fd).st_size

    def _open(self, generation: int, flags: int = 0) -> int:
        flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(f"{self._path}.{generation % 2}", flags, 0o600)

    def move(self, source_fd: int, count: int) -> int:
        """Take bytes from a FIFO; 0 is its end. Order: `read` follows. Raises: BlockingIOError when empty, OSError."""
        return pipes.splice_to_file(source_fd, self.fd, count, self.size)

    def read(self, moved: int, chunk_bytes: int = pipes.CHUNK_BYTES) -> "Iterator[bytes]":
        """What was just moved, chunk by chunk; each counts as taken from when it is given."""
        end = self.size + moved
        try:
            while self.size < end:
                data = os.pread(self.fd, min(chunk_bytes, end - self.size), self.size)
                if not data:
                    return
                self.size += len(data)
                yield data
        finally:
            self.size = end

    @property
    def count(self) -> int:
        """How many bytes of the stream came by way of the spool."""
        return self.base + self.size

    def since(self, count: int) -> "tuple[int, bytes]":
        """What came after so many bytes, and after how many it begins: later, where older ones are gone."""
        older = b""
        begin = min(max(count, self.base), self.count)
        if count < self.base and self.generation:
            try:
                with open(f"{self._path}.{(self.generation - 1) % 2}", "rb", buffering=0) as file:
                    whole = file.read(self.base - self.base_before)
            except OSError:
                whole = b""
            if len(whole) == self.base - self.base_before:
                begin = max(count, self.base_before)
                older = whole[begin - self.base_before :]
        at = max(0, begin - self.base)
        return begin, older + os.pread(self.fd, self.size - at, at)

    def unformatted(self) -> "Iterator[tuple[bytes, int]]":
        """What a predecessor took and the log does not have, each part with the offset where it ends."""
        at = self.start
        while part := os.pread(self.fd, pipes.CHUNK_BYTES, at):
            at += len(part)
            yield part, at

    def without_skipped(self, batch: bytes) -> bytes:
        """What of a batch made again the log does not have."""
        cut = min(self.to_skip, len(batch))
        self.to_skip -= cut
        return batch[cut:] if cut else batch

    def roll(self, held: bytes) -> int:
        """Begin a new file with what is held back; the value is the old one's fd, to be closed once that is noted.

        The old file stays until the next roll.

        Raises: OSError; nothing has changed then.
        """
        fd = self._open(self.generation + 1, os.O_TRUNC)
        try:
            os.pwrite(fd, held, 0)
        except OSError:
            os.close(fd)
            raise
        old, self.fd = self.fd, fd
        self.base_before, self.base = self.base, self.count - len(held)
        self.generation += 1
        self.start, self.size = 0, len(held)
        return old

    def close(self) -> None:
        os.close(self.fd)
        for generation in (0, 1):
            remove(f"{self._path}.{generation}")


class Book:
    """Owns the notes of one process's JSON log, and its spools.

    Order: a batch is in the log before it is noted; a rotation is noted before it begins and after it is done.
    """

    __slots__ = (
        "_path", "_serial", "fd", "is_rotating", "log_inode", "log_size", "roll_bytes", "run", "spools", "waiting",
    )  # fmt: skip

    def __init__(self, prefix: str, *, reopens: bool) -> None:
        """Begin, or go on where a predecessor's notes end. Raises: OSError."""
        self._path = f"{prefix}.notes"
        self.roll_bytes = ROLL_BYTES
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if reopens else os.O_TRUNC)
        self.fd = os.open(self._path, flags, 0o600)
        page = os.pread(self.fd, 2 * _SLOT_BYTES, 0)
        found = read_notes(page)
        self._serial, self.log_inode, self.log_size, rotating = found[:4]
        self.is_rotating = bool(rotating)
        # A note of an older shim tells no counts: then no place that a client was told is known any more.
        counts = read_counts(page, self._serial) or (int.from_bytes(os.urandom(4), "little") or 1, 0, 0, 0, 0, 0)
        self.run, self.waiting = counts[:2]  # which process; attach clients that hold it up, and will be back
        self.spools: dict[str, Spool] = {}
        for index, stream in enumerate(STREAMS):
            path = f"{prefix}.{stream}.spool"
            if not reopens:
                remove(f"{path}.0")
            generation, start, skip = found[4 + 3 * index : 7 + 3 * index]
            base, before = counts[2 + 2 * index : 4 + 2 * index]
            try:
                self.spools[stream] = Spool(path, generation, start, skip, base=base, base_before=before)
            except OSError:
                if not reopens:
                    self.close()
                raise

    def cut_back(self, log_fd: int) -> None:
        """Take back what was written to the log and not noted. Raises: OSError."""
        found = os.fstat(log_fd)
        if self.log_inode == found.st_ino and found.st_size > self.log_size:
            os.ftruncate(log_fd, self.log_size)
        elif self.log_inode != found.st_ino and self.is_rotating:
            os.ftruncate(log_fd, 0)  # the new file, into which nothing noted was written

    def note(self, inode: int, size: int, *, is_rotating: bool = False) -> None:
        """Write down where the log stands, and each stream in it. A full disk keeps the note before."""
        self._serial += 1
        self.log_inode, self.log_size, self.is_rotating = inode, size, is_rotating
        out, err = self.spools[STDOUT], self.spools[STDERR]  # spelt out: of a busy log one is written with each chunk
        places = out.generation, out.start, out.skip, err.generation, err.start, err.skip
        note = _NOTE.pack(self._serial, inode, size, is_rotating, *places)
        note_crc = binascii.crc32(note)
        counts = _COUNTS.pack(self.run, self.waiting, out.base, out.base_before, err.base, err.base_before)
        raw = b"".join((note, _CRC.pack(note_crc), counts, _CRC.pack(binascii.crc32(counts, note_crc))))
        try:
            os.pwrite(self.fd, raw, self._serial % 2 * _SLOT_BYTES)
        except OSError:
            pass  # its blocks were there since the first note: no file system refuses this one

    def wait_for(self, clients: int) -> None:
        """Write down how many clients hold the process up."""
        if self.waiting != clients and self.fd >= 0:
            self.waiting = min(clients, 0xFFFF)
            self.note(self.log_inode, self.log_size, is_rotating=self.is_rotating)

    def close(self) -> None:
        """The log is closed in order: nothing of this is needed any more. Idempotent."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        remove(self._path)
        for spool in self.spools.values():
            spool.close()


def read_notes(page: bytes) -> "tuple[int, ...]":
    """The newest whole note; all zero when there is none. Pure."""
    newest: tuple[int, ...] = (0,) * (4 + 3 * len(STREAMS))
    for at in (0, _SLOT_BYTES):
        raw = page[at : at + _NOTE.size]
        crc = page[at + _NOTE.size : at + _NOTE.size + _CRC.size]
        if len(crc) == _CRC.size and crc == _CRC.pack(binascii.crc32(raw)):
            newest = max(newest, _NOTE.unpack(raw))
    return newest


def read_counts(page: bytes, serial: int) -> "tuple[int, ...] | None":
    """What the note of this serial tells attach clients by; None when that is nothing. Pure."""
    at = serial % 2 * _SLOT_BYTES
    note = page[at : at + _NOTE.size]
    counts = page[at + _NOTE.size + _CRC.size :][: _COUNTS.size]
    crc = page[at + _NOTE.size + _CRC.size + _COUNTS.size :][: _CRC.size]
    if serial and len(crc) == _CRC.size and crc == _CRC.pack(binascii.crc32(counts, binascii.crc32(note))):
        return _COUNTS.unpack(counts)
    return None
