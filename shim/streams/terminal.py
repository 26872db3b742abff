"""A process's terminal, and its output's way into a FIFO, from which it goes on as any process's does.

What a terminal holds can be taken by read(2) alone, into memory, where a kill finds it; unless splice(2) takes it: then
it is in the terminal or in the FIFO, whenever we are killed, and the keeper has both. Linux can since 6.5. Before, a
chunk is in our hand for the moment between two system calls; a note tells the successor of a kill in that moment.
"""

import errno
import os

from shim import faults
from shim.bundle import remove
from shim.core import pipes
from shim.streams.console import ConsoleSocket, set_size, take_left
from shim.streams.jsonlines import STDOUT
from shim.streams.pumps import ENDED, MORE, Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop, Timer
    from shim.core.steps import Handler
    from shim.recovery.spares import Share
    from shim.streams.attach import Hub
    from shim.streams.pumps import Sink

# How the spares of a process's terminal are named.
MASTER, LIFTED = "master", "lifted"
# The socket on which the master comes. Named like one, so that a successor is given it; no process has such a name.
CONSOLE = "console:.master"

# What a terminal gives at once at most (N_TTY_BUF_SIZE less one, Linux drivers/tty/n_tty.c), so what a kill may cost
# where splice(2) does not take terminals. Every FIFO that is empty has room for it.
HAND_BYTES = 4095
# Pieces lifted in a row: half as many as the FIFO has slots. More are no faster, and cost memory.
PIECES = 8


