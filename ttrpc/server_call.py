"""One call as the poll-loop server hands it to whoever answers it."""

from ttrpc.envelope import bytes_field_head
from ttrpc.errors import LocalMisuse, StatusError
from ttrpc.inbox import Inbox
from ttrpc.ledger import NO_FACT, Unanswered
from ttrpc.outbox import HIGH_WATER_BYTES
from ttrpc.service import parse
from ttrpc.status import Code, Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from google.protobuf.message import Message

    from ttrpc.loop_connection import LoopConnection
    from ttrpc.peer import Peer
    from ttrpc.service import Method
    from ttrpc.wire_events import RequestReceived

_MESSAGE_LIMIT_CHARS = 4096  # what is kept of an error text that does not fit a frame


class ServerCall:
    """A call under way. Answer it once: `reply` or `fail`; a method whose server streams: `send` …, then `finish`.

    Owns: the messages nobody took yet, at most one receive window. Nothing here blocks. Once `is_open` is false every
    answer is dropped without a word: the caller is gone and cannot be told.
    """

    __slots__ = (
        "_half_closed",
        "_on_cancel",
        "_on_half_close",
        "_on_message",
        "_paused",
        "answered",
        "carry",
        "connection",
        "deadline_s",
        "fact",
        "handler",
        "inbox",
        "is_open",
        "metadata_pairs",
        "method",
        "on_drain",
        "payload",
        "recovered",
        "request",
        "stream_id",
    )

    def __init__(
        self, connection: "LoopConnection", event: "RequestReceived", method: "Method", handler: "Any"
    ) -> None:
        self.connection = connection
        self.stream_id: int = event.stream_id
        self.method = method
        self.handler = handler
        self.payload: bytes | None = event.payload
        self.metadata_pairs: Sequence[tuple[str, str]] = event.metadata
        self.deadline_s: float | None = max(0.0, event.timeout_ns / 1e9) if event.timeout_ns else None
        self.is_open = True
        self.answered = False
        self.request: Any = None
        self.recovered: Unanswered | None = None  # of a call that another process had taken in, and was killed
        self.fact = NO_FACT  # what was so before it was begun
        # What its handler has of a stream that other code in this process would need to go on with it: plain values,
        # the handler's own. None: it was not begun, and can be begun by whoever goes on.
        self.carry: Callable[[], dict[str, Any]] | None = None
        self.on_drain: Callable[[], None] | None = None
        self.inbox: Inbox | None = Inbox(connection.server.window_bytes) if method.client_streaming else None
        self._paused = False
        self._half_closed = False
        self._on_message: Callable[[Any], None] | None = None
        self._on_half_close: Callable[[], None] | None = None
        self._on_cancel: tuple[Callable[[], None], ...] = ()

    @property
    def service(self) -> str:
        return self.method.service

    @property
    def metadata(self) -> dict[str, str]:
        """The request's metadata; of a key given twice the first value counts."""
        return dict(reversed(self.metadata_pairs)) if self.metadata_pairs else {}

    @property
    def peer(self) -> "Peer | None":
        return self.connection.peer

    def begin(self, fact: int) -> None:
        """Say that it is done from here on, and what is so before it: a successor is told, in `recovered`."""
        self.fact = fact
        self.connection.note(self, fact)

    def promise(self, message: "Message") -> None:
        """Say what the answer is, before or after what is done: a successor is told, in `recovered`."""
        self.connection.promise(self, message.SerializeToString())

    # --- answering

    def reply(self, message: "Message | None") -> None:
        """Answer with a message. None stands for google.protobuf.Empty, where that is the method's output.

        Order: an answer over 4 MiB becomes RESOURCE_EXHAUSTED for this call; the connection stays up.
        """
        if self.method.server_streaming:
            raise LocalMisuse(f"{self.method!r} streams its answer: send and finish")
        if message is None and self.method.output.DESCRIPTOR.full_name == "google.protobuf.Empty":
            message = self.method.output()
        if type(message) is not self.method.output:
            self.fail(Code.INTERNAL, "the handler returned no %s" % self.method.output.DESCRIPTOR.full_name)
            raise LocalMisuse(f"{self.method!r} was answered with {message!r}")
        self._answer(None, message.SerializeToString())

    def fail(self, code: int, message: str, details: "Sequence[tuple[str, bytes]]" = ()) -> None:
        """Answer with an error; ends a stream too."""
        self._answer(Status(code, message, details), b"")

    def send(self, message: "Message", bulk: bytes = b"", field: int = 0) -> bool:
        """Stream one message. False: more than the high-water mark waits; `on_drain` is called when there is room.

        With ``bulk`` that is the value of its bytes field of this number, and goes to the socket uncopied.
        False as well when the call is no longer open: then no drain comes, `on_cancel` has been called.
        Raises: StatusError RESOURCE_EXHAUSTED over 4 MiB (the stream is unharmed), LocalMisuse where nothing streams.
        """
        if not self.method.server_streaming:
            raise LocalMisuse(f"{self.method!r} has one reply, no stream")
        if not self.is_open:
            return False
        connection = self.connection
        head = message.SerializeToString()
        if bulk:
            head += bytes_field_head(field, len(bulk))
        connection.write(connection.core.send_message_head(self.stream_id, len(head) + len(bulk)) + head, bulk)
        if connection.outbox.unsent_bytes <= HIGH_WATER_BYTES:
            return self.is_open  # the write may have found the connection gone
        connection.awaits_drain(self)
        return False

    def finish(self) -> None:
        """End the stream with success."""
        if not self.method.server_streaming:
            raise LocalMisuse(f"{self.method!r} ends with its reply")
        if self._may_answer():
            self._close(self.connection.core.send_end(self.stream_id))

    def _answer(self, status: "Status | None", payload: bytes) -> None:
        if not self._may_answer():
            return
        core = self.connection.core
        try:
            data = core.send_response(self.stream_id, status, payload)
        except StatusError as too_long:
            short = too_long.status if status is None else Status(status.code, status.message[:_MESSAGE_LIMIT_CHARS])
            data = core.send_response(self.stream_id, short)
        self._close(data)

    def _may_answer(self) -> bool:
        if self.answered:
            raise LocalMisuse(f"{self.method!r} on stream {self.stream_id} is answered already")
        self.answered = True
        return self.is_open

    def _close(self, data: bytes) -> None:
        self.is_open = False
        self._forget_callbacks()
        self.connection.answered(self, data)

    # --- what the caller streams

    def on_message(self, callback: "Callable[[Any], None]") -> None:
        """Have each message of the caller; those that came before are given at once."""
        self._on_message = callback
        self._give()

    def on_half_close(self, callback: "Callable[[], None]") -> None:
        """Be told once that the caller sends no more, after its last message."""
        self._on_half_close = callback
        self._give()

    def on_cancel(self, callback: "Callable[[], None]") -> None:
        """Be told when nobody waits for the answer any more: the connection died, or the caller broke the protocol."""
        if self.is_open:
            self._on_cancel += (callback,)
        elif not self.answered:
            callback()

    def pause(self) -> None:
        """Take no more messages for now. They wait here, up to one receive window; beyond it the connection is no
        longer read if this is its only call, otherwise this call fails with RESOURCE_EXHAUSTED.
        """
        self._paused = True

    def resume(self) -> None:
        """Go on taking messages, first those that waited."""
        self._paused = False
        self._give()
        self.connection.adjust()

    def received(self, payload: bytes) -> None:
        """A message came in (told by the connection). Messages to a method that takes none are ignored."""
        if self.inbox is None:
            return
        if self.inbox.is_full and len(self.connection.calls) > 1:
            self.fail(Code.RESOURCE_EXHAUSTED, "messages of this stream were left unread while other calls were open")
            self._tell_cancelled()
            return
        self.inbox.put(payload)
        self._give()

    def half_closed(self) -> None:
        """The caller sends no more (told by the connection)."""
        self._half_closed = True
        self._give()

    def _give(self) -> None:
        inbox = self.inbox
        while inbox and self._on_message is not None and not self._paused and self.is_open:
            try:
                message = parse(self.method.input, inbox.take(), Code.INVALID_ARGUMENT)
            except StatusError as error:
                self.fail(error.code, error.message)
                self._tell_cancelled()
                return
            self._on_message(message)
        if self._half_closed and not inbox and self._on_half_close is not None and self.is_open:
            callback, self._on_half_close = self._on_half_close, None
            callback()

    # --- going on in other code

    def snapshot(self) -> "dict[str, Any]":
        """All of it but what its handler has, as plain values."""
        return {
            "stream_id": self.stream_id,
            "state": self.connection.core.open_streams[self.stream_id],
            "service": self.service,
            "method": self.method.name,
            "payload": self.payload,
            "metadata": list(self.metadata_pairs),
            "deadline_s": self.deadline_s,
            "fact": self.fact,
            "half_closed": self._half_closed,
            "inbox": self.inbox.waiting() if self.inbox is not None else [],
        }

    def await_drain(self) -> None:
        """Have `on_drain` called once little is unsent, as after a `send` that was answered by False."""
        self.connection.awaits_drain(self)

    def restore(self, state: "dict[str, Any]") -> None:
        """Take what came for it before. It is paused: whoever has begun it anew resumes it."""
        self._paused = True
        self._half_closed = state["half_closed"]
        if self.inbox is not None:
            for payload in state["inbox"]:
                self.inbox.put(payload)
        if state["fact"] != NO_FACT:
            self.recovered = Unanswered(self.stream_id, state["fact"], b"")

    # --- the end from outside

    def cancelled(self) -> None:
        """Nobody waits for this call any more (told by the connection)."""
        if self.is_open:
            self.is_open = False
            self._tell_cancelled()

    def _tell_cancelled(self) -> None:
        callbacks, self._on_cancel = self._on_cancel, ()
        self._forget_callbacks()
        for callback in callbacks:
            self.connection.server.guard(callback)

    def _forget_callbacks(self) -> None:
        """Handlers and calls refer to each other; without this each ended call would wait for the garbage collector."""
        self.on_drain = self._on_message = self._on_half_close = self.carry = None
        if self.inbox is not None:
            self.inbox.clear()
