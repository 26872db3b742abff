"""A ttrpc server with a thread for each call: for fakes, whose handlers are then plain functions.

It can lose a connection at will: before a named call takes effect, or after it did but before its reply.
"""

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from ttrpc.connection import CALLEE, Connection
from ttrpc.errors import LocalMisuse, StatusError
from ttrpc.service import Registry, parse
from ttrpc.status import Code, Status
from ttrpc.wire_events import EndReceived, MessageReceived, RequestReceived

BEFORE, AFTER = "before", "after"


class Call:
    """One call as its handler sees it: the request (None when the caller streams), messages in, messages out."""

    def __init__(self, link: "Link", stream_id: int, method: Any, request: Any, metadata: dict[str, str]) -> None:
        self._link = link
        self._id = stream_id
        self.method = method
        self.request = request
        self.metadata = metadata
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()  # None at the caller's half-close or the link's end

    def send(self, message: Any) -> bool:
        """One message to the caller; false when it is gone."""
        return self._link.write(lambda connection: connection.send_message(self._id, message.SerializeToString()))

    @property
    def is_open(self) -> bool:
        return not self._link.is_closed


class Link:
    """One client's connection."""

    def __init__(self, server: "ThreadServer", sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._connection = Connection(CALLEE)
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self.is_closed = False

    def write(self, make: Callable[[Connection], bytes]) -> bool:
        with self._lock:
            try:
                self._sock.sendall(make(self._connection))
            except (OSError, LocalMisuse):
                return False
        return True

    def close(self) -> None:
        self.is_closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        for call in list(self._calls.values()):
            call.messages.put(None)

    def serve(self) -> None:
        """Read until the client goes away."""
        with contextlib.suppress(OSError):
            while data := self._sock.recv(65536):
                with self._lock:
                    events = self._connection.receive_bytes(data)
                for event in events:
                    self._take(event)
        self.close()
        self._sock.close()

    def _take(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            try:
                method, handler = self._server.registry.lookup(event.service, event.method)
                request = None
                if not method.client_streaming:
                    request = parse(method.input, event.payload or b"", Code.INVALID_ARGUMENT)
            except StatusError as error:
                self._answer(event.stream_id, error.status)
                return
            call = Call(self, event.stream_id, method, request, dict(event.metadata))
            self._calls[event.stream_id] = call
            self._server.spawn(lambda: self._run(call, handler, event.stream_id))
        elif isinstance(event, MessageReceived) and event.stream_id in self._calls:
            call = self._calls[event.stream_id]
            call.messages.put(parse(call.method.input, event.payload, Code.INVALID_ARGUMENT))
        elif isinstance(event, EndReceived) and event.stream_id in self._calls:
            self._calls[event.stream_id].messages.put(None)

    def _run(self, call: Call, handler: Callable[[Call], Any], stream_id: int) -> None:
        when = self._server.losses.pop(call.method.name, None)
        if when == BEFORE:
            self._server.lose_connections()
            return
        status, reply = None, b""
        try:
            answered = handler(call)
            reply = b"" if answered is None else answered.SerializeToString()
        except StatusError as error:
            status = error.status
        except Exception as error:  # noqa: BLE001 - the caller must hear of it, or it waits for ever
            status = Status(Code.INTERNAL, repr(error))
        if when == AFTER:
            self._server.lose_connections()
            return
        if call.method.server_streaming and status is None:
            self.write(lambda connection: connection.send_end(stream_id))
        else:
            self._answer(stream_id, status, reply)
        self._calls.pop(stream_id, None)

    def _answer(self, stream_id: int, status: Status | None, reply: bytes = b"") -> None:
        self.write(lambda connection: connection.send_response(stream_id, status, reply))


class ThreadServer:
    """Serves a registry on a Unix socket. Owns the socket file and its threads, from `start` to `stop`."""

    def __init__(self, path: str, registry: Registry) -> None:
        self.path = path
        self.registry = registry
        self.losses: dict[str, str] = {}  # method → BEFORE or AFTER; each happens once
        self._listener: socket.socket | None = None
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.spawn(self._accept, self._listener)

    def spawn(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            link = Link(self, sock)
            self._links.append(link)
            self.spawn(link.serve)

    def lose_connections(self) -> None:
        """What clients see of a killed process; the socket goes on listening, as after its restart."""
        links, self._links = self._links, []
        for link in links:
            link.close()

    def die(self) -> None:
        """As SIGKILL: no listener, no connections, the socket's file stays."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.lose_connections()

    def stop(self) -> None:
        """End it, and wait for every thread. Handlers must return once their call is no longer open."""
        self.die()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
