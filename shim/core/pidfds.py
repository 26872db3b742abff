"""What a pidfd tells of a process that is not our child: whether it is over, how it ended, and who it is."""

import fcntl
import os
import select
import struct

from shim import faults
from shim.core import kernel

TYPE_CHECKING = False

# linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), PIDFD_INFO_EXIT, and where exit_code lies.
_GET_INFO, _INFO_BYTES = 0xC040FF0B, 64
_INFO_EXIT = 1 << 3
_EXIT_CODE_AT = 60
_EXIT_RELEASE = (6, 15)
# What a test has a process do without: see faults.lacks.
EXIT_INFO = "exit-info"

# The kernel does not change: asked once.
_supports_inodes: "bool | None" = None
_knows_info: "bool | None" = None


def exit_status(pidfd: int) -> "int | None":
    """The wait status of a process that was reaped, by whomever; None as long as it was not, and where unsupported.

    Source: PIDFD_GET_INFO of pidfd_open(2); Linux 6.13, with exit information 6.15. Below that: always None.
    """
    info = bytearray(_INFO_BYTES)
    struct.pack_into("<Q", info, 0, _INFO_EXIT)
    if faults.lacks(EXIT_INFO):
        return None
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:  # ENOTTY, EINVAL: an older kernel; ESRCH: 6.13 and 6.14 of a process that is gone
        return None
    (mask,) = struct.unpack_from("<Q", info, 0)
    if not mask & _INFO_EXIT:
        return None
    return int(struct.unpack_from("<i", info, _EXIT_CODE_AT)[0])


def keeps_exit_status() -> bool:
    """Whether this kernel will answer `exit_status`. 6.13 and 6.14 take the request, and never have the answer."""
    global _knows_info
    if faults.lacks(EXIT_INFO):
        return False
    if _knows_info is None and _release() < _EXIT_RELEASE:
        _knows_info = False
    if _knows_info is None:
        pidfd = os.pidfd_open(os.getpid())
        info = bytearray(_INFO_BYTES)
        struct.pack_into("<Q", info, 0, _INFO_EXIT)
        try:
            fcntl.ioctl(pidfd, _GET_INFO, info)
            _knows_info = True
        except OSError:
            _knows_info = False
        finally:
            os.close(pidfd)
    return _knows_info


def _release() -> "tuple[int, int]":
    """The kernel's major and minor number; (0, 0) of a name that has none. Source: uname(2)."""
    numbers = os.uname().release.partition("-")[0].split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError):
        return 0, 0


def is_over(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not. Source: pidfd_open(2): readable from its end on. Linux 5.3."""
    return bool(_poll(pidfd) & (select.POLLIN | select.POLLHUP))


def is_reaped(pidfd: int, pid: int, start_ticks: int) -> bool:
    """Whether it has ended and its parent knows: from then on its pid may be another's.

    Source: Linux 6.9: POLLHUP. Below that its entry in /proc tells, which a zombie still has.
    """
    if _poll(pidfd) & select.POLLHUP:
        return True
    try:
        return kernel.start_ticks(pid) != start_ticks
    except ProcessLookupError:
        return True


def _poll(pidfd: int) -> int:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    found = poll.poll(0)
    return found[0][1] if found else 0


def inode(pidfd: int) -> int:
    """A number no other process of this boot has or will have; 0 where the kernel gives none.

    Source: pidfs, Linux 6.9. Below that all pidfds are the same anonymous inode.
    """
    global _supports_inodes
    if _supports_inodes is None:
        other = os.eventfd(0)  # on the file system of anonymous inodes
        _supports_inodes = os.fstat(other).st_dev != os.fstat(pidfd).st_dev
        os.close(other)
    return os.fstat(pidfd).st_ino if _supports_inodes else 0


def open_exactly(pid: int, start_ticks: int, known_inode: int = 0) -> "int | None":
    """A pidfd of exactly the process that had this pid then, zombie or alive; None when it is gone.

    Order: the fd is taken first, for it holds the identity fast while that is compared. Linux 5.3; below: None.
    """
    pidfd = kernel.open_pidfd(pid)
    if pidfd is None:
        return None
    try:
        if kernel.start_ticks(pid) == start_ticks and known_inode in (0, inode(pidfd)):
            return pidfd
    except ProcessLookupError:
        pass
    os.close(pidfd)
    return None
