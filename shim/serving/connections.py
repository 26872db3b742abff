"""Accepted connections that outlive this shim: their sockets and ledgers are held by the keeper, for a successor.

For whoever follows in the same process (an upgrade by execve), the fds of `pairs` are all there is to hand on.
"""

import os
import socket

from shim.recovery.spares import CONNECTION
from ttrpc.ledger import Ledger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.recovery.spares import Spares
    from ttrpc.loopdriver import LoopServer

LEDGER = ".ledger"


class Connections:
    """The server's holder. Owns the names, and until `resume` what a predecessor left; later the connections own it."""

    def __init__(self, spares: "Spares") -> None:
        self._spares = spares
        self._next = 1
        self.pairs: dict[str, tuple[int, int]] = {}  # by name: the fds of socket and ledger
        self._left: list[tuple[socket.socket, Ledger]] = []
        self._take_all()

    def hold(self, sock: socket.socket, ledger: Ledger) -> None:
        """Have an accepted connection held. Order: at once, for until then it is lost with us."""
        ledger.name = f"{CONNECTION}{self._next}"
        self._next += 1
        self._hold(sock, ledger, is_known=False)

    def _hold(self, sock: socket.socket, ledger: Ledger, *, is_known: bool) -> None:
        self.pairs[ledger.name] = (sock.fileno(), ledger.fd)
        self._spares.hold(ledger.name + LEDGER, ledger.fd, is_known=is_known)
        self._spares.hold(ledger.name, sock.fileno(), is_known=is_known)

    def drop(self, ledger: Ledger) -> None:
        """It is to end with us. Order: before its fds are closed."""
        del self.pairs[ledger.name]
        self._spares.drop(ledger.name)
        self._spares.drop(ledger.name + LEDGER)

    def _take_all(self) -> None:
        """Take what a predecessor left. Order: before the spares are settled, when what nobody took is closed.

        A ledger that had not got its socket yet is closed: nothing was answered on it.
        """
        for name in self._spares.inherited(CONNECTION):
            if name.endswith(LEDGER):
                continue
            self._next = max(self._next, int(name.removeprefix(CONNECTION)) + 1)
            fd, ledger_fd = self._spares.take(name), self._spares.take(name + LEDGER)
            if fd is None or ledger_fd is None:
                for left in (fd, ledger_fd):
                    if left is not None:
                        os.close(left)
                continue
            sock, ledger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd), Ledger(ledger_fd)
            ledger.name = name
            self._hold(sock, ledger, is_known=True)
            self._left.append((sock, ledger))

    def resume(self, server: "LoopServer") -> int:
        """Go on with what a predecessor left; the value is how many. Order: when the service can take calls."""
        left, self._left = self._left, []
        return sum(server.resume(sock, ledger) is not None for sock, ledger in left)

    def close(self) -> None:
        """Close what nobody went on with. Idempotent."""
        for sock, ledger in self._left:
            sock.close()
            ledger.close()
        self._left.clear()
