"""Streams through the daemon and by shimctl while shims and daemons are killed and upgraded: each byte comes once.

SHIMD_TEST_STREAM_KILLS: a sixth of it is how often each of these happens, default 6.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from daemon.ctl.attachment import DAEMON, Attachment
from tests.support.ctlbox import CtlBox
from tests.support.keeperbox import end_keepers
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until
from ttrpc.api import shim

NAMESPACE_KEY = "containerd-namespace-ttrpc"
# Its own keeper, and its cgroup left as it is.
KEPT = {"SHIMD_KEEPER": "", "SHIMD_KEEPER_CGROUP": ""}
ROUNDS = max(1, int(os.environ.get("SHIMD_TEST_STREAM_KILLS", "6")) // 6)
STRIKES = ("kill the shim", "kill the daemon", "upgrade the shim", "upgrade the daemon")


@pytest.fixture
def box() -> Iterator[CtlBox]:
    with CtlBox(environ=KEPT) as box:
        try:
            yield box
        finally:
            box.daemon._clear()
            end_keepers(f"{box.daemon.state}/shimd-keeper")


def bundle(box: CtlBox, container_id: str) -> str:
    return f"{box.daemon.state}/io.containerd.runtime.v2.task/{box.namespace}/{container_id}"


def shim_pid(box: CtlBox, container_id: str) -> int:
    try:
        with open(f"{bundle(box, container_id)}/shim.pid", encoding="ascii") as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return 0


def strike(box: CtlBox, what: str, container_id: str) -> None:
    if what == "kill the daemon":
        box.daemon.kill()
        box.daemon.start()
    elif what == "upgrade the daemon":
        box.daemon.upgraded(json.loads(box.ctl.output("daemon", "upgrade", "--json"))["to_pid"])
    elif what == "kill the shim":
        pid = shim_pid(box, container_id)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: shim_pid(box, container_id) not in (0, pid), what="a successor")
    else:
        found = json.loads(box.ctl.output("shim", "upgrade", "--json", container_id))
        assert [each["result"] for each in found] == ["upgraded"]


class Talk:
    """An attached client by way of the daemon."""

    def __init__(self, box: CtlBox, container_id: str) -> None:
        self.gaps: list[str] = []
        self.out = bytearray()
        self.attachment = Attachment(
            box.daemon.address,
            shim.AttachOpen(stdin=True, output=True),
            metadata={NAMESPACE_KEY: box.namespace},
            on_gap=self.gaps.append,
            service=DAEMON,
            container_id=container_id,
        )
        self.attachment.open()

    def take(self) -> None:
        self.attachment.pump_nowait()
        try:
            while (message := self.attachment.receive_nowait()) is not None:
                self.out += message.stdout
        except BlockingIOError:
            pass

    def until(self, length: int) -> None:
        wait_until(lambda: (self.take(), len(self.out) >= length)[1], deadline_s=60, what="the echo")


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_through_the_daemon_input_comes_back_once(box: CtlBox, terminal: bool) -> None:
    """Both shims and daemons are killed and go on; with a terminal, and with pipes."""
    words = ("sh", "-c", "stty raw -echo; echo ready; cat") if terminal else ("sh", "-c", "echo ready; cat")
    box.detached("c", *words, options=("-i", "-t") if terminal else ("-i",))
    wait_until(lambda: "ready" in box.ctl.output("logs", "c"), what="it to read")
    talk, said = Talk(box, "c"), b""
    for number in range(ROUNDS):
        for what in STRIKES:
            for part in range(5):
                said += (line := b"%d %s %d\n" % (number, what.encode(), part))
                talk.attachment.send(line)
            strike(box, what, "c")
            talk.until(len(said))

    assert bytes(talk.out) == said
    assert talk.gaps == []
    assert talk.attachment.times_broken >= 3 * ROUNDS
    talk.attachment.close()
    box.remove("c")


def test_a_user_notices_nothing(box: CtlBox) -> None:
    """`shimctl run`, `attach` and `logs -f` on one container; nothing but its output is said."""
    run = box.start("-i", "--name", "c", "--log-driver", "json-file", "--", "sh", "-c", "cat; exit 7")
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write(b"begin\n")
    read_until(run.stdout.fileno(), b"begin\n")
    others = [box.ctl.start("attach", "--no-stdin", "--no-replay", "c"), box.ctl.start("logs", "-f", "c")]
    watch, logs = others
    assert watch.stdout is not None
    assert logs.stdout is not None
    read_until(logs.stdout.fileno(), b"begin\n")
    wait_until(lambda: attached(box, "c") >= 2, what="both to be attached")
    said = b""
    for number in range(ROUNDS):
        for what in STRIKES:
            said += (line := b"%d %s\n" % (number, what.encode()))
            run.stdin.write(line)
            strike(box, what, "c")
    run.stdin.close()
    run.stdin = None

    assert finish(run) == (7, said, b"")
    assert finish(watch) == (7, said, b"")
    assert finish(logs) == (0, said, b"")


def attached(box: CtlBox, container_id: str) -> int:
    found = json.loads(box.ctl.output("shim", "state", container_id))
    return int(found["shim"].get("attached", 0))


def test_a_user_whose_pipe_is_stuck_misses_nothing(box: CtlBox) -> None:
    """Nobody reads what shimctl prints; the process waits for that, whoever is its shim."""
    reading, writing = os.pipe()
    words = ("--", "sh", "-c", "seq 1 300000")
    run = box.start("--name", "c", "--log-driver", "none", *words, stdin=subprocess.DEVNULL, stdout=writing)
    os.close(writing)
    wait_until(lambda: shim_pid(box, "c") and attached(box, "c"), deadline_s=60, what="it to be attached")
    for _ in range(ROUNDS):
        strike(box, "kill the shim", "c")
    with os.fdopen(reading, "rb") as file:
        told = file.read()

    assert told == b"".join(b"%d\n" % number for number in range(1, 300_001))
    assert finish(run)[::2] == (0, b"")
