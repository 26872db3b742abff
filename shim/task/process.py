"""One process of the container: init, or an exec."""

import os
import signal as signals

from shim.core import kernel, pidfds
from shim.core.steps import Signal
from shim.errors import failed_precondition, invalid_argument, not_found
from shim.task.lifecycle import CREATED, CREATING, Lifecycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.reaper import Reaper
    from shim.serving.parts import Parts
    from shim.streams.stdio import Stdio, StdioRequest
    from shim.task.exits import Exit


class Process:
    """Owns one process's pidfd and its Stdio; its pid is exact from `adopt` until `reaped`.

    ``told`` fires with the Exit once that is on disk and in the journal; with None when the process was deleted without
    ever having run. ``starting`` exists while runc starts it: its exit is told after that.
    """

    __slots__ = (
        "exec_id", "exit", "inode", "is_killed", "lifecycle", "log_program", "pid", "pidfd", "reaped", "request",
        "start_ticks", "started_at_ns", "starting", "stdin_closed", "stdio", "told",
    )  # fmt: skip

    def __init__(self, exec_id: str, request: "StdioRequest") -> None:
        self.exec_id = exec_id
        self.request = request
        self.stdio: Stdio | None = None
        self.stdin_closed = False
        self.lifecycle = Lifecycle(CREATED if exec_id else CREATING)
        self.pid = 0
        self.pidfd: int | None = None
        self.start_ticks = 0
        self.inode = 0  # of the pidfd: with the boot id the identity of the process, as is the start time
        self.started_at_ns: int | None = None
        self.starting: Signal | None = None
        self.is_killed = False
        self.reaped = False
        self.exit: Exit | None = None
        self.log_program: tuple[int, int] | None = None  # as the shim before this one had it
        self.told = Signal()

    @property
    def name(self) -> str:
        """How its files are named; no exec can take init's."""
        return f"exec.{self.exec_id}" if self.exec_id else "init"

    @property
    def status(self) -> int:
        """The exit status as containerd's API has it; 0 while it has not exited."""
        return self.exit.status if self.exit is not None else 0

    @property
    def exited_at_ns(self) -> "int | None":
        return self.exit.exited_at_ns if self.exit is not None else None

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that we have not reaped."""
        return self.pid != 0 and not self.reaped

    def adopt(self, reaper: "Reaper", pid: int) -> Signal:
        """Take the process runc has left to us; the signal fires with its wait status.

        Order: while the reaper holds strangers, so that the pid is still this process. Raises: NotOurChild.
        """
        ended = reaper.adopt(pid)
        ended.subscribe(self._mark_reaped)
        self.pid = pid
        self.pidfd = kernel.open_pidfd(pid)
        self.start_ticks = kernel.start_ticks(pid)
        self.inode = pidfds.inode(self.pidfd) if self.pidfd is not None else 0
        return ended

    def identify(self, pid: int) -> bool:
        """Take a pid that only a pid file names; False when there is no such process."""
        pidfd = kernel.open_pidfd(pid)
        if pidfd is None:
            return False
        try:
            self.start_ticks = kernel.start_ticks(pid)
        except ProcessLookupError:
            os.close(pidfd)
            return False
        self.pidfd, self.inode, self.pid = pidfd, pidfds.inode(pidfd), pid
        return True

    def _mark_reaped(self, _status: int) -> None:
        self.reaped = True  # from here on the pid is used no more

    def signal(self, signum: int) -> None:
        """Send a signal to exactly this process.

        Through the pidfd, not by `runc kill`: the same system call without a program start before it, and exact, since
        nobody but us can reap the process. Raises: see check_signal.
        """
        self.check_signal(signum)
        try:
            kernel.send_signal(self.pidfd, self.pid, signum)
        except ProcessLookupError:
            raise not_found("process already finished") from None
        if signum == signals.SIGKILL:
            self.is_killed = True

    def check_signal(self, signum: int) -> None:
        """Raises: NotFound, FailedPrecondition, InvalidArgument, with the words of containerd's shim."""
        if not 0 <= signum < signals.NSIG:
            raise invalid_argument(f"signal {signum} does not exist: 1 to {signals.NSIG - 1}")
        if self.reaped:
            raise not_found("process already finished")
        if self.pid == 0:
            raise failed_precondition("process not created")

    def close_stdin(self) -> None:
        """End the process's stdin; asked for before it started, done when it starts."""
        self.stdin_closed = True
        if self.stdio is not None:
            self.stdio.close_stdin()

    def close(self, parts: "Parts") -> None:
        """Close what is owned; its counters live on in the shim's. Idempotent."""
        if self.stdio is not None:
            self.stdio.close()
            parts.log_bytes += self.stdio.log_bytes
            parts.dropped_bytes += self.stdio.dropped_bytes
            self.stdio = None
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        if self.exit is None:  # and there will be no record for which its zombie is kept
            parts.reaper.take(self.pid)

    def snapshot(self) -> "dict[str, Any]":
        """What a successor must know of it."""
        program = self.stdio.program if self.stdio is not None else None
        return {
            "exec_id": self.exec_id,
            "state": self.lifecycle.state,
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "inode": self.inode,
            "started_at_ns": self.started_at_ns,
            "stdin": self.request.stdin,
            "stdout": self.request.stdout,
            "stderr": self.request.stderr,
            "terminal": self.request.terminal,
            "stdin_closed": self.stdin_closed or (self.stdio is not None and self.stdio.is_stdin_ended),
            "log_program": program.identity if program is not None else None,
            "is_killed": self.is_killed,
        }
