"""Terminals: a real pty, handed over as a runtime does it."""

import array
import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.core.loop import Loop
from shim.core.pipes import waiting_bytes
from shim.streams.console import SUN_PATH_BYTES, ConsoleSocket
from shim.streams.stdio import Stdio, StdioRequest
from shim.task.exits import DRAIN_S
from tests.support.streams import FakeCall, play, turn, turn_until
from ttrpc.api import shim as api
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def send_fds(path: str, fds: list[int]) -> None:
    """What the runtime does: connect, send, go."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([b"/dev/pts/0"], rights)


class Terminal:
    """The test's process in a terminal: it holds the slave, raw so that bytes stay what they are."""

    def __init__(self, loop: Loop, tmp_path: Path, stdin: str = "", stdout: str = "") -> None:
        self.loop = loop
        self.stdio = Stdio(loop, str(tmp_path), "init", StdioRequest(stdin, stdout, "", terminal=True))
        self.stdio.open()
        assert self.stdio.child_ends() == (None, None, None)
        self.master, self.slave = os.openpty()
        mode = termios.tcgetattr(self.slave)
        mode[1] &= ~termios.OPOST
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(self.slave, termios.TCSANOW, mode)
        self.slave_name = os.ttyname(self.slave)

    def start(self) -> None:
        assert self.stdio.console_socket is not None
        send_fds(self.stdio.console_socket, [self.master])
        os.close(self.master)
        play(self.loop, self.stdio.receive_console())
        self.stdio.started()

    def says(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.slave, data) :]

    def hears(self, expected: bytes) -> None:
        """Read what was typed; the kernel passes it on in its own time."""
        turn_until(self.loop, lambda: waiting_bytes(self.slave) >= len(expected))
        assert os.read(self.slave, len(expected) + 1) == expected

    def exits(self) -> None:
        os.close(self.slave)
        play(self.loop, self.stdio.drain(DRAIN_S))
        self.stdio.exited(api.ExitRecord(pid=1, code=0))


def fifo(tmp_path: Path, name: str) -> str:
    path = str(tmp_path / name)
    os.mkfifo(path)
    return path


def test_a_terminal_with_a_clients_fifos(loop: Loop, tmp_path: Path) -> None:
    terminal = Terminal(loop, tmp_path, fifo(tmp_path, "in"), fifo(tmp_path, "out"))
    writer = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    os.write(writer, b"typed early\n")
    terminal.start()

    terminal.hears(b"typed early\n")
    os.write(writer, b"more\n")
    terminal.hears(b"more\n")
    terminal.says(b"shown")
    turn_until(loop, lambda: terminal.stdio.log_bytes == 5)
    assert os.read(reader, 100) == b"shown"

    terminal.says(b"last")
    terminal.exits()
    terminal.stdio.close()
    assert os.read(reader, 100) == b"last"
    assert os.read(reader, 100) == b"", "closed with the streams"
    os.close(writer)
    os.close(reader)


def test_a_terminal_with_attach_clients(loop: Loop, tmp_path: Path) -> None:
    """Input may come before the terminal does; output is one stream."""
    terminal = Terminal(loop, tmp_path, "attach:", "attach:")
    client = FakeCall()
    terminal.stdio.attach(client, api.AttachOpen(stdin=True, output=True))  # type: ignore[arg-type]
    assert client.sent[0].opened.terminal
    client.says(api.AttachInput(stdin=b"early "))
    client.says(api.AttachInput(resize=api.Resize(width=100, height=30)))
    terminal.start()
    client.says(api.AttachInput(stdin=b"and late"))
    terminal.hears(b"early and late")
    assert _size(terminal.slave) == (100, 30)
    client.says(api.AttachInput(resize=api.Resize(width=80, height=24)))
    assert _size(terminal.slave) == (80, 24)
    terminal.says(b"x" * 3000)
    terminal.exits()
    assert client.stdout() == b"x" * 3000
    assert client.kinds()[-1] == "exited"
    terminal.stdio.close()


def test_a_terminal_with_a_log(loop: Loop, tmp_path: Path) -> None:
    terminal = Terminal(loop, tmp_path, "", f"log://{tmp_path}/c.log?format=raw")
    terminal.start()
    total = b"".join(b"%06d\n" % number for number in range(20_000))
    os.set_blocking(terminal.slave, False)
    at = 0
    while at < len(total):
        try:
            at += os.write(terminal.slave, total[at : at + 4096])
        except BlockingIOError:
            loop.run_once(0.01)
    terminal.exits()
    terminal.stdio.close()
    assert (tmp_path / "c.log").read_bytes() == total


