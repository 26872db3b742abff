"""Appending to a log that others may append to, truncate or rename."""

import contextlib
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.streams.logfile import LogFile


class AppendLock:
    """Around one append: where the file ends by now, and, of a shared file, nobody else's turn meanwhile.

    Source: flock(2): advisory, per open file description; taken without waiting, so that no stranger holding it can
    stop our loop. fstat(2) sees what copytruncate or another appender did.
    """

    __slots__ = ("_locked", "_log")

    def __init__(self, log: "LogFile") -> None:
        self._log = log
        self._locked = False

    def __enter__(self) -> bool:
        log = self._log
        if log._shared:
            try:
                fcntl.flock(log._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks
                pass
        size = os.fstat(log._fd).st_size
        if size < log.size_bytes + log._head_sent or log._shared:
            log.size_bytes = min(size, log.size_bytes) if not log._shared else size
            log._head_sent = 0
        return True

    def __exit__(self, *_exc: object) -> None:
        if self._locked:
            with contextlib.suppress(OSError):
                fcntl.flock(self._log._fd, fcntl.LOCK_UN)
