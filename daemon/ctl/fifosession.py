"""A process's streams on ours through its FIFOs, for shims that have no Attach: those of containerd.

The shim copies between the FIFOs and the process and is asked for the end (Wait) over a connection of its own, so the
daemon may die meanwhile. End of input needs both our closing the FIFO and CloseIO: the shim holds it open, too.
"""

import contextlib
import errno
import os
import select
import threading
import time

from daemon.ctl.client import say
from daemon.ctl.labels import Stdio
from daemon.ctl.pump import CONTROL_S, EXITED, LOST, PIPE_BUF_BYTES, READ_BYTES, Ending, Pump
from daemon.ctl.terminal import window_size
from ttrpc.api import shim, task
from ttrpc.blocking import BlockingClient
from ttrpc.errors import StatusError, TtrpcError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TASK_SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
DRAIN_S = 2.0  # after the exit: as long as a silent holder of the output is waited for, as the shim itself does
CONNECT_EVERY_S = 0.02  # nothing tells when the shim has opened its end of stdin


def call_task(
    client: BlockingClient, method: str, request: "Any", *, timeout_s: float | None, metadata: dict[str, str]
) -> "Any":
    """A call of a shim's Task service, in the newer version where it has no other.

    Raises: StatusError, DeadlineExceeded, ConnectionLost.
    """
    older, newer = TASK_SERVICES
    try:
        return client.call(older, method, request, timeout_s=timeout_s, metadata=metadata)
    except StatusError as error:
        if error.code != Code.UNIMPLEMENTED:
            raise
    return client.call(newer, method, request, timeout_s=timeout_s, metadata=metadata)


