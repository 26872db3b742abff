"""A living shim without a keeper finds one: that of now if there is one, else it starts one.

The keeper died, or this shim was started cold. It asks to be looked after (`adopt`) with all a successor needs: how it
was invoked, its listener, its bundle's lock. After the answer it tells the keeper its spares (spares.py).
"""

import errno
import json
import os
import socket
from array import array

from shim import launch
from shim.bundle import STATE_VERSION
from shim.core.loop import READ
from shim.keeper.looks import youngest
from shim.keeper.pulse import limits_of
from shim.keeper.spawn import Busy, start_keeper
from shim.params import Params
from shim.recovery.keeperwatch import KeeperWatch
from shim.recovery.spares import DONE
from ttrpc.peer import check_peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.loop import Loop, Timer
    from shim.core.shimlog import ShimLog
    from shim.recovery.spares import Spares

# A keeper that was just started imports first. One that does not answer is let be: whoever starts a shim replaces it.
ANSWER_S = 20.0
# Between tries, doubling; a shim started cold lets whoever started it be done first.
PAUSE_FIRST_S, PAUSE_MAX_S, COLD_S = 0.05, 60.0, 1.0
# While another starts the keeper: that takes it a millisecond.
BUSY_S = 0.02
# What a keeper refuses it refuses again, unless another one comes.
REFUSED_S = 300.0
# Keepers that die within a second of taking us: so many are bad luck, with more of them something is wrong.
QUICK_S, QUICK_MAX, QUICK_PAUSE_S = 1.0, 100, 10.0
VARIABLES = ("SHIMD_KEEPER", "SHIMD_SOCKET_DIR")


class Rejoin:
    """Owns the connection to a keeper until that has agreed to look after us. ``lock_fd`` below 0: nothing is done.

    Idle it costs nothing: as long as there is a keeper the kernel tells of its end. Under containerd it looks
    whether that moves, too (keeperwatch.py).
    """

    __slots__ = (
        "_connection", "_failures", "_fds", "_joined_at", "_log", "_loop", "_made_at", "_params", "_quick",
        "_seen_at", "_spares", "_timer", "watch",
    )  # fmt: skip

    def __init__(
        self, loop: "Loop", params: Params, spares: "Spares", log: "ShimLog", listener_fd: int, lock_fd: int
    ) -> None:
        self._loop = loop
        self._params = params
        self._spares = spares
        self._log = log
        self._fds = (listener_fd, lock_fd)
        self._connection: socket.socket | None = None
        self._timer: Timer | None = None
        self._failures = self._quick = 0
        self._joined_at = loop.clock()
        self._made_at, self._seen_at = 0.0, 0.0  # of the keeper's socket that nobody listens on
        self.watch: KeeperWatch | None = None
        if lock_fd >= 0 and _directory(params):
            spares.on_lost = self._lost
            limits = limits_of(params.environment)
            if params.events_address and limits.after_ns:  # else a daemon of ours looks at it, and more often
                self.watch = KeeperWatch(loop, self._kept_at, log, limits)
            if not spares.is_connected:
                self._later(COLD_S)

    @property
    def is_asking(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        """Look for no keeper any more. Idempotent."""
        self._spares.on_lost = _nothing
        if self.watch is not None:
            self.watch.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connection is not None:
            connection = self._drop()
            # It may have agreed already; after this it cannot any more.
            connection.shutdown(socket.SHUT_RD)
            if _outcome(_receive(connection)) == launch.OK:
                _say_done(connection)
            connection.close()

    def change(self) -> None:
        """Find a keeper of our own code and leave the one there is for it, which looks after us until then."""
        if self._connection is None and self._spares.on_lost == self._lost:
            self._failures = 0
            self._later(0.0)

    def _kept_at(self) -> str:
        """The socket of the keeper that looks after us, or of the one that came after it."""
        return os.fsdecode(find_keeper(_directory(self._params), self._params)[0]) if self._spares.is_connected else ""

    def _lost(self) -> None:
        now = self._loop.clock()
        self._quick = self._quick + 1 if now - self._joined_at < QUICK_S else 0
        self._failures = 0
        self._made_at = 0.0
        self._log.warning("the keeper is gone")
        self._later(QUICK_PAUSE_S if self._quick > QUICK_MAX else 0.0)

    def _later(self, pause_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(pause_s, self._try)

    def _fail(self, why: object) -> None:
        """Try again later, and say why the first time."""
        if self._failures < 2:
            self._log.info(f"no keeper looks after this shim: {why}")
        self._failures += 1
        self._later(self._pause_s() * (1 + os.getpid() % 16 / 16))  # not all shims at once

    def _pause_s(self) -> float:
        return min(PAUSE_FIRST_S * 2.0 ** min(self._failures - 1, 16), PAUSE_MAX_S) if self._failures else 0.0

    # --- a try

    def _try(self) -> None:
        self._timer = None
        if self._connection is not None:
            return  # asked already: it lost its keeper while it was about to leave it
        path, is_our_own = find_keeper(_directory(self._params), self._params)
        if not path:
            self._fail("there is none")
            return
        try:
            connection = connect(path)
        except BlockingIOError as error:
            self._fail(error)  # everybody asks at once
            return
        except OSError as error:
            if not is_our_own or error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                self._fail(error)
                return
            self._start(path)
            return
        self._ask(connection)

    def _start(self, path: bytes) -> None:
        """Nobody is there. The more of them have died since, whoever started them, the longer until the next."""
        now, made_at = self._loop.clock(), made(path)
        if made_at != self._made_at:
            self._failures += self._made_at != 0.0  # the first is the one we had
            self._made_at, self._seen_at = made_at, now
        pause_s = self._pause_s() - (now - self._seen_at)
        if pause_s > 0:
            self._later(max(pause_s, BUSY_S))
            return
        try:
            start_keeper(path, patience_s=0.0)
        except Busy:
            self._later(BUSY_S)
            return
        except launch.Unserved as why:
            self._fail(why)
            return
        self._later(0.0)

    def _ask(self, connection: socket.socket) -> None:
        request = pack_adoption(self._params)
        try:
            check_peer(connection)
            connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self._fds))])
        except OSError as error:
            connection.close()
            self._fail(error)
            return
        self._spares.bequeath(connection)
        self._connection = connection
        self._loop.register(connection.fileno(), READ, self._answered)
        self._timer = self._loop.call_later(ANSWER_S, self._answered)

    def _answered(self, _mask: int = 0) -> None:
        """It has answered, or hung up, or it is too late for that."""
        connection = self._drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not _mask:
            connection.shutdown(socket.SHUT_RD)  # from here on it cannot agree any more
        answer = _receive(connection)
        outcome = _outcome(answer)
        if outcome == launch.OK:
            self._joined_at = self._loop.clock()
            self._failures = 0
            self._log.info(f"keeper {_text(answer)} looks after this shim")
            self._spares.excuse()
            self._spares.connect(connection)
            return
        connection.close()
        if outcome == launch.REFUSED:
            self._log.info(f"the keeper does not look after this shim: {_text(answer)}")
            self._later(REFUSED_S)
        else:
            self._fail(_text(answer) if outcome == launch.STALE else "it does not answer")

    def _drop(self) -> socket.socket:
        connection, self._connection = self._connection, None
        assert connection is not None
        self._loop.unregister(connection.fileno())
        return connection


