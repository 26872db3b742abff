"""Around the handlers: namespaces of calls, the gate, updates by mask, logs, locks, what systemd hands over."""

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon import log as logs
from daemon import notify
from daemon.lock import AlreadyRunning, DirectoryLock
from daemon.services import fieldmask
from daemon.services.call import Gate, Guarded, namespace_of
from tests.support.fds import no_free_fd
from tests.support.waiting import wait_until
from ttrpc.api import containers, version, wkt
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

VERSION = "containerd.services.version.v1.Version"


class FakeCall:
    def __init__(self, **metadata: str) -> None:
        self.metadata = {key.replace("_", "-"): value for key, value in metadata.items()}
        self.deadline = float("inf")

    async def send(self, message: object) -> None: ...


# --- calls


def test_the_namespace_comes_from_either_key() -> None:
    """ttrpc's first; neither is a failed precondition, as containerd says it."""
    assert namespace_of(FakeCall(containerd_namespace_ttrpc="a", containerd_namespace="b")) == "a"
    assert namespace_of(FakeCall(containerd_namespace="b")) == "b"
    for call, code in (
        (FakeCall(), Code.FAILED_PRECONDITION),
        (FakeCall(containerd_namespace=""), Code.FAILED_PRECONDITION),
        (FakeCall(containerd_namespace="../x"), Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(StatusError) as caught:
            namespace_of(call)
        assert caught.value.code == code


async def test_a_closing_gate_waits_for_what_is_under_way_and_refuses_the_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Endless calls are not waited for; a hanging one only so long."""
    gate = Gate()
    order: list[str] = []

    async def call(seconds: float, *, is_counted: bool) -> None:
        with gate.passage(is_counted=is_counted):
            await trio.sleep(seconds)
            order.append(f"call of {seconds:g} s")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: call(2.0, is_counted=True))
        nursery.start_soon(lambda: call(50.0, is_counted=False))
        await trio.testing.wait_all_tasks_blocked()
        await gate.close(5.0)
        order.append("closed")
        with pytest.raises(StatusError) as caught, gate.passage(is_counted=True):
            pass
        assert caught.value.code == Code.UNAVAILABLE
        nursery.cancel_scope.cancel()
    assert order == ["call of 2 s", "closed"]
    assert trio.current_time() == pytest.approx(2.0)
    idle = Gate()
    await idle.close(5.0)
    assert trio.current_time() == pytest.approx(2.0)
    hanging = Gate()
    with hanging.passage(is_counted=True):
        await hanging.close(5.0)
    assert trio.current_time() == pytest.approx(7.0)


async def test_a_held_gate_lets_nothing_begin_and_refuses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """What is under way is waited for, so long; what comes waits, and begins when the gate is released."""
    gate = Gate()
    order: list[str] = []

    async def call(name: str, seconds: float) -> None:
        await gate.wait_held()
        with gate.passage(is_counted=True):
            await trio.sleep(seconds)
            order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "under way", 2.0)
        await trio.testing.wait_all_tasks_blocked()
        assert not await gate.hold(1.0)
        nursery.start_soon(call, "late", 1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert await gate.hold(5.0)
        assert (order, trio.current_time()) == (["under way"], pytest.approx(2.0))
        gate.release()
    assert order == ["under way", "late"]
    gate.release()


async def test_a_lost_shim_is_unavailable_to_the_client() -> None:
    """Guarded handlers translate what the southern side lost; refusals pass as they are."""

    class Impl:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        async def Version(self, _request: Any, _call: Any) -> Any:  # noqa: N802
            if self.error is not None:
                raise self.error
            return version.VersionResponse(version="1")

    async def answer(error: Exception | None) -> Any:
        guarded: Any = Guarded(VERSION, Impl(error), Gate())
        return await guarded.Version(wkt.Empty(), FakeCall())

    assert (await answer(None)).version == "1"
    for error, code in ((ConnectionLost("gone"), Code.UNAVAILABLE), (StatusError(Code.ABORTED, "x"), Code.ABORTED)):
        with pytest.raises(StatusError) as caught:
            await answer(error)
        assert caught.value.code == code


# --- field masks


def a_container() -> Any:
    made = containers.Container(id="c", image="old", labels={"keep": "1", "drop": "2"})
    made.spec.CopyFrom(wkt.any_of("t", b"old"))
    made.extensions["e"].CopyFrom(wkt.any_of("x", b"1"))
    return made


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["labels"], {"image": "old", "labels": {"drop": "9"}, "spec": b"old"}),
        (["labels.drop"], {"image": "old", "labels": {"keep": "1", "drop": "9"}, "spec": b"old"}),
        (["labels.keep"], {"image": "old", "labels": {"drop": "2"}, "spec": b"old"}),
        (["image", "spec"], {"image": "new", "labels": {"keep": "1", "drop": "2"}, "spec": b"new"}),
    ],
)
def test_only_what_the_mask_names_changes(paths: list[str], expected: dict[str, Any]) -> None:
    """A map entry that the update lacks is removed; keys may hold dots."""
    target, update = a_container(), containers.Container(id="other", image="new", labels={"drop": "9"})
    update.spec.CopyFrom(wkt.any_of("t", b"new"))
    fieldmask.apply(target, update, paths, ("labels", "image", "spec", "extensions"))
    assert {"image": target.image, "labels": dict(target.labels), "spec": target.spec.value} == expected
    assert target.id == "c"


def test_map_entries_of_messages_and_cleared_fields() -> None:
    """extensions.NAME; an unset message field is cleared."""
    target, update = a_container(), containers.Container()
    update.extensions["f"].CopyFrom(wkt.any_of("y", b"2"))
    fieldmask.apply(target, update, ["extensions.f", "extensions.e", "spec"], ("extensions", "spec"))
    assert list(target.extensions) == ["f"]
    assert not target.HasField("spec")


@pytest.mark.parametrize("path", ["id", "created_at", "image.x", "labels.", "nothing", ""])
def test_what_may_not_change_is_refused(path: str) -> None:
    """By name, with what may."""
    with pytest.raises(StatusError, match="fields that can be: labels") as caught:
        fieldmask.apply(a_container(), containers.Container(), [path], ("labels", "image"))
    assert caught.value.code == Code.INVALID_ARGUMENT


# --- logs


def test_records_carry_what_is_being_done() -> None:
    """Bound fields, nested ones over outer ones, `extra` of one record; a task of its own begins anew."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("test.daemon.log")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel("INFO")
    handler.setFormatter(logs.JsonFormatter())
    with logs.bind(ns="a", call="Start"), logs.bind(ns="b"):
        logger.info("one", extra={"pid": 7})
        with logs.begin(id="c1"):
            logger.info("two")
    handler.setFormatter(logs.TextFormatter())
    with logs.bind(reason="two words"):
        try:
            raise ValueError("bad")
        except ValueError:
            logger.exception("three")
    logger.removeHandler(handler)
    one, two, *three = stream.getvalue().splitlines()
    assert {key: json.loads(one).get(key) for key in ("msg", "level", "ns", "call", "pid")} == {
        "msg": "one",
        "level": "info",
        "ns": "b",
        "call": "Start",
        "pid": 7,
    }
    assert "ns" not in json.loads(two)
    assert json.loads(two)["id"] == "c1"
    assert three[0].endswith('ERROR   three reason="two words"')
    assert three[-1] == "ValueError: bad"


def test_the_journal_gets_priorities_and_no_second_clock(tmp_path: Path) -> None:
    """sd-daemon(3): a prefix on every line. The stream is known by device and inode, as systemd names it."""
    form = logs.JournalFormatter()
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "two\nlines", "pid": 7})
    assert form.format(record) == "<4>two\n<4>lines pid=7"
    with open(tmp_path / "stream", "wb") as stream:
        found = os.fstat(stream.fileno())
        own = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert logs.is_journal(own, stream.fileno())
        assert not logs.is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}, stream.fileno())
    assert not logs.is_journal({})


