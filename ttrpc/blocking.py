"""A client on a plain socket, with deadlines. For command lines, tests and select loops; one thread at a time."""

import select
import socket
import struct
import time

from ttrpc.blocking_stream import BlockingStream
from ttrpc.connection import CALLER, Connection
from ttrpc.errors import ConnectionLost, DeadlineExceeded, LocalMisuse, StatusError, error_of
from ttrpc.inbox import RECEIVE_WINDOW_BYTES, Inbox
from ttrpc.outbox import Outbox
from ttrpc.peer import check_peer
from ttrpc.service import find_method, parse
from ttrpc.status import Code
from ttrpc.wire_events import MessageReceived, ResponseReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from google.protobuf.message import Message

    from ttrpc.service import Method
    from ttrpc.wire_events import Event

READ_BYTES = 64 << 10
STREAM_READ_BYTES = 256 << 10  # of a select loop: all that a Unix socket holds by default, and frames are not cut


class BlockingClient:
    """One connection to a ttrpc server.

    Owns: the socket. Not for two threads at once. A stream whose receive window is full while other calls are open is
    failed with RESOURCE_EXHAUSTED; alone on the connection it only stops the reading, so the server feels it.
    """

    def __init__(self, sock: socket.socket, *, window_bytes: int = RECEIVE_WINDOW_BYTES) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._connection = Connection(CALLER)
        self._outbox = Outbox()
        self._streams: dict[int, BlockingStream] = {}
        self._awaited_id = 0  # the unary call under way, 0 for none
        self._answer: ResponseReceived | None = None
        self._lost: str | None = None
        self._window_bytes = window_bytes
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    @classmethod
    def connect(cls, path: str, *, timeout_s: float = 5.0, trust_any_peer: bool = False) -> "BlockingClient":
        """Connect to a Unix socket; a ``unix://`` prefix is allowed.

        Blocks: while the server's backlog is full, at most ``timeout_s``.
        Raises: FileNotFoundError, ConnectionRefusedError and the like as connect(2) has them; DeadlineExceeded;
        PermissionError when the server runs as another user or group.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A Unix connect waits for room in the backlog only on a blocking socket; its limit is SO_SNDTIMEO.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))
            try:
                sock.connect(path.removeprefix("unix://"))
            except BlockingIOError:
                raise DeadlineExceeded(f"{path} took no connection within {timeout_s:g} s") from None
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0.0))
            if not trust_any_peer:
                check_peer(sock)
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    # --- calls

    def call(
        self,
        service: str,
        method: str,
        request: "Message",
        *,
        timeout_s: float | None = None,
        metadata: "Mapping[str, str] | None" = None,
    ) -> "Any":
        """One unary call; returns the reply message.

        Blocks: until the answer, at most ``timeout_s`` (which the server is told too).
        Raises: StatusError, DeadlineExceeded (the server may still be at it), ConnectionLost.
        """
        found = find_method(service, method)
        if not found.is_unary:
            raise LocalMisuse(f"{service}/{method} streams; use open_stream")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        stream_id, data = self._begin(found, request.SerializeToString(), timeout_s, metadata)
        self._awaited_id = stream_id
        self._answer = None
        try:
            self._send(data, deadline)
            answer = self._await_answer(deadline)
        except TimeoutError:
            raise DeadlineExceeded(f"{service}/{method} was not answered within {timeout_s:g} s") from None
        finally:
            self._awaited_id = 0
            if stream_id in self._connection.open_streams:
                self._connection.forget(stream_id)
        if answer.status is not None:
            raise error_of(answer.status)
        return parse(found.output, answer.payload or b"", Code.INTERNAL)

    def _await_answer(self, deadline: float | None) -> ResponseReceived:
        while (answer := self._answer) is None:
            self._receive_some(deadline)
        return answer

    def open_stream(
        self,
        service: str,
        method: str,
        request: "Message | None" = None,
        *,
        timeout_s: float | None = None,
        metadata: "Mapping[str, str] | None" = None,
    ) -> "BlockingStream":
        """Begin a call that streams. ``request`` is what a server-streaming method asks for, or the first message of
        a method whose caller streams. ``timeout_s`` limits the whole stream.

        Raises: ConnectionLost, DeadlineExceeded.
        """
        found = find_method(service, method)
        if not found.client_streaming and request is None:
            raise LocalMisuse(f"{service}/{method} takes one request message")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        payload = b"" if request is None else request.SerializeToString()
        stream_id, data = self._begin(found, payload, timeout_s, metadata)
        stream = BlockingStream(self, found, stream_id, deadline, Inbox(self._window_bytes))
        self._streams[stream_id] = stream
        if found.client_streaming and request is not None and not payload:
            # An empty payload field is not written, so an empty first message travels by itself.
            data += self._connection.send_message(stream_id, b"")
        try:
            self._send(data, deadline)
        except TimeoutError:
            stream.close()
            raise DeadlineExceeded(f"{service}/{method} could not be sent within {timeout_s:g} s") from None
        return stream

    def _begin(
        self, method: "Method", payload: bytes, timeout_s: float | None, metadata: "Mapping[str, str] | None"
    ) -> tuple[int, bytes]:
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        timeout_ns = 0
        if timeout_s is not None:
            timeout_ns = int(timeout_s * 1e9)
            if timeout_ns <= 0:
                raise DeadlineExceeded(f"no time left to call {method.service}/{method.name}")
        pairs = tuple(metadata.items()) if metadata else ()
        return self._connection.send_request(method.shape, method.prefix, payload, timeout_ns, pairs)

    # --- the socket

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent_bytes(self) -> int:
        """What `BlockingStream.send_nowait` and timed-out sends left to write; `pump_nowait` goes on with it."""
        return self._outbox.unsent_bytes

    def pump_nowait(self) -> None:
        """Write and read once what is possible without blocking; for select loops. Never raises for a lost
        connection: the streams tell it, after what they had received.
        """
        if self._lost is not None:
            return
        try:
            self._outbox.flush(self._socket)
            if not self._is_held():
                self._received(self._socket.recv(STREAM_READ_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(error)

    def _send(self, data: bytes, deadline: float | None) -> None:
        """Write it all, reading meanwhile: a server that waits for us to read would never take the rest.

        Raises: TimeoutError; what is left of a frame goes out with the next send, so framing survives.
        """
        try:
            self._outbox.send(self._socket, data)
        except OSError as error:
            self._lose(error)
            raise ConnectionLost(str(self._lost)) from error
        while self._outbox.unsent_bytes:
            self._receive_some(deadline)

    def _receive_some(self, deadline: float | None) -> None:
        """Wait for the socket, then write and read once. Raises: TimeoutError, ConnectionLost."""
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        try:
            if deadline is None and not self._outbox.unsent_bytes:
                self._received(self._socket.recv(READ_BYTES))
                return
            ready = self._wait_ready(deadline)
            if ready & select.POLLOUT:
                self._outbox.flush(self._socket)
            if ready & ~select.POLLOUT:  # a hang-up too: it comes whether asked for or not, and reading settles it
                self._received(self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
        except TimeoutError:
            raise
        except OSError as error:
            self._lose(error)

    def _wait_ready(self, deadline: float | None) -> int:
        events = 0 if self._is_held() else select.POLLIN
        if self._outbox.unsent_bytes:
            events |= select.POLLOUT
        self._poll.modify(self._socket.fileno(), events)
        wait_ms = None
        if deadline is not None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            wait_ms = remaining_s * 1e3
        for _, ready in self._poll.poll(wait_ms):
            if ready & select.POLLNVAL:
                raise OSError("the socket is closed")
            return ready
        raise TimeoutError

    def _is_held(self) -> bool:
        """Whether the one open stream is full, so that reading on would only pile up more of it."""
        if len(self._connection.open_streams) != 1 or not self._streams:
            return False
        (only,) = self._connection.open_streams
        stream = self._streams.get(only)
        return stream is not None and stream.inbox.is_full

    def _received(self, data: bytes) -> None:
        if not data:
            self._lose(None)
            return
        for event in self._connection.receive_bytes(data):
            self._dispatch(event)

    def _dispatch(self, event: "Event") -> None:
        stream_id = event.stream_id
        if type(event) is ResponseReceived and stream_id == self._awaited_id:
            self._answer = event
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if type(event) is MessageReceived:
            if stream.inbox.is_full and len(self._connection.open_streams) > 1:
                self._connection.forget(stream_id)
                stream.end(_unread(stream.inbox))
            else:
                stream.inbox.put(event.payload)
        elif type(event) is ResponseReceived:
            stream.answer(event)
        else:
            stream.end(None)

    def _lose(self, error: OSError | None) -> None:
        """Note the end of the connection; every open stream ends with it, after what it had received."""
        if self._lost is None:
            self._lost = "the server closed the connection" if error is None else f"the connection broke: {error}"
            self._outbox.clear()
            for stream in tuple(self._streams.values()):
                stream.end(ConnectionLost(self._lost))

    @property
    def is_closed(self) -> bool:
        return self._lost is not None

    def close(self) -> None:
        """Close the connection; the server's handlers of open calls see it. Idempotent."""
        if self._lost is None:
            self._lost = "this client is closed"
        for stream in tuple(self._streams.values()):
            stream.end(ConnectionLost(self._lost))
        self._socket.close()

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()


def _timeval(seconds: float) -> bytes:
    """struct timeval as setsockopt wants it. Source: socket(7), SO_SNDTIMEO; zero is no limit."""
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1e6))


def _unread(inbox: Inbox) -> StatusError:
    reason = f"{inbox.held_bytes} bytes of this stream were left unread while other calls were under way"
    return StatusError(Code.RESOURCE_EXHAUSTED, reason)
