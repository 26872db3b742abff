"""Under containerd no daemon looks at the keeper, and its shims do: one that is stopped or hangs raises no successor.

By its pulse (ttrpc/api/pulse.py), so nothing is asked of it. A shim with nothing to do wakes for this once a minute; as
long as the keeper is at something, more often. That several shims do the same to it does no harm.
"""

import os
import signal
import time

from shim.core import pidfds
from ttrpc.api import pulse, wedge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.core.shimlog import ShimLog

# Of how long a keeper may be stuck (SHIMD_WEDGED_S): 60 and 5 s by default.
PACE, CLOSE_PACE = 6.0, 0.5


class KeeperWatch:
    """Owns what is known of the keeper from one look to the next. ``find``: its socket's path, empty without one.

    What runs each minute is little, and rehearsed: each page it writes to is one more of this shim's own.
    """

    __slots__ = ("_case", "_find", "_limits", "_log", "_loop", "_path", "_timer", "_turns")

    def __init__(self, loop: "Loop", find: "Callable[[], str]", log: "ShimLog", limits: wedge.Limits) -> None:
        self._loop = loop
        self._find = find
        self._log = log
        self._limits = limits
        self._case: wedge.Case | None = None
        self._path = ""  # of the socket, since its pulse was last not there
        self._turns = -1
        self._timer = loop.call_later(self._pause_s(PACE), self._look)

    def close(self) -> None:
        """Look no more. Idempotent."""
        self._timer.cancel()

    def rehearse(self, path: str) -> None:
        """A look at whoever has its pulse there: see keeper/stage.py."""
        self._find()
        self._path = path
        self._timer.cancel()
        self._look()

    def _pause_s(self, pace: float) -> float:
        """Not all shims at once."""
        return self._limits.after_ns / 1e9 * pace * (1 + os.getpid() % 16 / 64)

    def _look(self) -> None:
        """Order: the next look is arranged first, so that a failure ends nothing."""
        self._timer = self._loop.call_later(self._pause_s(PACE), self._look)
        seen = pulse.glance(self._path + pulse.OF_KEEPER) if self._path else None
        if seen is None:
            self._path = self._find()
            seen = pulse.glance(self._path + pulse.OF_KEEPER) if self._path else None
        if seen is None:
            self._case = None
            return
        _pid, state, busy_since_ns, turns = seen
        last, self._turns = self._turns, turns
        if self._case is not None or state not in b"SR" or (busy_since_ns and turns == last):
            self._look_closely(look_at(self._path))

    def _look_closely(self, found: "pulse.Look | None") -> None:
        """It may be stopped, or hang; or was so a moment ago."""
        if found is None:
            self._case = None
            return
        if self._case is None or self._case.last.pid != found.pid:
            self._case = wedge.Case(found)
        else:
            self._do(self._case.judge(found, self._limits, stall_percent=pulse.memory_stall_percent()), self._case)
        if self._case.spell in (wedge.IDLE, wedge.GONE):
            self._case = None
            return
        self._timer.cancel()
        self._timer = self._loop.call_later(self._pause_s(CLOSE_PACE), self._look)

    def _do(self, action: str, case: wedge.Case) -> None:
        if action == wedge.NOTHING:
            return
        said = f"the keeper, {case.last.pid}: {case.words()}"
        if action == wedge.REPORT:
            self._log.warning(said)
        elif action == wedge.CONTINUE:
            self._log.warning(f"{said}; it is continued")
            send(case.last, signal.SIGCONT)
        elif action == wedge.REPLACE:
            self._log.error(f"{said}; it is killed, and another started")
            send(case.last, signal.SIGKILL)
        elif action == wedge.RECOVERED:
            self._log.info(f"the keeper, {case.last.pid}, moves again")


def look_at(socket_path: str) -> "pulse.Look | None":
    """A look at the keeper of that socket; None when there is none, or it has no pulse that is its own."""
    folder, name = os.path.split(socket_path)
    try:
        words = os.readlink(os.path.join(folder, name + pulse.OF_KEEPER)).split("/")
        pid = int(words[2])  # /proc/PID/fd/N
    except (OSError, IndexError, ValueError):
        return None
    found = pulse.look(folder, pid, time.monotonic_ns(), name + pulse.OF_KEEPER)
    return found if found.turns is not None else None


def send(look: "pulse.Look", signum: int) -> None:
    """Signal exactly the process that was looked at."""
    pidfd = pidfds.open_exactly(look.pid, look.start_ticks)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except OSError:
        pass  # it has ended
    finally:
        os.close(pidfd)
