"""The trio server: a task per call, handlers are async functions named like the rpcs."""

import errno
import logging
import math
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ttrpc.aio_client import raise_only_leaf
from ttrpc.aio_kept import Door, KeptConnection
from ttrpc.aio_wire import Wire
from ttrpc.connection import CALLEE, Connection
from ttrpc.errors import LocalMisuse, StatusError
from ttrpc.inbox import RECEIVE_WINDOW_BYTES, Inbox
from ttrpc.outbox import HARD_LIMIT_BYTES
from ttrpc.peer import Peer, check_peer
from ttrpc.service import Method, Registry, parse
from ttrpc.status import Code, Status
from ttrpc.streams import REQUEST_CLOSED, REQUEST_UNARY
from ttrpc.wire_events import EndReceived, MessageReceived, Refused, RequestReceived

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.wire_events import Event

log = logging.getLogger("ttrpc")

MAX_CONNECTIONS = 1024
ACCEPT_RETRY_S = 0.1  # after EMFILE and its kin; the connection waits in the backlog meanwhile
# How soon a vanished peer is noticed while its connection is not read: nothing else tells trio of a hang-up.
HANG_UP_CHECK_S = 0.5

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Starting(Protocol):
    """What `nursery.start` passes in."""

    def started(self) -> None: ...


