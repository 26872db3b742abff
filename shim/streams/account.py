"""Input that is on its way to a process, and how much of each client's was taken: in a memory file the keeper holds.

Whoever holds file and pipe can go on after any kill. Input is written behind what is there, and counts with the note
that follows; from there it is moved into the process's pipe or terminal by one system call, which moves the file's own
position as well (splice(2), sendfile(2) without an offset). What was moved may lie in the pipe as a page of this file,
so nothing is ever written over: offsets only rise, and what is over is cut off, which leaves such pages alone.
"""

import binascii
import errno
import os
import struct

from shim.streams.outlets import Outlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.loop import Loop
    from shim.recovery.spares import Share

NAME = "input"
_PAGE_BYTES = 4096  # two notes, which take turns: a torn one is known by its checksum
_SLOT_BYTES = _PAGE_BYTES // 2
_HEAD = struct.Struct("<QQI")  # serial, where input ends, how many clients follow
_CLIENT = struct.Struct("<QQ")  # its id, how much of its input was taken
_CRC = struct.Struct("<I")
CLIENTS_MAX = 64  # that have written last
TIDY_BYTES = 1 << 18  # so much that was moved may lie here before it is cut off
MOVE_BYTES = 1 << 16


class Account:
    """Owns the memory file."""

    __slots__ = ("_begin", "_clients", "_end", "_serial", "fd", "pending_bytes")

    def __init__(self, fd: int = -1) -> None:
        """A new one, or what a predecessor left. Raises: OSError."""
        self._serial = 0
        self._clients: dict[int, int] = {}
        if fd < 0:
            self.fd = os.memfd_create("shimd-input", os.MFD_CLOEXEC)
            os.lseek(self.fd, _PAGE_BYTES, os.SEEK_SET)
            self._end = _PAGE_BYTES
        else:
            self.fd = fd
            self._end = self._recover()
        self._begin = position = os.lseek(self.fd, 0, os.SEEK_CUR)
        self._end = max(self._end, position)
        self.pending_bytes = self._end - position

    def _recover(self) -> int:
        end = 0
        page = os.pread(self.fd, _PAGE_BYTES, 0)
        for at in (0, _SLOT_BYTES):
            if len(page) < at + _HEAD.size:
                continue
            serial, tail, count = _HEAD.unpack_from(page, at)
            length = _HEAD.size + min(count, CLIENTS_MAX) * _CLIENT.size
            raw = page[at : at + length]
            if serial <= self._serial or page[at + length :][: _CRC.size] != _CRC.pack(binascii.crc32(raw)):
                continue
            self._serial, end = serial, tail
            self._clients = dict(_CLIENT.iter_unpack(raw[_HEAD.size :]))
        return end

    def knows(self, input_id: int) -> bool:
        return input_id in self._clients

    def taken(self, input_id: int) -> int:
        """How much of a client's input was taken."""
        return self._clients.get(input_id, 0)

    def enter(self, input_id: int) -> None:
        """Count a client's input from here on. Raises: OSError."""
        if input_id and not self.knows(input_id):
            self._clients[input_id] = 0
            self._note()

    def put(self, data: bytes, input_id: int) -> None:
        """Take input. Raises: OSError; it is not taken then."""
        at = self._end
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done:], at + done)
        before = self._clients.pop(input_id, 0)
        if input_id:
            self._clients[input_id] = before + len(data)
        self._end += len(data)
        try:
            self._note()
        except OSError:
            self._end = at
            self._clients[input_id] = before
            raise
        self.pending_bytes += len(data)

    def _note(self) -> None:
        while len(self._clients) > CLIENTS_MAX:
            del self._clients[next(iter(self._clients))]
        self._serial += 1
        raw = _HEAD.pack(self._serial, self._end, len(self._clients))
        raw += b"".join(_CLIENT.pack(*each) for each in self._clients.items())
        os.pwrite(self.fd, raw + _CRC.pack(binascii.crc32(raw)), self._serial % 2 * _SLOT_BYTES)

    def move(self, out_fd: int, *, is_terminal: bool) -> None:
        """Move what the process's end takes. Raises: BlockingIOError when that is full; OSError as write(2)."""
        count = min(self.pending_bytes, MOVE_BYTES)
        try:
            if is_terminal:
                moved = os.sendfile(out_fd, self.fd, None, count)
            else:
                moved = os.splice(self.fd, out_fd, count, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # Terminals take no sendfile before Linux 5.11. A kill between the two gives the process this once more.
            moved = os.write(out_fd, os.pread(self.fd, count, self._end - self.pending_bytes))
            os.lseek(self.fd, moved, os.SEEK_CUR)
        if not moved:
            raise OSError(errno.EIO, "the memory file is shorter than what was put into it")
        self.pending_bytes -= moved
        if not self.pending_bytes and self._end - self._begin > TIDY_BYTES:
            os.ftruncate(self.fd, _PAGE_BYTES)
            self._begin = self._end

    def pending(self) -> bytes:
        """What is on its way."""
        return os.pread(self.fd, self.pending_bytes, self._end - self.pending_bytes)

    def drop_pending(self) -> None:
        """Nobody will read it. Raises: OSError."""
        os.lseek(self.fd, self._end, os.SEEK_SET)
        self.pending_bytes = 0

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class InputOutlet(Outlet):
    """The outlet of a process's stdin, with an account once somebody writes."""

    __slots__ = ("_is_terminal", "_share", "account")

    def __init__(self, loop: "Loop", share: "Share") -> None:
        super().__init__(loop)
        self._share = share
        self._is_terminal = False
        self.account: Account | None = None

    def recover(self) -> None:
        """Go on where a predecessor was killed."""
        fd = self._share.take(NAME)
        if fd is not None:
            self._keep(Account(fd))

    def open_account(self) -> "Account | None":
        """The account, made if need be; None when there is no memory for it."""
        if self.account is None and not self.pending_bytes:
            try:
                self._keep(Account())
            except OSError:
                return None
        return self.account

    def _keep(self, account: Account) -> None:
        self.account = account
        self.pending_bytes = account.pending_bytes
        self._owes_word = self.pending_bytes > 0
        self._share.hold(NAME, account.fd)

    def connect_terminal(self, fd: int) -> None:
        """As `connect`, to a terminal's master."""
        self._is_terminal = True
        self.connect(fd)

    def give(self, data: bytes, input_id: int) -> None:
        """As `write`, counted for a client. Raises: OSError when there is no memory for it: it is not taken then."""
        account = self.open_account()
        if account is None:
            super().write(data)
            return
        account.put(data, input_id)
        if self.broken or self._closing:
            account.drop_pending()
        self.pending_bytes = account.pending_bytes
        if not self._watching:
            self._flush()
        self._owes_word = self.pending_bytes > 0

    def write(self, data: bytes) -> None:
        if self.account is not None and data and not (self.broken or self._closing):
            self.give(data, 0)  # one queue for all, or their order were lost
        else:
            super().write(data)

    def unsent(self) -> bytes:
        return self.account.pending() if self.account is not None else super().unsent()

    def _write_pending(self, fd: int) -> None:
        account = self.account
        if account is None:
            super()._write_pending(fd)
            return
        while account.pending_bytes:
            account.move(fd, is_terminal=self._is_terminal)
            self.pending_bytes = account.pending_bytes

    def _discard(self) -> None:
        if self.account is not None:
            self.account.drop_pending()
        super()._discard()

    def release(self) -> None:
        """The process's streams are closed: let go of the account, too. Idempotent."""
        self.close()
        if self.account is not None:
            self._share.drop(NAME)
            self.account.close()
            self.account = None
