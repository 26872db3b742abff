"""A shim is killed in the middle of Attach and Logs: our client goes on with the successor, each byte once, both ways.

SHIMD_TEST_STREAM_KILLS: how often in a row, default 6.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daemon.ctl.attachment import Attachment
from daemon.ctl.logs import Cursor, follow_shim
from tests.support.codetree import CodeTree
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim, task

KILLS = int(os.environ.get("SHIMD_TEST_STREAM_KILLS", "6"))
WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done"]
ECHO = ["sh", "-c", "cat; exit 5"]
RAW_ECHO = ["sh", "-c", "stty raw -echo; echo ready; cat"]
ATTACHED = {"stdin": "attach:", "stdout": "attach:", "stderr": "attach:"}
TERMINAL = {"stdin": "attach:", "stdout": "attach:"}


@pytest.fixture
def box() -> Iterator[KeptBox]:
    with KeptBox(WAITER) as box:
        yield box


class Client:
    """Our client's stream, and what it has told."""

    def __init__(self, box: ShimBox, exec_id: str = "", **opening: Any) -> None:
        opening = {"stdin": True, "output": True, "exec_id": exec_id, **opening}
        self.gaps: list[str] = []
        self.out, self.err = bytearray(), bytearray()
        self.ending: shim.ExitRecord | None = None
        self.attachment = Attachment(box.address, shim.AttachOpen(**opening), metadata={}, on_gap=self.gaps.append)
        self.attachment.open()

    def take(self) -> None:
        """Whatever there is by now."""
        self.attachment.pump_nowait()
        while self.ending is None:
            try:
                message = self.attachment.receive_nowait()
            except BlockingIOError:
                return
            assert message is not None
            assert not message.HasField("cut"), message
            self.out += message.stdout
            self.err += message.stderr
            if message.HasField("exited"):
                self.ending = message.exited

    def until(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(lambda: (self.take(), condition())[1], deadline_s=60, what=what)

    def until_bytes(self, count: int) -> None:
        self.until(lambda: self.ending or len(self.out) > count, "output")

    def until_broken(self, times: int) -> None:
        """Until it has come back so often, or is told the end."""
        self.until(lambda: self.ending or self.attachment.times_broken >= times, "the break")

    def say(self, data: bytes) -> None:
        self.until(lambda: self.attachment.may_send, "room for input")
        self.attachment.send(data)


def kill(box: KeptBox) -> None:
    """SIGKILL whoever serves now; the successor is found later."""
    pid = int(box.read("shim.pid"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: box.read("shim.pid").strip() not in ("", str(pid)), deadline_s=60, what="a successor")
    box.shim_pid = int(box.read("shim.pid"))


def run(box: KeptBox, args: list[str], *, terminal: bool = False, **opening: Any) -> Client:
    """An exec with a client, from before its first byte on."""
    box.create()
    box.start()
    box.add_exec("e", args, terminal=terminal, **(TERMINAL if terminal else ATTACHED))
    client = Client(box, "e", **opening)
    box.start("e")
    return client


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_numbered_input_comes_back_once(box: KeptBox, terminal: bool) -> None:
    client = run(box, RAW_ECHO if terminal else ECHO, terminal=terminal)
    if terminal:
        client.until(lambda: b"ready" in client.out, "a raw terminal")
    begun, said = len(client.out), b""
    for number in range(KILLS):
        for part in range(20):
            said += (line := b"%06d.%02d\n" % (number, part))
            client.say(line)
        kill(box)
    client.until(lambda: len(client.out) - begun >= len(said), "the echo")

    assert bytes(client.out[begun:]) == said
    assert client.gaps == []
    assert client.attachment.times_broken >= KILLS - 1
    if not terminal:
        client.attachment.end_input()
        client.until(lambda: client.ending, "the exit")
        assert client.ending is not None
        assert client.ending.code == 5
        assert bytes(client.out[begun:]) == said
    client.attachment.close()


@pytest.mark.parametrize("stdout", ["attach:", "json", "raw"])
def test_output_at_full_speed_comes_once(stdout: str) -> None:
    """The process waits for its clients, also while they are on their way back; one of them reads nothing else."""
    script = "while [ ! -e /go ]; do usleep 10000; done; seq 1 400000"
    with KeptBox(["sh", "-c", script]) as box:
        log = f"log://{box.folder}/log?format={stdout}&max-size=1048576&max-files=1000"
        streams = {"stdout": log} if stdout != "attach:" else {"stdout": stdout, "stderr": stdout}
        box.create(**streams)
        clients = [Client(box, stdin=False, backpressure=True) for _ in range(2)]
        box.start()
        box.let_go()
        for number in range(KILLS):
            clients[0].until_bytes(number * 200_000)
            kill(box)
            clients[1].until_broken(number + 1)
        wait_until(
            lambda: ([client.take() for client in clients], all(client.ending for client in clients))[1],
            deadline_s=90,
            what="the exits",
        )

        expected = b"".join(b"%d\n" % number for number in range(1, 400_001))
        for client in clients:
            assert client.gaps == []
            assert hashlib.md5(client.out).digest() == hashlib.md5(expected).digest(), len(client.out)
            assert client.ending is not None
            assert client.ending.code == 0
            client.attachment.close()


def test_much_input_arrives_once(box: KeptBox) -> None:
    """The process reads slowly, so that input waits everywhere: in its pipe, with the shim, in the socket and here."""
    client = run(box, ["sh", "-c", "while [ ! -e /begin ]; do usleep 10000; done; md5sum"])
    data = [os.urandom(16384) for _ in range(60)]
    for index, each in enumerate(data):
        if not client.attachment.may_send:
            break
        client.attachment.send(each)
        if index in (10, 30):
            kill(box)
            client.take()
    sent = data[: index + 1] if client.attachment.may_send else data[:index]
    with open(os.path.join(box.rootfs, "begin"), "w", encoding="utf-8"):
        pass
    kill(box)
    client.attachment.end_input()
    client.until(lambda: client.ending, "the exit")

    assert hashlib.md5(b"".join(sent)).hexdigest().encode() in client.out
    assert client.gaps == []
    client.attachment.close()


def test_who_attaches_after_a_kill_gets_the_last_output(box: KeptBox) -> None:
    first = run(box, ["sh", "-c", "seq 1 5; cat"])
    first.until(lambda: first.out == b"1\n2\n3\n4\n5\n", "output")
    first.attachment.close()
    kill(box)
    second = Client(box, "e", replay_bytes=1000)
    second.say(b"more\n")
    second.until(lambda: second.out.endswith(b"more\n"), "the echo")

    assert second.out == b"1\n2\n3\n4\n5\nmore\n"
    second.attachment.close()


def test_a_client_that_died_too_holds_the_process_up_for_moments_only(box: KeptBox) -> None:
    client = run(box, ["sh", "-c", "cat; seq 1 100000"], backpressure=True)
    client.attachment.pump_nowait()
    os.kill(box.shim_pid, signal.SIGSTOP)
    client.attachment.close()  # which the shim does not live to see
    kill(box)
    box.call("CloseIO", task.CloseIORequest(id=box.id, exec_id="e", stdin=True))
    assert box.wait("e").exit_status == 0


@pytest.mark.parametrize("form", ["json", "raw"])
def test_a_followed_log_goes_on(form: str) -> None:
    script = "i=1; while [ ! -e /go ]; do seq $((i*1000)) $((i*1000+999)); i=$((i+1)); usleep 30000; done"
    with KeptBox(["sh", "-c", script]) as box:
        box.create(stdout=f"log://{box.folder}/log?format={form}&max-size=262144&max-files=1000")
        box.start()
        told: list[bytes] = []
        records = follow_shim(box.address, Cursor(shim.LogsRequest(follow=True, tail=10)), {})
        reader = threading.Thread(target=lambda: told.extend(record.data for record in records))
        reader.start()
        for number in range(KILLS):
            until_more(told, 1500 * number)
            kill(box)
        box.let_go()
        reader.join(60)

        assert not reader.is_alive()
        text, first = b"".join(told), int(told[0])
        lines = text.count(b"\n")
        assert text == b"".join(b"%d\n" % number for number in range(first, first + lines))
        assert lines > 1000 * KILLS


def until_more(told: list[bytes], count: int) -> None:
    wait_until(lambda: len(told) > count, deadline_s=60, what="lines")


def test_without_a_keeper_it_is_said_what_may_be_missing() -> None:
    """The pipes live on with the process; what input was accepted nobody knows."""
    with ShimBox(WAITER, environment={"SHIMD_KEEPER": "off"}) as box:
        box.create()
        box.start()
        box.add_exec("e", ECHO, **ATTACHED)
        client = Client(box, "e")
        box.start("e")
        client.say(b"before\n")
        client.until(lambda: client.out == b"before\n", "the echo")
        os.kill(box.shim_pid, signal.SIGSTOP)
        client.say(b"never read\n")
        box.kill_shim()
        box.launch()
        client.until(lambda: client.ending, "the exit")  # nobody had its stdin open

        assert client.out == b"before\n"
        assert client.gaps == ["the shim was replaced; input of the last moment may be lost"]
        client.attachment.close()


def test_an_older_shim_is_told_from_one_that_keeps_places(box: KeptBox) -> None:
    """It says no place and counts no input: what a kill may have cost is said, and the client goes on."""
    tree = CodeTree(box.folder, "0.0.9")
    tree.edit(
        "shim/streams/attach.py",
        "        if self.log is not None:\n            return api",
        "        if self:\n            return None\n        if self.log is not None:\n            return api",
    )
    tree.edit(
        "shim/streams/inputs.py",
        "        account = self",
        "        if opening:\n            return None\n        account = self",
    )
    box.create()
    box.start()
    box.call("Upgrade", shim.UpgradeRequest(paths=tree.paths, patience_ms=60_000), service=SHIM, timeout_s=90)
    box.add_exec("e", ECHO, **ATTACHED)
    client = Client(box, "e")
    box.start("e")
    client.say(b"one\n")
    client.until(lambda: client.out == b"one\n", "the echo")
    kill(box)
    client.until(lambda: client.gaps, "what is said")
    client.say(b"two\n")
    client.until(lambda: client.out.endswith(b"two\n"), "the echo")

    said = [
        "the shim was replaced; input of the last moment may be lost",
        "the shim was replaced; output of the moment between may be missing here",
    ]
    assert client.gaps == said
    client.say(b"three\n")
    kill(box)
    client.until(lambda: client.out.endswith(b"two\nthree\n"), "the echo")
    assert client.gaps == said  # from the first successor on it is exact
    client.attachment.close()
