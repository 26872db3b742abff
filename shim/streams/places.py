"""Places in a log and in a process's output, from which a client goes on whose stream was cut: each byte comes once."""

import os

from shim.streams.jsonlines import STDERR, STDOUT
from shim.streams.rotation import existing_ages, rotated_path
from ttrpc.api import shim as api
from ttrpc.api.logplace import is_file_of, log_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from shim.streams.spool import Book
    from ttrpc.api.shim import AttachOutput, AttachPlace, LogPlace

    class Log(Protocol):
        """The log that is written."""

        path: str
        size_bytes: int
        inode: int

        def fileno(self) -> int: ...


BLOCK_BYTES = 1 << 16
# Where a message to an attach client has a stream's bytes.
OUTPUT_FIELDS = {STDOUT: api.AttachOutput.STDOUT_FIELD_NUMBER, STDERR: api.AttachOutput.STDERR_FIELD_NUMBER}


def find(path: str, place: "LogPlace") -> "tuple[int, int] | None":
    """Age and fd, the caller's, of the file of a log in which the place is; None when it is there no more."""
    for age in sorted(existing_ages(path)):
        try:
            fd = os.open(rotated_path(path, age), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if is_file_of(fd, place):
            return age, fd
        os.close(fd)
    return None


class Past:
    """A raw log from a place on, for one client, until it has caught up with what is written. Owns an fd on a file."""

    __slots__ = ("_fd", "_log", "_offset", "missed")

    def __init__(self, log: "Log", place: "LogPlace") -> None:
        """``missed`` tells that the place is gone: then it begins with the oldest there is. Raises: OSError."""
        self._log = log
        found = find(log.path, place)
        self.missed = found is None
        self._fd, self._offset = -1, place.offset
        if found is not None:
            self._fd = found[1]
        else:
            self._open(max(existing_ages(log.path)))

    def _open(self, age: int) -> None:
        self.close()
        self._fd = os.open(rotated_path(self._log.path, age), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._offset = 0

    @property
    def place(self) -> "LogPlace":
        """Where it stands."""
        return log_place(self._fd, self._offset)

    def read(self) -> bytes:
        """The next block; empty when it has caught up. Raises: OSError."""
        while True:
            inode = os.fstat(self._fd).st_ino
            is_active = inode == self._log.inode
            end = self._log.size_bytes if is_active else os.fstat(self._fd).st_size
            if self._offset < end:
                data = os.pread(self._fd, min(BLOCK_BYTES, end - self._offset), self._offset)
                self._offset += len(data)
                if data:
                    return data
            if is_active:
                return b""
            newer = self._newer(inode)
            if newer is None:
                return b""
            self._open(newer)

    def _newer(self, inode: int) -> "int | None":
        """The age of the file that follows this one."""
        path, before = self._log.path, -1
        for age in sorted(existing_ages(path)):
            try:
                if os.stat(rotated_path(path, age)).st_ino == inode:
                    return before if before >= 0 else None
            except FileNotFoundError:
                continue
            before = age
        self.missed = self.missed or before >= 0
        return before if before >= 0 else None  # rotated away meanwhile: the oldest there is

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def output_place(book: "Book") -> "AttachPlace":
    """How much of a process's output went by."""
    return api.AttachPlace(run=book.run, stdout=book.spools[STDOUT].count, stderr=book.spools[STDERR].count)


def output_since(book: "Book", place: "AttachPlace") -> "tuple[int, list[tuple[str, bytes, AttachPlace]]]":
    """How many bytes after a place are gone, and what is left of them, each piece with the place behind it.

    How the two streams' pieces lay between each other is not known any more. Raises: OSError.
    """
    missed, pieces = 0, []
    at = {STDOUT: place.stdout, STDERR: place.stderr}
    for stream, spool in book.spools.items():
        begin, data = spool.since(at[stream])
        missed += max(0, begin - at[stream])
        at[stream] = begin
        for cut in range(0, len(data), BLOCK_BYTES):
            piece = data[cut : cut + BLOCK_BYTES]
            at[stream] += len(piece)
            pieces.append((stream, piece, api.AttachPlace(run=book.run, stdout=at[STDOUT], stderr=at[STDERR])))
    return missed, pieces


def output_message(stream: str, data: bytes, place: "AttachPlace | None") -> "AttachOutput":
    """A piece of output with the place behind it."""
    message = api.AttachOutput(place=place)
    if stream == STDERR:
        message.stderr = data
    else:
        message.stdout = data
    return message


def output_of(message: "AttachOutput") -> "tuple[str, bytes, AttachPlace | None]":
    """The same the other way round."""
    place = message.place if message.HasField("place") else None
    return (STDERR, message.stderr, place) if message.HasField("stderr") else (STDOUT, message.stdout, place)
