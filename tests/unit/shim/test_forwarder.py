"""Telling containerd what the journal holds: a dialogue in bytes, with a clock of ours; the test plays containerd."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shim.core.loop import Loop
from shim.serving.forwarder import HOMECOMING_S, PATIENCE_S, REFUSALS_MAX, RETRY_MAX_S, SERVICE, Forwarder
from shim.serving.journal import EVENT, EXIT, Journal
from tests.support.stage import StagedLog
from ttrpc.api import events, forward, shim, wkt
from ttrpc.connection import CALLEE, Connection
from ttrpc.status import Code, Status
from ttrpc.wire_events import RequestReceived

AT_NS = 1_795_500_000_123_456_789
FINISH_S = 10.0


class Line:
    """One connection as containerd has it: the requests that came, each answered when the test says so."""

    def __init__(self, on_bytes: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        self.on_bytes = on_bytes
        self.on_lost = on_lost
        self.core = Connection(CALLEE)
        self.requests: list[RequestReceived] = []
        self.answered = 0
        self.is_closed = False

    def send(self, data: bytes) -> None:
        for event in self.core.receive_bytes(data):
            assert isinstance(event, RequestReceived)
            self.requests.append(event)

    def close(self) -> None:
        self.is_closed = True


class Theatre:
    """Owns the journal, the loop and the forwarder; `lines` are the connections it made."""

    def __init__(self, folder: str) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.journal = Journal(os.path.join(folder, "journal"))
        self.log = StagedLog()
        self.lines: list[Line] = []
        self.dials = 0
        self.is_up = True
        self.forwarder: Any = None
        self.ended: list[bool] = []

    def dial(self, on_bytes: Callable[[bytes], None], on_lost: Callable[[str], None]) -> Any:
        self.dials += 1
        if not self.is_up:
            raise ConnectionRefusedError(111, "Connection refused")
        self.lines.append(Line(on_bytes, on_lost))
        return self.lines[-1]

    def begin(self) -> None:
        self.forwarder = Forwarder(self.loop, self.journal, self.log, "moby", self.dial, lambda: 0.0)  # type: ignore[arg-type]
        self.turn()

    # --- the shim's side

    def tell(self, topic: str) -> int:
        """Put an event into the journal."""
        record = shim.JournalRecord(at=wkt.timestamp(AT_NS), topic=f"/tasks/{topic}")
        record.event.CopyFrom(wkt.pack(events.TaskStart(container_id="c1", pid=7)))
        if topic == "exit":
            record.exit.pid = 7
        seq = self.journal.append(EXIT if topic == "exit" else EVENT, record.SerializeToString())
        self.turn()
        return seq

    def finish(self) -> None:
        self.forwarder.finish(lambda: self.ended.append(True), deadline_s=FINISH_S)
        self.turn()

    # --- containerd's side

    def answers(self, status: Status | None = None) -> None:
        """containerd answers the oldest request it has not answered."""
        line = self.lines[-1]
        request = line.requests[line.answered]
        line.answered += 1
        line.on_bytes(line.core.send_response(request.stream_id, status))
        self.turn()

    def dies(self) -> None:
        self.is_up = False
        self.lines[-1].on_lost("the connection was closed")
        self.turn()

    def asked(self) -> list[str]:
        """The topics of all requests on all connections."""
        requests = [request for line in self.lines for request in line.requests]
        return [self.envelope(request).topic.removeprefix("/tasks/") for request in requests]

    def envelope(self, request: RequestReceived) -> Any:
        return forward.ForwardRequest.FromString(request.payload or b"").envelope

    # --- time

    def turn(self) -> None:
        for _ in range(5):
            self.loop.run_once(0)

    def later(self, seconds: float) -> None:
        """Time passes, in steps, as it does for who has several timers."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.05)
            self.turn()

    def close(self) -> None:
        if self.forwarder is not None:
            self.forwarder.close()
        self.journal.close()
        self.loop.close()


@pytest.fixture
def play(tmp_path: Any) -> Iterator[Theatre]:
    theatre = Theatre(str(tmp_path))
    theatre.begin()
    yield theatre
    theatre.close()


def test_an_event_is_told_in_containerds_words(play: Theatre) -> None:
    play.tell("start")

    (request,) = play.lines[0].requests
    assert (request.service, request.method) == (SERVICE, "Forward")
    assert request.timeout_ns == 5_000_000_000
    assert list(request.metadata) == [("containerd-namespace-ttrpc", "moby")]
    envelope = play.envelope(request)
    assert (envelope.namespace, envelope.topic) == ("moby", "/tasks/start")
    assert envelope.timestamp.ToNanoseconds() == AT_NS
    assert envelope.event.type_url == "containerd.events.TaskStart"
    assert events.TaskStart.FromString(envelope.event.value).pid == 7


def test_nobody_is_called_before_there_is_something_to_tell(play: Theatre) -> None:
    assert play.dials == 0


def test_events_are_told_one_at_a_time_and_delivered_is_acknowledged(play: Theatre) -> None:
    for topic in ("create", "start", "exit"):
        play.tell(topic)
    assert (play.asked(), play.journal.acked_seq) == (["create"], 0)
    play.answers()
    assert (play.asked(), play.journal.acked_seq) == (["create", "start"], 1)
    play.answers()
    play.answers()

    assert (play.asked(), play.journal.acked_seq) == (["create", "start", "exit"], 3)
    assert len(play.lines) == 1
    assert play.forwarder.untold == 0


def test_a_successor_goes_on_where_its_predecessor_was(tmp_path: Any) -> None:
    first = Theatre(str(tmp_path))
    first.begin()
    for topic in ("create", "start", "exit"):
        first.tell(topic)
    first.answers()
    first.close()
    second = Theatre(str(tmp_path))
    second.begin()

    assert second.asked() == ["start"]
    second.close()


