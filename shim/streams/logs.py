"""Serving a log to a client: all its files in order, then, with follow, what is written from then on."""

import contextlib
import os
import time

from shim.core import pipes
from shim.core.steps import DeadlinePassed, Fired, Signal, Sleep
from shim.errors import failed_precondition, internal
from shim.streams.jsonlines import STDERR, STDOUT, RecordReader
from shim.streams.logread import BLOCK_BYTES, TailSearch, search_time
from shim.streams.places import find
from shim.streams.rotation import existing_ages, rotated_path
from ttrpc.api import shim as api
from ttrpc.api import wkt
from ttrpc.api.logplace import log_place
from ttrpc.errors import StatusError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.loop import Loop
    from shim.core.steps import Handler
    from shim.streams.logfile import LogFile
    from ttrpc.api.shim import LogPlace, LogRecord, LogsRequest
    from ttrpc.server_call import ServerCall

# Files a follower keeps open ahead of where it reads, so that a rotation does not take them from it.
OPEN_AHEAD = 8
# A raw line longer than this is sent in parts: a client's memory is bounded too.
LONGEST_PART_BYTES = 1 << 16

GONE = 1 << 30  # the age of a file that has no name any more

_STREAMS = {STDOUT: api.LOG_STREAM_STDOUT, STDERR: api.LOG_STREAM_STDERR}


