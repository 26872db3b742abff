"""A shim goes on as other code in the middle of Attach, Logs and Follow: on the same connection, each byte once.

SHIMD_TEST_SHIM_UPGRADES: how often in a row.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kernel.test_shim_upgrade import UPGRADES, WAITER, upgrade
from tests.support.codetree import CodeTree
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, TASK, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.connection import Connection
from ttrpc.errors import ConnectionLost

ECHO = ["sh", "-c", "cat; exit 5"]
RAW_ECHO = ["sh", "-c", "stty raw -echo; echo ready; cat"]
ATTACHED = {"stdin": "attach:", "stdout": "attach:", "stderr": "attach:"}
TERMINAL = {"stdin": "attach:", "stdout": "attach:"}
LONG = "i=1; while [ ! -e /go ]; do seq $((i*1000)) $((i*1000+999)); i=$((i+1)); usleep 30000; done"


@pytest.fixture
def box() -> Iterator[KeptBox]:
    with KeptBox(WAITER) as box:
        yield box


class Heard:
    """What one stream says, read when asked."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.messages: list[Any] = []

    def take(self) -> None:
        """Whatever has come by now."""
        while True:
            try:
                message = self.stream.receive_nowait()
            except BlockingIOError:
                return
            if message is None:
                return
            self.messages.append(message)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(lambda: (self.take(), condition())[1], deadline_s=60, what=what)

    def to_the_end(self) -> None:
        while (message := self.stream.receive(timeout_s=60)) is not None:
            self.messages.append(message)

    def stdout(self) -> bytes:
        return b"".join(message.stdout for message in self.messages)

    def data(self) -> bytes:
        return b"".join(message.data for message in self.messages)


def attach(box: ShimBox, exec_id: str = "", **opening: Any) -> Heard:
    return Heard(box.attach(exec_id, **{"stdin": True, "output": True, **opening}))


def run(box: KeptBox, args: list[str], *, terminal: bool = False, **opening: Any) -> Heard:
    """An exec with a client, from before its first byte on."""
    box.create()
    box.start()
    box.add_exec("e", args, terminal=terminal, **(TERMINAL if terminal else ATTACHED))
    heard = attach(box, "e", **opening)
    box.start("e")
    return heard


def say(heard: Heard, data: bytes) -> None:
    heard.stream.send(shim.AttachInput(stdin=data), timeout_s=60)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_numbered_input_comes_back_once(box: KeptBox, terminal: bool) -> None:
    heard = run(box, RAW_ECHO if terminal else ECHO, terminal=terminal)
    if terminal:
        heard.until(lambda: b"ready" in heard.stdout(), "a raw terminal")
    begun, said = len(heard.stdout()), b""
    for number in range(UPGRADES):
        for part in range(3):
            said += (line := b"%06d.%d\n" % (number, part))
            say(heard, line)
        upgrade(box)
    heard.until(lambda: len(heard.stdout()) - begun >= len(said), "the echo")

    assert heard.stdout()[begun:] == said
    if not terminal:
        heard.stream.send(shim.AttachInput(close_stdin=True))
        heard.to_the_end()
        assert heard.messages[-1].exited.code == 5


@pytest.mark.parametrize("backpressure", [False, True])
def test_a_client_that_does_not_read_meanwhile_misses_nothing(box: KeptBox, backpressure: bool) -> None:
    """Some of it waits in the socket, some in the shim; with backpressure the process waits, too."""
    lines = 300_000 if backpressure else 120_000
    heard = run(box, ["seq", "1", str(lines)], backpressure=backpressure)
    waits = box.wait_later("e")
    for _ in range(3):
        upgrade(box)
    heard.to_the_end()

    assert heard.stdout() == b"".join(b"%d\n" % number for number in range(1, lines + 1))
    assert heard.messages[-1].exited.code == 0
    assert waits.receive(timeout_s=20).exit_status == 0


def test_input_that_the_process_does_not_take_waits_with_its_client(box: KeptBox) -> None:
    heard = run(box, ["sh", "-c", "while [ ! -e /begin ]; do usleep 10000; done; md5sum"])
    data = os.urandom(16384)
    for _ in range(40):  # more than the pipe, the shim's own queue and the connection take
        heard.stream.send_nowait(shim.AttachInput(stdin=data))
    heard.stream.send_nowait(shim.AttachInput(close_stdin=True))
    for _ in range(2):
        upgrade(box)
        heard.take()
    with open(os.path.join(box.rootfs, "begin"), "w", encoding="utf-8"):
        pass
    heard.until(lambda: heard.messages and heard.messages[-1].HasField("exited"), "the exit")

    assert hashlib.md5(40 * data).hexdigest().encode() in heard.stdout()


def test_half_a_message_and_a_call_on_the_same_connection(box: KeptBox) -> None:
    box.create()
    box.start()
    box.add_exec("e", ECHO, **ATTACHED)
    client = box.connect()
    heard = attach(box, "e", client=client)
    box.start("e")
    waits = client.open_stream(TASK, "Wait", task.WaitRequest(id=box.id, exec_id="e"))
    core: Connection = client._connection
    frame = core.send_message(heard.stream.stream_id, shim.AttachInput(stdin=b"in two halves\n").SerializeToString())
    client._socket.sendall(frame[:17])
    wait_until(lambda: not client.unsent_bytes, what="half a frame")
    upgrade(box)
    client._socket.sendall(frame[17:])
    heard.stream.send(shim.AttachInput(close_stdin=True))
    heard.to_the_end()

    assert heard.stdout() == b"in two halves\n"
    assert waits.receive(timeout_s=20).exit_status == 5


