"""What every way of staying with a process shares: our signals, our input with its detach keys, our output.

One poll loop; nothing in it blocks but the poll, so that a signal is passed on even while whoever reads our output does
not. Where the process's streams are is the subclass's: `session` (ours) and `fifosession` (containerd's shims).
"""

import contextlib
import os
import select
import signal
import stat
from collections import deque

from daemon.ctl.client import say
from daemon.ctl.terminal import DetachKeys
from ttrpc.errors import StatusError, TtrpcError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ttrpc.api import shim

READ_BYTES = 16 << 10
# pipe(7): a pipe that polls writable takes this much without blocking.
PIPE_BUF_BYTES = 4096
CONTROL_S = 10.0
FORCE_AFTER = 3  # interrupts: the third one means us, not the container

EXITED, DETACHED, LOST, CUT, READER_GONE, FORCED, ENDED = (
    "exited", "detached", "lost", "cut", "reader gone", "forced", "ended",
)  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# With our terminal raw no key makes a signal: these come from elsewhere and mean us. The container stays.
LEAVING = (signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Why a session is over. ``record`` with EXITED; ``reason`` with CUT and LOST; ``signal`` with ENDED and FORCED."""

    __slots__ = ("kind", "reason", "record", "signal")

    def __init__(
        self, kind: str, *, record: "shim.ExitRecord | None" = None, reason: str = "", signal: int = 0
    ) -> None:
        self.kind = kind
        self.record = record
        self.reason = reason
        self.signal = signal


class Pump:
    """One process stayed with. Owns the signal handlers and the wake-up pipe from `_take_signals` to `close`."""

    def __init__(
        self,
        address: str,
        container_id: str,
        exec_id: str,
        *,
        metadata: dict[str, str],
        stdin: bool,
        terminal: bool,
        forward_signals: bool,
        detach_keys: bytes,
    ) -> None:
        self.address = address
        self.container_id = container_id
        self.exec_id = exec_id
        self.terminal = terminal
        self.has_stdin = stdin
        self._metadata = metadata
        self._forwards = forward_signals
        self._detach = DetachKeys(detach_keys)
        self._interrupts = 0
        self._output: deque[tuple[int, memoryview]] = deque()
        self._outlets: dict[int, Outlet] = {}
        self._deaf: set[int] = set()
        self._stdin_open = stdin
        self._handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] | None = None
        self._ending: Ending | None = None

    def __enter__(self) -> "Pump":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Attach, and take the signals: from here on they are kept for the process."""
        raise NotImplementedError

    def run(self) -> Ending:
        """Pump until the end. Blocks: as long as the process runs and nobody lets go."""
        raise NotImplementedError

    def _call(self, method: str, request: "Any") -> None:
        """One call of the shim's Task service, through a connection of its own: ours may be full of output.

        Blocks: at most `CONTROL_S`. Raises: StatusError, ConnectionLost, OSError.
        """
        raise NotImplementedError

    def _resize(self) -> None:
        """Tell the process's terminal the size of ours."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back: handlers, pipes. Idempotent."""
        for outlet in self._outlets.values():
            outlet.close()
        self._outlets.clear()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        wake, self._wake = self._wake, None
        if wake is not None:
            signal.set_wakeup_fd(-1)
            os.close(wake[0])
            os.close(wake[1])

    # --- signals

    def _take_signals(self) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = reading, writing
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        wanted = list(LEAVING if self._is_raw else FORWARDED if self._forwards else ())
        if self.terminal:
            wanted.append(signal.SIGWINCH)
        for number in wanted:
            self._handlers[number] = signal.signal(number, _wake_up)

    @property
    def _is_raw(self) -> bool:
        return self.terminal and self.has_stdin

    def _read_signals(self) -> None:
        assert self._wake is not None
        try:
            numbers = os.read(self._wake[0], 512)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGWINCH:
                self._resize()
            elif self._is_raw and number in LEAVING:
                self._ending = Ending(ENDED, signal=number)
            elif number in self._handlers:
                self._forward(number)

    def _forward(self, number: int) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            self._interrupts += 1
            if self._interrupts >= FORCE_AFTER:
                self._ending = Ending(FORCED, signal=number)
                return
        try:
            self.kill(number)
        except (TtrpcError, OSError) as error:
            say(f"could not pass on signal {number}: {error}")

    def kill(self, number: int) -> None:
        """Send the process a signal. Blocks and raises: as `_call`."""
        from ttrpc.api import task

        try:
            self._call("Kill", task.KillRequest(id=self.container_id, exec_id=self.exec_id, signal=number))
        except StatusError as error:
            if error.code != Code.NOT_FOUND:  # it has just ended: the exit is on its way to us
                raise

    # --- our input

    def _read_stdin(self, most_bytes: int) -> bytes | None:
        """What was typed, less the keys that let go; empty at the end of it; None when nothing has come."""
        try:
            data = os.read(0, most_bytes)
        except BlockingIOError:
            return None
        except OSError:  # our terminal hung up
            data = b""
        if not data:
            self._stdin_open = False
            return b""
        passed, detached = self._detach.feed(data)
        if detached:
            self._ending = Ending(DETACHED)
        return passed or None

    # --- our output

    def _write(self, fd: int, data: bytes) -> None:
        if data and fd not in self._deaf:
            self._output.append((fd, memoryview(data)))

    def _flush(self) -> None:
        """Write what our streams take now."""
        while self._output:
            fd, data = self._output[0]
            outlet = self._outlets.get(fd)
            if outlet is None:
                outlet = self._outlets[fd] = Outlet(fd)
            try:
                wrote = outlet.write(data)
            except BlockingIOError:
                return
            except OSError:  # EPIPE: the reader went away; EIO: the terminal hung up
                self._drop_stream(fd)
                continue
            if wrote == len(data):
                self._output.popleft()
            else:
                self._output[0] = fd, data[wrote:]

    def _drop_stream(self, fd: int) -> None:
        self._deaf.add(fd)
        self._output = deque(item for item in self._output if item[0] != fd)
        if fd == 1 and (self._ending is None or self._ending.kind != EXITED):
            self._ending = Ending(READER_GONE)


def _wake_up(_number: int, _frame: object) -> None:
    """The wake-up pipe has the signal's number already; the handler is only there so that it has one."""


class Outlet:
    """One of our streams, written to without ever blocking.

    The stream's own description is shared with whoever started us, so it is not made non-blocking. A pipe is opened
    once more, with a description of our own (proc(5), /proc/pid/fd): page by page it gets a third of the throughput.
    """

    __slots__ = ("_fd", "_most_bytes", "_own_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own_fd = -1
        mode = os.fstat(fd).st_mode
        self._most_bytes = 0 if stat.S_ISREG(mode) else PIPE_BUF_BYTES  # 0: it never blocks
        if stat.S_ISFIFO(mode):
            with contextlib.suppress(OSError):  # another user's, or nobody reads it any more
                self._own_fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, data: memoryview) -> int:
        """Write what is taken now. Raises: BlockingIOError when that is nothing; OSError as write(2)."""
        if self._own_fd >= 0:
            return os.write(self._own_fd, data)
        if not self._most_bytes:
            return os.write(self._fd, data)
        if not _is_writable(self._fd):
            raise BlockingIOError
        return os.write(self._fd, data[: self._most_bytes])

    def close(self) -> None:
        if self._own_fd >= 0:
            os.close(self._own_fd)
            self._own_fd = -1


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
