"""One process's input: a client's FIFO it reads by itself, a FIFO of ours that attach clients fill, a terminal."""

import os

from shim.core import pipes
from shim.errors import invalid_argument
from shim.streams.account import InputOutlet
from shim.streams.clientpaths import open_stdin, reopen_attached_stdin, reopen_stdin
from shim.streams.outlets import Feed
from shim.streams.pumps import Pump
from shim.streams.targets import ATTACH, CLIENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.recovery.spares import Share
    from shim.streams.targets import Target

NAME = "stdin"


class Stdin:
    """Owns the writing end, or the fd that keeps a client's FIFO from ending; both until `end`, which is remembered."""

    def __init__(self, loop: "Loop", spares: "Share", on_end: "Callable[[], None]") -> None:
        self._loop = loop
        self._spares = spares
        self._on_end = on_end
        # What attach clients write; connected where the target is attach: or a terminal.
        self.outlet = InputOutlet(loop, spares)
        self.is_ended = False
        self._is_terminal = False
        self._keep_alive_fd: int | None = None
        self._feeder: Pump | None = None  # a client's FIFO into the terminal

    def open(self, source: "Target", fifo: "Callable[[str], str]") -> "int | None":
        """What the process gets as its stdin, but for a client's: that waits. ``fifo`` makes ours. Raises: OSError."""
        if source.kind != ATTACH:
            return None
        path = fifo(NAME)
        child_fd = pipes.open_read_end(path)
        os.set_blocking(child_fd, True)
        # Not for reading too: only so does a write tell (EPIPE) that the process closed its stdin.
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._spares.hold(NAME, fd)
        self.outlet.connect(fd)
        if self.is_ended:
            self._end_now()
        return child_fd

    def open_client(self, path: str, uid: int, gid: int) -> int:
        """Open a client's input for the process; the value is what that gets. Raises: StatusError InvalidArgument."""
        child_fd, self._keep_alive_fd = open_stdin(path, uid, gid)
        if self._keep_alive_fd is not None:
            self._spares.hold(NAME, self._keep_alive_fd)
        if self.is_ended:
            self._end_now()
        return child_fd

    def reopen(self, source: "Target", fifo: "Callable[[str], str]") -> None:
        """What a shim had open that died, the process having its end."""
        if self.is_ended and self.outlet.idle:
            return
        fd = None
        if source.kind == CLIENT:
            self._keep_alive_fd = fd = reopen_stdin(source.path)
        elif source.kind == ATTACH:
            fd = reopen_attached_stdin(fifo(NAME))
            if fd is not None:
                self.outlet.connect(fd)
            else:
                self.outlet.close()
        if fd is not None:
            self._spares.hold(NAME, fd)
        if self.is_ended:
            self._end_now()

    def open_for_terminal(self, path: str) -> None:
        """Open a client's FIFO whose bytes are to go into the terminal. Raises: StatusError InvalidArgument."""
        fd, self._keep_alive_fd = open_stdin(path)
        self._feeder = Pump(self._loop, fd, NAME, Feed(self.outlet))
        if self._keep_alive_fd is None:
            raise invalid_argument(f"stdin {path!r}: with a terminal this must be a FIFO")
        os.set_blocking(fd, False)
        # The reading end, so that the client's input does not break, and what is in the FIFO is not lost; and it ends.
        self._spares.hold(NAME, fd)
        self._feeder.on_end = lambda: self._spares.drop(NAME)
        if self.is_ended:
            self._close_keep_alive()

    def connect_terminal(self, fd: int) -> None:
        """Take the terminal's master, an fd for this alone, and begin."""
        self._is_terminal = True
        self.outlet.connect_terminal(fd)
        if self._feeder is not None:
            self._feeder.start()

    def end(self) -> None:
        """Give the process the end of its input, after what is on its way. A terminal has no such end."""
        if not self.is_ended:
            self.is_ended = True
            self._on_end()
            self._end_now()

    def _end_now(self) -> None:
        if self._feeder is None and (self._is_terminal or self.outlet.idle):
            self._spares.drop(NAME)
        elif self._feeder is None:
            self.outlet.on_room(lambda: self._spares.drop(NAME))  # what is on its way outlives us till then
        self._close_keep_alive()
        if not self._is_terminal and self.outlet.is_open:
            self.outlet.close_when_empty()

    def _close_keep_alive(self) -> None:
        if self._keep_alive_fd is not None:
            os.close(self._keep_alive_fd)
            self._keep_alive_fd = None

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._spares.drop(NAME)
        self._close_keep_alive()
        if self._feeder is not None:
            self._feeder.close()
        self.outlet.release()
