"""Both roles against each other and against a model: any moves, frames delayed and cut anywhere."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.unit.ttrpc.pair import PREFIX
from ttrpc import streams
from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.errors import LocalMisuse
from ttrpc.status import Code, Status
from ttrpc.wire_events import EndReceived, MessageReceived, RequestReceived, ResponseReceived

SHAPES = (streams.REQUEST_UNARY, streams.REQUEST_OPEN, streams.REQUEST_CLOSED)
payloads = st.sampled_from([b"", b"a", b"bc", bytes(300)])


class Side:
    """One connection, what its peer has yet to receive, and what it was told."""

    def __init__(self, role: str) -> None:
        self.connection = Connection(role)
        self.unread = b""
        self.heard: dict[int, list[Any]] = {}

    def hear(self, size: int) -> None:
        data, self.unread = self.unread[:size], self.unread[size:]
        for event in self.connection.receive_bytes(data):
            self.heard.setdefault(event.stream_id, []).append(event)


class TwoSides(RuleBasedStateMachine):
    """What was said, in order, is what is heard, in order, of every stream its hearer has not given up."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.caller, self.callee = Side(CALLER), Side(CALLEE)
        self.said_by_caller: dict[int, list[Any]] = {}
        self.said_by_callee: dict[int, list[Any]] = {}
        self.forgotten: dict[int, int] = {}  # stream id → events the caller had heard of it by then
        self.newest = -1

    # --- moves

    @rule(target=ids, shape=st.sampled_from(SHAPES), payload=payloads)
    def request(self, shape: str, payload: bytes) -> int:
        stream_id, data = self.caller.connection.send_request(shape, PREFIX, payload)
        assert stream_id == self.newest + 2
        self.newest = stream_id
        self.callee.unread += data
        self.said_by_caller[stream_id] = [("request", shape, payload)]
        return stream_id

    def try_move(self, side: Side, peer: Side, fact: str, stream_id: int, move: Any) -> bool:
        """Make the move; it works exactly when the table allows the fact in the side's own state."""
        state = side.connection.open_streams.get(stream_id, streams.DONE)
        try:
            data = move()
        except LocalMisuse:
            assert fact not in streams.TABLE[state]
            return False
        assert fact in streams.TABLE[state]
        after = side.connection.open_streams.get(stream_id, streams.DONE)
        assert after == streams.TABLE[state][fact]
        peer.unread += data or b""
        return True

    @rule(stream_id=ids, payload=payloads)
    def caller_message(self, stream_id: int, payload: bytes) -> None:
        move = lambda: self.caller.connection.send_message(stream_id, payload)  # noqa: E731
        if self.try_move(self.caller, self.callee, streams.CALLER_MESSAGE, stream_id, move):
            self.said_by_caller[stream_id].append(("message", payload))

    @rule(stream_id=ids)
    def caller_end(self, stream_id: int) -> None:
        move = lambda: self.caller.connection.send_end(stream_id)  # noqa: E731
        if self.try_move(self.caller, self.callee, streams.CALLER_END, stream_id, move):
            self.said_by_caller[stream_id].append(("end",))

    @rule(stream_id=ids)
    def forget(self, stream_id: int) -> None:
        move = lambda: self.caller.connection.forget(stream_id)  # noqa: E731
        if self.try_move(self.caller, self.callee, streams.FORGOTTEN, stream_id, move):
            self.forgotten[stream_id] = len(self.caller.heard.get(stream_id, []))

    @rule(stream_id=ids, payload=payloads)
    def callee_message(self, stream_id: int, payload: bytes) -> None:
        move = lambda: self.callee.connection.send_message(stream_id, payload)  # noqa: E731
        if self.try_move(self.callee, self.caller, streams.CALLEE_MESSAGE, stream_id, move):
            self.said_by_callee.setdefault(stream_id, []).append(("message", payload))

    @rule(stream_id=ids)
    def callee_end(self, stream_id: int) -> None:
        move = lambda: self.callee.connection.send_end(stream_id)  # noqa: E731
        if self.try_move(self.callee, self.caller, streams.CALLEE_END, stream_id, move):
            self.said_by_callee.setdefault(stream_id, []).append(("end",))

    @rule(stream_id=ids, payload=payloads, fails=st.booleans())
    def respond(self, stream_id: int, payload: bytes, fails: bool) -> None:
        status = Status(Code.ABORTED, "no", [("t", b"v")]) if fails else None
        move = lambda: self.callee.connection.send_response(stream_id, status, payload)  # noqa: E731
        if self.try_move(self.callee, self.caller, streams.RESPONSE, stream_id, move):
            self.said_by_callee.setdefault(stream_id, []).append(("response", status, payload))

    @rule(stream_id=consumes(ids))
    def say_no_more_of_it(self, stream_id: int) -> None:
        """Lets runs go on to other streams."""

    # --- the wire

    @rule(size=st.integers(1, 700))
    def bytes_reach_the_callee(self, size: int) -> None:
        self.callee.hear(size)

    @rule(size=st.integers(1, 700))
    def bytes_reach_the_caller(self, size: int) -> None:
        self.caller.hear(size)

    # --- what must hold

    @invariant()
    def what_is_heard_is_what_was_said(self) -> None:
        for stream_id, events in self.callee.heard.items():
            said = self.said_by_caller[stream_id]
            assert [plain(event) for event in events] == said[: len(events)]
        for stream_id, events in self.caller.heard.items():
            said = self.said_by_callee[stream_id]
            assert [plain(event) for event in events] == said[: len(events)]

    @invariant()
    def nothing_is_heard_of_a_forgotten_call(self) -> None:
        for stream_id, count in self.forgotten.items():
            assert len(self.caller.heard.get(stream_id, [])) == count

    def teardown(self) -> None:
        """Once everything has arrived, everything said was heard, but for streams given up by then."""
        self.caller.hear(len(self.caller.unread))
        self.callee.hear(len(self.callee.unread))
        self.what_is_heard_is_what_was_said()
        self.nothing_is_heard_of_a_forgotten_call()
        for stream_id, said in self.said_by_callee.items():
            if stream_id not in self.forgotten:
                assert len(self.caller.heard[stream_id]) == len(said)
        for stream_id in self.callee.connection.open_streams:
            assert len(self.callee.heard[stream_id]) == len(self.said_by_caller[stream_id])
        still_open = set(self.callee.connection.open_streams)
        assert set(self.caller.connection.open_streams) == still_open - set(self.forgotten)


def plain(event: Any) -> tuple[Any, ...]:
    """An event in the model's words."""
    if isinstance(event, RequestReceived):
        return ("request", event.shape, event.payload or b"")
    if isinstance(event, MessageReceived):
        return ("message", event.payload)
    if isinstance(event, ResponseReceived):
        return ("response", event.status, event.payload or b"")
    assert isinstance(event, EndReceived), f"correct peers are never refused: {event}"
    return ("end",)


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
