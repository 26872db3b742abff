"""The template: a process with all code in memory that does nothing but fork. Every shim is its copy.

A page one of two processes writes to becomes two. So the process shims are copied from must hardly run: it waits,
forks, and waits again; the keeper beside it, its parent, does everything else. A copy waits, too: keeper/copy.py.
"""

import _signal  # type: ignore[import-not-found]  # typeshed has no such name
import gc
import os
import socket

from shim import faults
from shim.actions.start import close_all_but
from shim.core import kernel
from shim.keeper.copy import FDS_MAX, FDS_ROOM, MORE, be_copy, pack
from shim.keeper.memory import settle
from shim.keeper.rehearsal import rehearse_in_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from shim.keeper.copy import Changes, Held
    from shim.params import Params

NAME = "shimd-template"
FORK = b"fork"


class Template:
    """The keeper's end of a template. Owns the channel, which takes one end of a socket pair for each copy wanted."""

    __slots__ = ("channel", "pid")

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel

    def copy(self) -> socket.socket:
        """Have a copy made; the value is our end of its pair: it sends its pid, and takes what it is to serve.

        Raises: OSError when the template is dead or stuck.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self.channel, [FORK], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        ours.setblocking(False)
        return ours

    def kill(self) -> None:
        """Have it end whatever it is at. Order: before it is waited for."""
        os.kill(self.pid, _signal.SIGKILL)

    def dismiss(self) -> None:
        """Have it end as soon as it has read to the end of the channel."""
        try:
            self.channel.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has ended


def hand_over(
    spare: socket.socket,
    params: "Params",
    mask: int,
    changes: "Changes",
    fds: "Sequence[int]",
    held: "Held" = None,
) -> None:
    """Make a copy the shim of a container: it is told everything, and given its listener and its bundle's lock.

    ``held``, of a successor: the names of all spares that were held for the one before it, of those among them that
    come along as further fds, and whether it is raised and not started. Order: what does not fit one message comes
    before the one that is acted on.
    Raises: OSError when it is dead, or ends because this failed.
    """
    try:
        while len(fds) > FDS_MAX:
            socket.send_fds(spare, [MORE], fds[:FDS_MAX])
            fds = fds[FDS_MAX:]
        socket.send_fds(spare, [pack(params, mask, changes, held)], fds)
    except OSError:
        _hang_up(spare)
        raise


def _hang_up(spare: socket.socket) -> None:
    """Let a copy that waits for the rest of its handover end."""
    try:
        spare.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is dead already


def fork_template(*, rehearse_in: str = "") -> Template:
    """Start a template as our child. With ``rehearse_in``, a folder, it rehearses first, and says when it has.

    Raises: OSError when there is no room for one more process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            reset_signals()
            faults.arm({})  # that is the keeper's: a shim is armed by its own start
            os.close(ours.detach())
            close_all_but({0, 1, 2, theirs.fileno()})
            gc.disable()
            gc.freeze()
            kernel.name_process(NAME, NAME)
            kept = prepare(theirs, rehearse_in) if rehearse_in else []
            run_template(theirs, kept)
        finally:
            os._exit(1)
    theirs.close()
    ours.setblocking(False)
    return Template(pid, ours)


def reset_signals() -> None:
    """Take back what the keeper does with signals: most templates are forked from within its loop."""
    _signal.set_wakeup_fd(-1)
    for signum in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT):
        _signal.signal(signum, _signal.SIG_DFL)


def prepare(channel: socket.socket, folder: str) -> "list[bytes]":
    """Take the time to become a better template; what is returned has to be kept."""
    kept: list[bytes] = []
    words = rehearse_in_memory(folder, kept)
    kernel.become_subreaper(False)  # as the shims it played were: what is orphaned is the keeper's
    kernel.name_process(NAME, NAME)  # a shim's name until now
    kept += settle()
    channel.send(words.encode())
    return kept


def run_template(channel: socket.socket, kept: "list[bytes]") -> "NoReturn":
    """Fork whenever asked, until the keeper is gone. Blocks. ``kept`` is of a rehearsal; empty without one.

    A copy's parent ends at once, so that it falls to the keeper, the subreaper: nothing here is ever woken for it.
    """
    while True:
        message, ancillary, _flags, _address = channel.recvmsg(len(FORK), FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)
        fd = int.from_bytes(ancillary[0][2][:4], "little")
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                be_copy(fd, channel.fileno(), is_large=not kept)
            os._exit(0)
        os.close(fd)
        os.waitpid(pid, 0)
