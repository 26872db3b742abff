"""Spare fds: copies of what must not close with this shim's death, held by the keeper. This is the shim's side.

Messages to the keeper, each one packet of a SOCK_SEQPACKET connection: `hold NAME` with one fd (SCM_RIGHTS), which
replaces an earlier one of that name; `drop NAME`; `settled`: who dies from here on is not to blame for it; `done`: the
end of this connection is in order, no successor is wanted. The keeper hands what it holds to the successor it forks.
`pin PATH` with a pidfd and `unpin PATH` have the keeper do that (pins.py): in a shim the means cost half a megabyte. It
answers `pinned`, also when it could not; then it says `not-pinned REASON` before. `relief CODE COUNT` asks whether it
would have a copy of its own follow a shim of that code (relief.py), and holds so much for it; `relief` and a reason,
none if it would, is the answer.
"""

import os
import socket
from array import array

from shim.core.loop import READ, WRITE
from shim.core.steps import Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.core.loop import Loop

HOLD, DROP, SETTLED, DONE = b"hold ", b"drop ", b"settled", b"done"
PIN, UNPIN, PINNED, NOT_PINNED = b"pin ", b"unpin ", b"pinned", b"not-pinned "
RELIEF = b"relief "
LISTENER, LOCK = "listener", "lock"
# What a shim that is relieved leaves to its successor alone: the memory file, and pipes under names that begin so; no
# process has such a name. It ends with this code.
HANDOVER = "handover"
RELIEVED = 75
OTHER_CODE = "other code"  # a keeper's answer to RELIEF: one of the shim's own code would do it
CONNECTION = "conn."  # how the names of accepted connections and their ledgers begin; no process has such a name
NAME_MAX_BYTES = 4096
EXCUSE_S = 1.0
ANSWER_MAX_BYTES = 256  # of the keeper: PINNED; RELIEF, NOT_PINNED with a reason


class KeeperLink:
    """What a shim gets from the keeper that forked it: a connection to it and, if it is a successor, spare fds."""

    __slots__ = ("carried", "connection_fd", "copies", "is_large", "is_raised", "lock_fd", "spares")

    def __init__(
        self,
        connection_fd: int = -1,
        spares: "dict[str, int] | None" = None,
        *,
        lock_fd: int = -1,
        is_raised: bool = False,
        carried: "dict[str, Any] | None" = None,
    ) -> None:
        self.carried = carried  # of other code in this process, which this one follows: see handover.py
        self.copies: dict[int, int] | None = None  # of the fds named in that, if it was another process's
        self.connection_fd = connection_fd
        self.is_large = connection_fd < 0  # its memory is not that of a template which has rehearsed
        self.spares = spares or {}  # by name; -1: held, and not passed on
        self.lock_fd = lock_fd  # of the bundle; open for as long as the process lives
        self.is_raised = is_raised


