"""FIFOs and pipes: each system call's oddity once, with its source."""

import contextlib
import errno
import fcntl
import os
import stat
import struct
import termios

F_SETPIPE_SZ = 1031  # fcntl(2); the fcntl module names it from Python 3.10 on, but only where the C library did
PIPE_SIZE_BYTES = 1 << 20  # how much a workload may be ahead of us before its write blocks
ATOMIC_BYTES = 4096  # PIPE_BUF: a write of this size is never cut in two (pipe(7))
CHUNK_BYTES = (
    1 << 16
)  # one read or splice: the usual pipe capacity, and a bound for what one formatted batch can grow to
# One splice into a file: each wakes the writer, and wants the processor back from it.
SPLICE_BYTES = 1 << 18
TAKE_BYTES = 1 << 17  # the same into a spool, where what was taken has to be dealt with at once


def make_fifo(path: str, *, uid: int = 0, gid: int = 0) -> None:
    """Make a FIFO only its owner may open, in place of whatever an earlier life left there.

    Source: mkfifo(3). The process inside may be another user: runc hands it the open fd and chowns it (it opens
    /dev/stdout again through /proc/self/fd), and ``uid``/``gid`` do so for runtimes that do not.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.mkfifo(path, 0o600)
    if uid or gid:
        os.chown(path, uid, gid)


def open_read_end(path: str) -> int:
    """Open a FIFO for reading without waiting for a writer. Source: fifo(7), open(2) O_NONBLOCK."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def open_child_output(path: str) -> int:
    """Open a FIFO as a workload's stdout: blocking, and never broken.

    The description is O_RDWR, so the workload itself counts as a reader: with every reader of ours dead its writes
    fill the FIFO and then wait, instead of failing with EPIPE.
    Source: fifo(7) "Under Linux, opening a FIFO for read and write will succeed both in blocking and nonblocking mode".
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(fd, True)  # the flag belongs to the open file description: the child's own from here on
    return fd


def reopen(fd: int, flags: int) -> int:
    """Open what the fd refers to once more, with a description of its own, whatever its path names by now.

    Source: proc(5), /proc/pid/fd: opening the link opens the file itself.
    """
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def is_fifo(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def enlarge(fd: int) -> None:
    """Ask for 1 MiB of pipe; keep what there is when that is refused.

    Source: fcntl(2) F_SETPIPE_SZ: EPERM above /proc/sys/fs/pipe-max-size (or the user's pipe-user-pages-soft) without
    CAP_SYS_RESOURCE, EBUSY when it holds more than the new size. The memory is only taken when used.
    """
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE_BYTES)


def waiting_bytes(fd: int) -> int:
    """How many bytes a read could take now. Source: ioctl_tty(2) and pipe(7), FIONREAD."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
    except OSError as error:
        if error.errno == errno.EIO:  # a pty master whose slaves are all closed
            return 0
        raise


def splice_to_file(pipe_fd: int, file_fd: int, count: int, offset: int) -> int:
    """Move bytes from a pipe into a file without holding any of them: a SIGKILL leaves each in one place or the other.

    0 is the pipe's end (no writer left). The file must not be O_APPEND (EINVAL). A full disk moves what fits, then
    fails with the rest still in the pipe.
    Raises: BlockingIOError with an empty pipe; OSError as write(2) does. Source: splice(2), Linux 2.6.17.
    """
    return os.splice(pipe_fd, file_fd, count, offset_dst=offset, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)


def splice_to_pipe(source_fd: int, pipe_fd: int, count: int) -> int:
    """Move bytes from pipe to pipe. 0 is the source's end.

    Raises: BlockingIOError when the source is empty *or* the other is full: ask `waiting_bytes` which.
    Source: splice(2), Linux 2.6.17.
    """
    return os.splice(source_fd, pipe_fd, count, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
