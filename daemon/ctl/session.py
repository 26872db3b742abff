"""A process's streams on ours: one Attach stream of its shim, pumped until the process ends or we let go.

It talks to the shim, not to the daemon, so the daemon may die meanwhile. One poll loop; nothing in it blocks but the
poll, so that a signal is passed on even while whoever reads our output does not.
"""

import os
import select
import signal
import stat
import time
from collections import deque

from daemon.ctl.client import say
from daemon.ctl.terminal import DetachKeys, window_size
from ttrpc.api import shim, task
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError, TtrpcError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ttrpc.blocking_stream import BlockingStream

SHIM = "shimd.shim.v1.Shim"
TASK = "containerd.task.v2.Task"

READ_BYTES = 16 << 10
# pipe(7): a pipe that polls writable takes this much without blocking.
PIPE_BUF_BYTES = 4096
OPEN_S = 10.0
CONTROL_S = 10.0
SHIM_PATIENCE_S = 10.0  # a shim is replaced by its successor within this, or it is lost
RETRY_S = 0.05
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


class Session:
    """One attached process. Owns the client socket, the signal handlers and the wake-up pipe from `open` to `close`.

    Order: `open` before the process is started, so that nothing it writes is missed; then `run`.
    """

    def __init__(
        self,
        address: str,
        container_id: str,
        exec_id: str = "",
        *,
        metadata: dict[str, str],
        stdin: bool,
        terminal: bool,
        backpressure: bool,
        forward_signals: bool = True,
        detach_keys: bytes = b"",
        replay_bytes: int = 0,
    ) -> None:
        self.address = address
        self.container_id = container_id
        self.exec_id = exec_id
        self.terminal = terminal
        self._metadata = metadata
        self.has_stdin = stdin
        self._backpressure = backpressure
        self._replay_bytes = replay_bytes
        self._forwards = forward_signals
        self._detach = DetachKeys(detach_keys)
        self._interrupts = 0
        self._client: BlockingClient | None = None
        self._stream: BlockingStream | None = None
        self._output: deque[tuple[int, memoryview]] = deque()
        self._deaf: set[int] = set()
        self._stdin_open = stdin
        self._handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] | None = None
        self._ending: Ending | None = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- beginning and end

    def open(self) -> None:
        """Attach, and take the signals: from here on they are kept for the process.

        Blocks: at most `OPEN_S`. Raises: StatusError, ConnectionLost, OSError of connect(2).
        """
        self._attach(self._replay_bytes)
        self._take_signals()
        self._resize()

    def _attach(self, replay_bytes: int) -> None:
        client = BlockingClient.connect(self.address)
        try:
            stream = client.open_stream(SHIM, "Attach", metadata=self._metadata)
            wanted = shim.AttachOpen(
                exec_id=self.exec_id,
                stdin=self._stdin_open,
                output=True,
                backpressure=self._backpressure,
                replay_bytes=replay_bytes,
            )
            stream.send(shim.AttachInput(open=wanted), timeout_s=OPEN_S)
            first = stream.receive(timeout_s=OPEN_S)
        except BaseException:
            client.close()
            raise
        if first is None or not first.HasField("opened"):
            client.close()
            raise ConnectionLost(f"the shim at {self.address} ended the stream before it began")
        self._client, self._stream = client, stream

    def close(self) -> None:
        """Give everything back: socket, handlers, pipe. Idempotent."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        wake, self._wake = self._wake, None
        if wake is not None:
            signal.set_wakeup_fd(-1)
            os.close(wake[0])
            os.close(wake[1])
        if self._client is not None:
            self._client.close()
            self._client = None

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
        """Send the process a signal, through a connection of its own: ours may be full of output.

        Blocks: at most `CONTROL_S`. Raises: StatusError, ConnectionLost, OSError.
        """
        request = task.KillRequest(id=self.container_id, exec_id=self.exec_id, signal=number)
        with BlockingClient.connect(self.address) as client:
            try:
                client.call(TASK, "Kill", request, timeout_s=CONTROL_S, metadata=self._metadata)
            except StatusError as error:
                if error.code != Code.NOT_FOUND:  # it has just ended: the exit is on its way to us
                    raise

    def _resize(self) -> None:
        size = window_size() if self.terminal else None
        if size is not None and self._stream is not None:
            self._send(shim.AttachInput(resize=shim.Resize(width=size[0], height=size[1])))

    def _send(self, message: "shim.AttachInput") -> None:
        """Queue for the shim; a lost connection shows in receiving."""
        assert self._stream is not None
        try:
            self._stream.send_nowait(message)
        except TtrpcError:
            self._stdin_open = False

    # --- the loop

    def run(self) -> Ending:
        """Pump until the end. Blocks: as long as the process runs and nobody lets go."""
        while True:
            # Messages may wait in the stream's inbox, which no poll of the socket would tell.
            while not self._output and self._ending is None and self._receive():
                self._flush()
            if self._ending is not None and (not self._output or self._ending.kind != EXITED):
                return self._ending
            self._wait()
            self._flush()

    def _wait(self) -> None:
        assert self._client is not None
        assert self._wake is not None
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        unsent = self._client.unsent_bytes
        if self._output:
            poll.register(self._output[0][0], select.POLLOUT)
        if self._ending is None and (unsent or not self._output):
            wanted = (0 if self._output else select.POLLIN) | (select.POLLOUT if unsent else 0)
            poll.register(self._client.fileno(), wanted)
        if self._stdin_open and not unsent and self._ending is None:
            poll.register(0, select.POLLIN)
        for fd, _ in poll.poll():
            if fd == self._wake[0]:
                self._read_signals()
            elif fd == 0 and self._stdin_open:
                self._pump_stdin()
            elif fd == self._client.fileno() and unsent:
                self._client.pump_nowait()

    def _pump_stdin(self) -> None:
        try:
            data = os.read(0, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # our terminal hung up
            data = b""
        if not data:
            self._stdin_open = False
            self._send(shim.AttachInput(close_stdin=True))
            return
        passed, detached = self._detach.feed(data)
        if passed:
            self._send(shim.AttachInput(stdin=passed))
        if detached:
            self._ending = Ending(DETACHED)

    def _receive(self) -> bool:
        """Take one message; false when none has come."""
        assert self._stream is not None
        try:
            message = self._stream.receive_nowait()
        except BlockingIOError:
            return False
        except ConnectionLost as error:
            self._attach_again(str(error))
        except StatusError as error:
            self._ending = Ending(LOST, reason=error.message)
        else:
            if message is None:
                self._ending = Ending(LOST, reason="the shim ended the stream")
            else:
                self._take(message)
        return True

    def _take(self, message: "shim.AttachOutput") -> None:
        kind = message.WhichOneof("output")
        if kind == "stdout":
            self._write(1, message.stdout)
        elif kind == "stderr":
            self._write(2, message.stderr)
        elif kind == "exited":
            self._ending = Ending(EXITED, record=message.exited)
        elif kind == "cut":
            missed = f" ({message.cut.missed_bytes} bytes missed)" if message.cut.missed_bytes else ""
            self._ending = Ending(CUT, reason=message.cut.reason + missed)

    def _attach_again(self, reason: str) -> None:
        """The shim's socket broke: its successor serves the same path, or it is lost."""
        until = time.monotonic() + SHIM_PATIENCE_S
        assert self._client is not None
        self._client.close()
        while True:
            try:
                self._attach(0)
            except (OSError, ConnectionLost) as error:
                if time.monotonic() >= until:
                    self._ending = Ending(LOST, reason=f"{reason}; {error}")
                    return
                time.sleep(RETRY_S)
            except StatusError as error:
                self._ending = Ending(LOST, reason=error.message)
                return
            else:
                say("the shim was replaced; output of the moment between may be missing here (shimctl logs has it)")
                self._resize()
                return

    # --- our output

    def _write(self, fd: int, data: bytes) -> None:
        if data and fd not in self._deaf:
            self._output.append((fd, memoryview(data)))

    def _flush(self) -> None:
        """Write what our streams take now."""
        while self._output:
            fd, data = self._output[0]
            if not _is_writable(fd):
                return
            try:
                wrote = os.write(fd, data[: _chunk(fd)])
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


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _chunk(fd: int) -> int:
    """How much one write may carry without blocking: files never block, of pipes and terminals it is a page."""
    return 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else PIPE_BUF_BYTES
