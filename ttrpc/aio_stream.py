"""One streaming call of a `TrioClient`."""

import math
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import trio

from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError, error_of
from ttrpc.inbox import Inbox
from ttrpc.service import Method, parse
from ttrpc.status import Code
from ttrpc.wire_events import MessageReceived, ResponseReceived

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.aio_client import TrioClient
    from ttrpc.wire_events import Event


class TrioStream:
    """One streaming call; ``async for`` gives the messages until its end. One task receives, another may send."""

    def __init__(
        self,
        client: "TrioClient",
        method: Method,
        request: "Message | None",
        timeout_s: float | None,
        metadata: Mapping[str, str] | None,
    ) -> None:
        self.method = method
        self.stream_id = 0
        self._client = client
        self._request = request
        self._timeout_s = timeout_s
        self._metadata = metadata
        self._deadline = math.inf
        self._inbox = Inbox(client._window_bytes)
        self._ended = False
        self._error: Exception | None = None
        self._news = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> "TrioStream":
        client = self._client
        if self._timeout_s is not None:
            self._deadline = trio.current_time() + self._timeout_s
        with trio.move_on_at(self._deadline):
            await trio.lowlevel.checkpoint()
            await client._wire.wait_room()
            timeout_s = None if self._timeout_s is None else self._deadline - trio.current_time()
            payload = b"" if self._request is None else self._request.SerializeToString()
            self.stream_id = client._begin(self.method, payload, timeout_s, self._metadata, self)
            if self.method.client_streaming and self._request is not None and not payload:
                # An empty payload field is not written, so an empty first message travels by itself.
                client._wire.write(client._connection.send_message(self.stream_id, b""))
            return self
        raise self._late()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the stream. ttrpc has no cancel: the server goes on until it ends or the connection closes."""
        if not self._ended:
            self._finish(StatusError(Code.CANCELLED, "the stream was closed here"))
        self._inbox.clear()
        self._client._end(self.stream_id)

    async def send(self, message: "Message") -> None:
        """Send one message; waits while much is unsent. Raises: StatusError when the stream has ended, ConnectionLost.

        When cancelled while it waits, the message is on its way nevertheless.
        """
        await trio.lowlevel.checkpoint()
        if self._ended:
            raise self._error or StatusError(Code.CANCELLED, "the server has ended the stream")
        client = self._client
        client._wire.write(client._connection.send_message(self.stream_id, message.SerializeToString()))
        await self._wait_room()

    async def close_send(self) -> None:
        """Tell the server that no more messages come from here. Nothing happens when the stream has ended."""
        await trio.lowlevel.checkpoint()
        if not self._ended:
            self._client._wire.write(self._client._connection.send_end(self.stream_id))
            await self._wait_room()

    async def _wait_room(self) -> None:
        with trio.move_on_at(self._deadline) as scope:
            await self._client._wire.wait_room()
        if scope.cancelled_caught:
            raise self._late()

    async def receive(self) -> Any:
        """The next message, or None at the end. A method whose server does not stream gives its one reply so.

        Raises: StatusError for any end but success, DeadlineExceeded, ConnectionLost.
        """
        await trio.lowlevel.checkpoint()
        if not self._inbox and not self._ended:
            with trio.move_on_at(self._deadline):
                while not self._inbox and not self._ended:
                    await self._news.park()
        if self._inbox:
            message = parse(self.method.output, self._inbox.take(), Code.INTERNAL)
            self._client._room.unpark_all()
            return message
        if not self._ended:
            raise self._late()
        if self._error is not None:
            raise self._error
        return None

    def __aiter__(self) -> "TrioStream":
        return self

    async def __anext__(self) -> Any:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    # --- what the client tells

    @property
    def is_full(self) -> bool:
        return self._inbox.is_full

    def told(self, event: "Event") -> None:
        if isinstance(event, MessageReceived):
            if self._inbox.is_full and len(self._client._pending) > 1:
                reason = f"{self._inbox.held_bytes} bytes of this stream were left unread while other calls were open"
                self._finish(StatusError(Code.RESOURCE_EXHAUSTED, reason))
                return
            self._inbox.put(event.payload)
            self._news.unpark_all()
        elif isinstance(event, ResponseReceived):
            if event.status is not None:
                self._finish(error_of(event.status))
                return
            if event.payload is not None or not self.method.server_streaming:
                self._inbox.put(event.payload or b"")
            self._finish(None)
        else:
            self._finish(None)

    def lost(self, reason: str) -> None:
        self._finish(ConnectionLost(reason))

    def _finish(self, error: Exception | None) -> None:
        self._ended = True
        self._error = error
        self._news.unpark_all()
        self._client._end(self.stream_id)

    def _late(self) -> DeadlineExceeded:
        error = DeadlineExceeded(f"{self.method.service}/{self.method.name} passed its {self._timeout_s or 0:g} s")
        if not self._ended:
            self._finish(error)
        return error