# --- locks


def test_a_directory_is_locked_until_its_holder_dies(tmp_path: Path) -> None:
    """However it dies; the second one names the first; what the holder started does not keep it."""
    code = (
        "import sys, subprocess, time\nfrom daemon.lock import DirectoryLock\nlock = DirectoryLock(sys.argv[1])\n"
        "child = subprocess.Popen(['sleep', '1000'])\nprint(child.pid, flush=True)\ntime.sleep(1000)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        with pytest.raises(AlreadyRunning, match=f"pid {holder.pid}"):
            DirectoryLock(str(tmp_path))
        holder.kill()
        holder.wait()
        lock = DirectoryLock(str(tmp_path))
        assert (tmp_path / "shimd.lock").read_text() == f"{os.getpid()}\n"
        lock.release()
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{child}"), what="the child to be gone")


# --- the log


def test_a_log_that_nobody_reads_is_lost_and_counted() -> None:
    """It does not stop us; what came before is whole, and how much is missing is said where it goes on."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    handler = logs.UnreadHandler(writer)
    handler.setFormatter(logs.JsonFormatter())

    def tell(number: int) -> None:
        handler.emit(logging.makeLogRecord({"msg": "x" * 5000, "levelname": "INFO", "number": number}))

    began = time.monotonic()
    for number in range(100):
        tell(number)
    assert time.monotonic() - began < 20 * logs.PATIENCE_MS / 1000, "it waits once"
    *whole, last = os.read(reader, 1 << 20).splitlines()
    for number in (100, 101):
        tell(number)
    rest = os.read(reader, 1 << 20).splitlines()
    torn = [] if last.endswith(b"}") else [rest.pop(0)]
    told = [json.loads(line)["number"] for line in (*whole, *([] if torn else [last]))]
    assert told == list(range(len(told)))
    assert len(told) > 5
    lost, *after = map(json.loads, rest)
    assert lost["msg"] == "nobody read this log, lines of it are lost"
    assert lost["lost"] == 100 - len(told)
    assert [line["number"] for line in after] == [100, 101]
    assert torn in ([], [b""]), "what was torn ends before anything else is told"
    os.close(reader)
    os.close(writer)


# --- systemd


def test_states_reach_path_and_abstract_sockets(short_dir: str) -> None:
    """And nobody is asked to listen."""
    for address, bound in ((f"{short_dir}/n", f"{short_dir}/n"), (f"@{short_dir}/a", f"\0{short_dir}/a")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.bind(bound)
            notify.Notifier({"NOTIFY_SOCKET": address}).tell(READY=1, STATUS="all well")
            assert supervisor.recv(100) == b"READY=1\nSTATUS=all well"
    notify.Notifier({"NOTIFY_SOCKET": f"{short_dir}/nobody"}).tell(READY=1)
    notify.Notifier({}).tell(READY=1)


def test_without_a_free_fd_the_supervisor_is_told_nothing_and_we_go_on(short_dir: str) -> None:
    """The watchdog's task must not end the daemon for that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"{short_dir}/n")
        told = notify.Notifier({"NOTIFY_SOCKET": f"{short_dir}/n", "FDSTORE": "1"})
        with no_free_fd():
            told.tell(WATCHDOG=1)
            assert not told.store(supervisor, "shimd")
        assert told.store(supervisor, "shimd")


def test_the_watchdog_is_only_ours_if_it_means_this_process() -> None:
    """WATCHDOG_PID may name another."""
    assert notify.watchdog_s({"WATCHDOG_USEC": "3000000"}) == 3.0
    assert notify.watchdog_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}) == 3.0
    assert notify.watchdog_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}) is None
    assert notify.watchdog_s({"WATCHDOG_USEC": "0"}) is None
    assert notify.watchdog_s({}) is None


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    """LISTEN_PID says whose they are."""
    assert notify.inherited_listeners({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == []
    assert notify.inherited_listeners({"LISTEN_PID": str(os.getpid())}) == []
