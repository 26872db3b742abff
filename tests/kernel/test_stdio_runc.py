"""Streams of real containers under a real shim: users, terminals, FIFOs, attach, logs; and no descriptor left."""

import contextlib
import hashlib
import json
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.shimbox import SHIM, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.errors import StatusError
from ttrpc.status import Code

CALL_S = 20.0


@contextlib.contextmanager
def box_of(*args: str, **options: Any) -> Iterator[ShimBox]:
    box = ShimBox(args, **options)
    try:
        yield box
    finally:
        box.close()


class Attached:
    """One attach stream on a connection of its own, as a client opens it."""

    def __init__(self, box: ShimBox, **opening: Any) -> None:
        self.stream = box.attach(**opening)
        self.outputs: list[Any] = []

    def receive(self) -> Any:
        message = self.stream.receive(timeout_s=CALL_S)
        self.outputs.append(message)
        return message

    def until(self, condition: Callable[[bytes], bool]) -> bytes:
        """Receive until the output so far meets the condition."""
        while not condition(self.stdout()):
            assert self.receive() is not None, self.stdout()
        return self.stdout()

    def to_the_end(self) -> Any:
        """Receive to the end; answers with the last message."""
        while self.receive() is not None:
            pass
        return self.outputs[-2]

    def writes(self, data: bytes) -> None:
        self.stream.send(shim.AttachInput(stdin=data))

    def stdout(self) -> bytes:
        return b"".join(message.stdout for message in self.outputs if message is not None)


def open_fds(pid: int) -> list[str]:
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return sorted(found)


def test_a_user_without_rights_may_open_dev_stdout_again(tmp_path: Path) -> None:
    """Programs that log to /dev/stdout and /dev/stderr open them by path; theirs are FIFOs of ours."""
    script = "echo direct; echo by path > /dev/stdout; echo wrong > /dev/stderr; id -u"
    with box_of("sh", "-c", script) as box:
        box.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
        box.create(stdout=f"log://{tmp_path}/c.log")
        box.start()
        assert box.wait().exit_status == 0
        box.delete()

        records = [json.loads(line) for line in (tmp_path / "c.log").read_text().splitlines()]
        texts = [(record["stream"], record["log"]) for record in records if record["stream"] == "stdout"]
        assert texts == [("stdout", "direct\n"), ("stdout", "by path\n"), ("stdout", "1000\n")]
        assert [record["log"] for record in records if record["stream"] == "stderr"] == ["wrong\n"]


def test_a_terminal_is_attached_typed_into_and_resized() -> None:
    with box_of("sh", terminal=True) as box:
        box.create(stdin="attach:", stdout="attach:")
        client = Attached(box, stdin=True, output=True)
        client.stream.send(shim.AttachInput(resize=shim.Resize(width=91, height=31)))
        box.start()
        client.writes(b"stty size; tty\n")
        client.until(lambda text: b"31 91" in text and b"/dev/" in text.partition(b"31 91")[2])
        client.stream.send(shim.AttachInput(resize=shim.Resize(width=70, height=20)))
        client.writes(b"stty size; exit 5\n")
        last = client.to_the_end()

        assert b"20 70" in client.stdout()
        assert last.exited.code == 5
        assert box.wait().exit_status == 5
        box.delete()


def test_bytes_through_a_container_come_back_the_same() -> None:
    """A pipeline: stdin by attach, `cat`, stdout by attach, nobody faster than the slowest."""
    data = os.urandom(1 << 20) * 4
    with box_of("cat") as box:
        box.create(stdin="attach:", stdout="attach:")
        client = Attached(box, stdin=True, output=True, backpressure=True)
        box.start()
        received = hashlib.sha256()
        received_bytes = at = 0
        closed = False
        while True:
            if at < len(data):
                client.writes(data[at : at + 30_000])
                at += 30_000
            elif not closed:
                closed = True
                client.stream.send(shim.AttachInput(close_stdin=True))
            try:
                message = client.stream.receive_nowait() if not closed else client.stream.receive(timeout_s=CALL_S)
            except BlockingIOError:
                continue
            received.update(message.stdout)
            received_bytes += len(message.stdout)
            if message.WhichOneof("output") == "exited":
                break

        assert message.exited.code == 0
        assert received_bytes == len(data)
        assert received.digest() == hashlib.sha256(data).digest()


