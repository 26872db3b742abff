"""One accepted connection on somebody else's poll loop."""

import select
import socket

from ttrpc.connection import CALLEE, Connection
from ttrpc.envelope import Request
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.outbox import HIGH_WATER_BYTES, LOW_WATER_BYTES, Outbox
from ttrpc.server_call import ServerCall
from ttrpc.service import parse
from ttrpc.status import Code
from ttrpc.streams import REQUEST_CLOSED, REQUEST_UNARY, STATES
from ttrpc.wire_events import MessageReceived, Refused, RequestReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ttrpc.ledger import Ledger
    from ttrpc.loopdriver import LoopServer
    from ttrpc.peer import Peer
    from ttrpc.wire_events import Event

READ_BYTES = 64 << 10  # per turn, so that one busy connection does not keep the loop from the others
_GONE = select.EPOLLHUP | select.EPOLLERR


class LoopConnection:
    """Owns its socket, what is unread and unsent on it, and the calls under way (`calls`, by stream id).

    Reads only while the peer takes its answers (high-water mark) and while its only call takes its messages.
    Nothing here blocks.
    """

    __slots__ = (
        "_at_eof",
        "_draining",
        "_ending",
        "_mask",
        "calls",
        "core",
        "fd",
        "is_open",
        "outbox",
        "peer",
        "server",
        "sock",
    )

    def __init__(self, server: "LoopServer", sock: socket.socket, peer: "Peer | None") -> None:
        self.server = server
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.core = Connection(CALLEE)
        self.calls: dict[int, ServerCall] = {}
        self.outbox: Outbox | Ledger = Outbox()
        self.is_open = True
        self._at_eof = False
        self._ending = False
        self._draining: list[ServerCall] = []
        self._mask = select.EPOLLIN
        server.loop.register(self.fd, self._mask, self._on_ready)

    # --- reading

    def _on_ready(self, mask: int) -> None:
        try:
            self._turn(mask)
        except MemoryError as error:
            # What was read may be gone: the peer is to know that it will not be answered.
            self.server.on_error(error)
            self.lose()

    def _turn(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush()
        if mask & select.EPOLLIN and self._mask & select.EPOLLIN:
            if self.is_open:
                self._read(bool(mask & select.EPOLLHUP))
        elif mask & _GONE and self._is_gone():
            self.lose()

    def _is_gone(self) -> bool:
        """Ask again: the report may be about a closed socket whose fd number became ours in the same turn."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def _read(self, hung_up: bool) -> None:
        try:
            data = self.sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self.lose()
            return
        if data:
            events = self.core.receive_bytes(data)
        elif hung_up:
            self.lose()
            return
        else:
            # Only the peer's sending side is shut: what it asked for is still answered.
            self._at_eof = True
            events = self.core.receive_eof()
        for event in events:
            self._dispatch(event)
            if not self.is_open:
                return
        self.adjust()

    def _dispatch(self, event: "Event") -> None:
        if type(event) is RequestReceived:
            self._begin(event)
            return
        call = self.calls.get(event.stream_id)
        if type(event) is Refused:
            if event.was_open and call is not None:
                del self.calls[event.stream_id]
                call.cancelled()
            self.write(event.answer)
        elif call is None:
            pass
        elif type(event) is MessageReceived:
            self.server.guard(call.received, event.payload)
        else:
            self.server.guard(call.half_closed)

    def _begin(self, event: RequestReceived) -> None:
        try:
            method, handler = self.server.registry.lookup(event.service, event.method)
            if event.shape is REQUEST_UNARY and not method.is_unary:
                raise StatusError(Code.INVALID_ARGUMENT, f"method {event.method} streams, the request's flags do not")
            call = ServerCall(self, event, method, handler)
            if not method.client_streaming:
                call.request = parse(method.input, event.payload or b"", Code.INVALID_ARGUMENT)
        except StatusError as error:
            self.write(self.core.send_response(event.stream_id, error.status))
            return
        self.calls[event.stream_id] = call
        self._admit(call)
        if call.inbox is not None:
            if event.payload is not None:
                call.inbox.put(event.payload)
            if event.shape is REQUEST_CLOSED:
                call.half_closed()
        self.begin(call)

    def begin(self, call: ServerCall) -> None:
        """Have a call answered."""
        try:
            self.server.start(call)
        except Exception as error:  # noqa: BLE001 - one call's failure is answered and reported, and is nobody else's
            if not call.answered:
                call.fail(Code.INTERNAL, f"the handler could not be started: {error}")
            self.server.on_error(error)

    def _admit(self, call: ServerCall) -> None:
        """A call is about to be started."""

    def note(self, call: ServerCall, fact: int) -> None:
        """Have it known of a call, should this process be killed, what was so when it was begun."""

    def promise(self, call: ServerCall, answer: bytes) -> None:
        """Have the answer of a call known, should this process be killed."""

    # --- writing

    def write(self, data: bytes, bulk: bytes = b"") -> None:
        """Send now what the socket takes of both, queue the rest; beyond the hard limit the connection is given up."""
        if not self.is_open:
            return
        outbox = self.outbox
        try:
            outbox.send(self.sock, data, bulk)
        except OSError:
            self.lose()
            return
        if outbox.unsent_bytes:
            if outbox.unsent_bytes > self.server.hard_limit_bytes:
                reason = f"{self.peer} does not read: {outbox.unsent_bytes} bytes unsent"
                self.lose()
                self.server.on_error(ConnectionLost(reason))
                return
            self.adjust()

    def _flush(self) -> None:
        try:
            self.outbox.flush(self.sock)
        except OSError:
            self.lose()
            return
        if self._draining and self.outbox.unsent_bytes <= LOW_WATER_BYTES:
            draining, self._draining = self._draining, []
            for call in draining:
                if call.on_drain is not None and call.is_open:
                    self.server.guard(call.on_drain)
        self.adjust()

    def awaits_drain(self, call: ServerCall) -> None:
        if call not in self._draining:
            self._draining.append(call)

    def answered(self, call: ServerCall, data: bytes) -> None:
        """A call has ended here; these bytes say so."""
        self.calls.pop(call.stream_id, None)
        self.write(data)
        if self._at_eof or self._mask != select.EPOLLIN:
            self.adjust()

    # --- state

    def adjust(self) -> None:
        """Wait for what can be dealt with now; close when the peer will neither ask nor be answered any more."""
        if not self.is_open:
            return
        unsent = self.outbox.unsent_bytes
        if not unsent and (self._ending or (self._at_eof and not self.calls)):
            self.lose()
            return
        # A write for one call may have emptied the queue that another waits for: it is told when the loop comes back.
        mask = select.EPOLLOUT if unsent or self._draining else 0
        if not self._at_eof and not self._ending and unsent <= HIGH_WATER_BYTES and not self._is_held():
            mask |= select.EPOLLIN
        if mask != self._mask:
            self._mask = mask
            self.server.loop.modify(self.fd, mask)

    def _is_held(self) -> bool:
        if len(self.calls) != 1:
            return False
        (only,) = self.calls.values()
        return only.inbox is not None and only.inbox.is_full

    def lose_when_sent(self) -> None:
        """Take nothing more, and close once what was written is out."""
        self._ending = True
        self.adjust()

    def lose(self) -> None:
        """Close the socket and tell every call that nobody waits for it. Idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        self.server.loop.unregister(self.fd)
        self.sock.close()
        self.outbox.clear()
        self._draining.clear()
        calls = tuple(self.calls.values())
        self.calls.clear()
        self.server.lost(self)
        for call in calls:
            call.cancelled()

    def snapshot(self) -> "dict[str, Any]":
        """All state of this connection as plain values: what a successor needs to go on with the same socket.

        What the handlers of streams have is theirs: see ServerCall.carry.
        """
        return {
            "last_id": self.core.last_id,
            "unparsed": self.core.reader.unparsed,
            "skipping_bytes": self.core.reader.skipping_bytes,
            "unsent": self.outbox.unsent(),
            "at_eof": self._at_eof,
            "calls": [call.snapshot() for call in self.calls.values()],
        }

    def restore(self, state: "dict[str, Any]") -> None:
        """Be the connection of which this is the snapshot: same socket, same calls.

        Order: nothing is written, and no call begun: for each of `calls` `begin` follows, or what its stream
        goes on by; then `adjust`. Raises: StatusError for a method that is not served here.
        """
        self.core = Connection(
            CALLEE, unparsed=state["unparsed"], skip=state["skipping_bytes"], last_id=state["last_id"]
        )
        self._at_eof = state["at_eof"]
        if state["unsent"]:
            self.outbox = Outbox()
            self.outbox.put(state["unsent"])
        for each in state["calls"]:
            timeout_ns = int((each["deadline_s"] or 0) * 1e9)
            pairs = [(key, value) for key, value in each["metadata"]]
            request = Request(each["service"], each["method"], each["payload"], timeout_ns, pairs)
            method, handler = self.server.registry.lookup(request.service, request.method)
            call = ServerCall(self, RequestReceived(each["stream_id"], method.shape, request), method, handler)
            if not method.client_streaming:
                call.request = parse(method.input, request.payload or b"", Code.INVALID_ARGUMENT)
            call.restore(each)
            # Interned, for states are compared by identity.
            self.core.open_streams[call.stream_id] = next(name for name in STATES if name == each["state"])
            self.calls[call.stream_id] = call