def test_what_died_with_containerd_is_told_to_its_successor_first(play: Theatre) -> None:
    play.tell("exit")
    play.dies()
    play.tell("delete")
    play.is_up = True
    play.later(HOMECOMING_S + 0.5)

    assert [play.envelope(request).topic for request in play.lines[-1].requests] == ["/tasks/exit"]
    play.answers()
    assert play.asked() == ["exit", "exit", "delete"]


def test_tries_become_rarer_and_never_end(play: Theatre) -> None:
    """An hour without containerd: the exit is still told, a moment after it is back."""
    play.is_up = False
    play.tell("exit")
    play.later(60.0)
    in_a_minute = play.dials
    assert 12 <= in_a_minute <= 20
    for _ in range(60):
        play.now += 60.0
        play.turn()
    assert play.dials == in_a_minute + 60
    play.is_up = True
    play.later(RETRY_MAX_S + HOMECOMING_S + 0.1)

    assert play.asked() == ["exit"]


def test_trouble_is_logged_once_and_its_end_too(play: Theatre) -> None:
    play.is_up = False
    play.tell("exit")
    play.later(20.0)
    assert play.log.lines == ["containerd cannot be told events: Connection refused; 1 kept in the journal, trying on"]
    play.is_up = True
    play.later(RETRY_MAX_S + HOMECOMING_S)
    play.answers()

    assert play.log.lines[1:] == ["containerd takes events again; 1 to be told"]


def test_after_a_restart_containerds_clients_get_a_moment_to_be_back(play: Theatre) -> None:
    """Told at once, it would be told to nobody: containerd keeps nothing for late subscribers."""
    play.tell("start")
    play.answers()
    play.dies()
    play.tell("exit")
    play.is_up = True
    play.later(0.2)
    assert len(play.lines) == 2
    play.later(HOMECOMING_S - 0.2)
    assert play.lines[1].requests == []
    play.later(0.3)

    assert play.asked() == ["start", "exit"]


def test_a_connection_lost_in_peace_is_made_anew_so_that_the_next_event_need_not_wait(play: Theatre) -> None:
    play.tell("start")
    play.answers()
    play.dies()
    play.later(60.0)
    play.is_up = True
    play.later(RETRY_MAX_S * 1.1 + HOMECOMING_S)
    assert len(play.lines) == 2
    dials = play.dials
    play.later(60.0)
    assert play.dials == dials
    play.tell("exit")

    assert play.asked() == ["start", "exit"]
    assert play.log.lines == []


def test_a_containerd_that_is_slow_is_not_told_twice(play: Theatre) -> None:
    """Its request is in the connection: it will read it, and answer, when it goes on."""
    play.tell("exit")
    play.later(PATIENCE_S - 1.0)
    play.answers()

    assert (play.asked(), play.journal.acked_seq) == (["exit"], 1)


def test_a_containerd_that_never_answers_is_called_anew(play: Theatre) -> None:
    play.tell("exit")
    play.later(PATIENCE_S + 0.1)
    assert play.lines[0].is_closed
    play.later(0.2 + HOMECOMING_S)

    assert play.asked() == ["exit", "exit"]
    play.answers()
    assert play.journal.acked_seq == 1


def test_late_answers_of_another_call_say_nothing(play: Theatre) -> None:
    play.tell("start")
    play.lines[0].on_bytes(b"\x00\x00\x00\x00\x00\x00\x00\x63\x02\x00")

    assert play.journal.acked_seq == 0


def test_an_event_that_is_always_refused_is_given_up_for_those_behind_it(play: Theatre) -> None:
    play.tell("start")
    play.tell("exit")
    for _ in range(REFUSALS_MAX):
        assert play.asked()[-1] == "start"
        play.answers(Status(Code.INVALID_ARGUMENT, "bad topic"))
        play.later(RETRY_MAX_S)

    assert play.asked() == ["start"] * REFUSALS_MAX + ["exit"]
    assert play.journal.acked_seq == 1
    assert play.log.lines[-1] == "containerd refuses event 1, /tasks/start: bad topic; it is given up"


def test_an_exit_is_never_given_up(play: Theatre) -> None:
    play.tell("exit")
    for _ in range(5 * REFUSALS_MAX):
        play.answers(Status(Code.UNAVAILABLE, "not now"))
        play.later(RETRY_MAX_S * 1.1)
    play.answers()

    assert play.asked() == ["exit"] * (5 * REFUSALS_MAX + 1)
    assert play.journal.acked_seq == 1


def test_the_end_waits_for_the_last_event(play: Theatre) -> None:
    play.tell("delete")
    play.finish()
    assert play.ended == []
    play.answers()

    assert play.ended == [True]
    assert play.lines[0].is_closed


def test_the_end_with_nothing_to_tell_is_at_once(play: Theatre) -> None:
    play.finish()

    assert (play.ended, play.dials) == ([True], 0)


def test_the_end_makes_no_pause(play: Theatre) -> None:
    """Whoever asked for it is containerd: it is there."""
    play.tell("start")
    play.answers()
    play.dies()
    play.is_up = True
    play.tell("delete")
    play.finish()

    assert play.asked() == ["start", "delete"]
    play.answers()
    assert play.ended == [True]


def test_the_end_is_not_put_off_for_ever(play: Theatre) -> None:
    play.is_up = False
    play.tell("delete")
    play.finish()
    play.later(FINISH_S - 0.1)
    assert play.ended == []
    play.later(0.2)

    assert play.ended == [True]
    assert play.log.lines[-1] == "ending with 1 events that containerd did not take"
    dials = play.dials
    play.later(10.0)
    assert play.dials == dials
