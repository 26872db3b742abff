"""A ttrpc server on somebody else's poll loop: accepts, decodes, and hands over each call. Never blocks, no threads."""

import errno
import os
import select
import socket

from ttrpc.errors import PeerViolation
from ttrpc.inbox import RECEIVE_WINDOW_BYTES
from ttrpc.kept_connection import KeptConnection
from ttrpc.ledger import Ledger
from ttrpc.loop_connection import LoopConnection
from ttrpc.outbox import HARD_LIMIT_BYTES
from ttrpc.peer import check_peer, peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from ttrpc.kept_connection import Holder
    from ttrpc.peer import Peer
    from ttrpc.server_call import ServerCall
    from ttrpc.service import Registry

    class Timer(Protocol):
        def cancel(self) -> None: ...

    class PollLoop(Protocol):
        """All this driver asks of a loop. Readiness is level-triggered, masks are those of epoll."""

        def register(self, fd: int, mask: int, callback: "Callable[[int], None]") -> None: ...
        def modify(self, fd: int, mask: int) -> None: ...
        def unregister(self, fd: int) -> None: ...
        def call_soon(self, callback: "Callable[[], None]") -> None: ...
        def call_later(self, delay_s: float, callback: "Callable[[], None]") -> Timer: ...


MAX_CONNECTIONS: "Final" = 128  # a supervisor, its clients, and room for those who hold connections and say nothing
ACCEPTS_PER_TURN: "Final" = 16
ACCEPT_RETRY_S: "Final" = 0.1  # after EMFILE and its kin; the connection waits in the backlog meanwhile

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class LoopServer:
    """Owns the listener and every accepted connection; borrows the loop and the registry.

    ``start(call)`` is called per request, decoded and known to the registry; it must not block. ``on_error`` is told
    what no caller can be told: refused peers, peers that do not read, failures of callbacks. With a ``holder`` accepted
    connections are kept: another process can go on with them (ttrpc.kept_connection).
    """

    def __init__(
        self,
        loop: "PollLoop",
        registry: "Registry",
        *,
        listener: socket.socket,
        start: "Callable[[ServerCall], None]",
        on_error: "Callable[[BaseException], None]",
        max_connections: int = MAX_CONNECTIONS,
        window_bytes: int = RECEIVE_WINDOW_BYTES,
        hard_limit_bytes: int = HARD_LIMIT_BYTES,
        trust_any_peer: bool = False,
        holder: "Holder | None" = None,
    ) -> None:
        listener.setblocking(False)
        self.loop = loop
        self.registry = registry
        self.listener = listener
        self.start = start
        self.on_error = on_error
        self.max_connections = max_connections
        self.window_bytes = window_bytes
        self.hard_limit_bytes = hard_limit_bytes
        self.trust_any_peer = trust_any_peer
        self.holder = holder
        self.connections: set[LoopConnection] = set()
        self._accepting = True
        self._accept_retry: Timer | None = None
        self._on_finished: Callable[[], None] | None = None
        loop.register(listener.fileno(), select.EPOLLIN, self._accept)

    def _accept(self, _mask: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accepting:
                return
            try:
                # Not accept(): what it does around this is 0.1 MB of memory in each shim.
                fd, _ = self.listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._pause_accepting()
                self.on_error(error)
                return
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
            self.adopt(sock)

    def _pause_accepting(self) -> None:
        """The listener stays readable while we cannot accept: without a pause the loop would spin."""
        self.loop.modify(self.listener.fileno(), 0)

        def again() -> None:
            self._accept_retry = None
            if self._accepting:
                self.loop.modify(self.listener.fileno(), select.EPOLLIN)

        self._accept_retry = self.loop.call_later(ACCEPT_RETRY_S, again)

    def adopt(self, sock: socket.socket) -> "LoopConnection | None":
        """Serve a connected socket; None, and closed, when its peer is not ours or there are too many already."""
        try:
            peer = None if self.trust_any_peer else check_peer(sock)
            if len(self.connections) >= self.max_connections:
                raise ConnectionRefusedError(f"{self.max_connections} connections are open; one from {peer} is refused")
        except OSError as error:
            sock.close()
            self.on_error(error)
            return None
        connection = self._keep(sock, peer) if self.holder is not None else LoopConnection(self, sock, peer)
        self.connections.add(connection)
        return connection

    def _keep(self, sock: socket.socket, peer: "Peer | None") -> LoopConnection:
        """Have it held; one that cannot be is served all the same."""
        assert self.holder is not None
        ledger = None
        try:
            ledger = Ledger.create()
            connection = KeptConnection(self, sock, peer, ledger, self.holder)
        except OSError as error:
            if ledger is not None:
                ledger.close()
            self.on_error(error)
            return LoopConnection(self, sock, peer)
        self.holder.hold(sock, ledger)
        return connection

    def resume(self, sock: socket.socket, ledger: Ledger) -> "KeptConnection | None":
        """Go on with a connection of a process that was killed; None, and closed, when that cannot be done.

        Order: before the loop runs on. Both are owned from here on.
        """
        assert self.holder is not None, "a connection is held by somebody"
        try:
            connection = KeptConnection(self, sock, None if self.trust_any_peer else peer_of(sock), ledger, self.holder)
        except OSError as error:
            self.on_error(OSError(f"a connection cannot be gone on with: {error}"))
            self.holder.drop(ledger)
            sock.close()
            ledger.close()
            return None
        self.connections.add(connection)
        try:
            if connection.resume():
                return connection
        except (OSError, ValueError, PeerViolation) as error:
            self.on_error(OSError(f"a connection cannot be gone on with: {error}"))
        connection.lose()
        return None

    def restore(self, sock: socket.socket, state: "dict[str, Any]") -> LoopConnection:
        """Go on with a connection of other code in this process, whose `snapshot` this is.

        Order: as for LoopConnection.restore. Raises: OSError, StatusError; then the socket is closed.
        """
        connection = LoopConnection(self, sock, None if self.trust_any_peer else peer_of(sock))
        self.connections.add(connection)
        try:
            connection.restore(state)
        except BaseException:
            connection.lose()
            raise
        return connection

    def lost(self, connection: LoopConnection) -> None:
        """A connection is closed (told by itself)."""
        self.connections.discard(connection)
        if not self.connections:
            self._finished()

    def guard(self, callback: "Callable[..., None]", *arguments: "Any") -> None:
        """Call what belongs to one call; its failure is reported and is nobody else's."""
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - the server outlives any callback
            self.on_error(error)

    # --- the end

    @property
    def unsent_bytes(self) -> int:
        return sum(connection.outbox.unsent_bytes for connection in self.connections)

    def listen_on(self, listener: socket.socket) -> None:
        """Accept from another socket, which takes the place of ours under the same fd. The caller closes its own.

        Who waits in the old one's backlog is accepted first. Raises: OSError.
        """
        if self._accepting:
            self._accept(0)
            self.loop.unregister(self.listener.fileno())
        listener.setblocking(False)
        os.dup2(listener.fileno(), self.listener.fileno(), inheritable=False)
        if self._accepting:
            self.loop.register(self.listener.fileno(), select.EPOLLIN, self._accept)

    def stop_accepting(self) -> None:
        """Leave new connections in the backlog; those accepted go on. Idempotent."""
        if self._accepting:
            self._accepting = False
            self.loop.unregister(self.listener.fileno())
            if self._accept_retry is not None:
                self._accept_retry.cancel()

    def finish(self, on_finished: "Callable[[], None]", *, deadline_s: float = 1.0) -> None:
        """Accept no more, let what is written reach its readers, then close; ``on_finished`` is called once."""
        self.stop_accepting()
        self._on_finished = on_finished
        self.loop.call_later(deadline_s, self._close_connections)
        for connection in tuple(self.connections):
            connection.lose_when_sent()
        if not self.connections:
            self._finished()

    def _finished(self) -> None:
        if self._on_finished is not None:
            callback, self._on_finished = self._on_finished, None
            self.listener.close()
            callback()

    def _close_connections(self) -> None:
        for connection in tuple(self.connections):
            connection.lose()

    def close(self) -> None:
        """Close everything at once; calls under way are cancelled. Idempotent. The socket's path stays: not ours."""
        self.stop_accepting()
        self._close_connections()
        self.listener.close()
