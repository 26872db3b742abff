"""Becoming small again: a shim whose memory is all its own lets a copy of the keeper's template follow it.

After an upgrade in place, or a start without a keeper, nothing is shared with anybody. A copy of the template has a
third of that. So once all is quiet the shim does what it does before an execve (upgrading.py), but leaves the memory
file, and the pipes that must stay open, with the keeper, and ends. The keeper raises the successor it would raise after
any death, and that one goes on from the memory file (takeover.go_on): nothing is asked, found out or lost.

Until it ends a failure changes nothing, and it is tried again later. After that it is as after any death: a copy that
cannot go on from the memory file is followed by one that does without it.

The container's processes are nobody's children of ours then, as after a death. That their exits stay exact takes a
kernel which keeps them (pidfds.py, Linux 6.15); on an older one the shim stays as it is.
"""

import os
import socket

from shim import faults, launch
from shim.core import pidfds
from shim.core.steps import DeadlinePassed, Fired
from shim.recovery.saving import save, save_exec
from shim.recovery.spares import DROP, HANDOVER, OTHER_CODE, RELIEVED
from shim.upgrade import handover
from shim.upgrade.upgrading import open_fifos

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.shimlog import ShimLog
    from shim.core.steps import Handler
    from shim.recovery.spares import KeeperLink
    from shim.serving.serve import Shim
    from shim.streams.stdio import Stdio

# How long after it began to serve, unless SHIMD_RELIEF_S says another time: clients are back by then, and a new keeper
# has rehearsed. `off` means never.
VARIABLE = "SHIMD_RELIEF_S"
BEGIN_S = 10.0
# Between tries, doubling.
PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 300.0
ANSWER_S = 5.0  # of the keeper
# Names of what the keeper holds for the successor alone; no process has such a one.
BALLAST = f"{HANDOVER}.pipe"


class Relief:
    """Leads to the end of this process, or to nothing at all. ``begin`` is called once, by a shim that is large."""

    __slots__ = ("_pause_s", "_shim", "_told")

    def __init__(self, shim: "Shim") -> None:
        self._shim = shim
        self._pause_s = PAUSE_FIRST_S
        self._told = ""

    def begin(self) -> None:
        """Try as soon as it is time, and until it is done. Where that is no use nothing is begun."""
        environment = self._shim.params.environment
        begin_s = environment.get(VARIABLE, "")
        if begin_s == "off" or environment.get("SCHED_CORE"):
            return  # a copy has no core scheduling cookie of its own
        if not pidfds.keeps_exit_status():
            self._shim.log.info("this shim stays as large as it is: this kernel keeps nobody's exit status")
            return
        self._later(float(begin_s) if begin_s.replace(".", "", 1).isdigit() else BEGIN_S)

    def _later(self, pause_s: float) -> None:
        self._shim.loop.call_later(pause_s, self._begin_try)

    def _begin_try(self) -> None:
        self._shim.loop.spawn(self._try(), is_watch=True)

    def _try(self) -> "Handler":
        """One try. Order: what the keeper agreed to is done in the same turn of the loop as it is heard."""
        why = self._what_hinders() or (yield from self._ask_keeper()) or self._what_hinders() or self._leave()
        if why != self._told:
            self._told = why
            self._shim.log.info(f"this shim stays as large as it is for now: {why}")
        self._later(self._pause_s)
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def _what_hinders(self) -> str:
        shim = self._shim
        if shim.is_finishing or not shim.tasks.is_needed:
            return "there is no container"
        if not shim.parts.spares.is_connected or not shim.parts.spares.is_told:
            return "no keeper looks after it"
        if any(is_watched(process.stdio) for process in shim.upgrade.processes()):
            return "a client is attached, or follows a log"
        return shim.upgrade.what_hinders(spares_streams=True, is_ours=False)

    def _ask_keeper(self) -> "Handler":
        """Why it does not want to; empty when it does. One of other code than ours is left for one of ours."""
        try:
            identity = launch.keeper_path({b"SHIMD_KEEPER": b"/"}).rpartition(b"/")[2].decode()
        except OSError:
            return "its code is gone from the disk"
        asked = self._shim.parts.spares.ask_relief(identity)
        try:
            answer = (yield Fired(asked, deadline_s=ANSWER_S)) if asked is not None else "there is no keeper"
        except DeadlinePassed:
            return "the keeper does not answer"
        if answer == OTHER_CODE:
            self._shim.rejoin.change()
        return answer

    def _leave(self) -> str:
        """End, and be followed; or why that cannot be. Order: all is quiet, and nothing runs between that and this."""
        shim, container = self._shim, self._shim.tasks.container
        assert container is not None
        faults.point("relief.begun")
        if not all((save(container), *(save_exec(container, process) for process in container.execs.values()))):
            return "the state cannot be written"
        spares = shim.parts.spares
        ballast = open_fifos() - set(spares.held()[1].values()) - shim.wakeup.fds
        try:
            left = {HANDOVER: handover.write(shim.upgrade.facts())}
        except OSError as error:
            return f"there is no memory to write the state into: {error.strerror}"
        left |= {f"{BALLAST}{fd}": fd for fd in ballast}
        for name, fd in left.items():
            spares.hold(name, fd)
        if spares.is_connected and spares.is_told:
            shim.log.info("a copy of the keeper's template follows this shim, which is larger than it has to be")
            faults.point("relief.told")
            os._exit(RELIEVED)
        for name in left:
            spares.drop(name)
        os.close(left[HANDOVER])
        return "the keeper is busy"


def receive(link: "KeeperLink", log: "ShimLog") -> "list[int]":
    """Take from a successor's spares what its predecessor left for it: sets ``link.carried``; the value is the pipes.

    Order: before anything else is done; the keeper lets go of it first, for whoever follows is to do without.
    """
    names = [name for name in link.spares if name.startswith(HANDOVER)]
    if not names:
        return []
    keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, link.connection_fd)
    for name in sorted(names):
        keeper.send(DROP + name.encode())
    keeper.detach()
    fd = link.spares.pop(HANDOVER, -1)
    pipes = [link.spares.pop(name) for name in names if name != HANDOVER]
    faults.point("relief.received")
    if fd < 0:
        return pipes  # another copy had it, and died
    try:
        link.carried = handover.read(fd)
    except (OSError, ValueError) as error:
        log.warning(f"what the shim before this one left cannot be read: {error}")
    finally:
        os.close(fd)
    return pipes


def is_watched(stdio: "Stdio | None") -> bool:
    """Whether a client would notice: its stream ends with this process, and it has to come back."""
    return stdio is not None and (stdio.attached > 0 or (stdio.log is not None and bool(stdio.log.followers)))
