"""The only place that starts and reaps children."""

import os
import signal

from shim.core.steps import Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.steps import Spawn

# Python ignores these two; a program expects their default. All others of ours are handlers, which execve resets.
RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
# Told to systemd about the shim's own unit, if any; runc would take them for the container's.
HIDDEN_ENVIRONMENT = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
# Statuses of children reaped before anybody asked; more than this many were never going to be asked for.
UNASKED_MAX = 256


class NotOurChild(Exception):
    """The pid is no child of this process, or was reaped already."""


class Reaper:
    """Owns every child from fork to wait: nobody else in this process may call a wait function.

    A zombie keeps its pid, so a pid is exact as long as we have not reaped it. Children we did not start ourselves
    (what runc leaves to us as subreaper) become known by `adopt`; the pid to adopt is read from a file only after runc
    ended. Until then its zombie must not be reaped as a stranger: `hold` keeps all strangers while such a call runs.
    How an adopted child ended is told while its zombie stays, until `take`: should this process be killed before that
    is on disk, the zombie, and its status with it, are the next subreaper's.
    """

    def __init__(self, environment: "dict[str, str]", on_stray: "Callable[[int, int], None] | None" = None) -> None:
        self._environment = {name: value for name, value in environment.items() if name not in HIDDEN_ENVIRONMENT}
        self._on_stray = on_stray
        self._known: dict[int, Signal] = {}
        self._unasked: dict[int, Signal] = {}
        self._kept: dict[int, bool] = {}  # adopted, by pid: whether its end was told, and the zombie waits for `take`
        self._holds = 0
        self._is_reaping = self._is_asked_again = False

    def start(self, step: "Spawn") -> int:
        """Start a program with 0, 1, 2 and more as the step says, no other fd of ours, and signals at their defaults.

        Raises: FileNotFoundError, PermissionError, or another OSError of posix_spawn(3).
        """
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        for number, fd in enumerate(step.stdio):
            if fd is None:
                actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, fd, number))
        actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(step.more, 3)]
        spawn = os.posix_spawn if "/" in step.argv[0] else os.posix_spawnp
        pid = spawn(
            step.argv[0],
            list(step.argv),
            self._environment if step.env is None else step.env,
            file_actions=actions,
            setsigmask=(),
            setsigdef=RESET_SIGNALS,
            **({"setpgroup": 0} if step.group else {}),  # type: ignore[arg-type]  # absent means: inherit
        )
        self._unasked.pop(pid, None)
        self._known[pid] = Signal()
        return pid

    def adopt(self, pid: int) -> Signal:
        """Know a child that runc left to us; the signal fires with its wait status. It is not reaped before `take`.

        Raises: NotOurChild.
        """
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise NotOurChild(f"process {pid} is not a child of this shim") from None
        self._kept.setdefault(pid, False)
        return self._known.setdefault(pid, Signal())

    def take(self, pid: int) -> None:
        """Let an adopted child be reaped, now or when it ends: nobody needs its zombie any more. Idempotent."""
        if self._kept.pop(pid, False):
            self._known.pop(pid, None)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            self.reap()  # strays that were hidden behind it

    def exit_signal(self, pid: int) -> Signal:
        """What fires with the wait status of a known child; fired already when it was reaped before being asked for.

        Raises: NotOurChild when its status was taken before.
        """
        known = self._known.get(pid) or self._unasked.pop(pid, None)
        if known is None:
            raise NotOurChild(f"process {pid} is not a known child of this shim")
        return known

    def hold(self) -> None:
        """Leave strangers as zombies until `release`: one may be the process whose pid file is still being written."""
        self._holds += 1

    def release(self) -> None:
        """Undo one `hold`. The caller has adopted what it was waiting for; the others are strays from here on."""
        self._holds -= 1
        self.reap()

    def reap(self) -> None:
        """Collect every child that ended and tell who waits for it. Call it for each SIGCHLD; several may be one."""
        self._is_asked_again = True
        if self._is_reaping:
            return  # by what we are telling somebody just now: done by the loop below
        self._is_reaping = True
        try:
            while self._is_asked_again:
                self._is_asked_again = False
                self._reap()
        finally:
            self._is_reaping = False

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if self._kept.get(found.si_pid) or (found.si_pid not in self._known and self._holds):
                break  # the kernel would show us this one again and again: ask for each known one instead
            self._collect(found.si_pid)
        for pid in tuple(self._known):
            self._collect(pid)

    def _collect(self, pid: int) -> None:
        is_kept = pid in self._kept
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | (os.WNOWAIT if is_kept else 0))
        except ChildProcessError:
            return
        if ended is None:
            return
        if is_kept:
            self._kept[pid] = True
        status = wait_status(ended.si_code, ended.si_status)
        known = self._known.pop(pid, None)
        if known is None:
            if self._on_stray is not None:
                self._on_stray(pid, status)
            return
        if not known.has_waiters:
            if len(self._unasked) >= UNASKED_MAX:
                self._unasked.pop(next(iter(self._unasked)))
            self._unasked[pid] = known
        known.fire(status)

    def kill_group(self, pid: int) -> None:
        """SIGKILL a child started with its own process group, and every helper it has in it. Known children only."""
        if pid in self._known:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def wait_status(code: int, status: int) -> int:
    """siginfo's code and status as the int of wait(2), which os.waitstatus_to_exitcode and friends read."""
    if code == os.CLD_EXITED:
        return (status & 0xFF) << 8
    return (status & 0x7F) | (0x80 if code == os.CLD_DUMPED else 0)