class Lift:
    """Owns the FIFO, open both ways: whoever has it open too keeps what is in it. Borrows the terminal's master."""

    __slots__ = ("_can_splice", "_hand_fd", "_hand_path", "fifo_fd", "maybe_lost_bytes", "staged_bytes")

    def __init__(self, fifo_fd: int, hand_path: str, *, reopens: bool = False) -> None:
        """``hand_path``: where the note is, if there has to be one. ``reopens``: one of before may tell of a kill."""
        self.fifo_fd = fifo_fd
        self.staged_bytes = pipes.waiting_bytes(fifo_fd)  # in the FIFO, of which nobody else takes
        self._hand_path = hand_path
        self._hand_fd = -1
        self._can_splice = True
        self.maybe_lost_bytes = HAND_BYTES if reopens and _was_full(hand_path) else 0  # no more than this

    def lift(self, master_fd: int) -> None:
        """Move what the terminal holds into the FIFO, which is empty.

        Raises: BlockingIOError when it holds nothing; OSError EIO when it hung up, too.
        """
        for piece in range(PIECES):
            try:
                moved = self._move(master_fd)
            except OSError as error:
                if piece == 0 or (error.errno != errno.EIO and not isinstance(error, BlockingIOError)):
                    raise
                return
            self.staged_bytes += moved

    def _move(self, master_fd: int) -> int:
        if self._can_splice:
            try:
                moved = pipes.splice_to_pipe(master_fd, self.fifo_fd, pipes.CHUNK_BYTES)
                faults.point("terminal.lifted")
                return moved
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOMEM):
                    raise
                self._can_splice = error.errno == errno.ENOMEM
        return self._carry(master_fd)

    def _carry(self, master_fd: int) -> int:
        """The same by hand. Raises: as `lift`; BlockingIOError also when the FIFO is not empty."""
        if self.staged_bytes:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if self._hand_fd < 0:
            self._hand_fd = os.open(self._hand_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.pwrite(self._hand_fd, b"1", 0)
        try:
            data = os.read(master_fd, HAND_BYTES)
            os.write(self.fifo_fd, data)
        finally:
            os.pwrite(self._hand_fd, b"0", 0)
        return len(data)

    def close(self) -> None:
        """Idempotent."""
        fds, self.fifo_fd, self._hand_fd = (self.fifo_fd, self._hand_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        remove(self._hand_path)


def _was_full(hand_path: str) -> bool:
    try:
        with open(hand_path, "rb", buffering=0) as file:
            return file.read(1) == b"1"
    except FileNotFoundError:
        return False


class TerminalPump(Pump):
    """A pump whose source is a terminal's master. Owns the lift, by which output reaches a FIFO before it is taken."""

    __slots__ = ("_again", "_lift")

    def __init__(
        self, loop: "Loop", fd: int, stream: str, sink: "Sink | None", hub: "Hub | None", lift: "Lift"
    ) -> None:
        """``fd`` below 0: the terminal is gone, and only what is in the FIFO can be taken."""
        super().__init__(loop, fd, stream, sink, hub)
        self._lift = lift
        self._again: Timer | None = None

    def run(self) -> str:
        state = super().run()
        if state == MORE:
            self._call_again()
        return state

    def _call_again(self) -> None:
        """Have what is in the FIFO taken in the next round: the terminal may have nothing to be told of."""
        if self._lift.staged_bytes and self._again is None:
            self._again = self._loop.call_later(0.0, self._ready_again)

    def _ready_again(self) -> None:
        self._again = None
        self.run()

    def _watch(self) -> None:
        super()._watch()
        self._call_again()

    def _unwatch(self) -> None:
        super()._unwatch()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _move(self) -> "int | None":
        lift = self._lift
        if not lift.staged_bytes:
            if self.fd < 0:
                raise BlockingIOError
            lift.lift(self.fd)
        moved = self._take(lift.fifo_fd)
        if moved is not None:
            lift.staged_bytes -= moved
        return moved

    @property
    def staged_bytes(self) -> int:
        """Lifted, and not taken yet."""
        return self._lift.staged_bytes

    def unread_bytes(self) -> int:
        return super().unread_bytes() + self._lift.staged_bytes

    def close(self) -> None:
        super().close()
        self._lift.close()
        self._lift.staged_bytes = 0

    def abandon(self) -> None:
        """Stop. Whoever writes on to a terminal without a master gets an error, and never blocks."""
        if self.state != ENDED:
            self._end()


class Terminal:
    """Owns the master, the socket on which it comes, and what is lifted from it until a pump has that.

    Order: open → receive, unless it was there before → connect → close.
    """

    __slots__ = ("_console", "_lift", "_loop", "_master_fd", "_share", "_size")

    def __init__(self, loop: "Loop", share: "Share") -> None:
        self._loop = loop
        self._share = share
        self._console: ConsoleSocket | None = None
        self._master_fd = -1
        self._lift: Lift | None = None
        self._size: tuple[int, int] | None = None

    @property
    def socket_path(self) -> "str | None":
        """Where the runtime is to send the master; None when it has, or is not to."""
        return self._console.path if self._console is not None else None

    def open(self, fifo_path: str, hand_path: str, *, reopens: bool) -> int:
        """Make ready for a terminal, or take the one of before, which may be gone. Raises: OSError.

        The value is how much of its output a kill may have cost at most.
        """
        fifo_fd = os.open(fifo_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lift = Lift(fifo_fd, hand_path, reopens=reopens)
        self._share.hold(LIFTED, fifo_fd)
        if not reopens:
            self._console = ConsoleSocket(os.path.dirname(fifo_path))
            self._share.hold(CONSOLE, self._console.fileno())
            return 0
        console_fd, master_fd = self._share.take(CONSOLE), self._share.take(MASTER)
        if console_fd is not None:
            sent_fd = take_left(console_fd)
            master_fd = sent_fd if master_fd is None else master_fd
        if master_fd is not None:
            self._master_fd = master_fd
            self._share.hold(MASTER, master_fd)
        return self._lift.maybe_lost_bytes

    @property
    def is_there(self) -> bool:
        return self._master_fd >= 0

    def receive(self) -> "Handler":
        """Take the master from the runtime, and give it the size asked for by then.

        Raises: StatusError FailedPrecondition when none comes.
        """
        console, self._console = self._console, None
        assert console is not None, "the master is received once"
        try:
            self._master_fd = yield from console.receive()
            self._share.hold(MASTER, self._master_fd)
        finally:
            self._share.drop(CONSOLE)
            console.close()
        if self._size is not None:
            set_size(self._master_fd, *self._size)

    def resize(self, width: int, height: int) -> None:
        """Set the size, now or when the master comes."""
        self._size = (width, height)
        if self._master_fd >= 0:
            set_size(self._master_fd, width, height)

    def connect(self, connect_input: "Callable[[int], None]", sink: "Sink | None", hub: "Hub | None") -> TerminalPump:
        """The pump of its output. Its input gets an fd, as the pump does: the loop keeps one registration per fd."""
        lift, self._lift = self._lift, None
        assert lift is not None, "it is opened, and connected once"
        pump_fd, fifo_fd = -1, lift.fifo_fd
        if self._master_fd >= 0:
            connect_input(os.dup(self._master_fd))
            pump_fd = os.dup(self._master_fd)
        pump = TerminalPump(self._loop, pump_fd, STDOUT, sink, hub, lift)
        pump.on_end = lambda: self._share.drop(LIFTED, fifo_fd)
        return pump

    def close(self) -> None:
        """Let go of all but what the pump has. Idempotent."""
        if self._console is not None:
            self._share.drop(CONSOLE)
            self._console.close()
            self._console = None
        if self._lift is not None:
            self._share.drop(LIFTED)
            self._lift.close()
            self._lift = None
        if self._master_fd >= 0:
            self._share.drop(MASTER)
            os.close(self._master_fd)
            self._master_fd = -1