class Spares:
    """Owns the connection to the keeper, and what a predecessor left until it is taken. Borrows what it has held.

    Without a keeper nothing is held; who asks need not know.
    """

    def __init__(self, loop: "Loop", connection_fd: int = -1, inherited: "dict[str, int] | None" = None) -> None:
        self._loop = loop
        self._connection: socket.socket | None = None
        self._inherited = inherited or {}
        self._held: dict[str, int] = {}
        self._bequeathed: list[str] = []
        self._waiting: list[str] = []  # names to hold, or to drop when they are not held any more
        # After those: each with the fd that goes with it, and what fires when the keeper has answered it.
        self._words: list[tuple[bytes, int | None, Signal | None]] = []
        self._pins: dict[str, int] = {}
        self._unanswered: list[Signal] = []
        self._not_pinned = ""  # why the pin whose answer comes next was not made
        self._is_settled = False
        self._relief: Signal | None = None
        self.on_lost: Callable[[], None] = _nothing
        self.on_connected: Callable[[], None] = _nothing
        if connection_fd >= 0:
            self.connect(socket.socket(fileno=connection_fd))

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def is_told(self) -> bool:
        """Whether the keeper has been told everything, and has answered what it is to answer."""
        return not (self._waiting or self._words or self._unanswered)

    def is_keeper_alive(self) -> bool:
        """Whether the connection stands at this moment; its end is told later, by the loop."""
        try:
            return self._connection is not None and bool(
                self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            )
        except BlockingIOError:
            return True
        except OSError:
            return False

    def held(self) -> "tuple[int, dict[str, int]]":
        """The connection's fd, below 0 without one, and the fds that are held by their names: all still ours."""
        return self._connection.fileno() if self._connection is not None else -1, dict(self._held)

    def connect(self, connection: socket.socket) -> None:
        """Take a connection to a keeper, which is told everything held."""
        connection.setblocking(False)
        self._connection = connection
        self._loop.register(connection.fileno(), READ, self._ready)
        self._waiting = [*self._held, *(name for name in self._bequeathed if name not in self._held)]
        self._bequeathed.clear()
        self._words = [(SETTLED, None, None)] if self._is_settled else []
        for path, pidfd in self._pins.items():
            self._ask_pin(path, pidfd)
        self._send_waiting()
        self.on_connected()

    def bequeath(self, connection: socket.socket) -> None:
        """Send what is held together with the question whether a keeper holds it: should we die meanwhile, it is there.

        After the answer all of it is told again.
        """
        try:
            for name, fd in self._held.items():
                if name not in (LISTENER, LOCK) and not name.startswith(CONNECTION):
                    _send(connection, HOLD + name.encode(), fd)
                    self._bequeathed.append(name)
        except OSError:
            pass  # no room for more, or it is gone

    def hold(self, name: str, fd: int, *, is_known: bool = False) -> None:
        """Have a copy held. The fd stays the caller's, who drops the name before closing it.

        ``is_known``: this keeper has it already, only the next one is to be told.
        """
        self._held[name] = fd
        if not is_known:
            self._later(name)

    def drop(self, name: str, fd: "int | None" = None) -> None:
        """Have the copy closed, if there is one; with ``fd``, if it is of this one, and not of who came after."""
        if name in self._held and fd in (None, self._held[name]):
            del self._held[name]
            self._later(name)

    def take(self, name: str) -> "int | None":
        """What a predecessor left under this name; from here on the caller's."""
        fd = self._inherited.pop(name, -1)
        return fd if fd >= 0 else None

    def inherited(self, prefix: str) -> "list[str]":
        """The names under which a predecessor left something that can be taken."""
        return [name for name, fd in self._inherited.items() if fd >= 0 and name.startswith(prefix)]

    def settle(self) -> None:
        """Everything is as it should be: close what a predecessor left and nobody took.

        FIFOs are opened by name once more, and then need no spare of the predecessor's.
        """
        self._is_settled = True
        for name, fd in self._inherited.items():
            if fd >= 0:
                os.close(fd)
            if name not in self._held:
                self._waiting.append(name)
        self._inherited.clear()
        self._words.append((SETTLED, None, None))
        self._send_waiting()

    def pin(self, path: str, pidfd: int) -> "Signal | None":
        """Have the keeper pin a process: fires when it has, or with why not; None without one. The pidfd is borrowed
        until `unpin`.

        A keeper that comes later pins it then.
        """
        self._pins[path] = pidfd
        if self._connection is None:
            return None
        pinned = self._ask_pin(path, pidfd)
        self._send_waiting()
        return pinned

    def is_pinning(self, path: str) -> bool:
        """Whether this is to be pinned, by whichever keeper."""
        return path in self._pins

    def ask_relief(self, code: str, count: int) -> "Signal | None":
        """Ask the keeper whether it would have a copy follow us: fires with why not, empty when it would.

        ``count``: of what it was to hold for that before (HANDOVER), which it says it does.

        None without a keeper. Order: one question at a time.
        """
        if self._connection is None:
            return None
        self._relief = Signal()
        self._words.append((RELIEF + f"{code} {count}".encode(), None, None))
        self._send_waiting()
        return self._relief

    def _ask_pin(self, path: str, pidfd: int) -> Signal:
        pinned = Signal()
        self._words.append((PIN + os.fsencode(path), pidfd, pinned))
        return pinned

    def unpin(self, path: str) -> bool:
        """Have the keeper take the pin away; False without one, be it lost only now, and when it was never asked."""
        self._pins.pop(path, None)
        if self._connection is None:
            return False
        pinning, asked = PIN + os.fsencode(path), len(self._words)
        self._words = [word for word in self._words if word[0] != pinning]  # its fd will be closed
        if len(self._words) < asked:
            return False  # a keeper that is stopped: nothing is to pile up for it
        self._words.append((UNPIN + os.fsencode(path), None, None))
        self._send_waiting()
        return self._connection is not None

    # --- sending

    def _later(self, name: str) -> None:
        if self._connection is not None:
            if name not in self._waiting:
                self._waiting.append(name)
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what the keeper's queue takes; a stopped keeper holds nobody up."""
        connection = self._connection
        if connection is None:
            return
        try:
            while self._waiting:
                name = self._waiting[0]
                fd = self._held.get(name)
                _send(connection, (DROP if fd is None else HOLD) + name.encode(), fd)
                del self._waiting[0]
            while self._words:
                word, fd, answered = self._words[0]
                _send(connection, word, fd)
                del self._words[0]
                if answered is not None:
                    self._unanswered.append(answered)
        except BlockingIOError:
            self._loop.modify(connection.fileno(), READ | WRITE)
            return
        except OSError:
            self._lose()
            return
        self._loop.modify(connection.fileno(), READ)

    def _ready(self, mask: int) -> None:
        if mask & ~WRITE and self._connection is not None:
            try:
                message = self._connection.recv(ANSWER_MAX_BYTES)
            except BlockingIOError:
                message = b" "
            except OSError:
                message = b""
            if not message:
                self._lose()
                return
            if message.startswith(NOT_PINNED):
                self._not_pinned = message[len(NOT_PINNED) :].decode(errors="replace")
            elif message == PINNED and self._unanswered:
                why, self._not_pinned = self._not_pinned, ""
                self._unanswered.pop(0).fire(why)
            elif message.startswith(RELIEF) and self._relief is not None:
                asked, self._relief = self._relief, None
                asked.fire(message[len(RELIEF) :].decode(errors="replace"))
        self._send_waiting()

    def _lose(self) -> None:
        """The keeper is gone."""
        self._disconnect()
        self.on_lost()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._loop.unregister(self._connection.fileno())
            self._connection.close()
            self._connection = None
            self._waiting.clear()
            self._words.clear()
            self._unanswered.clear()
            self._not_pinned = ""
            self._relief = None

    def excuse(self) -> None:
        """Leave this keeper for another one: it holds nothing of ours any more, and raises no successor.

        Blocks: a moment, for one that is busy. What is held is told to the next; see `connect`.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            connection.settimeout(EXCUSE_S)
            for name in self._held:
                connection.send(DROP + name.encode())
            connection.send(DONE)
        except OSError:
            pass  # it is gone, or so busy that it may raise a successor, who finds that there is another
        self._disconnect()

    def finish(self) -> None:
        """Say that this shim ends in order: what happens to it from here on is nobody's trouble."""
        if self._connection is not None:
            try:
                self._connection.send(DONE)
            except OSError:
                pass  # a keeper so busy raises a successor that finds nothing to do
            self._held.clear()

    def close(self) -> None:
        self._disconnect()
        for fd in self._inherited.values():
            if fd >= 0:
                os.close(fd)
        self._inherited.clear()


class Share:
    """One process's part of the spares: its names begin with the process's."""

    __slots__ = ("_name", "_spares")

    def __init__(self, spares: "Spares | None", name: str) -> None:
        self._spares = spares
        self._name = name

    def hold(self, what: str, fd: int) -> None:
        if self._spares is not None:
            self._spares.hold(f"{self._name}.{what}", fd)

    def drop(self, what: str, fd: "int | None" = None) -> None:
        if self._spares is not None:
            self._spares.drop(f"{self._name}.{what}", fd)

    def take(self, what: str) -> "int | None":
        return self._spares.take(f"{self._name}.{what}") if self._spares is not None else None


def _send(connection: socket.socket, word: bytes, fd: "int | None") -> None:
    """Raises: OSError."""
    if fd is None:
        connection.send(word)
    else:
        connection.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])


def _nothing() -> None:
    """Nobody asked to be told."""
