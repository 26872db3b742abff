"""Know when the kernel's OOM killer takes a process of the container.

The count is the truth and can be read at any time; the wake-up only says when to look. The kernel counts a kill before
it sends the signal (mm/oom_kill.c), so whoever reads the count after an exit sees the kill that caused it.
"""

import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.cgroup.cgroups import CgroupPaths

_FILE_BYTES = 4096  # a handful of short lines
# v1 tells of running out of memory just before it counts the kill: look again after these times.
_LOOK_AGAIN_S = (0.01, 0.1, 1.0)


class OomWatch:
    """Owns the counter's fd and, in v1, an eventfd; `close` gives them back, and a cgroup that vanishes ends the watch.

    ``on_oom(count)`` is called from the loop, once per rise of the count above ``told``, with the count so far.
    v1: an eventfd on memory.oom_control. v2: memory.events reports its changes to epoll (as POLLPRI, like all cgroup
    files that say so; inotify would do as well, but takes another fd and a system call Python has no name for).
    A cgroup without the memory controller is never out of memory: the watch then is idle and counts 0.
    """

    __slots__ = ("_count", "_counter_fd", "_event_fd", "_loop", "_on_oom", "_timer", "_told", "_watched_fd")

    def __init__(self, loop: "Any", paths: "CgroupPaths", on_oom: "Callable[[int], None]", *, told: int = 0) -> None:
        self._loop = loop
        self._on_oom = on_oom
        self._told = told
        self._count = told
        self._timer: Any = None
        self._counter_fd = self._event_fd = self._watched_fd = -1
        try:
            if "memory" in paths.v1:
                self._open_v1(paths.directory_fd(paths.v1["memory"]))
            elif paths.v2 is not None:
                self._open_v2(paths.directory_fd(paths.v2))
        except FileNotFoundError:  # gone, or without the controller
            self.close()
            return
        except OSError:
            self.close()
            raise
        if self.count() > told:  # it happened before we came
            loop.call_soon(self.check)

    def count(self) -> int:
        """OOM kills so far, read now; what was read last once the cgroup is gone. Never blocks."""
        if self._counter_fd < 0:
            return self._count
        try:
            text = os.pread(self._counter_fd, _FILE_BYTES, 0)
        except OSError as error:
            if error.errno != errno.ENODEV:  # cgroup removed
                raise
            self._stop_watching()
            return self._count
        for line in text.splitlines():
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                self._count = int(number)
        return self._count

    def check(self) -> bool:
        """Look now, and call ``on_oom`` at once when there were kills it was not told of. Whether there were."""
        count = self.count()
        if count <= self._told:
            return False
        self._told = count
        self._on_oom(count)
        return True

    def close(self) -> None:
        """Give the fds back; nothing is told after this, `count` answers what it read last."""
        self._told = max(self._told, self._count)
        self._stop_watching()
        for fd in (self._counter_fd, self._event_fd):
            if fd >= 0:
                os.close(fd)
        self._counter_fd = self._event_fd = -1

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched_fd >= 0:
            self._loop.unregister(self._watched_fd)
            self._watched_fd = -1

    # --- v1

    def _open_v1(self, directory_fd: int) -> None:
        """Source: kernel, cgroup-v1/memory.rst, 10. OOM Control. The registration ends with the eventfd."""
        self._counter_fd = os.open("memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control_fd = os.open("cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            os.write(control_fd, b"%d %d" % (self._event_fd, self._counter_fd))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return  # a real-time kernel has no such events: the count at each exit must do
        finally:
            os.close(control_fd)
        self._watch(self._event_fd, select.EPOLLIN, self._v1_event)

    def _v1_event(self, _mask: int) -> None:
        """Out of memory, or the cgroup was removed."""
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        self._look(0)

    def _look(self, turn: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.check() or self._watched_fd < 0 or turn >= len(_LOOK_AGAIN_S):
            return
        self._timer = self._loop.call_later(_LOOK_AGAIN_S[turn], lambda: self._look(turn + 1))

    # --- v2

    def _open_v2(self, directory_fd: int) -> None:
        self._counter_fd = os.open("memory.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        self._watch(self._counter_fd, select.EPOLLPRI, self._v2_event)

    def _v2_event(self, _mask: int) -> None:
        """A line of the file changed (reading it makes the file quiet again), or the cgroup was removed."""
        self.check()

    def _watch(self, fd: int, mask: int, callback: "Callable[[int], None]") -> None:
        self._loop.register(fd, mask, callback)
        self._watched_fd = fd
