"""A shim that lives and does not move: found by its pulse, reported with its stack, replaced under its container.

And one that is only slow, because it gets no processor: never touched.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shim.core import kernel
from tests.support.daemonbox import TASKS, DaemonBox
from tests.support.keeperbox import state_of
from tests.support.shimctl import Shimctl
from tests.support.waiting import wait_until
from ttrpc.api import process, pulse, shim, shimd, tasks
from ttrpc.blocking import BlockingClient
from ttrpc.errors import StatusError, TtrpcError

# Writes numbered lines until it is told to end, then ends with a code of its own.
WRITER = (
    "i=0; while [ ! -e /go ]; do echo line $i; i=$((i+1)); sleep 0.02; done; echo $i >/count; exit 42",
)  # fmt: skip
QUICK = "wedged.after_s = 0.5\nwedged.grace_s = 1.0"
STARVED = "wedged.after_s = 0.2\nwedged.grace_s = 0.2"


class WedgeBox(DaemonBox):
    """A daemon box whose shims hang when a test wants it: see shim/faults.py."""

    def __init__(self, config: str = QUICK, **options: Any) -> None:
        super().__init__(config=config, autostart=False, **options)
        self.traps = f"{self.folder}/traps"
        os.mkdir(self.traps)
        self.environ |= {"SHIMD_SHIM_FAULTS": self.traps, "SHIMD_SHIM_FAULTS_ARMED": "yes-kill-me"}
        self.start()

    def lay(self, kind: str) -> None:
        """The next pause finds the shim in an endless loop (`spin`), or in a call that does not return (`block`)."""
        trap = f"{self.traps}/pause.begun"
        if kind == "block":
            os.mkfifo(trap)
        else:
            os.mkdir(trap)

    def pause(self, container_id: str) -> None:
        """Ask for what the shim hangs in, and do not wait for the answer."""
        with contextlib.suppress(StatusError, TtrpcError), BlockingClient.connect(self.address) as client:
            metadata = {"containerd-namespace-ttrpc": "default"}
            client.call(
                TASKS, "Pause", tasks.PauseTaskRequest(container_id=container_id), timeout_s=0.5, metadata=metadata
            )

    def told(self, kind: str) -> "list[Any]":
        """What was told of shims, oldest first."""
        found = [event for event in self.events() if event.topic == f"/shimd/shim/{kind}"]
        return [_unpacked(event.event) for event in found]

    def let_go(self) -> None:
        with open(f"{self.rootfs}/go", "w", encoding="ascii"):
            pass


def _unpacked(packed: Any) -> Any:
    return getattr(shimd, packed.type_url.rpartition(".")[2]).FromString(packed.value)


@pytest.fixture
def box() -> Iterator[WedgeBox]:
    with WedgeBox() as made:
        yield made


@pytest.mark.parametrize("kind", ["spin", "block"])
def test_a_shim_that_hangs_is_reported_with_its_stack_and_replaced(box: WedgeBox, kind: str) -> None:
    """The container keeps its pid, its log is complete, its exit status exact."""
    pid = box.run("c", "sh", "-c", *WRITER)
    hanging = box.shim("c").pid
    wait_until(lambda: "line 5\n" in box.output("c"), what="its first lines")
    box.lay(kind)
    box.pause("c")

    (wedged,) = wait_until(lambda: box.told("wedged"), deadline_s=60, what="the report")
    assert (wedged.container_id, wedged.pid, wedged.kind) == ("c", hanging, "stuck")
    assert "one turn of its loop does not end" in wedged.reason
    assert "most recent call first" in wedged.stack
    assert "faults.py" in wedged.stack
    (replaced,) = wait_until(lambda: box.told("replaced"), deadline_s=120, what="the successor")
    assert (replaced.old_pid, replaced.pid, replaced.stack) == (hanging, box.shim("c").pid, wedged.stack)
    assert box.shim("c").pid != hanging
    assert box.shim("c").trouble == ""
    assert (box.task("c").pid, box.task("c").status) == (pid, process.RUNNING)
    box.let_go()
    assert box.wait("c").exit_status == 42
    with open(f"{box.rootfs}/count", encoding="ascii") as file:
        count = int(file.read())
    assert box.output("c").splitlines() == [f"line {number}" for number in range(count)]
    (record,) = box.exits("c", "")
    assert record.code == 42
    assert record.source != shim.EXIT_SOURCE_UNKNOWN


def test_a_shim_that_hangs_is_shown_with_its_stack(box: WedgeBox) -> None:
    box.run("c", "sleep", "1000")
    ctl = Shimctl("--address", box.address, "--state", box.state)
    box.lay("block")
    box.pause("c")
    wait_until(lambda: box.shim("c").stack, deadline_s=60, what="the stack")
    with contextlib.suppress(AssertionError):  # it may be replaced by now
        assert "faults.py" in ctl.output("inspect", "--part", "shim.stack", "c")
    wait_until(lambda: box.told("replaced"), deadline_s=120, what="the successor")


def test_looking_at_a_shim_does_not_wake_it(box: WedgeBox) -> None:
    """Nor does its pulse: an idle shim sleeps on."""
    box.run("c", "sleep", "1000")
    pid = box.shim("c").pid

    seen: list[str] = []

    def sleeps_on() -> bool:
        """Whether it has not woken while the daemon looked at it a dozen times."""
        lines = pulse.read_proc(pid, "status").splitlines()
        seen.append(next(line for line in lines if line.startswith("voluntary_ctxt_switches")))
        return len(seen) > 60 and set(seen[-60:]) == {seen[-1]}

    wait_until(sleeps_on, deadline_s=60, what="the shim to sleep on")
    assert box.shim("c").pid == pid


def test_a_stopped_shim_is_continued_and_kept(box: WedgeBox) -> None:
    pid = box.run("c", "sleep", "1000")
    stopped = box.shim("c").pid
    os.kill(stopped, signal.SIGSTOP)

    wait_until(lambda: box.told("recovered"), deadline_s=60, what="the shim to move again")
    (wedged,) = box.told("wedged")
    assert (wedged.kind, wedged.pid) == ("stopped", stopped)
    assert state_of(stopped) not in ("T", "", "Z")
    assert (box.shim("c").pid, box.task("c").pid) == (stopped, pid)
    assert box.shim("c").trouble == ""


def test_one_that_stays_stopped_is_replaced(box: WedgeBox) -> None:
    """Whoever stops it does so again at once."""
    pid = box.run("c", "sleep", "1000")
    stopped, over = box.shim("c").pid, threading.Event()

    def stop() -> None:
        while not over.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGSTOP)
            over.wait(0.0005)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        (replaced,) = wait_until(lambda: box.told("replaced"), deadline_s=100, what="the successor")
    finally:
        over.set()
        stopper.join()
    assert replaced.old_pid == stopped
    assert box.task("c").pid == pid


def test_without_replacing_it_is_only_reported() -> None:
    with WedgeBox(config=QUICK + "\nwedged.is_replaced = false") as box:
        box.run("c", "sleep", "1000")
        hanging = box.shim("c").pid
        box.lay("block")
        box.pause("c")
        wait_until(lambda: box.told("wedged"), deadline_s=60, what="the report")
        busy_ns = wait_until(lambda: busy_for_ns(box, hanging) > 3_000_000_000, deadline_s=60, what="time to pass")
        assert busy_ns
        assert box.told("replaced") == []
        assert state_of(hanging) not in ("", "Z")
        os.kill(hanging, signal.SIGKILL)
        wait_until(lambda: box.shim("c").pid != hanging, what="the successor")


def busy_for_ns(box: DaemonBox, pid: int, container_id: str = "c") -> int:
    """For how long the shim is in its present turn."""
    found = pulse.look(box.bundle(container_id), pid, time.monotonic_ns())
    return found.at_ns - found.busy_since_ns if found.busy_since_ns else 0


def test_a_healthy_shim_without_a_processor_is_not_touched() -> None:
    """Its turns take several times the limits, by the clock; of its own time they take a thousandth."""
    with WedgeBox(config=STARVED) as box:
        pid = box.run("c", "sleep", "1000")
        starved, over = box.shim("c").pid, threading.Event()
        ticks = kernel.start_ticks(starved)
        cpu = min(os.sched_getaffinity(0))
        spinner = subprocess.Popen(["sh", "-c", "while :; do :; done"])
        os.sched_setaffinity(spinner.pid, {cpu})
        with contextlib.suppress(PermissionError):  # a cgroup may have no share of real time
            os.sched_setscheduler(spinner.pid, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setaffinity(starved, {cpu})
        os.sched_setscheduler(starved, os.SCHED_IDLE, os.sched_param(0))
        asker = threading.Thread(target=ask_all_the_time, args=(box.shim("c").address, over))
        asker.start()
        try:
            slowest_ns = wait_until(lambda: slow_turn_ns(box, starved), deadline_s=100, what="a starved turn")
        finally:
            over.set()
            os.sched_setscheduler(starved, os.SCHED_OTHER, os.sched_param(0))
            spinner.kill()
            spinner.wait()
            asker.join()
        assert slowest_ns > 600_000_000
        assert box.told("wedged") == box.told("replaced") == []
        assert (box.shim("c").pid, kernel.start_ticks(starved)) == (starved, ticks)
        assert box.task("c").pid == pid


QUESTIONS = 60


def slow_turn_ns(box: DaemonBox, pid: int) -> int:
    """How long the present turn is, if it is longer than the box's limits together by half."""
    busy_ns = busy_for_ns(box, pid)
    return busy_ns if busy_ns > 600_000_000 else 0


