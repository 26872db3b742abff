"""Output of a real process, byte for byte: through the formats, and with the copying process killed again and again."""

import itertools
import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.core.loop import Loop
from shim.core.pipes import make_fifo, open_child_output, open_read_end
from shim.streams.logfile import LogFile
from shim.streams.pumps import ENDED, Pump
from shim.streams.rotation import existing_files
from shim.streams.spool import Book
from shim.streams.stdio import Stdio, StdioRequest
from shim.streams.targets import parse
from shim.task.exits import DRAIN_S
from tests.support.forked import fork
from tests.support.streams import play, turn_until

WRITER = """
import os, sys
count, batch = int(sys.argv[1]), int(sys.argv[2])
for start in range(0, count, batch):
    data = b"".join(b"%08d to fd 1\\n" % n for n in range(start, start + batch))
    while data:
        data = data[os.write(1, data):]
    if start % (10 * batch) == 0 and len(sys.argv) > 3:
        os.write(2, b"%08d to fd 2\\n" % start)
"""


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def write_lines(count: int, batch: int, ends: tuple[int | None, int | None, int | None]) -> int:
    """Start a process that writes numbered lines; answers with its pid."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(ends) if fd is not None]
    both = ["both"] if ends[2] is not None else []
    argv = [sys.executable, "-I", "-S", "-c", WRITER, str(count), str(batch), *both]
    return os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)


def expected(count: int, batch: int) -> tuple[bytes, bytes]:
    out = b"".join(b"%08d to fd 1\n" % number for number in range(count))
    return out, b"".join(b"%08d to fd 2\n" % number for number in range(0, count, 10 * batch))


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("query", ["format=raw", "format=json", "format=json&max-size=100000&max-files=1000"])
def test_every_byte_of_both_streams_is_in_the_log_in_order(loop: Loop, tmp_path: Path, query: str, batch: int) -> None:
    log = tmp_path / "logs" / "c.log"
    stdio = Stdio(loop, str(tmp_path), "init", StdioRequest("", f"log://{log}?{query}", ""))
    stdio.open()
    count = 20_000
    pid = write_lines(count, batch, stdio.child_ends())
    stdio.started()
    turn_until(loop, lambda: os.waitpid(pid, os.WNOHANG)[0], deadline_s=60)
    play(loop, stdio.drain(DRAIN_S))
    stdio.close()

    out, err = expected(count, batch)
    data = b"".join(Path(each).read_bytes() for each in existing_files(str(log)))
    if "json" in query:
        records = [json.loads(line) for line in data.splitlines()]
        assert "".join(each["log"] for each in records if each["stream"] == "stdout").encode() == out
        assert "".join(each["log"] for each in records if each["stream"] == "stderr").encode() == err
    else:
        # A raw log has the streams as they came: a line of one may stand in the middle of a line of the other.
        assert b"".join(re.findall(rb"\d{8} to fd 2\n", data)) == err
        assert re.sub(rb"\d{8} to fd 2\n", b"", data) == out
    assert stdio.log_bytes == len(out) + len(err)


@pytest.mark.parametrize("query", ["format=raw", "format=raw&max-size=100000&max-files=10000"])
def test_a_raw_log_is_complete_although_its_copier_is_killed_all_the_time(tmp_path: Path, query: str) -> None:
    """Each byte is in the FIFO or in the file, never in between; the writer sees no error, and waits when nobody reads.

    A FIFO which nobody has open forgets what it holds; in the end somebody else must keep it open: here this test does.
    """
    path, fifo = tmp_path / "c.log", str(tmp_path / "out")
    make_fifo(fifo)
    child_end, keeper_end = open_child_output(fifo), open_read_end(fifo)
    count, kills = 300_000, 0
    writer = write_lines(count, 5, (None, child_end, None))
    os.close(child_end)
    for lifetime_s in itertools.cycle([0.001, 0.002, 0.004]):
        if _ends_within(lambda ready: _copy_until_end(f"log://{path}?{query}", fifo, ready), lifetime_s):
            break
        kills += 1
    os.close(keeper_end)
    assert os.waitpid(writer, 0)[1] == 0

    data = b"".join(Path(each).read_bytes() for each in existing_files(str(path)))
    assert data.count(b"\n") == count
    assert data == expected(count, 5)[0]
    assert kills


@pytest.mark.parametrize(
    ("query", "count"),
    [("", 100_000), ("?max-size=200000&max-files=10000", 100_000), ("?max-size=4096&max-files=10000", 24_000)],
)
def test_a_json_log_is_exact_although_its_formatter_is_killed_all_the_time(
    tmp_path: Path, query: str, count: int
) -> None:
    """Each byte once, in order, in whole records, wherever a read, a roll or a rotation was cut."""
    path, fifos = tmp_path / "c.log", {stream: str(tmp_path / f"io.{stream}") for stream in ("stdout", "stderr")}
    for fifo in fifos.values():
        make_fifo(fifo)
    child_ends = [open_child_output(fifo) for fifo in fifos.values()]
    keeper_ends = [open_read_end(fifo) for fifo in fifos.values()]
    kills = 0
    writer = write_lines(count, 5, (None, *child_ends))
    for fd in child_ends:
        os.close(fd)
    for lifetime_s in itertools.cycle([0.0005, 0.001, 0.002, 0.005]):
        if _ends_within(
            lambda ready: _format_until_end(f"log://{path}{query}", str(tmp_path / "io"), fifos, ready), lifetime_s
        ):
            break
        kills += 1
    for fd in keeper_ends:
        os.close(fd)
    assert os.waitpid(writer, 0)[1] == 0

    out, err = expected(count, 5)
    data = b"".join(Path(each).read_bytes() for each in existing_files(str(path)))
    records = [json.loads(line) for line in data.splitlines()]
    for stream, wanted in (("stdout", out), ("stderr", err)):
        assert "".join(each["log"] for each in records if each["stream"] == stream).encode() == wanted
    assert all(each["log"].endswith("\n") for each in records)
    assert kills


def _format_until_end(uri: str, prefix: str, fifos: dict[str, str], ready: Callable[[], None]) -> None:
    """What a shim does with a JSON log, in a process that may be killed."""
    loop = Loop()
    log = LogFile(loop, parse("stdout", uri), book=Book(prefix, reopens=os.path.exists(f"{prefix}.notes")))
    log.open()
    pumps = [Pump(loop, open_read_end(fifo), stream, log) for stream, fifo in fifos.items()]
    ready()
    for pump in pumps:
        pump.start()
    while [pump for pump in pumps if pump.run() != ENDED]:
        loop.run_once(0.05)


def _copy_until_end(uri: str, fifo: str, ready: Callable[[], None]) -> None:
    """What a shim does with a raw log, in a process that may be killed."""
    loop = Loop()
    log = LogFile(loop, parse("stdout", uri))
    log.open()
    pump = Pump(loop, open_read_end(fifo), "stdout", log)
    ready()
    pump.start()
    while pump.run() != ENDED:
        loop.run_once(0.05)


def _ends_within(work: Callable[[Callable[[], None]], None], lifetime_s: float) -> bool:
    """Let the process live that long after it was ready, then kill it; true when it had ended well by itself."""
    ready, told = os.pipe()
    pid = fork(lambda: work(lambda: os.close(told)))
    os.close(told)
    assert os.read(ready, 1) == b""  # at once: a poll would give it some milliseconds more
    os.close(ready)
    pidfd = os.pidfd_open(pid)
    ended = bool(select.select([pidfd], [], [], lifetime_s)[0])
    os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _pid, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    assert status == 0
    return True


@pytest.mark.parametrize("uri", ["log://{}/c.log", "log://{}/c.log?format=raw", "attach:"])
def test_a_flood_leaves_the_loop_to_everybody_else(loop: Loop, tmp_path: Path, uri: str) -> None:
    """Rounds stay short while a process writes as fast as it can, an empty line at a time being the worst."""
    stdio = Stdio(loop, str(tmp_path), "init", StdioRequest("", uri.format(tmp_path), ""))
    stdio.open()
    out = stdio.child_ends()[1]
    assert out is not None
    flood = fork(lambda: _flood(out))
    stdio.started()
    rounds = []
    turn_until(loop, lambda: stdio.log_bytes > 1 << 20)
    while len(rounds) < 200:
        began = loop.clock()
        loop.run_once(0.1)
        rounds.append(loop.clock() - began)
    os.kill(flood, signal.SIGKILL)
    os.waitpid(flood, 0)
    stdio.close()

    rounds.sort()
    assert rounds[len(rounds) // 2] < 0.020, "the usual round"
    assert rounds[len(rounds) * 9 // 10] < 0.060, "on a busy machine, where others run in between"


def _flood(fd: int) -> None:
    block = b"\n" * 65536
    while True:
        os.write(fd, block)