class FifoSession(Pump):
    """One process with FIFOs. Owns our ends of them and the thread that waits for its exit, and what a `Pump` owns."""

    def __init__(
        self,
        address: str,
        container_id: str,
        exec_id: str,
        stdio: Stdio,
        outputs: dict[int, int],
        *,
        metadata: dict[str, str],
        stdin: bool,
        detach_keys: bytes = b"",
        forward_signals: bool = True,
    ) -> None:
        super().__init__(
            address,
            container_id,
            exec_id,
            metadata=metadata,
            stdin=stdin,
            terminal=stdio.terminal,
            forward_signals=forward_signals,
            detach_keys=detach_keys,
        )
        self._stdio = stdio
        self._sources = outputs  # our end of an output FIFO → the stream of ours it goes to
        self._stdin_fd: int | None = None
        self._input = b""
        self._told: tuple[int, int] | None = None  # the waiting thread tells here that it has an answer
        self._answer: Ending | None = None
        self._quiet_since: float | None = None  # once it has exited

    # --- beginning and end

    def open(self) -> None:
        """Begin to wait for the exit. Order: after Create or Exec, before Start."""
        self._told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        threading.Thread(target=self._wait_exit, args=(self._told[1],), daemon=True).start()
        self._take_signals()

    def close(self) -> None:
        super().close()
        for fd in self._sources:
            os.close(fd)
        self._sources.clear()
        self._close_stdin_fd()
        # The pipe stays for the thread, which may still write to it; both end with the process.

    def _wait_exit(self, told_fd: int) -> None:
        """In a thread: one call that lasts as long as the process."""
        request = task.WaitRequest(id=self.container_id, exec_id=self.exec_id)
        try:
            with BlockingClient.connect(self.address) as client:
                reply = call_task(client, "Wait", request, timeout_s=None, metadata=self._metadata)
        except (TtrpcError, OSError) as error:
            self._answer = Ending(LOST, reason=str(error))
        else:
            record = shim.ExitRecord(
                container_id=self.container_id, exec_id=self.exec_id, code=reply.exit_status, exited_at=reply.exited_at
            )
            self._answer = Ending(EXITED, record=record)
        os.write(told_fd, b".")

    def _call(self, method: str, request: "Any") -> None:
        with BlockingClient.connect(self.address) as client:
            call_task(client, method, request, timeout_s=CONTROL_S, metadata=self._metadata)

    def _resize(self) -> None:
        size = window_size() if self.terminal else None
        if size is None:
            return
        request = task.ResizePtyRequest(id=self.container_id, exec_id=self.exec_id, width=size[0], height=size[1])
        with contextlib.suppress(TtrpcError, OSError):  # it has just ended
            self._call("ResizePty", request)

    # --- the loop

    def run(self) -> Ending:
        self._resize()
        while not self._is_over():
            self._wait()
            self._flush()
        assert self._ending is not None
        return self._ending

    def _is_over(self) -> bool:
        """Whether nothing more is to be done. After an exit the output is read to its end, or until it is silent."""
        if self._ending is not None:
            return self._ending.kind != EXITED or not self._output
        if self._answer is None or self._output:
            return False
        if self._answer.kind == EXITED and self._sources:
            now = time.monotonic()
            self._quiet_since = self._quiet_since if self._quiet_since is not None else now
            if now - self._quiet_since < DRAIN_S:
                return False
        self._ending = self._answer
        return True

    def _wait(self) -> None:
        assert self._wake is not None
        assert self._told is not None
        self._connect_stdin()
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        if self._answer is None:
            poll.register(self._told[0], select.POLLIN)
        if self._output:
            poll.register(self._output[0][0], select.POLLOUT)
        else:
            for fd in self._sources:
                poll.register(fd, select.POLLIN)
        if self._stdin_fd is not None and self._input:
            poll.register(self._stdin_fd, select.POLLOUT)
        elif self._stdin_fd is not None and self._stdin_open:
            poll.register(0, select.POLLIN)
        is_waiting = self._answer is not None or (self.has_stdin and self._stdin_fd is None and self._stdin_open)
        for fd, _ in poll.poll(CONNECT_EVERY_S * 1000 if is_waiting else None):
            if fd == self._wake[0]:
                self._read_signals()
            elif fd == 0:
                self._read_input()
            elif fd == self._stdin_fd:
                self._write_input()
            elif fd in self._sources and not self._output:
                self._read_output(fd)

    def _read_output(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if self._quiet_since is not None:
            self._quiet_since = time.monotonic()
        if data:
            self._write(self._sources[fd], data)
        else:  # the shim has closed it: that was all
            del self._sources[fd]
            os.close(fd)

    # --- input

    def _connect_stdin(self) -> None:
        """Open our end of stdin once the shim has opened its own: fifo(7), a writer needs a reader."""
        if not self._stdin_open or self._stdin_fd is not None or not self._stdio.stdin:
            return
        try:
            self._stdin_fd = os.open(self._stdio.stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                say(f"input cannot be passed on: {error.strerror}")
                self._stdin_open = False

    def _read_input(self) -> None:
        data = self._read_stdin(PIPE_BUF_BYTES)
        if data is None:
            return
        if data:
            self._input = data
        else:
            self._end_input()

    def _write_input(self) -> None:
        assert self._stdin_fd is not None
        try:
            self._input = self._input[os.write(self._stdin_fd, self._input) :]
        except BlockingIOError:
            return
        except OSError:  # EPIPE: the process has closed it, or has ended
            self._input, self._stdin_open = b"", False
            self._close_stdin_fd()

    def _end_input(self) -> None:
        self._close_stdin_fd()
        request = task.CloseIORequest(id=self.container_id, exec_id=self.exec_id, stdin=True)
        try:
            self._call("CloseIO", request)
        except (TtrpcError, OSError) as error:
            if not (isinstance(error, StatusError) and error.code == Code.NOT_FOUND):
                say(f"the end of input could not be passed on: {error}")

    def _close_stdin_fd(self) -> None:
        if self._stdin_fd is not None:
            os.close(self._stdin_fd)
            self._stdin_fd = None
