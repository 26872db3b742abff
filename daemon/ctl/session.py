"""A process's streams on ours: one Attach stream of its shim, pumped until the process ends or we let go.

It talks to the shim, not to the daemon, so the daemon may die meanwhile.
"""

import select
import time

from daemon.ctl.client import say
from daemon.ctl.pump import CONTROL_S, CUT, EXITED, LOST, READ_BYTES, Ending, Pump
from daemon.ctl.terminal import window_size
from ttrpc.api import shim
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError, TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ttrpc.blocking_stream import BlockingStream

SHIM = "shimd.shim.v1.Shim"
TASK = "containerd.task.v2.Task"

OPEN_S = 10.0
SHIM_PATIENCE_S = 10.0  # a shim is replaced by its successor within this, or it is lost
RETRY_S = 0.05


class Session(Pump):
    """One attached process. Owns the client socket from `open` to `close`, and what a `Pump` owns.

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
        super().__init__(
            address,
            container_id,
            exec_id,
            metadata=metadata,
            stdin=stdin,
            terminal=terminal,
            forward_signals=forward_signals,
            detach_keys=detach_keys,
        )
        self._backpressure = backpressure
        self._replay_bytes = replay_bytes
        self._client: BlockingClient | None = None
        self._stream: BlockingStream | None = None

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
        super().close()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _call(self, method: str, request: "Any") -> None:
        with BlockingClient.connect(self.address) as client:
            client.call(TASK, method, request, timeout_s=CONTROL_S, metadata=self._metadata)

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
        data = self._read_stdin(READ_BYTES)
        if data:
            self._send(shim.AttachInput(stdin=data))
        elif data is not None:
            self._send(shim.AttachInput(close_stdin=True))

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
