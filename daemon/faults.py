"""Fault points: named places where a test may have the daemon killed, so that recovery is proven and not hoped for.

Inert unless SHIMD_FAULTS_ARMED=yes-kill-me is in the environment when the daemon starts, together with SHIMD_FAULTS
(``name=kill[@N]``, comma separated: SIGKILL at the Nth pass) or SHIMD_FAULTS_DIR. In that directory a point looks for
the file daemon.NAME and takes it, by renaming it to daemon.NAME.hit.PID, so that it counts once: at a FIFO the daemon
stops until somebody has opened that for writing; at anything else it dies.
"""

import os
import signal
import stat
from collections.abc import Mapping

# In the order in which one container's life passes them.
POINTS = (
    # Containers.Create and Delete: around the commit
    "containers.create.before_commit",
    "containers.create.committed",
    "containers.delete.before_commit",
    "containers.delete.committed",
    # Tasks.Create: before and after each thing that stays when we die
    "create.begin",
    "create.row_stored",
    "create.bundle_made",
    "create.shim_started",
    "create.connected",
    "create.task_created",
    "create.stored",
    # Tasks.Start, of init and of execs
    "start.before_call",
    "start.called",
    "exec.before_call",
    "exec.called",
    "exec_start.before_call",
    "exec_start.called",
    # a journal record's way into the store
    "ingest.received",
    "ingest.before_commit",
    "ingest.committed",
    "ingest.acknowledged",
    "exit.before_commit",
    "exit.committed",
    "foreign.before_commit",
    "foreign.committed",
    # Tasks.Delete
    "delete.begin",
    "delete.marked",
    "delete.task_deleted",
    "delete.drained",
    "delete.shim_down",
    "delete.bundle_removed",
    "delete.row_removed",
    # a restart by policy
    "restart.marked",
    "restart.cleared",
    "restart.created",
    "restart.started",
    # an upgrade: the daemon that goes, and the one that comes
    "upgrade.checked",
    "upgrade.spawned",
    "upgrade.drained",
    "upgrade.store_closed",
    "upgrade.given",
    "upgrade.committed",
    "upgrade.told",
    "successor.began",
    "successor.ready",
    "successor.taken",
    "successor.store_opened",
    "successor.loaded",
    "successor.committed",
    "successor.serving",
)

ARMED = "yes-kill-me"


class UnknownFault(ValueError):
    """SHIMD_FAULTS names a point that is not there, or is not of the form name=kill[@N]."""


_remaining: dict[str, int] = {}
_directory = ""


def arm(environ: Mapping[str, str]) -> None:
    """Read the environment once, at start.

    Raises: UnknownFault, so that a misspelt point never passes for a survived one.
    """
    global _directory
    _remaining.clear()
    is_armed = environ.get("SHIMD_FAULTS_ARMED") == ARMED
    _directory = environ.get("SHIMD_FAULTS_DIR", "") if is_armed else ""
    text = environ.get("SHIMD_FAULTS", "")
    if not text or not is_armed:
        return
    for item in text.split(","):
        name, _, action = item.strip().partition("=")
        verb, _, count = action.partition("@")
        if name not in POINTS:
            raise UnknownFault(f"SHIMD_FAULTS: no fault point is called {name!r}; known are {', '.join(POINTS)}")
        if verb != "kill" or (count and not count.isdigit()) or count == "0":
            raise UnknownFault(f"SHIMD_FAULTS: {item!r} is not of the form name=kill or name=kill@N with N from 1")
        _remaining[name] = int(count) if count else 1


def point(name: str) -> None:
    """Pass a named place; dies or stops here when this was the pass a test asked for."""
    assert name in POINTS, name
    if _directory:
        _fall_into(os.path.join(_directory, f"daemon.{name}"))
    if name not in _remaining:
        return
    _remaining[name] -= 1
    if _remaining[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _fall_into(trap: str) -> None:
    taken = f"{trap}.hit.{os.getpid()}"
    try:
        os.rename(trap, taken)
    except FileNotFoundError:
        return
    if not stat.S_ISFIFO(os.stat(taken).st_mode):
        os.kill(os.getpid(), signal.SIGKILL)
    with open(taken, "rb", buffering=0) as gate:
        gate.read()
