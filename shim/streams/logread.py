"""Finding places in log files without reading them from the start. Works on fds; nothing here waits."""

import os

from shim.streams.jsonlines import MAX_RECORD_BYTES, RecordReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Protocol

    class Follower(Protocol):
        """Who reads the log while it is written."""

        def log_grew(self) -> None:
            """More bytes are committed."""

        def log_rotated(self, finished_bytes: int, taken_age: int) -> None:
            """The file ended with this many bytes; those up to this age are one older, one that had it is gone."""

        def log_ended(self) -> None:
            """Nothing more will be written."""


BLOCK_BYTES = 1 << 16
# Escaped, a record's text can be six times as long (every byte a \u00XX), and the rest of it is short.
LONGEST_RECORD_BYTES = MAX_RECORD_BYTES * 6 + 256


class TailSearch:
    """Looks for the start of the last N lines, from the newest file to the oldest."""

    __slots__ = ("_is_first", "_wanted")

    def __init__(self, lines: int) -> None:
        self._wanted = lines  # newlines still to pass on the way back
        self._is_first = True

    def search(self, fd: int, end: int) -> "Generator[None, None, int | None]":
        """Where the tail starts in this file; None when all of it belongs to the tail. Yields after each block."""
        if self._wanted == 0 and self._is_first:
            return end
        at = end
        while at > 0:
            start = max(0, at - BLOCK_BYTES)
            block = os.pread(fd, at - start, start)
            if self._is_first:
                self._is_first = False
                if block.endswith(b"\n"):  # it ends the last line; it does not begin one
                    block = block[:-1]
            passed = block.count(b"\n")
            if passed >= self._wanted:
                return start + nth_last_newline(block, self._wanted) + 1
            self._wanted -= passed
            at = start
            yield
        return None


def nth_last_newline(block: bytes, count: int) -> int:
    """Position of the count-th newline from the end, which must be there."""
    at = len(block)
    for _ in range(count):
        at = block.rindex(b"\n", 0, at)
    return at


def search_time(fd: int, end: int, since_ns: int) -> int:
    """A record's start at or before the first record of this time or later, by bisection.

    Records of one log rise in time, as far as the wall clock does.
    """
    reader = RecordReader()
    low, high = 0, end
    while high - low > LONGEST_RECORD_BYTES:
        middle = (low + high) // 2
        block = os.pread(fd, min(2 * LONGEST_RECORD_BYTES, end - middle), middle)
        begin = block.find(b"\n") + 1
        finish = block.find(b"\n", begin) + 1
        at_ns = reader.read(block[begin:finish])[0] if begin and finish else None
        if at_ns is None or at_ns >= since_ns:
            high = middle
        else:
            low = middle + begin
    return low
