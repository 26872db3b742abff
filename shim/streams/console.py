"""A process's terminal: the socket on which the runtime hands over the pty master, and the master's size."""

import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios
from array import array

from shim import errors
from shim.core.steps import DeadlinePassed, Readable
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.steps import Handler

RECEIVE_DEADLINE_S = 30.0  # what containerd grants a runtime to send the master
SUN_PATH_BYTES = 107  # unix(7): sun_path holds 108 with its zero byte

# Where the socket's own directory is made; the first that exists. Bundles are often too deep for a socket's path.
PARENTS = ("/run", "/tmp")  # noqa: S108 - the directory made in it is private: mode 0700 and a name of its own


class ConsoleSocket:
    """Owns a listening socket in a private directory, until the master came or `close`. Source: OCI runtime spec 1.0,
    linux.md "console-socket"; runc docs/terminals.md: one SCM_RIGHTS message, the data is the terminal's name.
    """

    __slots__ = ("_directory", "_listener", "path")

    def __init__(self, io_dir: str) -> None:
        """``io_dir``: of the bundle; by it a successor knows what is left of a shim that was killed meanwhile."""
        parent = next(path for path in (*PARENTS, "/") if os.path.isdir(path) and os.access(path, os.W_OK))
        self._directory = os.path.join(parent, prefix_of(io_dir) + os.urandom(4).hex())
        os.mkdir(self._directory, 0o700)
        self.path = os.path.join(self._directory, "s")
        assert len(os.fsencode(self.path)) <= SUN_PATH_BYTES
        self._listener: socket.socket | None = None
        try:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._listener.setblocking(False)
            self._listener.bind(self.path)
            self._listener.listen(1)
        except BaseException:
            self.close()
            raise

    def receive(self, deadline_s: float = RECEIVE_DEADLINE_S) -> "Handler":
        """Wait for the runtime to send the master; answers with its fd, non-blocking.

        Raises: StatusError FailedPrecondition when nothing comes, or something that is no terminal.
        """
        assert self._listener is not None, "the master is received once"
        try:
            yield Readable(self._listener.fileno(), deadline_s=deadline_s)
            connection, _ = self._listener.accept()
            with connection:
                connection.setblocking(False)
                yield Readable(connection.fileno(), deadline_s=deadline_s)
                return take_master(connection)
        except DeadlinePassed:
            raise errors.failed_precondition(f"the runtime sent no terminal within {deadline_s:.0f} s") from None
        finally:
            self.close()

    def fileno(self) -> int:
        """The listener, to be held by others too: what the runtime has sent is in it. Below 0: it is closed."""
        return self._listener.fileno() if self._listener is not None else -1

    def close(self) -> None:
        """Stop listening and remove the directory. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        _remove(self._directory)


def prefix_of(io_dir: str) -> str:
    """How the names of a bundle's console directories begin. Raises: OSError when there is no such bundle."""
    found = os.stat(io_dir)
    return f"shimd-pty-{found.st_dev:x}-{found.st_ino:x}-"


def sweep(io_dir: str) -> None:
    """Remove what a shim of this bundle left that was killed while it waited for a terminal. Order: it is dead."""
    with contextlib.suppress(FileNotFoundError):
        prefix = prefix_of(io_dir)
        for parent in PARENTS:
            for name in os.listdir(parent) if os.path.isdir(parent) else ():
                if name.startswith(prefix):
                    _remove(os.path.join(parent, name))


def _remove(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, "s"))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


def take_master(connection: socket.socket) -> int:
    """Take the one fd of the message. Source: unix(7) SCM_RIGHTS; recvmsg(2) MSG_CMSG_CLOEXEC.

    Raises: StatusError FailedPrecondition when the message holds no terminal; whatever else it held is closed.
    """
    room = socket.CMSG_SPACE(4 * array("i").itemsize)
    _name, ancillary, _flags, _address = connection.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if len(fds) != 1 or not is_terminal(fds[0]):
        for fd in fds:
            os.close(fd)
        raise errors.failed_precondition("the runtime sent no terminal on the console socket")
    os.set_blocking(fds[0], False)
    return fds[0]


def take_left(listener_fd: int) -> "int | None":
    """The master that a runtime has sent to a shim which died before it took it; None when it has not.

    The fd is owned from here on. Order: the runtime has come to its end.
    """
    with socket.socket(fileno=listener_fd) as listener:
        listener.setblocking(False)
        try:
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                return take_master(connection)
        except (OSError, StatusError):
            return None


def is_terminal(fd: int) -> bool:
    return stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd)


def set_size(master_fd: int, width: int, height: int) -> None:
    """Tell the terminal its size; its foreground process group gets SIGWINCH. Source: ioctl_tty(2), TIOCSWINSZ."""
    size = struct.pack("HHHH", min(height, 0xFFFF), min(width, 0xFFFF), 0, 0)
    with contextlib.suppress(OSError):  # hung up: nobody is left who could care
        fcntl.ioctl(master_fd, termios.TIOCSWINSZ, size)
