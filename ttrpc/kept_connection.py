"""An accepted connection that another process can go on with, at any moment this one is killed: see ttrpc.ledger.

Kept are connections that carry unary calls. The first call that streams, and the first breach of the protocol, turn one
into a plain connection, which ends with the process.
"""

import socket

from ttrpc.connection import CALLEE, Connection
from ttrpc.envelope import decode_request, encode_request, request_prefix
from ttrpc.ledger import KEPT_BYTES, NO_FACT, TIDY_BYTES
from ttrpc.loop_connection import READ_BYTES, LoopConnection
from ttrpc.outbox import Outbox
from ttrpc.streams import REQUEST_UNARY, UNARY
from ttrpc.wire_events import Refused, RequestReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ttrpc.ledger import Ledger, Unanswered
    from ttrpc.loopdriver import LoopServer
    from ttrpc.peer import Peer
    from ttrpc.server_call import ServerCall
    from ttrpc.wire_events import Event

    class Holder(Protocol):
        """Whoever has sockets and ledgers held elsewhere."""

        def hold(self, sock: socket.socket, ledger: "Ledger") -> None: ...
        def drop(self, ledger: "Ledger") -> None: ...


PEEK_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)  # as an enum each `|` is a search
SO_PEEK_OFF = 42  # asm-generic/socket.h; the socket module has no name for it
# Shared by all connections: its contents are used up at once. What is taken from a socket goes where it was peeked to a
# moment ago: memory that is there, so that the taking cannot stop half-way.
_scratch = bytearray(READ_BYTES)
_view = memoryview(_scratch)


