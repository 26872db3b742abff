"""The trio client: any number of tasks call over one connection."""

import contextlib
import math
import socket
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import trio

from ttrpc.aio_stream import TrioStream
from ttrpc.aio_wire import Wire
from ttrpc.connection import CALLER, Connection
from ttrpc.errors import ConnectionLost, DeadlineExceeded, LocalMisuse, error_of
from ttrpc.inbox import RECEIVE_WINDOW_BYTES
from ttrpc.peer import check_peer
from ttrpc.service import Method, find_method, parse
from ttrpc.status import Code
from ttrpc.wire_events import ResponseReceived

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.wire_events import Event


@contextlib.asynccontextmanager
async def open_client(
    path: str,
    *,
    connect_timeout_s: float = 5.0,
    window_bytes: int = RECEIVE_WINDOW_BYTES,
    trust_any_peer: bool = False,
) -> "AsyncIterator[TrioClient]":
    """A client of the server at a Unix socket, connected for the length of the block (``unix://`` is allowed).

    Raises: FileNotFoundError, ConnectionRefusedError and the like as connect(2) has them; DeadlineExceeded;
    PermissionError when the server runs as another user or group. What the block raises comes out as it is.
    """
    sock = await _connect(path, connect_timeout_s)
    try:
        if not trust_any_peer:
            check_peer(sock)
        client = TrioClient(sock, window_bytes=window_bytes)
    except BaseException:
        sock.close()
        raise
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            try:
                yield client
            finally:
                client.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_only_leaf(group)
        raise


async def _connect(path: str, timeout_s: float) -> socket.socket:
    """A Unix connect that waits for room in the server's backlog, which a non-blocking one does not do by itself."""
    path = path.removeprefix("unix://")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with trio.move_on_after(timeout_s):
            while True:
                await trio.lowlevel.checkpoint()
                try:
                    sock.connect(path)
                except BlockingIOError:  # the backlog is full; there is nothing to wait on but time
                    await trio.sleep(0.02)
                else:
                    return sock
        raise DeadlineExceeded(f"{path} took no connection within {timeout_s:g} s")
    except BaseException:
        sock.close()
        raise


