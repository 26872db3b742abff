"""The event journal to its readers: in order, from any cursor, gaps told, the slow cut off with a reason."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon.config import Events as Limits
from daemon.events import MAX_EVENT_BYTES, PAGE, EventLog, lookup_of
from daemon.services.events import Events, ShimEvents
from daemon.services.shimd import Shimd
from daemon.store import events as table
from daemon.store.database import Database
from daemon.store.records import NewEvent, StoredEvent
from ttrpc.api import events, events_service, forward, shimd, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    database = Database(str(tmp_path / "shimd.db"))
    made = EventLog(database, Limits(max_lag=50))
    database.on_commit = made.committed
    yield made
    database.close()


def an_event(topic: str = "/tasks/start", ns: str = "default", at_ns: int = 1) -> NewEvent:
    payload = events.TaskStart(container_id="c1", pid=7)
    return NewEvent(at_ns, ns, topic, payload.DESCRIPTOR.full_name, payload.SerializeToString())


class FakeCall:
    """A call whose caller reads as it likes."""

    def __init__(self, ns: str = "default") -> None:
        self.metadata = {"containerd-namespace-ttrpc": ns} if ns else {}
        self.deadline = float("inf")
        self.peer = None
        self.sent: list[object] = []
        self.begin_again = shimd.EventsRequest()
        self.reads = trio.Event()
        self.reads.set()

    async def send(self, message: object) -> None:
        await self.reads.wait()
        self.sent.append(message)


def shimd_service(log: EventLog) -> Shimd:
    return Shimd(None, None, log, None)  # type: ignore[arg-type]  # Events needs none of them


async def test_a_follower_gets_what_is_stored_and_then_what_comes(log: EventLog) -> None:
    """From the cursor on, each event once, in order, across the seam between old and new."""
    call = FakeCall()
    for _ in range(3):
        await log.append(an_event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shimd_service(log).Events, shimd.EventsRequest(after_seq=1, follow=True), call)
        await trio.testing.wait_all_tasks_blocked()
        assert [record.seq for record in call.sent] == [2, 3]
        for _ in range(2):
            await log.append(an_event())
        with trio.fail_after(5):
            while len(call.sent) < 4:
                await trio.lowlevel.checkpoint()
        assert [record.seq for record in call.sent] == [2, 3, 4, 5]
        nursery.cancel_scope.cancel()


async def test_a_slow_follower_misses_nothing(log: EventLog) -> None:
    """However far behind it is: it reads from the store, not from a queue."""
    call = FakeCall()
    call.reads = trio.Event()
    total = 3 * PAGE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shimd_service(log).Events, shimd.EventsRequest(follow=True), call)
        await log.append(*(an_event() for _ in range(total)))
        call.reads.set()
        with trio.fail_after(10):
            while len(call.sent) < total:
                await trio.lowlevel.checkpoint()
        assert [record.seq for record in call.sent] == list(range(1, total + 1))
        nursery.cancel_scope.cancel()


async def test_a_follower_is_not_kept_busy_by_other_namespaces(log: EventLog) -> None:
    """Their events are passed, once; everybody else has their turn meanwhile, and an upgrade goes on from there."""
    call = FakeCall("quiet")
    async with trio.open_nursery() as nursery:
        request = shimd.EventsRequest(from_now=True, follow=True)
        nursery.start_soon(shimd_service(log).Events, request, call)
        await trio.testing.wait_all_tasks_blocked()
        await log.append(*(an_event(ns="loud") for _ in range(2 * PAGE)))
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked()
        assert (call.sent, call.begin_again.after_seq) == ([], 2 * PAGE)
        await log.append(an_event(ns="quiet"))
        with trio.fail_after(5):
            while not call.sent:
                await trio.lowlevel.checkpoint()
        assert [record.seq for record in call.sent] == [2 * PAGE + 1]
        nursery.cancel_scope.cancel()


async def test_a_filter_that_passes_nothing_lets_others_have_their_turn(log: EventLog) -> None:
    """However much is stored: between two pages everybody else goes on."""
    await log.append(*(an_event() for _ in range(4 * PAGE)))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        await shimd_service(log).Events(shimd.EventsRequest(filters=["topic==/no/such"]), FakeCall())
        assert turns - before >= 3
        nursery.cancel_scope.cancel()


async def test_what_is_pruned_under_a_reader_is_told(log: EventLog) -> None:
    """Also between two of its pages, and when nothing is left."""
    await log.append(*(an_event() for _ in range(2 * PAGE)))
    reader = log.reader(0)
    assert len(reader.next_page().found) == PAGE
    await log.database.write(lambda connection: table.prune(connection, keep_count=10, older_than_ns=0))
    page = reader.next_page()
    assert (page.missed_through, len(page.found), page.is_end) == (2 * PAGE - 10, 10, True)
    await log.append(an_event())
    await log.database.write(lambda connection: table.prune(connection, keep_count=0, older_than_ns=2))
    page = reader.next_page()
    assert (page.missed_through, page.found, reader.after_seq) == (2 * PAGE + 1, [], 2 * PAGE + 1)


async def test_a_clock_set_forward_makes_no_event_old(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """By mistake, for a minute: what a reader has not had yet is still there when it is right again."""
    await log.append(an_event(at_ns=time.time_ns()), an_event(at_ns=1))
    month_ns = 30 * 86400 * 10**9
    now_ns = time.time_ns
    monkeypatch.setattr("daemon.events.time.time_ns", lambda: now_ns() + month_ns)
    assert await log.database.write(log._prune) == 0
    assert len(log.reader(0).next_page().found) == 2


async def test_without_follow_the_stream_ends(log: EventLog) -> None:
    """`from_now` without follow is empty, a namespace sees its own, filters apply."""
    await log.append(an_event(ns="a"), an_event(ns="b"), an_event("/tasks/oom", ns="a"))
    for request, seqs in (
        (shimd.EventsRequest(), [1, 3]),
        (shimd.EventsRequest(all_namespaces=True), [1, 2, 3]),
        (shimd.EventsRequest(filters=["topic==/tasks/oom"]), [3]),
        (shimd.EventsRequest(filters=["event.pid==7"], all_namespaces=True), [1, 2, 3]),
        (shimd.EventsRequest(from_now=True), []),
    ):
        call = FakeCall("a")
        await shimd_service(log).Events(request, call)
        assert [record.seq for record in call.sent] == seqs


async def test_a_cursor_older_than_what_is_kept_is_told_of_the_gap(log: EventLog) -> None:
    """First the gap with where it ends, then what there is."""
    await log.append(*(an_event() for _ in range(10)))
    await log.database.write(lambda connection: table.prune(connection, keep_count=4, older_than_ns=0))
    call = FakeCall()
    await shimd_service(log).Events(shimd.EventsRequest(after_seq=2), call)
    gap, *rest = call.sent
    assert (gap.gap, gap.seq) == (True, 7)
    assert [record.seq for record in rest] == [7, 8, 9, 10]
    assert not any(record.gap for record in rest)
    at_edge = FakeCall()
    await shimd_service(log).Events(shimd.EventsRequest(after_seq=6), at_edge)
    assert [record.gap for record in at_edge.sent] == [False] * 4


async def test_a_cursor_from_another_store_is_refused(log: EventLog) -> None:
    """Following from it would skip silently once the numbers catch up."""
    with pytest.raises(StatusError) as caught:
        await shimd_service(log).Events(shimd.EventsRequest(after_seq=99), FakeCall())
    assert caught.value.code == Code.OUT_OF_RANGE


async def test_a_live_subscriber_too_far_behind_is_cut_with_a_reason(log: EventLog) -> None:
    """ResourceExhausted, naming the cursor from which nothing is lost."""
    call = FakeCall()
    call.reads = trio.Event()
    refusals = []

    async def subscribe() -> None:
        try:
            await Events(log).Subscribe(events_service.SubscribeRequest(), call)
        except StatusError as error:
            refusals.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribe)
        await trio.testing.wait_all_tasks_blocked()
        await log.append(an_event())
        await trio.testing.wait_all_tasks_blocked()
        await log.append(*(an_event() for _ in range(200)))
        call.reads.set()
        with trio.fail_after(5):
            while not refusals:
                await trio.lowlevel.checkpoint()
    assert refusals[0].code == Code.RESOURCE_EXHAUSTED
    assert "after_seq=1 " in refusals[0].message


async def test_a_live_subscriber_hears_of_all_namespaces_from_now_on(log: EventLog) -> None:
    """As containerd's Subscribe, which needs no namespace."""
    await log.append(an_event())
    call = FakeCall("")
    async with trio.open_nursery() as nursery:
        request = events_service.SubscribeRequest(filters=["namespace==a,topic~=|^/tasks/|", "namespace==b"])
        nursery.start_soon(Events(log).Subscribe, request, call)
        await trio.testing.wait_all_tasks_blocked()
        await log.append(an_event(ns="a"), an_event(ns="b"), an_event("/images/create", ns="a"), an_event(ns="c"))
        with trio.fail_after(5):
            while len(call.sent) < 2:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert [told.namespace for told in call.sent] == ["a", "b"]


