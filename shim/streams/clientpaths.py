"""Opening what a client named as a stream: a FIFO it made, or whatever else is at the path."""

import os
import stat

from shim.core import pipes
from shim.errors import invalid_argument


def open_stdin(path: str, uid: int = 0, gid: int = 0) -> "tuple[int, int | None]":
    """Open the client's FIFO twice: for the process, and to keep its end of file away until CloseIO.

    A client's writer may come, go and come again until then. Anything but a FIFO is simply opened: no second fd. The
    FIFO is given to ``uid`` and ``gid``, if they are not 0: so the process can open /dev/stdin again.
    Raises: StatusError InvalidArgument.
    """
    fd = _open("stdin", path, os.O_RDONLY)
    try:
        if not pipes.is_fifo(fd):
            os.set_blocking(fd, True)
            return fd, None
        if uid or gid:
            os.fchown(fd, uid, gid)
        keep_alive_fd = pipes.reopen(fd, os.O_RDWR | os.O_NONBLOCK)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd, keep_alive_fd


def reopen_stdin(path: str) -> "int | None":
    """The end that keeps its end of file away, opened once more; None for what is no FIFO, or gone with its client."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    if pipes.is_fifo(fd):
        return fd
    os.close(fd)
    return None


def reopen_attached_stdin(path: str) -> "int | None":
    """Our own stdin FIFO, for writing; None when the process has closed its end (fifo(7): ENXIO)."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


def open_output(stream: str, path: str) -> int:
    """Open the client's FIFO for both ways, so that its reader may go and come; anything else for appending.

    The fd is non-blocking. Raises: StatusError InvalidArgument.
    """
    fd = _open(stream, path, os.O_RDWR)
    if pipes.is_fifo(fd):
        return fd
    try:
        return pipes.reopen(fd, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(fd)


def _open(stream: str, path: str, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise invalid_argument(f"{stream} {path!r}: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise invalid_argument(f"{stream} {path!r}: is a directory")
    return fd
