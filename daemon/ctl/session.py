"""A process's streams on ours: one Attach stream of its shim, pumped until the process ends or we let go.

It talks to the shim, not to the daemon, so the daemon may die meanwhile.
"""

import select

from daemon.ctl.attachment import SHIM as SHIM
from daemon.ctl.attachment import Attachment
from daemon.ctl.client import say
from daemon.ctl.pump import CONTROL_S, CUT, EXITED, LOST, READ_BYTES, Ending, Pump
from daemon.ctl.terminal import window_size
from ttrpc.api import shim
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TASK = "containerd.task.v2.Task"


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
        opening = shim.AttachOpen(
            exec_id=exec_id, stdin=stdin, output=True, backpressure=backpressure, replay_bytes=replay_bytes
        )
        self._attachment = Attachment(address, opening, metadata=metadata, on_gap=say)

    # --- beginning and end

    def open(self) -> None:
        """Attach, and take the signals: from here on they are kept for the process.

        Blocks: at most `OPEN_S`. Raises: StatusError, ConnectionLost, OSError of connect(2).
        """
        self._attachment.open()
        self._take_signals()
        self._resize()

    def close(self) -> None:
        super().close()
        self._attachment.close()

    def _call(self, method: str, request: "Any") -> None:
        with BlockingClient.connect(self.address) as client:
            client.call(TASK, method, request, timeout_s=CONTROL_S, metadata=self._metadata)

    def _resize(self) -> None:
        size = window_size() if self.terminal else None
        if size is not None:
            self._attachment.resize(*size)

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
        assert self._wake is not None
        attachment = self._attachment
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        unsent = attachment.unsent_bytes
        if self._output:
            poll.register(self._output[0][0], select.POLLOUT)
        if self._ending is None:  # with our output stuck, too: a shim that was killed waits for us to come back
            wanted = (0 if self._output else select.POLLIN) | (select.POLLOUT if unsent else 0)
            poll.register(attachment.fileno(), wanted)
        if self._stdin_open and attachment.may_send and self._ending is None:
            poll.register(0, select.POLLIN)
        for fd, mask in poll.poll():
            if fd == self._wake[0]:
                self._read_signals()
            elif fd == 0 and self._stdin_open:
                self._pump_stdin()
            elif fd == attachment.fileno() and mask & (select.POLLHUP | select.POLLERR):
                self._come_back()
            elif fd == attachment.fileno() and unsent:
                attachment.pump_nowait()

    def _come_back(self) -> None:
        """Take what is left of a connection that broke, little, and go on with whoever serves now."""
        times = self._attachment.times_broken
        while self._ending is None and self._attachment.times_broken == times and self._receive():
            pass

    def _pump_stdin(self) -> None:
        data = self._read_stdin(READ_BYTES)
        if data:
            self._attachment.send(data)
        elif data is not None:
            self._attachment.end_input()

    def _receive(self) -> bool:
        """Take one message; false when none has come."""
        try:
            message = self._attachment.receive_nowait()
        except BlockingIOError:
            return False
        except (ConnectionLost, StatusError) as error:
            self._ending = Ending(LOST, reason=error.message if isinstance(error, StatusError) else str(error))
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