class _File:
    """One file of the log: opened when its turn comes, found by its age until then."""

    __slots__ = ("age", "end", "fd", "offset")

    def __init__(self, age: int, end: "int | None" = None, fd: int = -1) -> None:
        self.age = age
        self.end = end  # None: the active file, which ends where the writer says
        self.offset = 0
        self.fd = fd

    def open(self, path: str) -> None:
        """Raises: FileNotFoundError when it was rotated away."""
        if self.fd < 0 and self.age == GONE:
            raise FileNotFoundError
        if self.fd < 0:
            self.fd = os.open(rotated_path(path, self.age), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if self.end is None and self.age > 0:
            self.end = os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class EndedLog:
    """A log to which nothing is written any more: all that following it takes."""

    def __init__(self, path: str, *, is_json: bool) -> None:
        self.path = path
        self.is_json = is_json
        self.size_bytes = 0  # each of the follower's files has its end
        self.followers: list[Any] = []

    def fileno(self) -> int:
        """It has none."""
        return -1


class LogFollower:
    """Serves one Logs call. Owns its own fds on the log's files; memory is one block and the client's queue.

    Order: every record once, oldest first, over any number of rotations. A client so slow that a file was removed
    before its turn is told so by DATA_LOSS instead of being served a gap.
    """

    def __init__(
        self,
        loop: "Loop",
        log: "LogFile | EndedLog",
        call: "ServerCall",
        request: "LogsRequest",
        *,
        over: bool = False,
        carried: "dict[str, Any] | None" = None,
    ) -> None:
        self._log = log
        self._call = call
        self._follow: bool = request.follow
        self._tail: int | None = request.tail if request.HasField("tail") else None
        self._since_ns = wkt.nanoseconds(request.since) if request.HasField("since") else None
        self._until_ns = wkt.nanoseconds(request.until) if request.HasField("until") else None
        if request.HasField("resume"):  # what is older was told
            self._tail = self._since_ns = None
        self._has_places: bool = request.places
        self._told_inode = 0  # of the file whose place the client was told
        if not log.is_json and (self._since_ns is not None or self._until_ns is not None):
            raise failed_precondition("a raw log keeps no times: since and until need format=json")
        self._over = over
        self._reader = RecordReader()
        self._carry = b""
        self._wake = Signal()
        self._drained = Signal()
        self._unsent: list[LogRecord] = []
        self._is_placed = False
        self._files: list[_File] = []
        if carried is not None:
            self._put_back(carried)
        elif request.HasField("resume"):
            self._open_at(request.resume)
        else:
            self._open_files()
        if not self._over:
            log.followers.append(self)
        call.on_drain = self._on_drain
        call.carry = self.carry
        task = loop.spawn(self._serve(is_carried=carried is not None), self._finished, is_watch=True)
        # Not at once: the connection may be found dead by a send from within the handler, which cannot be closed there.
        call.on_cancel(lambda: loop.call_soon(task.cancel))

    def _open_files(self) -> None:
        log = self._log
        self._files = [_File(age) for age in existing_ages(log.path) if age > 0]
        active = _File(0, fd=pipes.reopen(log.fileno(), os.O_RDONLY))
        active.end = None if self._follow else log.size_bytes
        self._files.append(active)

    def _open_at(self, place: "LogPlace") -> None:
        """Go on where another stream has ended. Raises: StatusError DataLoss when that is gone."""
        found = find(self._log.path, place)
        if found is None:
            raise StatusError(Code.DATA_LOSS, "the log was rotated away before it was read; raise max-files")
        age, fd = found
        if age == 0:
            os.close(fd)
        self._open_files()
        while self._files[0].age > age:
            self._files.pop(0).close()
        if age:
            self._files[0].fd = fd
        self._files[0].offset = place.offset
        self._is_placed = True

    def carry(self) -> "dict[str, Any]":
        """What other code needs to go on with this call, in this process. `fds` are those of the files, in order."""
        return {
            "path": self._log.path,
            "is_json": self._log.is_json,
            "is_over": self._over,
            "is_placed": self._is_placed,
            "files": [
                (file.age, self._end_of(file) if self._over and file.age == 0 else file.end, file.offset, file.fd >= 0)
                for file in self._files
            ],
            "fds": [file.fd for file in self._files if file.fd >= 0],
            "carry": self._carry,
            "told_inode": self._told_inode,
            "unsent": [message.SerializeToString() for message in self._unsent],
        }

    def _put_back(self, carried: "dict[str, Any]") -> None:
        fds = iter(carried["fds"])
        for age, end, offset, is_open in carried["files"]:
            file = _File(age, end, next(fds) if is_open else -1)
            file.offset = offset
            self._files.append(file)
        self._is_placed = carried["is_placed"]
        self._carry = carried["carry"]
        self._told_inode = carried.get("told_inode", 0)
        self._unsent = [api.LogRecord.FromString(raw) for raw in carried["unsent"]]

    # --- told by the writer

    def log_grew(self) -> None:
        if not self._wake.fired:
            self._wake.fire()

    def log_rotated(self, finished_bytes: int, taken_age: int) -> None:
        """The active file became the first rotated one, and so on; a new one goes on."""
        opened = 0
        for file in self._files:
            if file.age == 0 and file.end is None:
                file.end = finished_bytes
            if file.age == taken_age:
                file.age = GONE
            elif file.age < taken_age:
                file.age += 1
            opened += file.fd >= 0
        if self._follow:
            fd = pipes.reopen(self._log.fileno(), os.O_RDONLY) if opened < OPEN_AHEAD else -1
            self._files.append(_File(0, fd=fd))
        self.log_grew()

    def log_ended(self) -> None:
        """Nothing more will be written."""
        self._over = True
        self.log_grew()

    def _on_drain(self) -> None:
        if not self._drained.fired:
            self._drained.fire()

    # --- serving

    def _serve(self, *, is_carried: bool) -> "Handler":
        try:
            if is_carried:
                yield Sleep(0.0)  # nothing may be sent before the loop runs
            if self._is_placed:
                if not (yield from self._send(self._unsent)):
                    return
            elif self._tail is not None:
                yield from self._seek_tail(self._tail)
            elif self._since_ns is not None:
                self._seek_time(self._since_ns)
            self._is_placed = True
            yield from self._send_all()
        finally:
            if self in self._log.followers:
                self._log.followers.remove(self)
            for file in self._files:
                file.close()

    def _finished(self, _value: "Any", error: "BaseException | None") -> None:
        if not self._call.is_open or isinstance(error, GeneratorExit):
            return
        if error is None:
            self._call.finish()
        elif isinstance(error, FileNotFoundError):
            self._call.fail(
                Code.DATA_LOSS, "the log was rotated away before it was read; raise max-files or read faster"
            )
        else:
            failure = internal(f"log {self._log.path}: {error}")
            self._call.fail(failure.code, failure.message)

    def _seek_tail(self, lines: int) -> "Handler":
        search = TailSearch(lines)
        for index in range(len(self._files) - 1, -1, -1):
            file = self._files[index]
            file.open(self._log.path)
            start = yield from _in_turns(search.search(file.fd, self._end_of(file)))
            if start is not None:
                file.offset = start
                for older in self._files[:index]:
                    older.close()
                del self._files[:index]
                return

    def _seek_time(self, since_ns: int) -> None:
        """Skip what is older, by whole files where possible."""
        while len(self._files) > 1:
            self._files[0].open(self._log.path)
            if os.fstat(self._files[0].fd).st_mtime_ns >= since_ns:
                break
            self._files.pop(0).close()
        first = self._files[0]
        first.open(self._log.path)
        first.offset = search_time(first.fd, self._end_of(first), since_ns)

    def _end_of(self, file: _File) -> int:
        return self._log.size_bytes if file.end is None else file.end

    def _send_all(self) -> "Handler":
        while True:
            self._wake = Signal()
            block = self._next_block()
            is_last = False
            if block:
                records = self._records(block)
            else:
                is_last = block is None or self._over or not self._follow
                if not is_last and (self._log.is_json or not self._carry):
                    if not (yield from self._until_woken()):
                        return
                    continue
                records = self._leftover()  # the last line, or a raw log's unfinished one: a prompt, say
            if not (yield from self._send(records)) or is_last:
                return
            yield Sleep(0.0)  # everybody else's turn

    def _send(self, records: "list[LogRecord]") -> "Handler":
        """Send at the client's pace; False once they are newer than was asked for."""
        for index, message in enumerate(records):
            if self._until_ns is not None and message.HasField("at"):
                at_ns = wkt.nanoseconds(message.at)
                if at_ns is not None and at_ns > self._until_ns:
                    return False
            self._drained = Signal()
            if not self._call.send(message):
                self._unsent = records[index + 1 :]
                yield Fired(self._drained)
        self._unsent = []
        return True

    def _until_woken(self) -> "Handler":
        """Wait for the writer; False once the time asked for has passed."""
        deadline_s = None if self._until_ns is None else (self._until_ns - time.time_ns()) / 1e9
        if deadline_s is not None and deadline_s <= 0:
            return False
        try:
            yield Fired(self._wake, deadline_s=deadline_s)
        except DeadlinePassed:
            return False
        return True

    def _next_block(self) -> "bytes | None":
        """The next bytes of the log; empty at its end for now, None at its end for ever."""
        while True:
            file = self._files[0]
            file.open(self._log.path)
            left = self._end_of(file) - file.offset
            if left > 0:
                block = os.pread(file.fd, min(left, BLOCK_BYTES), file.offset)
                if block:
                    file.offset += len(block)
                    return block
            if file.end is None:
                file.offset = min(file.offset, self._log.size_bytes)  # somebody truncated it
                return b""
            if len(self._files) == 1:
                return None
            self._files.pop(0).close()

    def _records(self, block: bytes) -> "list[LogRecord]":
        """The messages of the lines which this block completes."""
        data = self._carry + block if self._carry else block
        end = data.rfind(b"\n") + 1
        lines = data[:end].split(b"\n")
        del lines[-1]
        self._carry = data[end:]
        at = self._files[0].offset - len(data)
        messages: list[LogRecord] = []
        for line in lines:
            message = self._message(line) if self._log.is_json else api.LogRecord(data=line + b"\n")
            at += len(line) + 1
            if message is not None:
                if self._has_places:
                    message.end = at
                messages.append(message)
        if not self._log.is_json and len(self._carry) > LONGEST_PART_BYTES:
            messages.append(api.LogRecord(data=self._carry, end=self._files[0].offset if self._has_places else 0))
            self._carry = b""
        self._say_file(messages)
        return messages

    def _say_file(self, messages: "list[LogRecord]") -> None:
        """With the first record of a file goes which one that is."""
        if not self._has_places or not messages:
            return
        fd = self._files[0].fd
        inode = os.fstat(fd).st_ino
        if inode != self._told_inode:
            self._told_inode = inode
            messages[0].file.CopyFrom(log_place(fd, messages[0].end))

    def _message(self, line: bytes) -> "LogRecord | None":
        at_ns, stream, data = self._reader.read(line)
        if self._since_ns is not None and at_ns is not None and at_ns < self._since_ns:
            return None
        message = api.LogRecord(data=data)
        if stream is not None:
            message.stream = _STREAMS.get(stream, api.LOG_STREAM_UNSPECIFIED)
        if at_ns is not None:
            message.at.seconds, message.at.nanos = divmod(at_ns, 1_000_000_000)
        return message

    def _leftover(self) -> "list[LogRecord]":
        """What follows the last newline."""
        carry, self._carry = self._carry, b""
        if not carry:
            return []
        message = self._message(carry) if self._log.is_json else api.LogRecord(data=carry)
        if message is None:
            return []
        if self._has_places:
            message.end = self._files[0].offset
            self._say_file([message])
        return [message]


def _in_turns(search: "Any") -> "Handler":
    """Run a search block by block, each in a round of its own."""
    with contextlib.closing(search):
        while True:
            try:
                next(search)
            except StopIteration as found:
                return found.value
            yield Sleep(0.0)