def find_keeper(directory: bytes, params: Params) -> "tuple[bytes, bool]":
    """A keeper's path, and whether it is that of our own installation, which we may start.

    When our installation is gone from the disk it is the youngest there is; empty when there is none.
    """
    try:
        return launch.keeper_path(_variables(params)), True
    except OSError:
        return os.fsencode(youngest(os.fsdecode(directory))), False


def connect(path: bytes) -> socket.socket:
    """Raises: OSError; BlockingIOError when its backlog is full."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def pack_adoption(params: Params) -> bytes:
    """The request: what a successor is told. A keeper ignores fields it does not know. Pure."""
    fields = {name: getattr(params, name) for name in Params.__slots__}
    body = json.dumps({"state_version": STATE_VERSION, "params": fields})
    return b"\0".join((launch.MAGIC, launch.ADOPT, body.encode()))


def _directory(params: Params) -> bytes:
    return launch.keeper_directory(_variables(params))


def _variables(params: Params) -> "dict[bytes, bytes]":
    given = params.environment
    return {name.encode(): os.fsencode(given[name]) for name in VARIABLES if name in given}


def made(path: bytes) -> float:
    """When a socket was made; 0 when there is none."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(launch.ANSWER_MAX_BYTES)
    except OSError:
        return b""


def _outcome(answer: bytes) -> bytes:
    fields = answer.split(b"\0", 2)
    return fields[1] if len(fields) == 3 else b""


def _text(answer: bytes) -> str:
    return answer.split(b"\0", 2)[-1].decode(errors="replace")


def _say_done(connection: socket.socket) -> None:
    try:
        connection.send(DONE)
    except OSError:
        pass  # it has ended by itself


def _nothing() -> None:
    """Who ends does not care whether the keeper does."""
