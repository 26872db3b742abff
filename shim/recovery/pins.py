"""Pins: a mounted pidfd keeps a process's exit status for whoever comes later, when every process of ours was killed.

A pin is a bind mount of the pidfd on a file of a tmpfs `pins` in the socket directory. The tmpfs is private: pins are
not propagated into other mount namespaces. It goes with its last pin.
"""

import errno
import fcntl
import os
import time

from shim.task import mounts

TYPE_CHECKING = False

# Source: open_tree(2), move_mount(2), linux/mount.h; the numbers are the same on all architectures.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = -100, 0x1000, 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
# Making and taking away is a matter of microseconds; who does it holds the socket directory's lock. A shim or a keeper
# waits so long for it, for others wait for them; who is the last to look after a pin waits longer.
LOCK_S, LAST_S, _LOCK_PAUSE_S = 0.25, 2.0, 0.002


def pin_path(socket_path: str, pid: int, inode: int) -> str:
    """Where the pin of a container's process is. Pure."""
    directory, name = os.path.split(socket_path)
    return os.path.join(directory, "pins", f"{name[:16]}-{pid}-{inode:x}")


def pin(pidfd: int, path: str) -> None:
    """Mount a pidfd at the path. Needs CAP_SYS_ADMIN and Linux 6.14; to be of use 6.15, see `pidfds.exit_status`.

    Blocks: a quarter of a second at most. Raises: OSError (EINVAL, ENOSYS below 6.14; EPERM), with nothing left behind.
    """
    with _Lock(path):
        directory = os.path.dirname(path)
        _make_place(directory)
        if os.path.lexists(path) and _is_mounted(path):
            return  # an earlier keeper did
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            _mount(pidfd, path)
        except OSError:
            _take_away(path)
            raise


def open_pin(path: str) -> "int | None":
    """The pidfd pinned there, of the process whoever reaped it, and when; None when there is no pin."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


def find(socket_path: str, pid: int) -> int:
    """The inode of the process of a shim's container that is pinned under this pid, when no file names it; 0: none.

    Of several the last: inodes of pidfs rise with the processes, and a pin that stayed is of an earlier one.
    """
    directory, prefix = os.path.split(pin_path(socket_path, pid, 0))
    prefix = prefix[: -len("0")]
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return 0
    return max((int(name[len(prefix) :], 16) for name in names if name.startswith(prefix)), default=0)


def unpin(path: str, patience_s: float = LOCK_S) -> None:
    """Take a pin away, and the tmpfs with its last. Idempotent. Raises: OSError; it can be tried again."""
    if os.path.lexists(path):
        with _Lock(path, patience_s):
            mounts.unmount_all(path)
            _take_away(path)


def pinned(socket_path: str) -> "list[str]":
    """Where whatever is pinned of one shim's container is."""
    directory, prefix = os.path.split(pin_path(socket_path, 0, 0))
    prefix = prefix[: -len("0-0")]
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory) if name.startswith(prefix)]
    except FileNotFoundError:
        return []


def unpin_all(socket_path: str, patience_s: float = LAST_S) -> None:
    """Take away whatever is pinned of one shim's container. Raises: OSError; it can be tried again.

    Blocks: for another who makes or takes away a pin, at most that long.
    """
    for path in pinned(socket_path):
        try:
            unpin(path, patience_s)
        except FileNotFoundError:
            pass  # the keeper did, just now


def _take_away(path: str) -> None:
    directory = os.path.dirname(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    with os.scandir(directory) as entries:
        if next(entries, None) is not None:
            return
    if _is_mounted(directory):
        mounts.unmount(directory)
    os.rmdir(directory)


def _is_mounted(directory: str) -> bool:
    return os.stat(directory).st_dev != os.stat(os.path.dirname(directory)).st_dev


def _make_place(directory: str) -> None:
    os.makedirs(directory, 0o700, exist_ok=True)
    if not _is_mounted(directory):
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount("shimd-pins", directory, "tmpfs", flags, "mode=0700,size=1m")
        mounts.mount("", directory, "", mounts.MS_PRIVATE, "")


class _Lock:
    """Of the socket directory, in which shims make and take away the place of their pins. Source: flock(2)."""

    __slots__ = ("_fd", "_patience_s")

    def __init__(self, path: str, patience_s: float = LOCK_S) -> None:
        self._patience_s = patience_s
        self._fd = os.open(os.path.dirname(os.path.dirname(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._fd)
                    raise TimeoutError(errno.ETIMEDOUT, "the socket directory stays locked") from None
                time.sleep(_LOCK_PAUSE_S)

    def __exit__(self, *_failure: object) -> None:
        os.close(self._fd)


def _mount(pidfd: int, path: str) -> None:
    """Source: move_mount(2); mount(2) itself refuses a pidfd (EINVAL)."""
    ctypes, libc = mounts.libc()
    flags = _AT_EMPTY_PATH | _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    tree = libc.syscall(_OPEN_TREE, pidfd, b"", flags)
    if tree < 0:
        raise _failure(ctypes, path)
    try:
        if libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH) != 0:
            raise _failure(ctypes, path)
    finally:
        os.close(tree)


def _failure(ctypes: "object", path: str) -> OSError:
    number = ctypes.get_errno() or errno.EIO  # type: ignore[attr-defined]
    return OSError(number, os.strerror(number), path)