def raise_only_leaf(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise the one real error in a nursery's group, as if there had been no nursery. Returns if there is not one."""
    rest = group.split(trio.Cancelled)[1]
    if rest is None:
        return
    leaf: BaseException = rest
    while isinstance(leaf, BaseExceptionGroup):
        if len(leaf.exceptions) != 1:
            return
        leaf = leaf.exceptions[0]
    context = leaf.__context__
    try:
        raise leaf
    finally:
        leaf.__context__ = context
        del leaf, rest


class TrioClient:
    """One connection to a ttrpc server. `open_client` makes and runs it; by hand, start `run` in a nursery.

    Owns: the socket. A stream whose receive window is full while other calls are open is failed with
    RESOURCE_EXHAUSTED; alone on the connection it only stops the reading, so that the server feels it. A stream that
    needs such backpressure therefore wants a connection of its own.
    """

    def __init__(self, sock: "socket.socket | trio.SocketStream", *, window_bytes: int = RECEIVE_WINDOW_BYTES) -> None:
        self._wire = Wire(sock)
        self._wire.on_failure = self._lost
        self._connection = Connection(CALLER)
        self._pending: dict[int, _Pending | TrioStream] = {}
        self._window_bytes = window_bytes
        self._room = trio.lowlevel.ParkingLot()
        self._closed = trio.Event()

    async def run(self) -> None:
        """Read and write until the connection ends, however it does. Raises nothing but Cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wire.flush_forever)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _read(self) -> None:
        while True:
            while self._is_held():
                await self._room.park()
            data = await self._wire.receive()
            if not data:
                self._wire.fail("the server closed the connection")
                return
            for event in self._connection.receive_bytes(data):
                pending = self._pending.get(event.stream_id)
                if pending is not None:
                    pending.told(event)

    def _is_held(self) -> bool:
        """Whether the one open stream is full, so that reading on would only pile up more of it."""
        if len(self._pending) != 1:
            return False
        (only,) = self._pending.values()
        return only.is_full

    def _lost(self) -> None:
        pending = tuple(self._pending.values())
        self._pending.clear()
        self._connection.open_streams.clear()
        for waiting in pending:
            waiting.lost(str(self._wire.failure))
        self._closed.set()
        self._room.unpark_all()

    # --- calls

    async def call(
        self,
        service: str,
        method: str,
        request: "Message",
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """One unary call; returns the reply message. Cancelling it forgets the call: the server is not told.

        Raises: StatusError, DeadlineExceeded (the server may still be at it), ConnectionLost.
        """
        found = find_method(service, method)
        if not found.is_unary:
            raise LocalMisuse(f"{service}/{method} streams; use open_stream")
        payload = request.SerializeToString()
        pending = _Pending()
        with trio.move_on_after(math.inf if timeout_s is None else max(0.0, timeout_s)):
            if self._wire.is_crowded:
                await self._wire.wait_room()
            stream_id = self._begin(found, payload, timeout_s, metadata, pending)
            try:
                await pending.event.wait()
            finally:
                self._end(stream_id)
        if pending.failure is not None:
            raise ConnectionLost(pending.failure)
        answer = pending.answer
        if answer is None:
            raise DeadlineExceeded(f"{service}/{method} was not answered within {timeout_s or 0:g} s")
        if answer.status is not None:
            raise error_of(answer.status)
        return parse(found.output, answer.payload or b"", Code.INTERNAL)

    def open_stream(
        self,
        service: str,
        method: str,
        request: "Message | None" = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "TrioStream":
        """A call that streams, for an ``async with`` block: it begins on entry and is forgotten on exit.

        ``request`` is what a server-streaming method asks for, or the first message of a method whose caller streams.
        ``timeout_s`` limits the whole stream.
        """
        found = find_method(service, method)
        if not found.client_streaming and request is None:
            raise LocalMisuse(f"{service}/{method} takes one request message")
        return TrioStream(self, found, request, timeout_s, metadata)

    def _begin(
        self,
        found: Method,
        payload: bytes,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None,
        pending: "_Pending | TrioStream",
    ) -> int:
        """Take a stream id, note who waits for it, write the request: no checkpoint between."""
        if self._wire.failure is not None:
            raise ConnectionLost(self._wire.failure)
        timeout_ns = 0
        if timeout_s is not None:
            timeout_ns = int(timeout_s * 1e9)
            if timeout_ns <= 0:
                raise DeadlineExceeded(f"no time left to call {found.service}/{found.name}")
        pairs = tuple(metadata.items()) if metadata else ()
        stream_id, data = self._connection.send_request(found.shape, found.prefix, payload, timeout_ns, pairs)
        self._pending[stream_id] = pending
        self._wire.write(data)
        self._room.unpark_all()
        return stream_id

    def _end(self, stream_id: int) -> None:
        """Nobody waits for this stream any more."""
        self._pending.pop(stream_id, None)
        if stream_id in self._connection.open_streams:
            self._connection.forget(stream_id)
        self._room.unpark_all()

    # --- the end

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, from either side."""
        await self._closed.wait()

    def close(self) -> None:
        """Close the connection; open calls end with ConnectionLost. Idempotent."""
        self._wire.close()


class _Pending:
    """A unary call that waits."""

    __slots__ = ("answer", "event", "failure")
    is_full = False

    def __init__(self) -> None:
        self.event = trio.Event()
        self.answer: ResponseReceived | None = None
        self.failure: str | None = None

    def told(self, event: "Event") -> None:
        assert isinstance(event, ResponseReceived), "the table lets a unary stream have nothing else"
        self.answer = event
        self.event.set()

    def lost(self, reason: str) -> None:
        self.failure = reason
        self.event.set()
