"""The shims a keeper looks after: what it holds for each, and whether a dead one gets a successor."""

import os
import signal
import socket
import time
from array import array

from shim import faults
from shim.bundle import remove
from shim.keeper.looks import inode_of, read_pid
from shim.recovery import pins
from shim.recovery.spares import (
    CONNECTION,
    DONE,
    DROP,
    HANDOVER,
    HOLD,
    LISTENER,
    LOCK,
    NAME_MAX_BYTES,
    NOT_PINNED,
    PIN,
    PINNED,
    RELIEF,
    RELIEVED,
    SETTLED,
    UNPIN,
)
from shim.recovery.successor import DOOMED, TRY_AGAIN, is_locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.keeper.peer import Manners
    from shim.params import Params

# Of one shim: its listener and lock, two for each connection, five for init and each exec that runs.
SPARES_MAX = 1024
# Successors in a row that could not take over: then the bundle is let go, and a daemon may try.
FAILURES_MAX = 5
# Before the second that ends by itself, doubling, until one has served for so long.
PAUSE_FIRST_S, PAUSE_MAX_S, STEADY_S = 0.05, 2.0, 10.0


# Of a process: its terminal, and the account of its input.
NAMELESS = (".master", ".input")


class Ward:
    """One shim. Owns the connection to it, and a copy of each fd it asked us to hold."""

    __slots__ = (
        "bundle", "channel", "failures", "inode", "is_done", "is_new", "judge", "manners", "mask", "params", "pid",
        "pidfd", "report", "settled_at_s", "spares",
    )  # fmt: skip

    def __init__(self, pid: int, params: "Params", mask: int, channel: socket.socket, spares: "dict[str, int]") -> None:
        self.params = params
        self.mask = mask
        self.bundle = params.bundle
        self.spares = spares
        self.inode = inode_of(params.socket_path)
        self.report: Callable[[str], None] = _nobody
        self.judge: Callable[[str], str] = _unwilling
        self.failures = 0
        self.manners: Manners | None = None
        self.pidfd = -1  # of one that is not our child
        self.is_new = False  # adopted, and it has not told everything yet
        self.succeed(channel, pid)

    def succeed(self, channel: socket.socket, pid: int) -> None:
        """Another shim is the ward now. What is held stays."""
        channel.setblocking(False)
        self.channel = channel
        self.pid = pid
        self.is_done = False
        self.settled_at_s: float | None = None  # since when it has told all that a successor needs

    @property
    def is_settled(self) -> bool:
        return self.settled_at_s is not None

    @property
    def passed(self) -> "dict[str, int]":
        """The spares a successor is given beside listener and lock: those it cannot open by a name.

        All of them if the shim before it ended to be relieved: that one goes on with the very same.
        """
        if HANDOVER in self.spares:
            return {name: fd for name, fd in self.spares.items() if name not in (LISTENER, LOCK)}
        return {name: fd for name, fd in self.spares.items() if is_passed(name)}

    def read(self) -> bool:
        """Take every message that is there, also those of a shim that is dead; False at the end of them."""
        while True:
            try:
                message, ancillary, _flags, _address = self.channel.recvmsg(
                    NAME_MAX_BYTES, socket.CMSG_SPACE(array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not message:
                return False
            self._heed(message, take_fds(ancillary))

    def _heed(self, message: bytes, fds: "list[int]") -> None:
        name = message[len(HOLD) :].decode(errors="replace")
        if message.startswith(HOLD):
            self._drop(name)
            if len(fds) == 1 and len(self.spares) < SPARES_MAX:
                self.spares[name] = fds.pop()
                faults.point("keeper.held")
            else:  # the kernel drops what we have no room for (unix(7), MSG_CTRUNC)
                self.report(f"of {self.bundle}: no room for {name} beside {len(self.spares)} others")
        elif message.startswith(DROP):
            self._drop(name)
        elif message.startswith(PIN):
            if len(fds) == 1:
                why = self._do(lambda: pins.pin(fds[0], os.fsdecode(message[len(PIN) :])))
                faults.point("keeper.pinned")
            else:
                why = "the keeper has no room for its pidfd"
                self.report(f"of {self.bundle}: no room for the pidfd of {name}")
            if why:
                self._say(NOT_PINNED + why.encode())
            self._say(PINNED)
        elif message.startswith(UNPIN):
            self._do(lambda: pins.unpin(os.fsdecode(message[len(UNPIN) :])))
        elif message.startswith(RELIEF):
            self._say(RELIEF + self._judge(message[len(RELIEF) :].decode(errors="replace")).encode())
        elif message == DONE:
            self.is_done = True
        elif message == SETTLED:
            self.settled_at_s = time.monotonic()
        for fd in fds:
            os.close(fd)

    def _judge(self, asked: str) -> str:
        """Why it is not to be relieved; empty when it may be."""
        code, _, count = asked.partition(" ")
        held = sum(name.startswith(HANDOVER) for name in self.spares)
        return self.judge(code) or ("" if count == str(held) else "the keeper has no room for what is to be left to it")

    def _do(self, work: "Callable[[], None]") -> str:
        """Why it could not be done; empty when it was."""
        try:
            work()
        except OSError as error:
            self.report(f"of {self.bundle}: {error}")
            return str(error)
        return ""

    def _say(self, word: bytes) -> None:
        try:
            self.channel.send(word)
        except OSError:
            pass  # it is dead, or so busy that it gives up waiting

    def _drop(self, name: str) -> None:
        fd = self.spares.pop(name, None)
        if fd is not None:
            os.close(fd)

    def wants_successor(self) -> bool:
        """Whether a shim that died is to be followed by another: it has a task; its bundle is there, not doomed."""
        has_task = os.path.lexists(os.path.join(self.bundle, "state.json"))
        if not has_task or self.is_done or os.path.lexists(os.path.join(self.bundle, DOOMED)):
            return False
        if LOCK in self.spares and not is_locked(self.bundle, self.spares[LOCK]):
            return False
        return read_pid(self.bundle) in (0, self.pid)  # else another has followed it already

    def next_pause_s(self, status: int) -> "float | None":
        """How long to wait before the successor is forked; None when it is given up.

        One that somebody kills is not to blame, however often, nor one that the host hinders (TRY_AGAIN). Given up is
        only what cannot take over; what takes over and then fails, again and again, is not to keep us busy.
        """
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if is_killed or is_relieved(status):
            return 0.0 if self.is_settled else PAUSE_FIRST_S
        if self.settled_at_s is not None and time.monotonic() - self.settled_at_s > STEADY_S:
            self.failures = 0
        self.failures += 1
        is_to_blame = not self.is_settled and not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == TRY_AGAIN)
        if is_to_blame and self.failures > FAILURES_MAX:
            return None
        return 0.0 if self.failures == 1 else min(PAUSE_FIRST_S * 2.0 ** min(self.failures - 2, 16), PAUSE_MAX_S)

    def forget_pidfd(self) -> None:
        """From here on it is known by its pid, or dead."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def let_go(self) -> None:
        """Nobody follows the shim. If its bundle is gone as well, so are socket and pins: no `start` replaces them.

        Whoever removes a bundle has `delete` run before; but that is killed when it takes too long.
        """
        is_orphan = LOCK in self.spares and not is_locked(self.bundle, self.spares[LOCK])
        path, found = self.params.socket_path, inode_of(self.params.socket_path)
        if is_orphan and found in (None, self.inode):  # else another has the name by now
            self._do(lambda: remove(path))
            self._do(lambda: pins.unpin_all(path, pins.LOCK_S))
        self.close()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self.channel.close()
        self.forget_pidfd()
        while self.spares:
            os.close(self.spares.popitem()[1])


def is_passed(name: str) -> bool:
    """Whether a spare can be opened by no name."""
    return name.endswith(NAMELESS) or name.startswith(CONNECTION)


def is_relieved(status: int) -> bool:
    """Whether a shim ended in order to be followed by a copy of ours. Pure."""
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == RELIEVED


def _nobody(_words: str) -> None:
    """Nobody wants to know."""


def _unwilling(_code: str) -> str:
    """Nobody looks after it."""
    return "no keeper looks after it"


def take_fds(ancillary: "list[tuple[int, int, bytes]]") -> "list[int]":
    """The fds of a message (unix(7), SCM_RIGHTS), which are ours from here on."""
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