async def serve_ttrpc(
    listeners: "socket.socket | trio.SocketListener | Sequence[socket.socket | trio.SocketListener]",
    registry: Registry,
    *,
    max_connections: int = MAX_CONNECTIONS,
    window_bytes: int = RECEIVE_WINDOW_BYTES,
    hard_limit_bytes: int = HARD_LIMIT_BYTES,
    trust_any_peer: bool = False,
    door: Door | None = None,
    task_status: "_Starting" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; peers of another user or group are turned away.

    Cancelling it cancels every handler and closes every connection; the listeners stay the caller's. ``door`` tells
    whether to accept, and brings connections that another process began.
    """
    if isinstance(listeners, (socket.socket, trio.SocketListener)):
        listeners = (listeners,)
    door = Door() if door is None else door
    server = _Server(registry, max_connections, window_bytes, hard_limit_bytes, trust_any_peer, door)
    async with trio.open_nursery() as nursery:
        kept, door.kept = door.kept, ()
        for one in kept:
            nursery.start_soon(server.serve, socket.socket(fileno=one.fd), one)
        for listener in listeners:
            nursery.start_soon(server.accept, _own(listener), nursery)
        task_status.started()


def _own(listener: "socket.socket | trio.SocketListener") -> socket.socket:
    """A descriptor of our own for the same listening socket, so that the caller's may be closed at any time."""
    sock = listener.socket if isinstance(listener, trio.SocketListener) else listener
    return socket.socket(fileno=os.dup(sock.fileno()))


class _Server:
    """What all connections of one `serve_ttrpc` share."""

    def __init__(
        self,
        registry: Registry,
        max_connections: int,
        window_bytes: int,
        hard_limit_bytes: int,
        trust_any_peer: bool,
        door: Door,
    ) -> None:
        self.registry = registry
        self.max_connections = max_connections
        self.window_bytes = window_bytes
        self.hard_limit_bytes = hard_limit_bytes
        self.trust_any_peer = trust_any_peer
        self.door = door
        self.open: set[_ServerConnection] = set()
        door.add(self)

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        listener.setblocking(False)
        try:
            while True:
                await self.door.wait_open()
                await trio.lowlevel.wait_readable(listener.fileno())
                if not self.door.is_open:
                    continue
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    log.warning("accept failed: %s", error)
                    if error.errno in _NO_ROOM:
                        await trio.sleep(ACCEPT_RETRY_S)
                    continue
                nursery.start_soon(self.serve, sock)
        finally:
            trio.lowlevel.notify_closing(listener.fileno())
            listener.close()

    async def serve(self, sock: socket.socket, kept: KeptConnection | None = None) -> None:
        """One connection from accept to close; whatever goes wrong in it stays in it."""
        try:
            peer = None if self.trust_any_peer else check_peer(sock)
            if len(self.open) >= self.max_connections:
                raise ConnectionRefusedError(f"{self.max_connections} connections are open; one from {peer} is refused")
        except OSError as error:
            sock.close()
            log.warning("connection refused: %s", error)
            return
        connection = _ServerConnection(self, sock, peer, kept)
        self.open.add(connection)
        try:
            await connection.serve()
        except Exception:
            log.exception("a connection from %s failed", peer)
        finally:
            self.open.discard(connection)
            connection.wire.close()


class _ServerConnection:
    """Owns its socket and the tasks of its calls."""

    def __init__(self, server: _Server, sock: socket.socket, peer: Peer | None, kept: KeptConnection | None) -> None:
        self.server = server
        self.peer = peer
        self.wire = Wire(sock)
        self.core = Connection(CALLEE)
        self._kept_calls = kept.calls if kept is not None else ()
        if kept is not None:
            self.core = Connection(CALLEE, unparsed=kept.unparsed, skip=kept.skip, last_id=kept.last_id)
            if kept.unsent:
                self.wire.outbox.put(kept.unsent)
        self.calls: dict[int, Context] = {}
        self.news = trio.lowlevel.ParkingLot()  # a call ended or took a message

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self.wire.on_failure = nursery.cancel_scope.cancel
            nursery.start_soon(self.wire.flush_forever)
            for call in self._kept_calls:
                self.core.open_streams[call.stream_id] = call.state
                self._begin(call.event(), nursery)
            await self._read(nursery)
            # Only the peer's sending side may be shut: what it asked for is still answered.
            while (self.calls or self.wire.outbox.unsent_bytes) and not self.wire.is_hung_up():
                with trio.move_on_after(HANG_UP_CHECK_S):
                    await self.news.park()
            nursery.cancel_scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            await self.wire.wait_room()
            while self._is_held():
                if self.wire.is_hung_up():
                    return
                with trio.move_on_after(HANG_UP_CHECK_S):
                    await self.news.park()
            data = await self.wire.receive()
            for event in self.core.receive_bytes(data) if data else self.core.receive_eof():
                self._dispatch(event, nursery)
            if not data:
                return

    def _is_held(self) -> bool:
        if len(self.calls) != 1:
            return False
        (only,) = self.calls.values()
        return only.inbox is not None and only.inbox.is_full

    def _dispatch(self, event: "Event", nursery: trio.Nursery) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event, nursery)
            return
        call = self.calls.get(event.stream_id)
        if isinstance(event, Refused):
            if event.was_open and call is not None:
                call.abandon()
            self.write(event.answer)
        elif call is None or call.inbox is None:
            pass  # messages for a method that takes none, or whose handler has ended
        elif isinstance(event, MessageReceived):
            if call.inbox.is_full and len(self.calls) > 1:
                reason = "messages of this stream were left unread while other calls were open"
                call.answer(Status(Code.RESOURCE_EXHAUSTED, reason))
                call.abandon()
                return
            call.inbox.put(event.payload)
            call.news.unpark_all()
        elif isinstance(event, EndReceived):
            call.half_closed = True
            call.news.unpark_all()

    def _begin(self, event: RequestReceived, nursery: trio.Nursery) -> None:
        try:
            method, handler = self.server.registry.lookup(event.service, event.method)
            if event.shape is REQUEST_UNARY and not method.is_unary:
                raise StatusError(Code.INVALID_ARGUMENT, f"method {event.method} streams, the request's flags do not")
            request: Any = None
            if not method.client_streaming:
                request = parse(method.input, event.payload or b"", Code.INVALID_ARGUMENT)
        except StatusError as error:
            self.write(self.core.send_response(event.stream_id, error.status))
            return
        call = Context(self, event, method)
        self.calls[event.stream_id] = call
        call.begin_again = request
        if call.inbox is not None:
            request = Messages(call)
            if event.payload is not None:
                call.inbox.put(event.payload)
            call.half_closed = event.shape is REQUEST_CLOSED
        nursery.start_soon(call.run, handler, request)

    def write(self, data: bytes) -> None:
        """Write or queue; beyond the hard limit the connection is given up."""
        self.wire.write(data)
        if self.wire.outbox.unsent_bytes > self.server.hard_limit_bytes:
            log.warning("%s does not read: %d bytes unsent", self.peer, self.wire.outbox.unsent_bytes)
            self.wire.fail("the peer does not read")


