"""One daemon per state directory and per root directory: a lock in each, held as long as the process lives."""

import fcntl
import os


class AlreadyRunning(Exception):
    """Another daemon holds a directory; the message names it. ``holder`` is its pid, 0 when that is not known."""

    def __init__(self, directory: str, holder: int) -> None:
        super().__init__(
            f"{directory} is in use by shimd with pid {holder or 'unknown'}: "
            "stop that one, or give this one other directories"
        )
        self.holder = holder


class DirectoryLock:
    """Owns the lock file's fd. The kernel gives the lock back when we die, however we die: flock(2)."""

    def __init__(self, directory: str) -> None:
        """Take the lock or fail at once.

        Raises: AlreadyRunning; OSError.
        """
        self.path = _path(directory)
        # Not inherited by what we start (O_CLOEXEC): a shim that outlives us must not keep the lock.
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self.fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self.fd)
            raise AlreadyRunning(directory, int(holder) if holder.isdigit() else 0) from None
        self.sign()

    @classmethod
    def adopted(cls, path: str, fd: int) -> "DirectoryLock":
        """A lock that a predecessor holds through the same open file description, and so do we. Owns ``fd``."""
        made = cls.__new__(cls)
        made.path, made.fd = path, fd
        return made

    def is_of(self, directory: str) -> bool:
        """Whether it is this directory's lock, by file and not by name."""
        try:
            found = os.stat(_path(directory))
        except FileNotFoundError:
            return False
        ours = os.fstat(self.fd)
        return (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino)

    def sign(self) -> None:
        """Put our pid into it, for those who find it taken. Written over what is there: a full disk has that room."""
        os.ftruncate(self.fd, os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0))

    def release(self) -> None:
        """Give it back. The file stays: removing it would let two daemons lock two files of one name."""
        os.close(self.fd)


def _path(directory: str) -> str:
    return os.path.join(directory, "shimd.lock")
