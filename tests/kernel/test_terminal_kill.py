"""A terminal's output and input, byte for byte, with the shim that passes them on killed again and again.

SHIMD_TEST_TERMINAL_LINES=1000000 makes the copiers' tests as long as one likes: three kills for each thousand lines.
"""

import contextlib
import errno
import itertools
import json
import os
import select
import signal
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import faults
from shim.core import pipes
from shim.core.loop import Loop
from shim.streams import terminal
from shim.streams.pumps import HELD_UP
from shim.streams.rotation import existing_files
from shim.streams.stdio import Stdio, StdioRequest
from tests.support.forked import fork
from tests.support.keptbox import KeptBox
from tests.support.streams import play
from tests.support.waiting import wait_until
from ttrpc.errors import ConnectionLost

LINES = int(os.environ.get("SHIMD_TEST_TERMINAL_LINES", "30000"))
LIFETIMES_S = (0.0005, 0.001, 0.002, 0.005)
LINE = b"%08d to the terminal\n"
LINE_BYTES = len(LINE % 0)


class Keeper:
    """A keeper as a copier sees it. The process that has this open plays its part: it holds terminal and FIFO."""

    def __init__(self, master: int) -> None:
        self._master = master

    def take(self, name: str) -> int | None:
        return os.dup(self._master) if name == "init.master" else None

    def hold(self, name: str, fd: int) -> None:
        pass

    drop = hold


