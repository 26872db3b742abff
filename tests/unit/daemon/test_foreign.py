"""Shims that are not ours: what they print, which Task service they have, and what they tell, stored once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from daemon.config import DEFAULT_RUNTIME
from daemon.procfs import boot_id
from daemon.shims import bundle, foreign, launch
from daemon.shims.client import TASK, TASK_V3, ShimClient
from daemon.shims.foreign_exits import Ledger, is_told
from daemon.shims.handle import Handle
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.database import Database
from daemon.store.records import RUNNING, STOPPED, NewEvent, TaskRow
from ttrpc.api import events, task, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

# --- the shim's program


@pytest.mark.parametrize(
    "text",
    [
        "unix:///run/s/1",
        "/run/s/1",
        '{"version":2,"address":"unix:///run/s/1","protocol":"ttrpc"}',
        '{"version":3,"address":"unix:///run/s/1"}',
    ],
)
def test_an_address_is_plain_or_json(text: str) -> None:
    assert launch.parse_address(text) == "/run/s/1"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"version":3,"address":"unix:///run/s/1","protocol":"grpc"}', Code.UNIMPLEMENTED),
        ('{"version":4,"address":"unix:///run/s/1"}', Code.UNIMPLEMENTED),
        ('{"version":3}', Code.UNKNOWN),
        ("{", Code.UNKNOWN),
        ("warning: x\nunix:///run/s/1", Code.UNKNOWN),
        ("", Code.UNKNOWN),
    ],
)
def test_what_is_no_address_is_said(text: str, code: Code) -> None:
    with pytest.raises(StatusError) as caught:
        launch.parse_address(text)
    assert caught.value.code == code


def test_only_a_foreign_shim_is_told_where_events_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is followed: with events besides, everything would be told twice."""
    monkeypatch.setenv("TTRPC_ADDRESS", "/of/somebody/else")
    assert launch.is_foreign("io.containerd.runc.v2", "/usr/bin/containerd-shim-runc-v2")
    assert not launch.is_foreign(DEFAULT_RUNTIME, "/opt/wrapper")
    assert not launch.is_foreign("io.containerd.crun.v2", "/usr/bin/containerd-shim-shimd-v2")
    ours = launch.Program("/s", "/x.sock", "/p", "/run/s")
    assert "TTRPC_ADDRESS" not in ours.environ("ns")
    theirs = launch.Program("/s", "/x.sock", "/p", "/run/s", ttrpc_address="/x.sock.ttrpc")
    assert theirs.environ("ns")["TTRPC_ADDRESS"] == "/x.sock.ttrpc"
    assert theirs.environ("ns")["NAMESPACE"] == "ns"


# --- which Task service


class FakeRaw:
    """A connection to a shim that has only some services."""

    def __init__(self, *served: str, error: StatusError | None = None) -> None:
        self.served = served
        self.error = error
        self.asked: list[str] = []

    async def call(self, service: str, method: str, request: object, *, timeout_s: float | None) -> str:
        await trio.lowlevel.checkpoint()
        self.asked.append(service)
        if service not in self.served:
            raise StatusError(Code.UNIMPLEMENTED, f"service {service}")
        if self.error is not None:
            raise self.error
        return "answer"


async def test_the_version_a_shim_serves_is_found_out_once() -> None:
    """Newer shims have v3 only; also a refusal tells that it is served."""
    raw = FakeRaw(TASK_V3)
    client = ShimClient(raw, "task c1")  # type: ignore[arg-type]
    for _ in range(2):
        assert await client.task("State", task.StateRequest(id="c1"), 1.0) == "answer"
    assert raw.asked == [TASK, TASK_V3, TASK_V3]

    raw = FakeRaw(TASK_V3, error=StatusError(Code.NOT_FOUND, "no such task"))
    client = ShimClient(raw, "task c1")  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(StatusError, match="no such task"):
            await client.task("State", task.StateRequest(id="c1"), 1.0)
    assert raw.asked == [TASK, TASK_V3, TASK_V3]


async def test_what_is_not_implemented_in_the_version_served_is_told_as_such() -> None:
    raw = FakeRaw(TASK)
    client = ShimClient(raw, "task c1")  # type: ignore[arg-type]
    await client.task("State", task.StateRequest(id="c1"), 1.0)
    raw.error = StatusError(Code.UNIMPLEMENTED, "no checkpoints here")
    with pytest.raises(StatusError, match="no checkpoints here"):
        await client.task("Checkpoint", task.CheckpointTaskRequest(id="c1"), 1.0)
    assert raw.asked == [TASK, TASK]


# --- what it tells


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(str(tmp_path / "db"))
    yield made
    made.close()


