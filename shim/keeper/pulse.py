"""The keeper looks at the pulses of its shims, for the time when no daemon does, and replaces one that hangs.

Nothing is asked of a shim, and its container is never touched. The daemon does the same at half these times, so that it
comes first where there is one.
"""

import json
import os
import signal
import time

from shim.bundle import write_replacing
from shim.core import pidfds
from ttrpc.api import pulse, wedge
from ttrpc.api.wedge import CONTINUE, RECOVERED, REPLACE, REPORT, Case, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shim.core.loop import Loop
    from shim.core.shimlog import ShimLog
    from shim.keeper.wards import Ward

AFTER_S, GRACE_S = 10.0, 60.0
SLOWEST_S = 5.0
NOTE = "keeper-wedged."  # and the pid: in the bundle, for the daemon to tell
NOTES_MAX = 16  # where no daemon is, nobody takes them away


def limits_of(environment: "Mapping[str, str]") -> Limits:
    """SHIMD_WEDGED_S and SHIMD_WEDGED_GRACE_S; 0 s: nobody looks. What is no number is ignored."""

    def seconds(name: str, default: float) -> float:
        try:
            return max(0.0, float(environment.get(name, default)))
        except ValueError:
            return default

    return Limits(seconds("SHIMD_WEDGED_S", AFTER_S), seconds("SHIMD_WEDGED_GRACE_S", GRACE_S))


class PulseWatch:
    """Owns what is known of each shim from one look to the next. The shims are the keeper's."""

    def __init__(self, loop: "Loop", shims: "Callable[[], dict[int, Ward]]", log: "ShimLog", limits: Limits) -> None:
        self._loop = loop
        self._shims = shims
        self._log = log
        self._limits = limits
        self._cases: dict[int, Case] = {}
        self._log_ends: dict[int, int] = {}
        self._pace_s = min(SLOWEST_S, limits.after_ns / 1e9 / 4)
        if self._pace_s:
            loop.call_later(self._pace_s, self._look)

    def _look(self) -> None:
        """One look at each. Order: the next is arranged first, so that a failure ends nothing."""
        self._loop.call_later(self._pace_s, self._look)
        shims = self._shims()
        for pid in tuple(self._cases):
            if pid not in shims:
                del self._cases[pid]
                self._log_ends.pop(pid, None)
        stall_percent = pulse.memory_stall_percent()
        for ward in shims.values():
            found = pulse.look(ward.bundle, ward.pid, time.monotonic_ns())
            case = self._cases.get(ward.pid)
            if case is None:
                self._cases[ward.pid] = Case(found)
                continue
            action = case.judge(found, self._limits, stall_percent=stall_percent)
            if action in (REPORT, CONTINUE):
                self._report(ward, case, action)
            elif action == REPLACE:
                self._replace(ward, case)
            elif action == RECOVERED:
                self._log.info(f"shim {ward.pid} of {ward.bundle} moves again")

    def _report(self, ward: "Ward", case: Case, action: str) -> None:
        self._log.error(f"shim {ward.pid} of {ward.bundle}: {case.words()}")
        if action == CONTINUE:
            self._signal(case, signal.SIGCONT)
        elif case.fault == wedge.STUCK and pulse.catches_usr1(ward.pid):
            self._log_ends[ward.pid] = pulse.log_end(ward.bundle)
            self._signal(case, signal.SIGUSR1)

    def _replace(self, ward: "Ward", case: Case) -> None:
        """Kill the shim, and it alone: its end is seen as any shim's, and a successor raised.

        Order: the note is there before, for the daemon to find however soon it comes.
        """
        if not ward.wants_successor():
            return
        stack = pulse.stack_since(ward.bundle, self._log_ends.get(ward.pid, 0)) if case.fault == wedge.STUCK else ""
        said = {"pid": ward.pid, "kind": case.fault, "reason": case.words(), "stack": stack, "at_ns": time.time_ns()}
        try:
            if sum(name.startswith(NOTE) for name in os.listdir(ward.bundle)) < NOTES_MAX:
                write_replacing(os.path.join(ward.bundle, f"{NOTE}{ward.pid}"), json.dumps(said).encode())
        except OSError as error:
            self._log.warning(f"no note of it in {ward.bundle}: {error}")
        self._log.error(f"replacing shim {ward.pid} of {ward.bundle}: {case.words()}")
        self._signal(case, signal.SIGKILL)

    def _signal(self, case: Case, number: int) -> None:
        """Signal exactly the process that was looked at."""
        pidfd = pidfds.open_exactly(case.last.pid, case.last.start_ticks)
        if pidfd is None:
            return
        try:
            signal.pidfd_send_signal(pidfd, number)
        except OSError as error:
            self._log.warning(f"signal {number} to shim {case.last.pid}: {error}")
        finally:
            os.close(pidfd)
