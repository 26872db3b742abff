"""The shim's side of its pulse: a page that says whether it is at work and since when. See ttrpc/api/pulse.py.

Two stores a turn, no system call, no wake-up: a hundred idle shims cost nothing.
"""

import mmap
import os
import time

from shim.bundle import remove
from shim.core import kernel
from ttrpc.api.pulse import (
    MAGIC,
    NAME,
    PAGE_BYTES,
    VERSION,
    WORD_BUSY_SINCE,
    WORD_MAGIC,
    WORD_PID,
    WORD_START_TICKS,
    WORD_TURNS,
    WORD_VERSION,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.shimlog import ShimLog


class Pulse:
    """Owns the page and the link to it: `pulse` in the bundle; a keeper has one beside its socket.

    It is ours alone: a memfd cannot be short of disk, nor be cut.
    """

    __slots__ = ("_fd", "_link", "_page", "_turns", "_words")

    def __init__(self, folder: str, name: str = NAME) -> None:
        """Raises: OSError (no fd or memory left); then the shim has no pulse, and nobody judges it by one."""
        self._turns = 0
        self._fd = os.memfd_create("shimd-pulse", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, PAGE_BYTES)
        self._page = mmap.mmap(self._fd, PAGE_BYTES)
        words = self._words = memoryview(self._page).cast("Q")
        words[WORD_VERSION] = VERSION
        words[WORD_PID] = os.getpid()
        words[WORD_START_TICKS] = kernel.start_ticks(os.getpid())
        words[WORD_BUSY_SINCE] = time.monotonic_ns()
        words[WORD_MAGIC] = MAGIC  # last: from here on it is one
        self._link = os.path.join(folder, name)
        remove(self._link + ".new")
        os.symlink(f"/proc/{os.getpid()}/fd/{self._fd}", self._link + ".new")
        os.rename(self._link + ".new", self._link)

    def rest(self) -> None:
        """From here on the shim waits."""
        self._words[WORD_BUSY_SINCE] = 0

    def work(self) -> None:
        """It waits no more: another turn."""
        self._turns += 1
        words = self._words
        words[WORD_TURNS] = self._turns
        words[WORD_BUSY_SINCE] = time.monotonic_ns()

    def close(self) -> None:
        """Take the link away, if it is still ours, and let the page go."""
        try:
            if os.readlink(self._link) == f"/proc/{os.getpid()}/fd/{self._fd}":
                os.unlink(self._link)
        except OSError:
            pass
        self._words.release()
        self._page.close()
        os.close(self._fd)


def begin_pulse(folder: str, log: "ShimLog", name: str = NAME) -> "Pulse | None":
    """One's pulse; None, and logged, where there is no fd or memory for it."""
    try:
        return Pulse(folder, name)
    except OSError as error:
        log.warning(f"nobody will see if this process hangs: {error}")
        return None
