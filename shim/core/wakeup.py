"""Signals as events of the loop: the C handler writes the number into a pipe, the loop calls back."""

import _signal  # type: ignore[import-not-found]  # what `signal` puts around it is 0.1 MB of memory in each shim
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop

READ = 0x1  # EPOLLIN


class Wakeup:
    """Owns the wake-up pipe and the handlers of the signals given; `close` puts the defaults back."""

    def __init__(self, loop: "Loop", handlers: "dict[int, Callable[[], None]]") -> None:
        self._loop = loop
        self._handlers = handlers
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A full pipe loses no signal that matters: SIGCHLD asks for every child that ended, however many.
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for signum in handlers:
            _signal.signal(signum, _noted)
        loop.register(self._read_fd, READ, self._on_ready)

    @property
    def fds(self) -> "set[int]":
        return {self._read_fd, self._write_fd}

    def _on_ready(self, _mask: int) -> None:
        try:
            numbers = os.read(self._read_fd, 256)
        except BlockingIOError:
            return
        for signum in sorted(set(numbers)):
            handler = self._handlers.get(signum)
            if handler is not None:
                handler()

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for signum in self._handlers:
            signal.signal(signum, signal.SIG_DFL)
        self._loop.unregister(self._read_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)


def _noted(_signum: int, _frame: object) -> None:
    """What is to be done is done by the loop; a handler must exist for the wake-up fd to be written."""
