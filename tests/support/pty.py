"""A person at a terminal: a command with a pseudo-terminal of ours as its streams and controlling terminal."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Sequence
from typing import Any

from tests.support.shimctl import read_until
from tests.support.waiting import wait_until

END_S = 30.0


class Person:
    """Owns a terminal and the command at it. Types and reads; leaving closes both."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], *, columns: int = 80, rows: int = 24) -> None:
        self.master, self._slave = os.openpty()
        self._size(columns, rows)
        self.before = termios.tcgetattr(self._slave)
        self.command = subprocess.Popen(
            argv,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *_: object) -> None:
        if self.command.poll() is None:
            self.command.kill()
        self.command.wait()
        os.close(self._slave)
        with contextlib.suppress(OSError):
            os.close(self.master)

    def types(self, text: bytes) -> None:
        os.write(self.master, text)

    def sees(self, text: bytes) -> bytes:
        """Wait until this appears. Raises: AssertionError."""
        return read_until(self.master, text)

    def resizes(self, columns: int, rows: int) -> None:
        self._size(columns, rows)  # the kernel tells the foreground group with SIGWINCH

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hangs_up(self) -> None:
        """Close the terminal under the command, as a lost connection does."""
        self.command.send_signal(signal.SIGHUP)

    def code(self) -> int:
        """Wait for the end; whatever is still written is taken in meanwhile."""
        os.set_blocking(self.master, False)

        def is_over() -> bool:
            with contextlib.suppress(OSError):
                os.read(self.master, 65536)
            return self.command.poll() is not None

        wait_until(is_over, deadline_s=END_S, what="the command to end")
        return self.command.returncode

    @property
    def settings(self) -> Any:
        return termios.tcgetattr(self._slave)

    @property
    def is_restored(self) -> bool:
        """Whether the terminal's settings are those from before the command."""
        return self.before == self.settings
