"""One streaming call of a `BlockingClient`."""

import time

from ttrpc.errors import DeadlineExceeded, StatusError, error_of
from ttrpc.service import parse
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from google.protobuf.message import Message

    from ttrpc.blocking import BlockingClient
    from ttrpc.inbox import Inbox
    from ttrpc.service import Method
    from ttrpc.wire_events import ResponseReceived


class BlockingStream:
    """One streaming call. Iterating it gives the messages until its end."""

    __slots__ = ("_client", "_deadline", "_ended", "_error", "inbox", "method", "stream_id")

    def __init__(
        self, client: "BlockingClient", method: "Method", stream_id: int, deadline: float | None, inbox: "Inbox"
    ) -> None:
        self._client = client
        self.method = method
        self.stream_id = stream_id
        self.inbox = inbox
        self._deadline = deadline
        self._ended = False
        self._error: Exception | None = None

    # --- sending

    def send(self, message: "Message", *, timeout_s: float | None = None) -> None:
        """Send one message.

        Blocks: while the server reads nothing. Raises: StatusError when the stream has ended, DeadlineExceeded (the
        message is on its way nevertheless), ConnectionLost.
        """
        self._transmit(self._message(message), timeout_s)

    def send_nowait(self, message: "Message") -> bool:
        """Send one message without blocking; false when some of it waits in the client's `unsent_bytes`."""
        client = self._client
        try:
            client._outbox.send(client._socket, self._message(message))
        except OSError as error:
            client._lose(error)
        return not client.unsent_bytes

    def close_send(self, *, timeout_s: float | None = None) -> None:
        """Tell the server that no more messages come from here. Nothing happens when the stream has ended."""
        if not self._ended:
            self._transmit(self._client._connection.send_end(self.stream_id), timeout_s)

    def _message(self, message: "Message") -> bytes:
        if self._ended:
            raise self._error or StatusError(Code.CANCELLED, "the server has ended the stream")
        return self._client._connection.send_message(self.stream_id, message.SerializeToString())

    def _transmit(self, data: bytes, timeout_s: float | None) -> None:
        try:
            self._client._send(data, self._until(timeout_s))
        except TimeoutError:
            raise self._late() from None

    # --- receiving

    def receive(self, timeout_s: float | None = None) -> "Any":
        """The next message, or None at the end. A method whose server does not stream gives its one reply so.

        Blocks: until there is one. Raises: StatusError for any end but success, DeadlineExceeded, ConnectionLost.
        A ``timeout_s`` that passes leaves the stream open; the stream's own ends it.
        """
        deadline = self._until(timeout_s)
        while not self.inbox:
            if self._ended:
                return self._final()
            try:
                self._client._receive_some(deadline)
            except TimeoutError:
                raise self._late() from None
        return parse(self.method.output, self.inbox.take(), Code.INTERNAL)

    def receive_nowait(self) -> "Any":
        """Like `receive`. Raises: BlockingIOError when nothing has arrived."""
        if not self.inbox and not self._ended:
            self._client.pump_nowait()
        if self.inbox:
            return parse(self.method.output, self.inbox.take(), Code.INTERNAL)
        if self._ended:
            return self._final()
        raise BlockingIOError("no message has arrived")

    def __iter__(self) -> "Iterator[Any]":
        while (message := self.receive()) is not None:
            yield message

    def close(self) -> None:
        """Forget the stream. ttrpc has no cancel: the server goes on until it ends or the connection closes."""
        if not self._ended:
            if self.stream_id in self._client._connection.open_streams:
                self._client._connection.forget(self.stream_id)
            self.end(StatusError(Code.CANCELLED, "the stream was closed here"))
        self.inbox.clear()

    # --- what the client tells

    def answer(self, event: "ResponseReceived") -> None:
        """The response: an error, or the one reply of a method whose server does not stream."""
        if event.status is not None:
            self.end(error_of(event.status))
            return
        if event.payload is not None or not self.method.server_streaming:
            self.inbox.put(event.payload or b"")
        self.end(None)

    def end(self, error: Exception | None) -> None:
        """The stream is over; what it had received can still be taken."""
        self._ended = True
        self._error = error
        self._client._streams.pop(self.stream_id, None)

    def _final(self) -> None:
        if self._error is not None:
            raise self._error

    def _until(self, timeout_s: float | None) -> float | None:
        if timeout_s is None:
            return self._deadline
        until = time.monotonic() + timeout_s
        return until if self._deadline is None else min(until, self._deadline)

    def _late(self) -> DeadlineExceeded:
        error = DeadlineExceeded(f"{self.method.service}/{self.method.name}: nothing happened in time")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.close()
            self._error = error
        return error
