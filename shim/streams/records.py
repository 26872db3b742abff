"""A JSON log's records in the making: formatters, stamps, and the book that lets a successor go on exactly."""

import errno
import os
import time

from shim import faults
from shim.core import pipes
from shim.streams import jsonlines
from shim.streams.stamps import Stamper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from shim.streams.spool import Book, Spool

    # Told of each chunk of output.
    Tell: TypeAlias = Callable[[bytes], None]
    # The spool of the stream a batch is of, and the offset there at which it ends.
    Mark: TypeAlias = "tuple[Spool, int] | None"
    # Bytes for the file, how many bytes of output are in them, and what they end.
    Batch: TypeAlias = "tuple[bytes, int, Mark]"

PART = -1  # in place of an offset: the batch goes on in another file


class Records:
    """Owns the formatters and the book. Without a book a kill may cost the chunk in hand and unfinished lines."""

    __slots__ = ("_formatters", "_stamper", "book")

    def __init__(self, book: "Book | None") -> None:
        self.book = book
        self._stamper = Stamper()
        self._formatters: dict[str, jsonlines.LineFormatter] = {}

    def move(self, stream: str, source_fd: int, count: int) -> "Iterator[tuple[bytes, bool]]":
        """Take output from a pipe, nothing at its end; it comes chunk by chunk. The flag: by way of the spool.

        Not while the spool's disk is full. Raises: BlockingIOError when the source is empty; OSError.
        """
        spool = self.book.spools[stream] if self.book is not None else None
        if spool is not None and spool.is_on:
            try:
                moved = spool.move(source_fd, count)
            except BlockingIOError:
                raise
            except OSError as error:
                spool.is_on = error.errno not in (errno.EINVAL, errno.ENOSYS)
            else:
                faults.point("log.spooled")
                for data in spool.read(moved):
                    yield data, True
                return
        data = os.read(source_fd, min(count, pipes.CHUNK_BYTES))
        if data:
            yield data, False

    def feed(self, stream: str, data: bytes, *, is_spooled: bool) -> "Batch":
        """The records which this output completes."""
        formatter = self._formatters.get(stream)
        if formatter is None:
            formatter = self._formatters[stream] = jsonlines.LineFormatter(stream)
        held = formatter.held_bytes
        batch = formatter.feed(data, self.stamp())
        raw_bytes = held + len(data) - formatter.held_bytes
        if self.book is None:
            return batch, raw_bytes, None
        spool = self.book.spools[stream]
        end = max(spool.start, spool.size - formatter.held_bytes) if is_spooled else spool.size
        return spool.without_skipped(batch), raw_bytes, (spool, end)

    def feed_spooled(self, stream: str, data: bytes, end: int) -> "Batch":
        """The same of what a predecessor has spooled, up to this offset."""
        batch, raw_bytes, mark = self.feed(stream, data, is_spooled=True)
        held_bytes = self._formatters[stream].held_bytes
        return batch, raw_bytes, (mark[0], end - held_bytes) if mark is not None else None

    def settle(self, stream: str) -> "Batch | None":
        """What is held back of an unfinished line."""
        formatter = self._formatters.get(stream)
        if formatter is None or not formatter.held_bytes:
            return None
        held_bytes = formatter.held_bytes
        batch = formatter.flush(self.stamp())
        if self.book is None:
            return batch, held_bytes, None
        spool = self.book.spools[stream]
        return spool.without_skipped(batch), held_bytes, (spool, spool.size)

    def held(self, stream: str) -> bytes:
        """What is held back of an unfinished line."""
        formatter = self._formatters.get(stream)
        return formatter.held if formatter is not None else b""

    def held_unspooled(self, stream: str) -> bytes:
        """What of it is in memory alone. Order: nothing waits to be written."""
        spool = self.book.spools[stream] if self.book is not None else None
        return self.held(stream)[spool.size - spool.start if spool is not None else 0 :]

    def stamp(self) -> bytes:
        return self._stamper.stamp(time.time_ns())

    def roll(self, stream: str, inode: int, log_size: int) -> None:
        """Begin a spool anew that has grown; where there is no room for another, it grows on.

        Order: nothing of it waits to be written.
        """
        spool = self.book.spools[stream] if self.book is not None else None
        if self.book is None or spool is None or spool.size <= self.book.roll_bytes or spool.to_skip:
            return
        try:
            old_fd = spool.roll(self._formatters[stream].held)
        except OSError:
            return
        self.book.note(inode, log_size)
        os.close(old_fd)


def advance(mark: "Mark", length: int) -> None:
    """A batch, or a part of one, needs the spool no more."""
    if mark is not None:
        spool, end = mark
        if end == PART:
            spool.skip += length
        else:
            spool.start, spool.skip = end, 0