class KeptConnection(LoopConnection):
    """Owns the ledger too, until it is plain: then `ledger` is None.

    Raises, when made: OSError when the socket cannot be kept, with nothing registered.
    """

    __slots__ = ("_is_resuming", "_peeked", "_recovered", "holder", "ledger")

    def __init__(
        self, server: "LoopServer", sock: socket.socket, peer: "Peer | None", ledger: "Ledger", holder: "Holder"
    ) -> None:
        sock.setblocking(False)
        if sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) < 0:
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        super().__init__(server, sock, peer)
        self.ledger: Ledger | None = ledger
        self.outbox = ledger
        self.holder = holder
        self._peeked = 0  # bytes that are read and still in the socket
        self._recovered: dict[int, Unanswered] = {}
        self._is_resuming = False  # requests that were answered may be in the socket still

    def resume(self) -> bool:
        """Go on where another process was killed; false when that one had given the connection up.

        Order: before the loop runs on. Calls that were unanswered are started again, and can see that they were.
        Raises: OSError, ValueError when it cannot be gone on with.
        """
        assert self.ledger is not None
        self._is_resuming = True
        found = self.ledger.recover()
        if found is None:
            return False
        if found.is_taking:
            self._take(self.sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF))
            self.ledger.partial_taken()
        self.sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        seen = {*found.answered, *(each.stream_id for each in found.unanswered)}
        self.core = Connection(CALLEE, unparsed=found.partial, last_id=found.last_id, seen=seen)
        for each in found.unanswered:
            self._recovered[each.stream_id] = each
            self.core.open_streams[each.stream_id] = UNARY
            self._begin(RequestReceived(each.stream_id, REQUEST_UNARY, decode_request(each.request)))
        if self.is_open:
            self._flush()
        return True

    def make_plain(self) -> None:
        """From here on it ends with this process. Idempotent."""
        ledger, self.ledger = self.ledger, None
        if ledger is None:
            return
        self.holder.drop(ledger)
        outbox = Outbox()
        try:
            ledger.retire()
            if ledger.unsent_bytes:
                outbox.put(ledger.unsent())
            self._take(self._peeked)
        except OSError:
            self.lose()
        finally:
            self.outbox = outbox
            self._peeked = 0
            ledger.close()

    def _make_plain_for(self, error: OSError) -> None:
        """It cannot be kept any longer: that is no reason not to serve it."""
        self.server.on_error(OSError(error.errno, f"a connection is not kept: {error.strerror or error}"))
        self.make_plain()

    # --- reading

    def _read(self, hung_up: bool) -> None:
        if self.ledger is None:
            super()._read(hung_up)
            return
        try:
            count = self.sock.recv_into(_scratch, READ_BYTES, PEEK_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            self.lose()
            return
        if not count:
            super()._read(hung_up)
            return
        self._peeked = count
        events = self.core.receive_bytes(bytes(_view[:count]))
        if self.core.reader.unknown_frames or self.core.reader.skipping_bytes:
            self.make_plain()
        for event in events:
            self._dispatch(event)
            if not self.is_open:
                return
        try:
            self._take_peeked()
        except OSError:
            self.lose()
            return
        self.adjust()

    def _dispatch(self, event: "Event") -> None:
        if type(event) is Refused or (type(event) is RequestReceived and event.shape is not REQUEST_UNARY):
            self.make_plain()
        super()._dispatch(event)

    def _take_peeked(self) -> None:
        """Every request in what was peeked is answered or noted: take it from the socket."""
        ledger, count = self.ledger, self._peeked
        if ledger is None:
            return
        partial = self.core.reader.unparsed
        if partial or ledger.has_partial:
            ledger.keep_partial(partial, count)
            self._take(count)
            ledger.partial_taken()
        else:
            self._take(count)
        self._peeked = 0
        self._is_resuming = False
        self._tidy(ledger)

    def _tidy(self, ledger: "Ledger") -> None:
        """Order: no request that was answered is in the socket."""
        if ledger.given_bytes > TIDY_BYTES and not self._peeked and not self._is_resuming:
            ledger.tidy(self.core.last_id)
            if ledger.given_bytes > KEPT_BYTES:
                self.make_plain()

    def _take(self, count: int) -> None:
        while count > 0:
            taken = self.sock.recv_into(_scratch, min(count, READ_BYTES), socket.MSG_DONTWAIT)
            if not taken:
                raise ConnectionResetError("what was peeked is gone")
            count -= taken

    # --- calls

    def _begin(self, event: RequestReceived) -> None:
        super()._begin(event)
        stream_id, ledger = event.stream_id, self.ledger
        if ledger is None:
            return
        call = self.calls.get(stream_id)
        if call is not None:
            self.note(call)
        elif ledger.is_noted(stream_id):
            ledger.forget(stream_id)

    def _admit(self, call: "ServerCall") -> None:
        if not call.method.is_unary:
            self.make_plain()
            return
        call.recovered = self._recovered.pop(call.stream_id, None)

    def note(self, call: "ServerCall", fact: int = NO_FACT) -> None:
        """Note a call that is under way, once; with a fact, each time."""
        ledger = self.ledger
        if ledger is None or (fact == NO_FACT and ledger.is_noted(call.stream_id)):
            return
        timeout_ns = int((call.deadline_s or 0) * 1e9)
        prefix = request_prefix(call.service, call.method.name)
        try:
            ledger.note(
                call.stream_id, encode_request(prefix, call.payload or b"", timeout_ns, call.metadata_pairs), fact
            )
        except OSError as error:
            self._make_plain_for(error)

    def promise(self, call: "ServerCall", answer: bytes) -> None:
        """Note the answer of a call that is about to be done, or was just done."""
        if self.ledger is not None:
            try:
                self.ledger.promise(call.stream_id, answer)
            except OSError as error:
                self._make_plain_for(error)

    # --- writing

    def write(self, data: bytes, bulk: bytes = b"") -> None:
        if self.ledger is not None and self.is_open:
            try:
                self.ledger.append(data + bulk)
            except OSError as error:
                self._make_plain_for(error)
            else:
                data = bulk = b""
        super().write(data, bulk)

    def answered(self, call: "ServerCall", data: bytes) -> None:
        super().answered(call, data)
        ledger = self.ledger
        if ledger is not None:
            if ledger.is_noted(call.stream_id):
                ledger.forget(call.stream_id)
            self._tidy(ledger)

    # --- the end

    def lose(self) -> None:
        """Order: what was read is taken from the socket, for a peer whose words lie unread there is told of a reset."""
        if self.is_open and self.ledger is not None:
            try:
                self._take(self._peeked)
            except OSError:
                pass  # it is gone
            ledger, self.ledger = self.ledger, None
            self.holder.drop(ledger)
            super().lose()
            ledger.close()
        else:
            super().lose()
