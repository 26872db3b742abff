"""A host, and clients, that fail the daemon: no fds, a bad disk, peers that stall, flood or say nonsense."""

import contextlib
import glob
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemonbox import DaemonBox, refused, restart_labels
from tests.support.faultydisk import FaultyDisk
from tests.support.waiting import wait_until
from ttrpc.api import events_service, process, shimd, wkt
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

WAITING = "while [ ! -e /go ]; do sleep 0.02; done; exit 42"
HELD = 100


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as made:
        yield made


def test_a_store_on_a_bad_disk_is_said_and_loses_no_exit(disk: FaultyDisk) -> None:
    """EIO at the commit: writes are refused, the exit waits in its shim and is stored once the disk is well."""
    box = DaemonBox(autostart=False)
    os.symlink(disk.path, box.root)
    try:
        box.start()
        box.create_container("c1", "sh", "-c", WAITING)
        box.create_task("c1", log=False)
        box.start_task("c1")
        wait_until(lambda: box.topics("c1") == ["/tasks/create", "/tasks/start"], what="its start to be stored")
        disk.fail()
        with pytest.raises((StatusError, ConnectionLost)):
            box.create_container("c2", "true")
        box.let_go()
        wait_until(lambda: ended(box), what="its end")
        disk.heal()
        if box.daemon is not None and box.daemon.poll() is not None:  # a daemon may give up: its supervisor starts it
            box.gone()
            box.start()
        assert box.wait("c1").exit_status == 42
        assert box.topics("c1") == ["/tasks/create", "/tasks/start", "/tasks/exit"]
        box.create_container("c2", "true")
        box.restart()
        assert [record.code for record in box.exits("c1")] == [42]
    finally:
        disk.heal()
        box.close()


def ended(box: DaemonBox) -> bool:
    with open(f"{box.bundle('c1')}/state.json", encoding="utf-8") as file:
        return '"stopped"' in file.read()


def test_a_daemon_without_free_fds_goes_on_and_loses_no_exit(box: DaemonBox) -> None:
    """EMFILE by a client that takes every connection there is; those who are connected are served."""
    box.run("c1", "sh", "-c", WAITING)
    assert box.daemon is not None
    box.info()
    with open(f"/proc/{box.daemon.pid}/limits", encoding="utf-8") as file:
        assert "Max open files" in file.read()
    before = resource.prlimit(box.daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(box.daemon.pid, resource.RLIMIT_NOFILE, (fds(box.daemon.pid) + 8, before[1]))
    many = [connected(box.address) for _ in range(20)]
    try:
        assert box.info().pid == box.daemon.pid
        box.let_go()
        assert box.wait("c1").exit_status == 42
        box.create_container("c2", "true")
        with pytest.raises(StatusError):
            box.create_task("c2")
    finally:
        for one in many:
            one.close()
        resource.prlimit(box.daemon.pid, resource.RLIMIT_NOFILE, before)
    box.disconnect()
    assert [record.code for record in box.exits("c1")] == [42]
    box.run("c3", "true")
    assert box.wait("c3").exit_status == 0


def connected(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(path)
    return made


NONSENSE = {
    "half a header": b"\0\0\0",
    "half a message": struct.pack(">IIBB", 100, 1, 1, 0) + b"x" * 10,
    "longer than allowed": struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0) + b"x" * 100,
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no request": struct.pack(">IIBB", 5, 1, 1, 0) + b"\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_clients_that_say_nonsense_or_stall_hold_up_nobody(box: DaemonBox, what: str) -> None:
    """On the daemon's socket and a shim's: many at a time, none going on; others are served, and then all is freed."""
    box.run("c1", "sleep", "1000")
    shim = box.shim("c1")
    assert box.daemon is not None
    box.info()
    for path, pid in ((box.address, box.daemon.pid), (shim.address.removeprefix("unix://"), shim.pid)):
        before = fds(pid)
        stalled = []
        for _ in range(HELD):
            one = connected(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.sendall(NONSENSE[what])
            stalled.append(one)
        assert box.task("c1").status == process.RUNNING
        with BlockingClient.connect(box.address) as other:
            assert other.call("shimd.v1.Shimd", "Info", shimd.InfoRequest(), timeout_s=20).pid == box.daemon.pid
        for one in stalled:
            one.close()
        wait_until(lambda pid=pid, before=before: fds(pid) <= before, what="the connections to be freed")
    assert box.exec("c1", "e1", "true")
    assert box.wait("c1", "e1").exit_status == 0


def test_a_client_that_never_reads_its_stream_costs_only_itself(box: DaemonBox) -> None:
    """More events than any buffer on the way holds, asked for and left unread, while others get all of theirs."""
    event = wkt.any_of("t", b"x" * 20_000)
    with BlockingClient.connect(box.address) as lazy:
        for _ in range(20):
            lazy.open_stream("shimd.v1.Shimd", "Events", shimd.EventsRequest(all_namespaces=True, follow=True))
        for _ in range(300):
            request = events_service.PublishRequest(topic="/a/lot", event=event)
            box.call("containerd.services.events.v1.Events", "Publish", request)
        box.run("c2", "sh", "-c", "exit 7")
        assert box.wait("c2").exit_status == 7
        assert box.topics("c2")[-1] == "/tasks/exit"
        assert len(box.events("topic==/a/lot")) == 300


def test_a_call_with_a_huge_message_is_refused_and_the_connection_goes_on(box: DaemonBox) -> None:
    with refused(Code.RESOURCE_EXHAUSTED):
        box.create_container("c1", "true", spec=b" " * (5 << 20))
    assert box.daemon is not None
    assert box.info().pid == box.daemon.pid


# --- clock steps

FAKETIME = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")


@pytest.fixture
def shared_memory() -> Iterator[None]:
    """What libfaketime leaves of a process that was killed is removed."""
    before = set(os.listdir("/dev/shm"))
    yield
    for name in set(os.listdir("/dev/shm")) - before:
        if "faketime" in name:
            os.unlink(f"/dev/shm/{name}")


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("shared_memory")
def test_the_clock_is_set(tmp_path: Path) -> None:
    """A day on, a day back, for the daemon, keeper and shims, while a container ends and another begins."""
    assert FAKETIME, "this test needs libfaketime (Debian: faketime)"
    clock = tmp_path / "clock"
    clock.write_text("+0")
    (tmp_path / "runc").write_text(
        f'#!/bin/sh\nunset LD_PRELOAD\nexec {shutil.which("runc")} "$@"\n'
    )  # it takes it ill
    (tmp_path / "runc").chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "LD_PRELOAD": FAKETIME[0], "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",  # of files it would ask the clock each time: most of what importing costs then
    }  # fmt: skip
    with DaemonBox(environ=environ) as box:
        box.run("c1", "sh", "-c", WAITING)
        box.run("c2", "sh", "-c", "while :; do sleep 0.05; done", labels=restart_labels("always"))
        for step in ("+86400", "-86400"):
            clock.write_text(step)
            before = box.task("c2").pid
            box.signal("c2")
            wait_until(lambda before=before: box.task("c2").pid not in (0, before), deadline_s=30, what="its restart")
            os.kill(box.shim("c1").pid, signal.SIGKILL)
            box.restart()
            assert box.task("c1").status == process.RUNNING
        box.let_go()
        assert box.wait("c1").exit_status == 42
        box.restart()
        assert [record.code for record in box.exits("c1")] == [42]
        assert [record.signal for record in box.exits("c2")] == [9, 9]
        seqs = [event.seq for event in box.events()]
        assert seqs == sorted(set(seqs))