def test_a_hung_up_terminal_rests_and_wakes_when_it_is_opened_again(loop: Loop, tmp_path: Path) -> None:
    """With no slave open the loop does not spin; a new slave's output flows again."""
    terminal = Terminal(loop, tmp_path, "", "attach:")
    client = FakeCall()
    terminal.stdio.attach(client, api.AttachOpen(output=True))  # type: ignore[arg-type]
    terminal.start()
    terminal.says(b"before")
    os.close(terminal.slave)
    turn_until(loop, lambda: client.stdout() == b"before")
    turn(loop, 5)

    calls = _count_callbacks(loop)
    turn(loop, 50)
    assert len(calls) <= 1, "a hung-up master must not keep the loop busy"

    terminal.slave = os.open(terminal.slave_name, os.O_RDWR | os.O_NOCTTY)
    terminal.says(b" after")
    turn_until(loop, lambda: client.stdout() == b"before after")
    terminal.exits()
    terminal.stdio.close()


def test_input_for_a_terminal_that_nobody_has_open_waits_quietly(loop: Loop, tmp_path: Path) -> None:
    """What it has no room for stays in the client's FIFO, and the loop does not spin."""
    terminal = Terminal(loop, tmp_path, fifo(tmp_path, "in"), "attach:")
    writer = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
    terminal.start()
    os.close(terminal.slave)
    turn(loop, 5)
    for _ in range(8):
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"typed\n" * 1000)
        turn(loop, 5)

    calls = _count_callbacks(loop)
    turn(loop, 50)
    assert len(calls) <= 1, "a terminal without room must not keep the loop busy"
    assert waiting_bytes(writer) > 10_000

    terminal.slave = os.open(terminal.slave_name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    heard: list[bytes] = []

    def reads() -> bool:
        with contextlib.suppress(BlockingIOError):
            heard.append(os.read(terminal.slave, 4096))
        return waiting_bytes(writer) == waiting_bytes(terminal.slave) == 0

    turn_until(loop, reads)
    assert b"typed\ntyped\n" in b"".join(heard)
    os.close(writer)
    terminal.exits()
    terminal.stdio.close()


def test_close_io_does_not_hang_a_terminal_up(loop: Loop, tmp_path: Path) -> None:
    terminal = Terminal(loop, tmp_path, fifo(tmp_path, "in"), "attach:")
    terminal.start()
    terminal.stdio.close_stdin()
    turn(loop)
    terminal.says(b"still here")
    assert turn_until(loop, lambda: terminal.stdio.log_bytes == 10)
    terminal.exits()
    terminal.stdio.close()


def test_a_terminals_input_must_be_a_fifo(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"text")
    stdio = Stdio(loop, str(tmp_path), "init", StdioRequest(str(tmp_path / "plain"), "", "", terminal=True))
    with pytest.raises(StatusError, match="must be a FIFO"):
        stdio.open()
    stdio.close()


# --- the socket -------------------------------------------------------------------------------------------------------


def test_the_socket_is_private_short_and_gone_afterwards(loop: Loop, tmp_path: Path) -> None:
    console = ConsoleSocket(str(tmp_path))
    directory = os.path.dirname(console.path)
    assert len(console.path) <= SUN_PATH_BYTES
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    master, slave = os.openpty()
    send_fds(console.path, [master])

    received = play(loop, console.receive())

    assert os.path.sameopenfile(received, master)
    assert not os.get_blocking(received)
    assert not os.get_inheritable(received)
    assert not os.path.exists(directory)
    for fd in (master, slave, received):
        os.close(fd)


@pytest.mark.parametrize("what", ["nothing", "a pipe", "two terminals"])
def test_anything_but_one_terminal_is_refused_and_closed(loop: Loop, tmp_path: Path, what: str) -> None:
    console = ConsoleSocket(str(tmp_path))
    fds = {"nothing": (), "a pipe": os.pipe(), "two terminals": os.openpty()}
    send_fds(console.path, list(fds[what]))

    with pytest.raises(StatusError, match="sent no terminal") as refusal:
        play(loop, console.receive())

    assert refusal.value.code == Code.FAILED_PRECONDITION
    for pair in fds.values():
        for fd in pair:
            os.close(fd)


def test_a_runtime_that_sends_nothing_has_a_deadline(loop: Loop, tmp_path: Path) -> None:
    console = ConsoleSocket(str(tmp_path))
    with pytest.raises(StatusError, match="within 0 s"):
        play(loop, console.receive(deadline_s=0.01))
    assert not os.path.exists(console.path)


def _size(fd: int) -> tuple[int, int]:
    height, width, _x, _y = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return width, height


def _count_callbacks(loop: Loop) -> list[int]:
    """From now on, note every fd the loop is woken for."""
    seen: list[int] = []
    callbacks = loop._callbacks
    for fd, callback in list(callbacks.items()):

        def noting(mask: int, fd: int = fd, callback: object = callback) -> None:
            seen.append(fd)
            callback(mask)  # type: ignore[operator]

        callbacks[fd] = noting
    return seen