class Machine:
    """Owns a raw terminal, its lifted FIFO and a client's FIFOs. `copy` is what a shim does."""

    def __init__(self, folder: Path, stdin: str, stdout: str) -> None:
        self.folder, self.stdin, self.stdout = folder, stdin, stdout
        self.master, self.slave = os.openpty()
        mode = termios.tcgetattr(self.slave)
        mode[0], mode[1] = 0, mode[1] & ~termios.OPOST
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(self.slave, termios.TCSANOW, mode)
        os.set_blocking(self.master, False)
        (folder / "io").mkdir()
        self.held = [self.master, self.slave, self.fifo("io/init.lifted")]

    def fifo(self, name: str) -> int:
        path = str(self.folder / name)
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)

    def at_slave(self, work: Callable[[int], Any]) -> int:
        """Start who has the terminal, alone."""
        pid = fork(lambda: work(self.slave))
        self.held.remove(self.slave)
        os.close(self.slave)
        return pid

    def copy(self, ready: Callable[[], None], *, is_over: Callable[[], bool] = lambda: False) -> None:
        """What a successor does from its start on; to the end when that is to come."""
        loop, request = Loop(), StdioRequest(self.stdin, self.stdout, "", terminal=True)
        stdio = Stdio(loop, str(self.folder / "io"), "init", request, spares=Keeper(self.master))  # type: ignore[arg-type]
        stdio.open(reopens=True)
        stdio.started()
        ready()
        while not is_over():
            loop.run_once(0.02)
        play(loop, stdio.drain(30.0), deadline_s=60.0)
        assert [pump.state for pump in stdio.pumps if pump.state == HELD_UP] == []
        stdio.close()
        loop.run_once(0.0)

    def copy_killed(self, is_over: Callable[[], bool]) -> int:
        """Copy, killed whenever it lives for some moments, until this is so, and once to the end; how many kills."""
        kills = 0
        for lifetime_s in itertools.cycle(LIFETIMES_S):
            if is_over():
                break
            killed_after(self.copy, lifetime_s)
            kills += 1
        assert os.waitpid(fork(lambda: self.copy(lambda: None, is_over=lambda: True)), 0)[1] == 0
        return kills

    def close(self) -> None:
        for fd in self.held:
            os.close(fd)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[str, str], Machine]]:
    made: list[Machine] = []

    def make(stdin: str, stdout: str) -> Machine:
        made.append(Machine(tmp_path, stdin.format(tmp_path), stdout.format(tmp_path)))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def killed_after(work: Callable[[Callable[[], None]], Any], lifetime_s: float) -> None:
    """Let a process do it for that long after it was ready, then kill it."""
    ready, told = os.pipe()
    pid = fork(lambda: work(lambda: os.close(told)))
    os.close(told)
    assert os.read(ready, 1) == b""
    os.close(ready)
    select.select([], [], [], lifetime_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def write_lines(fd: int, count: int) -> None:
    """Alone, a few at a time, and many: each size of what is passed on."""
    at, sizes = 0, itertools.cycle((1, 1, 3, 1, 50, 400))
    while at < count:
        batch = range(at, min(count, at + next(sizes)))
        data = b"".join(LINE % number for number in batch)
        at = batch.stop
        while data:
            data = data[os.write(fd, data) :]


def expected(count: int) -> bytes:
    return b"".join(LINE % number for number in range(count))


def gone(pid: int) -> Callable[[], bool]:
    """Whether a child is over; it is not reaped."""
    return lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def read_log(path: Path, *, is_json: bool) -> bytes:
    data = b"".join(Path(each).read_bytes() for each in existing_files(str(path)))
    return "".join(json.loads(line)["log"] for line in data.splitlines()).encode() if is_json else data


@pytest.mark.parametrize("query", ["format=raw", "format=json", "format=json&max-size=200000&max-files=10000"])
def test_a_log_of_a_terminal_is_exact(machines: Callable[[str, str], Machine], tmp_path: Path, query: str) -> None:
    machine = machines("", "log://{}/c.log?" + query)
    writer = machine.at_slave(lambda slave: write_lines(slave, LINES))
    kills = machine.copy_killed(gone(writer))
    assert os.waitpid(writer, 0)[1] == 0

    assert read_log(tmp_path / "c.log", is_json="json" in query) == expected(LINES)
    assert kills


def test_a_clients_output_from_a_terminal_is_exact(machines: Callable[[str, str], Machine], tmp_path: Path) -> None:
    machine = machines("", "{}/out")
    machine.held.append(client := machine.fifo("out"))
    writer = machine.at_slave(lambda slave: write_lines(slave, LINES))
    reader = fork(lambda: read_to(client, tmp_path / "read", LINES * LINE_BYTES))
    kills = machine.copy_killed(gone(writer))
    assert os.waitpid(writer, 0)[1] == os.waitpid(reader, 0)[1] == 0

    assert (tmp_path / "read").read_bytes() == expected(LINES)
    assert kills


def test_a_clients_input_into_a_terminal_is_exact(machines: Callable[[str, str], Machine], tmp_path: Path) -> None:
    machine = machines("{}/in", "log://{}/c.log")
    machine.held.append(client := machine.fifo("in"))
    writer = fork(lambda: write_lines(client, LINES))
    reader = machine.at_slave(lambda slave: read_to(slave, tmp_path / "read", LINES * LINE_BYTES))
    kills = machine.copy_killed(gone(reader))
    assert os.waitpid(writer, 0)[1] == os.waitpid(reader, 0)[1] == 0

    assert (tmp_path / "read").read_bytes() == expected(LINES)
    assert kills


def read_to(fd: int, path: Path, size: int) -> None:
    """Read so much, in small parts, and write it down."""
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(os.read(fd, 3000))


# --- where splice(2) takes no terminal: before Linux 6.5


def no_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    def splice(source_fd: int, pipe_fd: int, count: int) -> int:
        if os.isatty(source_fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(source_fd, pipe_fd, count)

    real = pipes.splice_to_pipe
    monkeypatch.setattr(pipes, "splice_to_pipe", splice)


def test_without_splice_a_log_is_complete_while_nobody_is_killed(
    machines: Callable[[str, str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_splice(monkeypatch)
    machine = machines("", "log://{}/c.log")
    writer = machine.at_slave(lambda slave: write_lines(slave, 5000))
    assert os.waitpid(fork(lambda: machine.copy(lambda: None, is_over=gone_child(writer))), 0)[1] == 0
    assert os.waitpid(writer, 0)[1] == 0

    assert read_log(tmp_path / "c.log", is_json=True) == expected(5000)
    assert not (tmp_path / "io" / "init.hand").exists()


def gone_child(pid: int) -> Callable[[], bool]:
    """The same for a process that is somebody else's child."""
    pidfd = os.pidfd_open(pid)
    return lambda: bool(select.select([pidfd], [], [], 0)[0])


@pytest.mark.parametrize("form", ["json", "raw"])
def test_without_splice_what_a_kill_costs_is_bounded_counted_and_marked(
    machines: Callable[[str, str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The shim dies between its reading and its writing."""
    no_splice(monkeypatch)
    machine, log = machines("", f"log://{{}}/c.log?format={form}"), tmp_path / "c.log"
    os.write(machine.slave, expected(10))
    killed_at(machine, monkeypatch, "write", 1)  # its first
    os.write(machine.slave, LINE % 10)
    over = tmp_path / "over"
    copier = fork(lambda: count_lost(machine, over))
    wait_until(lambda: log.exists() and read_log(log, is_json=form == "json").endswith(LINE % 10), what="the rest")
    over.touch()
    assert os.waitpid(copier, 0)[1] == 0

    text = read_log(log, is_json=form == "json")
    mark = b"[shimd: up to %d bytes of the terminal's output lost: its shim was killed]\n" % terminal.HAND_BYTES
    assert text == mark + LINE % 10
    assert int((tmp_path / "lost").read_text()) == terminal.HAND_BYTES >= 10 * LINE_BYTES
    assert not (tmp_path / "io" / "init.hand").exists()


def killed_at(machine: Machine, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """Have a copier die at its number-th call of this."""

    def dies(*_arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, dies)
        status = os.waitpid(fork(lambda: machine.copy(lambda: None)), 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL


def count_lost(machine: Machine, over: Path) -> None:
    """Copy until told, and write down what was counted as dropped."""
    loop, request = Loop(), StdioRequest("", machine.stdout, "", terminal=True)
    stdio = Stdio(loop, str(machine.folder / "io"), "init", request, spares=Keeper(machine.master))  # type: ignore[arg-type]
    stdio.open(reopens=True)
    stdio.started()
    while not over.exists():
        loop.run_once(0.02)
    (machine.folder / "lost").write_text(str(stdio.dropped_bytes))
    stdio.close()


# --- real shims


SCRIPT = """
stty raw -echo; n=0
while [ $n -lt 4000 ]; do
    echo "line $n"; n=$((n+1)); [ $((n % 100)) != 0 ] || usleep 20000
done
"""


@pytest.mark.parametrize("uri", ["log://{}/log", "log://{}/log?format=raw", "{}/client"])
def test_a_killed_shim_costs_a_terminal_no_line(uri: str) -> None:
    """The container's terminal and that of an exec, the shim being killed as soon as it is there."""
    with KeptBox(["sh", "-c", f"{SCRIPT} while [ ! -e /go ]; do usleep 10000; done; exit 42"], terminal=True) as box:
        uri, is_log = uri.format(box.folder), uri.startswith("log:")
        client = -1
        if not is_log:
            os.mkfifo(uri)
            client = os.open(uri, os.O_RDWR | os.O_NONBLOCK)
            pipes.enlarge(client)
        box.create(stdout=uri)
        box.start()
        exec_log = os.path.join(box.folder, "exec.log")
        box.add_exec("e", ["sh", "-c", f"{SCRIPT} exit 42"], terminal=True, stdout=f"log://{exec_log}")
        box.start("e")
        kills = 0
        while box.state("e").status == 2:
            box.kill_shim()
            kills += 1

        assert box.wait("e").exit_status == 42
        box.let_go()
        assert box.wait().exit_status == 42
        wanted = b"".join(b"line %d\n" % number for number in range(4000))
        found = read_log(Path(box.folder, "log"), is_json="raw" not in uri) if is_log else os.read(client, 1 << 20)
        assert found == wanted
        assert read_log(Path(exec_log), is_json=True) == wanted
        assert kills
        if not is_log:
            os.close(client)


def test_a_shim_killed_while_an_exec_gets_its_terminal_costs_neither(tmp_path: Path) -> None:
    """The runtime has sent the terminal, and nobody has taken it; the socket it is in has another holder."""
    traps = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    with KeptBox(environment=traps) as box:
        box.create()
        box.start()
        exec_log = os.path.join(box.folder, "exec.log")
        box.add_exec("e", ["sh", "-c", f"{SCRIPT} exit 42"], terminal=True, stdout=f"log://{exec_log}")
        before = box.shim_pid
        (tmp_path / "exec_start.run").touch()
        with contextlib.suppress(ConnectionLost):
            box.start("e")
        box.disconnect()
        box.find_shim()

        assert box.shim_pid != before
        assert box.wait("e").exit_status == 42
        assert read_log(Path(exec_log), is_json=True) == b"".join(b"line %d\n" % number for number in range(4000))