def test_fifos_of_a_client_and_close_io(tmp_path: Path) -> None:
    """As containerd's clients do it: the end of input needs their close and CloseIO."""
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    with box_of("sh", "-c", "cat; echo bye >&2") as box:
        box.create(stdin=f"{tmp_path}/in", stdout=f"{tmp_path}/out", stderr=f"{tmp_path}/err")
        readers = [os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK) for name in ("out", "err")]
        writer = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
        box.start()
        os.write(writer, b"echo this")
        os.close(writer)
        assert read_to_end(readers[0], stop_at=9) == b"echo this"
        assert box.state().status == 2, "still running: its stdin has not ended"

        box.call("CloseIO", task.CloseIORequest(id=box.id, stdin=True))
        assert box.wait().exit_status == 0
        assert read_to_end(readers[0]) == b""
        assert read_to_end(readers[1]) == b"bye\n"
        for fd in readers:
            os.close(fd)


def test_an_execs_client_sees_the_end_although_somebody_was_left_behind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    with box_of("sleep", "1000") as box:
        box.create()
        box.start()
        reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
        box.add_exec("e", ["sh", "-c", "sleep 1000 & echo started"], stdout=f"{tmp_path}/out")
        box.start("e")
        box.wait("e")
        began = time.monotonic()
        box.delete("e")

        assert read_to_end(reader) == b"started\n"
        assert time.monotonic() - began < 1.5
        os.close(reader)


def test_logs_are_followed_while_they_are_written(tmp_path: Path) -> None:
    with box_of("sh", "-c", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 3") as box:
        box.create(stdout=f"log://{tmp_path}/c.log?max-size=4096")
        follow = box.connect().open_stream(SHIM, "Logs", shim.LogsRequest(follow=True))
        box.start()
        first = follow.receive(timeout_s=CALL_S)
        assert (first.data, first.stream) == (b"one\n", shim.LOG_STREAM_STDOUT)
        assert abs(first.at.seconds - time.time()) < 60

        Path(box.rootfs, "go").touch()
        assert follow.receive(timeout_s=CALL_S).data == b"two\n"
        assert follow.receive(timeout_s=CALL_S) is None, "the container has exited"
        last = box.connect().open_stream(SHIM, "Logs", shim.LogsRequest(tail=1))
        assert [record.data for record in last] == [b"two\n"]


def test_what_cannot_be_attached_says_how_it_could() -> None:
    with box_of("sleep", "1000") as box:
        box.create(stdout="attach:")
        stream = box.connect().open_stream(SHIM, "Attach", None)
        stream.send(shim.AttachInput(open=shim.AttachOpen(stdin=True)))
        with pytest.raises(StatusError, match="create it with -i") as refusal:
            stream.receive(timeout_s=CALL_S)
        assert refusal.value.code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize("streams", ["none", "attach", "log", "fifo", "terminal"])
def test_execs_leave_no_descriptor_in_the_shim(tmp_path: Path, streams: str) -> None:
    """After twenty of them it has what it had before the first."""
    os.mkfifo(tmp_path / "out")
    uris = {
        "none": {},
        "attach": {"stdin": "attach:", "stdout": "attach:", "stderr": "attach:"},
        "log": {"stdout": f"log://{tmp_path}/exec.log"},
        "fifo": {"stdout": f"{tmp_path}/out"},
        "terminal": {"stdin": "attach:", "stdout": "attach:"},
    }[streams]
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    with box_of("sleep", "1000") as box:
        box.create()
        box.start()
        before = open_fds(box.shim_pid)
        for number in range(20):
            exec_id = f"e{number}"
            box.add_exec(exec_id, ["echo", "hello"], terminal=streams == "terminal", **uris)
            box.start(exec_id)
            box.wait(exec_id)
            box.delete(exec_id)
            assert streams != "fifo" or read_to_end(reader) == b"hello\n"

        wait_until(lambda: open_fds(box.shim_pid) == before, what="the shim's own descriptors only", deadline_s=5)
        assert os.listdir(box.path("io")) == []
    os.close(reader)


def read_to_end(fd: int, stop_at: int | None = None) -> bytes:
    """Read until the end of file, or until that many bytes."""
    data = b""
    while stop_at is None or len(data) < stop_at:
        ready, _, _ = select.select([fd], [], [], CALL_S)
        assert ready, f"nothing more after {data!r}"
        piece = os.read(fd, 1 << 16)
        if not piece:
            break
        data += piece
    return data
