"""A log file this shim writes: appended to, rotated by size, and patient with a full disk."""

import errno
import fcntl
import os
import stat

from shim import faults
from shim.core import pipes
from shim.errors import failed_precondition, invalid_argument, resource_exhausted
from shim.streams.appendlock import AppendLock
from shim.streams.jsonlines import STDERR, output_bytes, record
from shim.streams.records import PART, Records, advance
from shim.streams.rotation import room_cut, rotate, splice_bytes, tidy
from shim.streams.targets import DROP, JSON, LOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop, Timer
    from shim.streams.logread import Follower
    from shim.streams.records import Batch, Mark, Tell
    from shim.streams.spool import Book
    from shim.streams.targets import Target

RETRY_S = 0.5  # how often a write that failed is tried again
LOCK_RETRY_S = 0.005  # how often a file that another writer holds for one write is tried again
KEPT_BYTES = 1 << 20  # mode=drop: output kept in memory while the disk refuses; older output is dropped
RAW_SLACK_BYTES = 1 << 18  # a raw log may outgrow max-size by this, looking for a moment that ends a line


class LogFile:
    """Owns the file's fd, the unwritten batches, and the rotated files beside it. The end of one or more `Pump`s.

    ``size_bytes`` counts whole batches only: a batch that is half on disk (no space) is finished at its exact offset
    later, or cut off again before it is dropped, so a reader that stops at ``size_bytes`` never sees half a record.
    With mode block (the default) a write that fails blocks the pumps, their FIFOs fill, the workload waits, nothing is
    lost. With mode drop the workload goes on, and what is dropped is counted and marked in the log.
    """

    def __init__(
        self,
        loop: "Loop",
        target: "Target",
        *,
        report: "Callable[[str], None]" = lambda _line: None,
        book: "Book | None" = None,
    ) -> None:
        self.path = target.path
        self.is_json = target.format == JSON
        self.dropped_bytes = 0
        self.size_bytes = 0
        self.followers: list[Follower] = []
        self.max_files = target.max_files
        self._loop = loop
        self._report = report
        self._drops = target.mode == DROP
        self._max_size_bytes = target.max_size_bytes
        self._splices = not self.is_json
        self._shared = target.kind != LOG  # a file:// log: others may append, truncate or rename it
        self._fd, self.inode = -1, 0
        self._book = book  # of a JSON log that is to survive us exactly
        self.records = Records(book)
        self._pending: list[Batch] = []
        self._pending_bytes = 0
        self._head_sent = 0  # of the first pending batch: on disk already, behind size_bytes
        self.unmarked_bytes = 0  # dropped, and the log does not say so yet
        self._failing = False
        self._rotate_after = 0.0
        self._retry: Timer | None = None
        self._on_room: list[Callable[[], None]] = []
        self.blocked = False

    # --- opening and closing

    def open(self) -> None:
        """Open or make the file and stand at its end.

        A log:// file is ours alone while we hold it: flock(2), freed by the kernel with the last of its fds.
        Raises: StatusError InvalidArgument where the path cannot be a log; FailedPrecondition where another writes it.
        """
        try:
            os.makedirs(os.path.dirname(self.path), 0o755 if self._shared else 0o700, exist_ok=True)
            self._fd = self._open_file(self.path)
        except OSError as error:
            refuse = resource_exhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else invalid_argument
            raise refuse(f"log {self.path}: {error.strerror}") from error
        facts = os.fstat(self._fd)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            raise invalid_argument(f"log {self.path}: not a regular file")
        if not self._shared:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise failed_precondition(f"log {self.path}: the log of another process already") from None
            tidy(self.path)
        if self._book is not None:
            self._book.cut_back(self._fd)
        self.inode, self.size_bytes = facts.st_ino, os.fstat(self._fd).st_size
        if self.is_json and self.size_bytes and self.last_bytes(1) != b"\n":
            self._append(b"\n", 0, None)  # a record torn by a kill: readers take it for a line of its own
        if self._book is not None:
            self._note()
            for stream, spool in self._book.spools.items():
                for part, end in spool.unformatted():
                    self._append(*self.records.feed_spooled(stream, part, end))

    def _note(self, *, is_rotating: bool = False) -> None:
        if self._book is not None:
            self._book.note(self.inode, self.size_bytes, is_rotating=is_rotating)

    def _open_file(self, path: str) -> int:
        # Without O_APPEND, which splice(2) refuses; O_NONBLOCK so that a FIFO in this place cannot hang us.
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(path, flags, 0o644 if self._shared else 0o640)

    def close(self) -> None:
        """Try once more to write what is left, count what cannot be, and let go. Idempotent."""
        if self._fd < 0:
            if self._book is not None:
                self._book.close()  # never got as far as to be open
            return
        if self._pending:
            self._flush()
            if self._pending:
                self._truncate_head()
                self.dropped_bytes += sum(raw for _, raw, _ in self._pending)
                self._pending.clear()
                self._report(f"log {self.path}: closed with {self.dropped_bytes} bytes of output unwritten")
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        fd, self._fd = self._fd, -1
        os.close(fd)
        if self._book is not None:
            self._book.close()

    def fileno(self) -> int:
        return self._fd

    # --- what a pump asks

    reads_back, take_bytes = True, pipes.TAKE_BYTES

    @property
    def idle(self) -> bool:
        return not self._pending

    @property
    def takes_sources(self) -> bool:
        """Whether it takes from the pipe by itself what cannot go straight into the file."""
        return self._book is not None

    @property
    def takes_splice(self) -> bool:
        """Whether bytes may go straight from the pipe into the file."""
        return self._splices and not self._pending and not (self._drops and self._failing)

    def on_room(self, callback: "Callable[[], None]") -> None:
        """Call it each time writing works again after `blocked`."""
        self._on_room.append(callback)

    def splice(self, pipe_fd: int, tell: "Tell | None" = None, count: int = pipes.CHUNK_BYTES) -> "int | None":
        """Move raw output, ``count`` bytes at most, to the file; 0 is the pipe's end, None means: `blocked`.

        ``tell`` is given what was moved. Raises: BlockingIOError when the pipe is empty.
        """
        if self._max_size_bytes:
            count = min(count, splice_bytes(self._max_size_bytes - self.size_bytes))
        try:
            with AppendLock(self) as locked:
                if not locked:
                    self._fail(None)
                    return None
                moved = pipes.splice_to_file(pipe_fd, self._fd, count, self.size_bytes)
                data = os.pread(self._fd, moved, self.size_bytes) if tell is not None else b""
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS):
                self._splices = False  # this file system cannot: read and write instead
            else:
                self._fail(error)
            return None
        if moved:
            faults.point("log.spliced")
            self.size_bytes += moved
            if tell is not None:
                tell(data)
            self._recovered()
            if self._max_size_bytes and self.size_bytes >= self._max_size_bytes:
                self._rotate_raw()
            self._grew()
        return moved

    def take(self, stream: str, source_fd: int, count: int, tell: "Tell") -> int:
        """Take output from a pipe, log it, and tell it, chunk by chunk; 0 is the source's end.

        Raises: BlockingIOError when the source is empty; OSError.
        """
        taken = 0
        for data, is_spooled in self.records.move(stream, source_fd, count):
            self._append(*self.records.feed(stream, data, is_spooled=is_spooled))
            tell(data)
            taken += len(data)
        if taken and not self._pending:
            self.records.roll(stream, self.inode, self.size_bytes)
        return taken

    def write(self, stream: str, data: bytes) -> None:
        """Append output: as records in a JSON log, as it is in a raw one."""
        if self.is_json:
            self._append(*self.records.feed(stream, data, is_spooled=False))
        else:
            self._append(data, len(data), None)

    def settle(self, stream: str) -> None:
        """Write what was held back of an unfinished line: its process has exited."""
        batch = self.records.settle(stream)
        if batch is not None:
            self._append(*batch)

    def end(self, stream: str) -> None:
        """The stream has ended; the file stays for the other one."""
        self.settle(stream)

    def last_bytes(self, count: int) -> bytes:
        """The end of the active file, for a raw log's replay."""
        if self._fd < 0:
            return b""
        count = min(count, self.size_bytes)
        return os.pread(self._fd, count, self.size_bytes - count)

    # --- writing

    def _append(self, batch: bytes, raw_bytes: int, mark: "Mark") -> None:
        if not batch:
            return
        self._pending.append((batch, raw_bytes, mark))
        self._pending_bytes += len(batch)
        if self._retry is None:
            self._flush()
        if self._failing and self._drops:
            self._drop_oldest()

    def _flush(self) -> None:
        """Write what is pending, rotating where a file is full, until done or refused."""
        before = self.size_bytes
        try:
            with AppendLock(self) as locked:
                if not locked:
                    self._fail(None)
                    return
                if self.unmarked_bytes:
                    self._insert_marker()
                while self._pending:
                    self._write_head()
        except OSError as error:
            self._fail(error)
        else:
            self._recovered()
        if self.size_bytes != before:
            self._grew()

    def _write_head(self) -> None:
        """Write the first pending batch, or as much of it as belongs into this file, or as fits on the disk."""
        batch, raw_bytes, mark = self._pending[0]
        if self._max_size_bytes and not self._head_sent:
            cut = room_cut(batch, self._max_size_bytes - self.size_bytes, at_start=self.size_bytes == 0)
            if cut == 0:
                if self._rotate():
                    return
            elif cut < len(batch):
                share = min(raw_bytes, output_bytes(batch[:cut]) if self.is_json else cut)
                part: Mark = (mark[0], PART) if mark is not None else None
                self._pending[:1] = [(batch[:cut], share, part), (batch[cut:], raw_bytes - share, mark)]
                batch, raw_bytes, mark = self._pending[0]
        rest = memoryview(batch)[self._head_sent :] if self._head_sent else batch
        sent = os.pwrite(self._fd, rest, self.size_bytes + self._head_sent)
        if sent < len(rest) and self.is_json:
            self._head_sent += sent  # half a record: not committed yet
            return
        if sent < len(rest):
            self._pending[0] = (batch[sent:], raw_bytes - sent, mark)
            self._pending_bytes -= sent
            self.size_bytes += sent
            return
        del self._pending[0]
        self._pending_bytes -= len(batch)
        self.size_bytes += len(batch)
        self._head_sent = 0
        faults.point("log.written")
        advance(mark, len(batch))
        self._note()

    def _fail(self, error: "OSError | None") -> None:
        """Arrange another try. None: another writer has the file for this moment."""
        if error is not None and not self._failing:
            self._report(f"log {self.path}: {error.strerror}; trying again every {RETRY_S} s")
        self._failing = self._failing or error is not None
        self.blocked = error is None or not self._drops
        if self._retry is None:
            self._retry = self._loop.call_later(LOCK_RETRY_S if error is None else RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._pending or self.unmarked_bytes:
            self._flush()
        if self._retry is None:
            self._open_up()

    def _open_up(self) -> None:
        """Let the pumps try: in a raw log only their splice can tell whether there is room again."""
        self.blocked = False
        for callback in list(self._on_room):
            callback()

    def _recovered(self) -> None:
        if self._failing:
            self._failing = False
            self._report(f"log {self.path}: writing again")
            if not self.blocked:  # else the retry which brought us here opens up
                self._open_up()

    def _grew(self) -> None:
        for follower in list(self.followers):
            follower.log_grew()

    # --- dropping

    def _drop_oldest(self) -> None:
        """Keep the newest KEPT_BYTES of what waits; count the rest, to be marked once writing works."""
        while self._pending_bytes > KEPT_BYTES:
            self._truncate_head()
            batch, raw_bytes, mark = self._pending.pop(0)
            advance(mark, len(batch))
            self._pending_bytes -= len(batch)
            self.dropped_bytes += raw_bytes
            self.unmarked_bytes += raw_bytes

    def _truncate_head(self) -> None:
        """Take back the part of the first batch that reached the file. Freeing space works on a full disk."""
        if self._head_sent:
            try:
                os.ftruncate(self._fd, self.size_bytes)
            except OSError:
                pass
            self._head_sent = 0

    def _insert_marker(self) -> None:
        self._truncate_head()
        batch = self._marker(b"%d bytes dropped: no space" % self.unmarked_bytes)
        self._pending.insert(0, (batch, 0, None))
        self._pending_bytes += len(batch)
        self.unmarked_bytes = 0

    def mark(self, words: bytes) -> None:
        """Say something of our own, between what is written by now and what follows."""
        self._append(self._marker(words), 0, None)

    def _marker(self, words: bytes) -> bytes:
        text = b"[shimd: %b]\n" % words
        if self.is_json:
            return record(STDERR, text, self.records.stamp())
        return text if self.size_bytes == 0 or self.last_bytes(1) == b"\n" else b"\n" + text

    # --- rotation

    def _rotate_raw(self) -> None:
        """Start a new file if this moment ends a line, or if the old one has outgrown its limit too far."""
        if self.last_bytes(1) != b"\n" and self.size_bytes < self._max_size_bytes + RAW_SLACK_BYTES:
            return
        self._rotate()

    def _rotate(self) -> bool:
        """Go on in a new file. False: that failed, the old one is still in use, and we try again a little later."""
        now = self._loop.clock()
        if now < self._rotate_after:
            return False
        self._note(is_rotating=True)
        try:
            new_fd, taken_age = rotate(self.path, self.max_files, self._open_file)
        except OSError as error:
            if not self._rotate_after:
                self._report(f"log {self.path}: cannot rotate, so it outgrows max-size: {error.strerror}")
            self._rotate_after = now + RETRY_S
            return False
        self._rotate_after = 0.0
        finished, self.size_bytes = self.size_bytes, 0
        os.close(self._fd)
        self._fd, self.inode = new_fd, os.fstat(new_fd).st_ino
        faults.point("rotate.renamed")
        self._note()
        for follower in list(self.followers):
            follower.log_rotated(finished, taken_age)
        return True