class Context:
    """What a handler knows of its call besides the request. ``deadline`` is of trio's clock, inf for none."""

    __slots__ = (
        "_answered",
        "_connection",
        "_method",
        "_scope",
        "_stream_id",
        "begin_again",
        "deadline",
        "event",
        "half_closed",
        "inbox",
        "metadata",
        "news",
        "peer",
    )

    def __init__(self, connection: _ServerConnection, event: RequestReceived, method: Method) -> None:
        self._connection = connection
        self.event = event
        # The request that begins this call anew without harm; None: there is none. Handlers set it from their begin on.
        self.begin_again: Message | None = None
        self._stream_id: int = event.stream_id
        self._method = method
        self._answered = False
        # Of a key given twice the first value counts.
        self.metadata: dict[str, str] = dict(reversed(event.metadata)) if event.metadata else {}
        self.deadline = trio.current_time() + event.timeout_ns / 1e9 if event.timeout_ns else math.inf
        self.peer = connection.peer
        self.inbox: Inbox | None = Inbox(connection.server.window_bytes) if method.client_streaming else None
        self.half_closed = False
        self.news = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope(deadline=self.deadline)

    @property
    def service(self) -> str:
        return self._method.service

    @property
    def method(self) -> str:
        return self._method.name

    async def send(self, message: "Message") -> None:
        """Stream one message; waits while much is unsent.

        Raises: StatusError RESOURCE_EXHAUSTED over 4 MiB (the stream is unharmed), LocalMisuse where nothing streams.
        """
        if not self._method.server_streaming:
            raise LocalMisuse(f"{self._method!r} has one reply, no stream")
        connection = self._connection
        connection.write(connection.core.send_message(self._stream_id, message.SerializeToString()))
        await trio.lowlevel.checkpoint()
        await connection.wire.wait_room()

    # --- the call's task

    async def run(self, handler: Any, request: Any) -> None:
        """Run the handler and answer with what it returns or raises."""
        status: Status | None = None
        payload = b""
        try:
            with self._scope:
                payload = self._payload(await self._call(handler, request))
            if self._scope.cancelled_caught:
                status = Status(Code.DEADLINE_EXCEEDED, f"{self.method} took longer than its caller waits")
        except StatusError as error:
            status = error.status
        except Exception as error:
            log.exception("handler of %r failed", self._method)
            status = Status(Code.INTERNAL, f"{type(error).__name__}: {error}")
        self.answer(status, payload)

    async def _call(self, handler: Any, request: Any) -> Any:
        try:
            return await handler(request, self)
        except BaseExceptionGroup as group:
            raise_only_leaf(group)
            raise

    def _payload(self, reply: Any) -> bytes:
        method = self._method
        if method.server_streaming:
            if reply is not None:
                raise LocalMisuse(f"{method!r} streams its answer, its handler returned {reply!r}")
            return b""
        if reply is None and method.output.DESCRIPTOR.full_name == "google.protobuf.Empty":
            return b""
        if type(reply) is not method.output:
            raise LocalMisuse(f"{method!r} was answered with {reply!r}")
        return reply.SerializeToString()

    def answer(self, status: Status | None, payload: bytes = b"") -> None:
        """End the call on the wire, unless it has ended already."""
        if self._answered:
            return
        self._answered = True
        connection = self._connection
        connection.calls.pop(self._stream_id, None)
        connection.news.unpark_all()
        if self._stream_id not in connection.core.open_streams:
            return
        if status is None and self._method.server_streaming:
            connection.write(connection.core.send_end(self._stream_id))
            return
        try:
            data = connection.core.send_response(self._stream_id, status, payload)
        except StatusError as too_long:
            short = too_long.status if status is None else Status(status.code, status.message[:4096])
            data = connection.core.send_response(self._stream_id, short)
        connection.write(data)

    def abandon(self) -> None:
        """Nobody waits for this call any more: cancel its handler, answer nothing."""
        self._answered = True
        self._connection.calls.pop(self._stream_id, None)
        self._scope.cancel()


class Messages:
    """The caller's messages, for ``async for``; `receive` gives None at their end."""

    def __init__(self, call: Context) -> None:
        self._call = call

    async def receive(self) -> Any:
        """Raises: StatusError INVALID_ARGUMENT for a message that is none."""
        await trio.lowlevel.checkpoint()
        call, inbox = self._call, self._call.inbox
        assert inbox is not None
        while not inbox:
            if call.half_closed:
                return None
            await call.news.park()
        payload = inbox.take()
        call._connection.news.unpark_all()
        return parse(call._method.input, payload, Code.INVALID_ARGUMENT)

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> Any:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message
