"""A process that somebody else started, used as if it were ours."""

import os
import select
import signal
import subprocess

WAIT_S = 30.0


class Adopted:
    """A process that is not our child, with what of Popen the box uses. Its exit code is not known: 0 stands for it.
    Owns a pidfd until the process has been seen ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self.returncode if self.returncode is not None else self._ended(0)

    def _ended(self, timeout_ms: float) -> int | None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(timeout_ms):
            os.close(self._fd)
            self.returncode = 0
        return self.returncode

    def wait(self, timeout: float = WAIT_S) -> int:
        if self.poll() is None and self._ended(timeout * 1000) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