def test_the_caller_of_the_upgrade_may_be_attached_on_the_same_connection(box: KeptBox) -> None:
    box.create()
    box.start()
    box.add_exec("e", ECHO, **ATTACHED)
    client = box.connect()
    heard = attach(box, "e", client=client)
    box.start("e")
    answer = client.call(SHIM, "Upgrade", shim.UpgradeRequest(patience_ms=60_000), timeout_s=60)
    say(heard, b"still here\n")
    heard.until(lambda: heard.stdout() == b"still here\n", "the echo")

    assert answer.pause_us > 0


@pytest.mark.parametrize("form", ["json", "raw"])
def test_logs_and_follow_go_on_where_they_were(form: str) -> None:
    """Over rotations; one follower reads at once, another at the end only."""
    with KeptBox(["sh", "-c", LONG]) as box:
        box.create(stdout=f"log://{box.folder}/log?format={form}&max-size=262144&max-files=1000")
        followed = Heard(box.connect().open_stream(SHIM, "Follow", shim.FollowRequest()))
        logs = [Heard(box.connect().open_stream(SHIM, "Logs", shim.LogsRequest(follow=True))) for _ in range(2)]
        box.start()
        waits = box.wait_later()
        for _ in range(4):
            upgrade(box)
            logs[0].take()
            followed.take()
        box.let_go()
        assert waits.receive(timeout_s=60).exit_status == 0
        for each in logs:
            each.to_the_end()
        followed.until(lambda: followed.messages[-1].HasField("exit"), "the exit")

        count = logs[0].data().count(b"\n")
        assert count >= 4000
        for each in logs:
            assert each.data() == b"".join(b"%d\n" % number for number in range(1000, 1000 + count))
        assert [each.seq for each in followed.messages] == list(range(1, len(followed.messages) + 1))
        assert [each.topic.rpartition("/")[2] for each in followed.messages] == ["create", "start", "exit"]


def test_no_more_of_a_log_than_was_asked_for(box: KeptBox) -> None:
    with KeptBox(["sh", "-c", "seq 1 50; while [ ! -e /go ]; do usleep 10000; done; seq 51 60"]) as box:
        box.create(stdout=f"log://{box.folder}/log?format=json")
        box.start()
        wait_until(lambda: box.info().log_bytes >= 141, what="fifty lines")
        heard = Heard(box.connect().open_stream(SHIM, "Logs", shim.LogsRequest(follow=True, tail=3)))
        heard.until(lambda: len(heard.messages) == 3, "the tail")
        upgrade(box)
        upgrade(box)
        box.let_go()
        heard.to_the_end()

        assert heard.data() == b"".join(b"%d\n" % number for number in range(48, 61))


# --- other programs


def test_a_program_that_fails_hands_the_streams_back(box: KeptBox) -> None:
    tree = CodeTree(box.folder, "9.1.0")
    tree.edit(
        "shim/upgrade/carriedcalls.py",
        "\n\ndef _begin(",
        "\n    raise RuntimeError('as you wish')\n\n\ndef _begin(",
    )
    heard = run(box, ECHO)
    say(heard, b"before\n")
    with pytest.raises(Exception, match="as you wish"):
        upgrade(box, paths=tree.paths)
    say(heard, b"after\n")
    heard.stream.send(shim.AttachInput(close_stdin=True))
    heard.to_the_end()

    assert heard.stdout() == b"before\nafter\n"
    assert heard.messages[-1].exited.code == 5


def test_an_older_program_closes_what_it_does_not_know(box: KeptBox) -> None:
    """What its client has sent is with the process before, though that does not read at first."""
    tree = CodeTree(box.folder, "0.0.9")
    tree.edit("shim/resume.py", ', "carries": carriedcalls.VERSION', "")
    tree.edit("shim/resume.py", ', "lifts": 1', "")
    tree.edit("shim/upgrade/upgrading.py", 'found.pop("carries")', 'found.pop("carries") and False')
    tree.edit("shim/serving/serve.py", 'if carried.get("clients"):', "if False:")
    heard = run(box, ["sh", "-c", "sleep 1; md5sum; cat /begin"])
    data = b"0123456789abcdef" * 4096
    for _ in range(4):
        say(heard, data)
    upgrade(box, paths=tree.paths)
    with pytest.raises(ConnectionLost):
        heard.to_the_end()
    again = attach(box, "e", replay_bytes=1000)

    upgrade(box, paths=CodeTree(box.folder, "9.2.0").paths)  # which does know, from one that does not
    with pytest.raises(ConnectionLost):
        again.to_the_end()
    again = attach(box, "e", replay_bytes=1000)
    again.stream.send(shim.AttachInput(close_stdin=True))
    again.to_the_end()
    assert hashlib.md5(4 * data).hexdigest().encode() in again.stdout()