class NoTasks:
    """A registry that knows no shim: what is forwarded comes from a stranger."""

    def sender(self, ns: str, container_id: str, pid: int) -> None:
        return None


async def test_publish_and_forward_check_what_they_are_given(log: EventLog) -> None:
    """Namespace, topic and timestamp as containerd demands them; a huge event is refused."""
    service = Events(log)
    payload = wkt.any_of("my.type", b"x")
    await service.Publish(events_service.PublishRequest(topic="/my/topic", event=payload), FakeCall())
    good = events_service.Envelope(timestamp=wkt.timestamp(5), namespace="ns", topic="/a/b", event=payload)
    await service.Forward(events_service.ForwardRequest(envelope=good), FakeCall(""))
    told = forward.Envelope(timestamp=wkt.timestamp(6), namespace="ns", topic="/a/c", event=payload)
    await ShimEvents(log, NoTasks()).Forward(forward.ForwardRequest(envelope=told), FakeCall(""))
    stored = log.database.read(lambda connection: table.page(connection, 0, 10))
    assert [(event.ns, event.topic, event.at_ns > 0) for event in stored] == [
        ("default", "/my/topic", True),
        ("ns", "/a/b", True),
        ("ns", "/a/c", True),
    ]
    for bad in (
        events_service.Envelope(namespace="ns", topic="/a/b", event=payload),
        events_service.Envelope(timestamp=wkt.timestamp(5), namespace="n/s", topic="/a/b", event=payload),
        events_service.Envelope(timestamp=wkt.timestamp(5), namespace="ns", topic="a/b", event=payload),
    ):
        with pytest.raises(StatusError) as caught:
            await service.Forward(events_service.ForwardRequest(envelope=bad), FakeCall())
        assert caught.value.code == Code.INVALID_ARGUMENT
    huge = wkt.any_of("t", b"x" * (MAX_EVENT_BYTES + 1))
    with pytest.raises(StatusError, match="at most"):
        await service.Publish(events_service.PublishRequest(topic="/a/b", event=huge), FakeCall())


def test_fields_of_payloads_are_found_by_name() -> None:
    """Scalars, nested messages, maps; what is not there is not there."""
    exit_event = events.TaskExit(container_id="c1", id="e", pid=3, exit_status=137)
    exit_event.exited_at.seconds = 5
    told = StoredEvent(1, 1, "ns", "/tasks/exit", exit_event.DESCRIPTOR.full_name, exit_event.SerializeToString(), None)
    lookup = lookup_of(told)
    assert lookup(("event", "container_id")) == "c1"
    assert lookup(("event", "exit_status")) == "137"
    assert lookup(("event", "exited_at", "seconds")) == "5"
    assert lookup(("event", "nothing")) is None
    assert lookup(("namespace",)) == "ns"
    update = events.ContainerUpdate(id="c1", labels={"a.b": "v"})
    told = StoredEvent(1, 1, "ns", "/x/y", update.DESCRIPTOR.full_name, update.SerializeToString(), None)
    assert lookup_of(told)(("event", "labels", "a", "b")) == "v"
    assert lookup_of(StoredEvent(1, 1, "ns", "/x/y", "no.such.type", b"\xff", None))(("event", "id")) is None
