"""One daemon per state directory and per root directory: a lock in each, held as long as the process lives."""

import fcntl
import os


class AlreadyRunning(Exception):
    """Another daemon holds a directory; the message names it."""


class DirectoryLock:
    """Owns the lock file's fd. The kernel gives the lock back when we die, however we die: flock(2)."""

    def __init__(self, directory: str) -> None:
        """Take the lock or fail at once.

        Raises: AlreadyRunning; OSError.
        """
        self.path = os.path.join(directory, "shimd.lock")
        # Not inherited by what we start (O_CLOEXEC): a shim that outlives us must not keep the lock.
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise AlreadyRunning(
                f"{directory} is in use by shimd with pid {holder}: stop that one, or give this one other directories"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back. The file stays: removing it would let two daemons lock two files of one name."""
        os.close(self._fd)