async def a_ledger(database: Database, stopped: list[str]) -> tuple[Ledger, Handle]:
    row = TaskRow(
        ns="ns", id="c1", state=RUNNING, runtime="r", shim_path="/s", bundle="/b", boot_id=boot_id(), request=b"",
        created_at_ns=1, incarnation="i1", pid=77,
    )  # fmt: skip
    await database.write(lambda connection: tasks.insert(connection, row))
    handle = Handle(row)
    return Ledger(handle, "i1", database, lambda one: stopped.append(one.id)), handle


def exit_event(exec_id: str, status: int, at_ns: int, pid: int = 77) -> NewEvent:
    told = events.TaskExit(container_id="c1", id=exec_id or "c1", pid=pid, exit_status=status)
    told.exited_at.CopyFrom(wkt.timestamp(at_ns))
    return NewEvent(at_ns + 5, "ns", "/tasks/exit", told.DESCRIPTOR.full_name, told.SerializeToString())


async def test_an_exit_told_by_event_and_by_wait_is_stored_once(database: Database) -> None:
    """In either order; the row is stopped and its policy asked once."""
    stopped: list[str] = []
    ledger, handle = await a_ledger(database, stopped)
    answer = task.WaitResponse(exit_status=3, exited_at=wkt.timestamp(1_000))
    await ledger.forwarded(exit_event("e1", 3, 1_000, pid=80))
    await ledger.store(ledger.record("e1", answer, 0))
    answer = task.WaitResponse(exit_status=9, exited_at=wkt.timestamp(2_000))
    await ledger.store(ledger.record("", answer, 77))
    await ledger.forwarded(exit_event("", 9, 2_000))
    await ledger.forwarded(exit_event("", 9, 2_001))  # a shim that stamps twice: init ends once
    assert [(one.exec_id) for one in database.read(lambda c: journal.list_exits(c, "ns", "c1", None, 0))] == ["e1", ""]
    assert [event.topic for event in database.read(lambda c: journal.page(c, 0, 9))] == ["/tasks/exit"] * 2
    assert (handle.row.state, stopped) == (STOPPED, ["c1"])


async def test_each_use_of_an_exec_s_id_has_its_exit(database: Database) -> None:
    ledger, _ = await a_ledger(database, [])
    for at_ns in (1_000, 2_000, 2_000):
        await ledger.forwarded(exit_event("e1", 0, at_ns, pid=80))
    assert len(database.read(lambda c: journal.list_exits(c, "ns", "c1", "e1", 0))) == 2
    told = events.TaskExit(container_id="c1", id="e1", exited_at=wkt.timestamp(2_000))
    assert database.read(lambda c: is_told(c, "ns", told))
    told.exited_at.CopyFrom(wkt.timestamp(3_000))
    assert not database.read(lambda c: is_told(c, "ns", told))


async def test_an_event_told_again_is_no_news(database: Database) -> None:
    """The same bytes at the same time; another time is another event."""
    ledger, _ = await a_ledger(database, [])
    told = events.TaskPaused(container_id="c1")
    for at_ns in (5, 5, 6):
        event = NewEvent(at_ns, "ns", "/tasks/paused", told.DESCRIPTOR.full_name, told.SerializeToString())
        await ledger.forwarded(event)
    assert len(database.read(lambda c: journal.page(c, 0, 9))) == 2
    with pytest.raises(StatusError, match="TaskExit"):
        await ledger.forwarded(NewEvent(5, "ns", "/tasks/exit", "x", b"\xff"))


def test_an_exec_is_noted_until_it_is_refused_or_over(tmp_path: Path) -> None:
    """A refusal of a second of that id does not forget the first; an unknown outcome keeps the note."""
    os.mkdir(tmp_path / bundle.EXECS)
    with foreign.noting_exec(str(tmp_path), "e1"):
        pass
    with pytest.raises(StatusError), foreign.noting_exec(str(tmp_path), "e1"):
        raise StatusError(Code.ALREADY_EXISTS, "it is there")
    with pytest.raises(StatusError), foreign.noting_exec(str(tmp_path), "e2"):
        raise StatusError(Code.UNKNOWN, "runc says no")
    with pytest.raises(StatusError), foreign.noting_exec(str(tmp_path), "e3"):
        raise StatusError(Code.UNAVAILABLE, "lost")
    assert sorted(os.listdir(tmp_path / bundle.EXECS)) == ["e1", "e3"]
    foreign.forget_note(str(tmp_path), "e1")
    foreign.forget_note(str(tmp_path), "e1")
    assert os.listdir(tmp_path / bundle.EXECS) == ["e3"]
