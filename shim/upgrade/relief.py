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
from shim.recovery.spares import DROP, HANDOVER, OTHER_CODE, RELIEVED
from shim.task.saving import save, save_exec
from shim.upgrade import carriedcalls, handover
from shim.upgrade.upgrading import open_fifos
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.shimlog import ShimLog
    from shim.core.steps import Handler
    from shim.recovery.spares import KeeperLink
    from shim.serving.serve import Shim

# How long after it began to serve, unless SHIMD_RELIEF_S says another time: clients are back by then, and a new keeper
# has rehearsed. Twice that at most. `off` means never.
VARIABLE = "SHIMD_RELIEF_S"
BEGIN_S = 10.0
# Between tries, doubling.
PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 300.0
ANSWER_S = 5.0  # of the keeper
# Who follows the events is a daemon: by the end of its stream it learns that the shim is another process. It comes back
# at once, with the number from which it goes on.
CUT = "Follow"
# Names of what the keeper holds for the successor alone: each ends with the fd it was.
PIPE, CLIENT = f"{HANDOVER}.pipe.", f"{HANDOVER}.client."


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
        is_given = begin_s.replace(".", "", 1).isdigit()
        self._later(float(begin_s) if is_given else BEGIN_S * (1 + os.getpid() % 64 / 64))  # not all of a host at once

    def _later(self, pause_s: float) -> None:
        self._shim.loop.call_later(pause_s, self._begin_try)

    def _begin_try(self) -> None:
        self._shim.loop.spawn(self._try(), is_watch=True)

    def _try(self) -> "Handler":
        """One try; whatever comes in its way is said once."""
        why = self._what_hinders() or (yield from self._leave())
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
        return shim.upgrade.what_hinders(spares_streams=False, is_ours=False)

    def _leave(self) -> "Handler":
        """End, and be followed; or why that cannot be.

        Order: the keeper has what is to be left, and says so; the memory file is filled when all is still quiet then.
        """
        spares = self._shim.parts.spares
        try:
            fd = handover.create()
        except OSError as error:
            return f"there is no memory for its state: {error.strerror}"
        left: dict[str, int] = {}
        try:
            _clients, left = self._open()
            for name, each in {HANDOVER: fd, **left}.items():
                spares.hold(name, each)
            why = (yield from self._ask_keeper(1 + len(left))) or self._what_hinders()
            if why:
                return why
            clients, others = self._open()
            if others != left:
                return "a client or a pipe came or went meanwhile"
            why = self._save(fd, clients)
            if not why:
                os._exit(RELIEVED)
            return why
        except StatusError as error:
            return error.message
        finally:
            for name in (HANDOVER, *left):
                spares.drop(name)
            os.close(fd)

    def _open(self) -> "tuple[dict[str, Any], dict[str, int]]":
        """Clients' calls that stream, and what is open besides what the keeper has, by the names it gets.

        Raises: StatusError when clients have too much to read.
        """
        clients, fds = carriedcalls.carry(self._shim, but=CUT)
        return clients, {**{f"{PIPE}{fd}": fd for fd in self._pipes()}, **{f"{CLIENT}{fd}": fd for fd in fds}}

    def _pipes(self) -> "set[int]":
        """Which nobody has open by a name: what is in one must not be lost."""
        held = {fd for name, fd in self._shim.parts.spares.held()[1].items() if not name.startswith(HANDOVER)}
        return open_fifos() - held - self._shim.wakeup.fds

    def _ask_keeper(self, count: int) -> "Handler":
        """Why it does not want to; empty when it does. One of other code than ours is left for one of ours."""
        try:
            code = launch.keeper_path({b"SHIMD_KEEPER": b"/"}).rpartition(b"/")[2].decode()
        except OSError:
            return "its code is gone from the disk"
        asked = self._shim.parts.spares.ask_relief(code, count)
        try:
            answer = (yield Fired(asked, deadline_s=ANSWER_S)) if asked is not None else "there is no keeper"
        except DeadlinePassed:
            return "the keeper does not answer"
        if answer == OTHER_CODE:
            self._shim.rejoin.change()
        return answer

    def _save(self, fd: int, clients: "dict[str, Any]") -> str:
        """Write down everything a successor needs; what went wrong. Order: nothing runs between that and the end."""
        shim, container = self._shim, self._shim.tasks.container
        assert container is not None
        faults.point("relief.begun")
        if not all((save(container), *(save_exec(container, process) for process in container.execs.values()))):
            return "the state cannot be written"
        try:
            handover.fill(fd, {**shim.upgrade.facts(), "clients": clients})
        except OSError as error:
            return f"there is no memory for its state: {error.strerror}"
        shim.log.info("a copy of the keeper's template follows this shim, which is larger than it has to be")
        faults.point("relief.told")
        return "" if shim.parts.spares.is_keeper_alive() else "the keeper is gone"


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
    pipes = [link.spares.pop(name) for name in names if name.startswith(PIPE)]
    link.copies = {int(name[len(CLIENT) :]): link.spares.pop(name) for name in names if name.startswith(CLIENT)}
    faults.point("relief.received")
    try:
        # None: another copy had it, and died. Empty: the one before this was killed before it had filled it.
        if fd >= 0 and os.fstat(fd).st_size:
            link.carried = handover.read(fd)
    except (OSError, ValueError) as error:
        log.warning(f"what the shim before this one left cannot be read: {error}")
    for each in (fd, *(link.copies.values() if link.carried is None else ())):
        if each >= 0:
            os.close(each)
    return pipes