def ask_all_the_time(address: str, over: threading.Event) -> None:
    """Keep a shim busy: so many questions at a time that a turn is longer than what the scheduler gives at once."""
    while not over.is_set():
        with contextlib.suppress(OSError, TtrpcError), BlockingClient.connect(address) as client:
            request = shim.InfoRequest()
            asked = [client.open_stream("shimd.shim.v1.Shim", "Info", request) for _ in range(QUESTIONS)]
            for one in asked:
                one.receive(timeout_s=2.0)


def test_what_the_keeper_did_while_no_daemon_was_there_is_told() -> None:
    """Its note becomes an event, with the time it has, and goes."""
    with WedgeBox() as box:
        box.run("c", "sleep", "1000")
        box.kill()
        note = f"{box.bundle('c')}/keeper-wedged.7"
        with open(note, "w", encoding="utf-8") as file:
            json.dump({"pid": 7, "kind": "stuck", "reason": "r", "stack": "s", "at_ns": 12_000_000_005}, file)
        box.start()
        (replaced,) = wait_until(lambda: box.told("replaced"), deadline_s=60, what="the event")
        assert (replaced.old_pid, replaced.pid) == (7, box.shim("c").pid)
        assert (replaced.reason, replaced.stack) == ("r", "s")
        (event,) = [event for event in box.events() if event.topic == "/shimd/shim/replaced"]
        assert event.timestamp.ToNanoseconds() == 12_000_000_005
        wait_until(lambda: not os.path.exists(note), what="the note to go")
