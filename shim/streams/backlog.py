"""Output that only attach clients get: by way of a spool, from which they have what a killed shim did not pass on."""

import errno
import os

from shim.core import pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.streams.spool import Book, Spool


class Backlog:
    """The end of a process's pumps. Owns the book. Where its disk is full, output goes on without a copy."""

    # Attach clients are behind by what is unsent (HIGH_WATER_BYTES), one chunk, and the sent part of another: together
    # no more than a spool goes back at least (ROLL_BYTES).
    take_bytes = pipes.TAKE_BYTES
    blocked = takes_splice = reads_back = False
    idle = takes_sources = True

    __slots__ = ("book",)

    def __init__(self, book: "Book") -> None:
        self.book = book
        book.note(book.log_inode, book.log_size)  # the process it is of is known from here on

    def splice(self, _source_fd: int, _tell: "Callable[[bytes], None] | None" = None, _count: int = 0) -> "int | None":
        raise AssertionError("it takes what passes")

    def take(self, stream: str, source_fd: int, count: int, tell: "Callable[[bytes], None]") -> int:
        """Take a chunk from a pipe and tell it; 0 is its end. Raises: BlockingIOError when it is empty; OSError."""
        spool = self.book.spools[stream]
        if spool.is_on:
            try:
                moved = spool.move(source_fd, count)
            except BlockingIOError:
                raise
            except OSError as error:
                spool.is_on = error.errno not in (errno.EINVAL, errno.ENOSYS)
            else:
                for data in spool.read(moved, count):
                    tell(data)
                if spool.size > self.book.roll_bytes:
                    self._roll(spool)
                return moved
        data = os.read(source_fd, count)
        if data:
            tell(data)
        return len(data)

    def _roll(self, spool: "Spool") -> None:
        try:
            old_fd = spool.roll(b"")
        except OSError:
            return
        self.book.note(0, 0)
        os.close(old_fd)

    def write(self, _stream: str, _data: bytes) -> None:
        raise AssertionError("it takes what passes")

    def settle(self, _stream: str) -> None:
        """Nothing is held back here."""

    def end(self, _stream: str) -> None:
        """The other stream may go on."""

    def on_room(self, callback: "Callable[[], None]") -> None:
        """There is always room."""
