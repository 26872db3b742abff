"""Fault points: named places where a test stops this process, or has it die, so that recovery is proven, not hoped for.

Inert unless this process was started with both SHIMD_SHIM_FAULTS, a directory, and SHIMD_SHIM_FAULTS_ARMED=yes-kill-me:
a shim is armed by the environment of its own `start`, never by the keeper's. Then a point looks for its name in that
directory and takes it, by renaming it to NAME.hit.PID, so that it counts once: at a FIFO the process stops until
somebody has opened that for writing; at a directory it loops for ever, as a bug would; at anything else it dies by
SIGKILL. And such a process takes the kernel for an older one, without what `lacks.NAME` in that directory names. The
daemon's are in daemon/faults.py.
"""

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ARMED = "yes-kill-me"

directory = ""


def arm(environment: "Mapping[str, str]") -> None:
    """Take what the environment of the start says, once: at the beginning of a process."""
    global directory
    directory = environment.get("SHIMD_SHIM_FAULTS", "") if environment.get("SHIMD_SHIM_FAULTS_ARMED") == ARMED else ""


def point(name: str, detail: str = "") -> None:
    """Pass a named place. Blocks or dies there when a test has armed this process and laid a trap."""
    if directory:
        _fall_into(os.path.join(directory, name + detail.replace("/", ".")))


def lacks(name: str) -> bool:
    """Whether a test has this process do without something the kernel has."""
    return bool(directory) and os.path.exists(os.path.join(directory, f"lacks.{name}"))


def _fall_into(trap: str) -> None:
    taken = f"{trap}.hit.{os.getpid()}"
    try:
        os.rename(trap, taken)
    except FileNotFoundError:
        return
    kind = os.stat(taken).st_mode
    while stat.S_ISDIR(kind):
        pass
    if not stat.S_ISFIFO(kind):
        os.kill(os.getpid(), 9)
    with open(taken, "rb", buffering=0) as gate:
        gate.read()
