"""One process's streams, on real FIFOs and the real loop; the test is the process and the client."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.core.loop import Loop
from shim.core.pipes import waiting_bytes
from shim.streams import pumps
from shim.streams.rotation import existing_files
from shim.streams.stdio import Stdio, StdioRequest
from shim.task.exits import DRAIN_S
from tests.support.streams import FakeCall, child_output, play, turn, turn_until
from ttrpc.api import shim as api
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def io_dir(tmp_path: Path) -> str:
    path = tmp_path / "io"
    path.mkdir()
    return str(path)


def make(loop: Loop, io_dir: str, stdin: str = "", stdout: str = "", stderr: str = "", **more: bool) -> Stdio:
    stdio = Stdio(loop, io_dir, "init", StdioRequest(stdin, stdout, stderr), **more)
    stdio.open()
    try:
        ready(stdio)
    except StatusError:
        stdio.close()
        raise
    return stdio


def ready(stdio: Stdio) -> None:
    """What comes right before the start; nothing of it has to be waited for."""
    assert list(stdio.prepare()) == []


def fifo(tmp_path: Path, name: str) -> str:
    path = str(tmp_path / name)
    os.mkfifo(path)
    return path


def exited() -> api.ExitRecord:
    return api.ExitRecord(pid=7, code=3)


# --- nothing, files, logs ---------------------------------------------------------------------------------------------


def test_empty_uris_are_dev_null_for_the_process(loop: Loop, io_dir: str) -> None:
    stdio = make(loop, io_dir)

    assert stdio.child_ends() == (None, None, None)
    stdio.started()
    play(loop, stdio.drain(DRAIN_S))
    stdio.close()
    assert os.listdir(io_dir) == []


def test_a_json_log_takes_both_streams(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """Records name their stream; the unfinished last line is written once the process has exited."""
    log = tmp_path / "logs" / "c.log"
    stdio = make(loop, io_dir, stdout=f"log://{log}")
    out, err = child_output(stdio, 1), child_output(stdio, 2)
    stdio.started()

    os.write(out, b"hello\nto")
    turn_until(loop, lambda: log.stat().st_size > 0)
    os.write(err, b"oops\n")
    os.write(out, b"day")
    os.close(out)
    os.close(err)
    play(loop, stdio.drain(DRAIN_S))
    stdio.exited(exited())

    shapes = [line.rpartition('"time":"')[0] for line in log.read_text().splitlines()]
    assert sorted(shapes) == sorted(
        [
            '{"log":"hello\\n","stream":"stdout",',
            '{"log":"oops\\n","stream":"stderr",',
            '{"log":"today","stream":"stdout",',
        ]
    )
    assert stdio.log_bytes == len(b"hello\ntodayoops\n")
    assert stdio.dropped_bytes == 0
    stdio.close()
    assert os.listdir(io_dir) == []


@pytest.mark.parametrize("uri", ["log://{}?format=raw", "file://{}"])
def test_a_raw_log_is_appended_to_byte_by_byte(loop: Loop, io_dir: str, tmp_path: Path, uri: str) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(b"before\n")
    stdio = make(loop, io_dir, stdout=uri.format(log))
    out = child_output(stdio)
    stdio.started()

    data = bytes(range(256)) * 400
    os.write(out, data)
    os.close(out)
    play(loop, stdio.drain(DRAIN_S))
    stdio.close()

    assert log.read_bytes() == b"before\n" + data
    assert stdio.log_bytes == len(data)


def test_a_raw_log_is_spliced_also_while_somebody_is_attached(
    loop: Loop, io_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill finds nothing in our hands, and the client gets what went into the log, over rotations too."""
    log = tmp_path / "c.log"
    stdio = make(loop, io_dir, stdout=f"log://{log}?format=raw&max-size=5000&max-files=100")
    client = FakeCall()
    stdio.attach(client, api.AttachOpen(output=True))  # type: ignore[arg-type]
    out = child_output(stdio)
    monkeypatch.setattr(os, "read", _not_to_be_called)
    stdio.started()
    data = b"".join(b"%06d\n" % number for number in range(9000))
    os.write(out, data)
    os.close(out)
    play(loop, stdio.drain(DRAIN_S))
    monkeypatch.undo()
    stdio.close()

    files = existing_files(str(log))
    assert b"".join(Path(each).read_bytes() for each in files) == client.stdout() == data
    assert len(files) > 1


def _not_to_be_called(*_arguments: object) -> bytes:
    raise AssertionError("output is in memory before it is in the log")


def test_a_file_may_be_truncated_by_a_log_rotator(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """Copying away and truncating, as logrotate's copytruncate does, leaves no hole."""
    log = tmp_path / "c.log"
    stdio = make(loop, io_dir, stdout=f"file://{log}")
    out = child_output(stdio)
    stdio.started()

    os.write(out, b"one\n")
    turn_until(loop, lambda: log.read_bytes() == b"one\n")
    os.truncate(log, 0)
    os.write(out, b"two\n")
    assert turn_until(loop, lambda: log.read_bytes() == b"two\n")

    os.close(out)
    stdio.close()


def test_two_containers_may_append_to_one_file(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    stdios = [Stdio(loop, io_dir, name, StdioRequest("", f"file://{log}", "")) for name in ("a", "b")]
    outs = []
    for stdio in stdios:
        stdio.open()
        outs.append(child_output(stdio))
        stdio.started()

    for number in range(20):
        for name, out in zip(b"ab", outs, strict=True):
            os.write(out, b"%c%d\n" % (name, number))
        turn(loop, 1)
    for stdio, out in zip(stdios, outs, strict=True):
        os.close(out)
        play(loop, stdio.drain(DRAIN_S))
        stdio.close()

    assert sorted(log.read_bytes().splitlines()) == sorted(b"%c%d" % (name, n) for name in b"ab" for n in range(20))


def test_a_log_belongs_to_one_process(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    uri = f"log://{tmp_path}/c.log"
    first = make(loop, io_dir, stdout=uri)
    with pytest.raises(StatusError, match="the log of another process already") as refusal:
        make(loop, io_dir, stdout=uri)
    assert refusal.value.code == Code.FAILED_PRECONDITION
    first.close()
    make(loop, io_dir, stdout=uri).close()


# --- a client's FIFOs -------------------------------------------------------------------------------------------------


def test_a_clients_fifos_are_given_to_the_process_itself(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """Nothing is copied: with all our fds closed the data still flows."""
    paths = [fifo(tmp_path, name) for name in ("in", "out", "err")]
    stdio = make(loop, io_dir, *paths)
    ends = [os.dup(fd) for fd in stdio.child_ends() if fd is not None]
    stdio.started()
    reader = os.open(paths[1], os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(paths[0], os.O_WRONLY | os.O_NONBLOCK)

    os.write(ends[1], b"out")
    os.write(writer, b"in")

    assert os.read(reader, 10) == b"out"
    assert os.read(ends[0], 10) == b"in"
    assert all(os.get_blocking(fd) for fd in ends)
    for fd in (reader, writer, *ends):
        os.close(fd)
    stdio.close()
    assert os.listdir(io_dir) == []


def test_the_processs_output_fifo_outlives_its_reader(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """No EPIPE when the client goes away; the next client reads on."""
    path = fifo(tmp_path, "out")
    stdio = make(loop, io_dir, stdout=path)
    out = child_output(stdio)
    stdio.started()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(reader)

    os.write(out, b"nobody there")

    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"nobody there"
    os.close(out)
    assert os.read(reader, 100) == b"", "the process's end was the last"
    os.close(reader)
    stdio.close()


def test_end_of_input_needs_both_the_clients_close_and_close_io(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    path = fifo(tmp_path, "in")
    stdio = make(loop, io_dir, stdin=path)
    stdin = os.dup(stdio.child_ends()[0] or 0)
    os.set_blocking(stdin, False)
    stdio.started()
    for text in (b"one", b"two"):
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, text)
        os.close(writer)

    assert os.read(stdin, 100) == b"onetwo"
    with pytest.raises(BlockingIOError):
        os.read(stdin, 100)
    stdio.close_stdin()
    assert os.read(stdin, 100) == b""
    os.close(stdin)
    stdio.close()


def test_close_io_before_the_streams_are_open_is_remembered(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    stdio = Stdio(loop, io_dir, "init", StdioRequest(fifo(tmp_path, "in"), "", ""))
    stdio.close_stdin()
    stdio.open()
    ready(stdio)

    (stdin,) = [fd for fd in stdio.child_ends() if fd is not None]
    assert os.read(stdin, 100) == b""
    stdio.close()


def test_an_execs_output_is_copied_and_ends_with_the_exec(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """Somebody whom the exec left behind keeps its stdout open; the client sees the end all the same, and the one left
    behind is never blocked."""
    path = fifo(tmp_path, "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stdio = make(loop, io_dir, stdout=path, direct=False)
    left_behind = child_output(stdio)
    stdio.started()

    os.write(left_behind, b"before the exit\n")
    play(loop, stdio.drain(DRAIN_S))
    stdio.exited(exited())
    assert os.read(reader, 100) == b"before the exit\n"
    stdio.close()
    assert os.read(reader, 100) == b""

    os.set_blocking(left_behind, False)
    for _ in range(200):
        turn_until(loop, lambda: os.write(left_behind, bytes(1 << 16)))
        turn(loop, 2)
    os.close(left_behind)
    os.close(reader)
    turn(loop)


def test_a_client_that_does_not_read_blocks_its_own_exec_only(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    slow_path, path = fifo(tmp_path, "slow"), fifo(tmp_path, "out")
    slow_reader, reader = (os.open(each, os.O_RDONLY | os.O_NONBLOCK) for each in (slow_path, path))
    slow = Stdio(loop, io_dir, "a", StdioRequest("", slow_path, ""), direct=False)
    quick = Stdio(loop, io_dir, "b", StdioRequest("", path, ""), direct=False)
    for stdio in (slow, quick):
        stdio.open()
    slow_out, out = child_output(slow), child_output(quick)
    for stdio in (slow, quick):
        stdio.started()
    os.set_blocking(slow_out, False)
    written = 0
    for _ in range(100):
        try:
            written += os.write(slow_out, bytes(range(256)) * 256)
        except BlockingIOError:
            break
        turn(loop, 1)
    else:
        pytest.fail("the process was never made to wait")

    os.write(out, b"still served")
    turn_until(loop, lambda: waiting_bytes(reader))
    assert os.read(reader, 100) == b"still served"

    read = bytearray()
    while len(read) < written:
        turn(loop, 1)
        try:
            read += os.read(slow_reader, 1 << 20)
        except BlockingIOError:
            pass
    assert bytes(read) == (bytes(range(256)) * (written // 256 + 1))[:written]
    for fd in (slow_out, out, slow_reader, reader):
        os.close(fd)
    for stdio in (slow, quick):
        stdio.close()


def test_a_slow_client_gets_an_execs_last_words_after_everything_is_closed(
    loop: Loop, io_dir: str, tmp_path: Path
) -> None:
    """More than its FIFO holds was waiting; the end of file comes after the last of it."""
    path = fifo(tmp_path, "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stdio = make(loop, io_dir, stdout=path, direct=False)
    out = child_output(stdio)
    stdio.started()
    data = bytes(range(256)) * 1200
    os.write(out, data)
    play(loop, stdio.drain(0.05))
    stdio.exited(exited())
    stdio.close()
    os.set_blocking(out, False)
    os.write(out, b"of one left behind")

    read = b""
    while (piece := turn_until(loop, lambda: _read(reader))) != b"the end":
        read += piece
    assert read.startswith(data)
    assert read[len(data) :] in (b"", b"of one left behind"), "the last chunk may hold more, and nothing follows it"
    os.close(out)
    os.close(reader)
    turn(loop)


def test_a_client_that_never_reads_costs_nothing_in_the_end(
    loop: Loop, io_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumps, "LINGER_S", 0.05)
    path = fifo(tmp_path, "out")
    stdio = make(loop, io_dir, stdout=path, direct=False)
    out = child_output(stdio)
    stdio.started()
    os.write(out, bytes(300_000))
    os.close(out)
    play(loop, stdio.drain(0.05))
    stdio.close()

    assert turn_until(loop, lambda: not _opened(path) and not _opened(io_dir))


def _read(fd: int) -> bytes:
    """What is there; at the end of file a word for it."""
    try:
        return os.read(fd, 1 << 16) or b"the end"
    except BlockingIOError:
        return b""


def _opened(path: str) -> list[str]:
    """Our fds on what is at or was below the path."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [link for link in found if link.startswith(path)]


def test_many_small_writes_of_an_exec_fit_its_clients_fifo_unread(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """As many bytes as usual, not as many writes: a client may read only after the exit."""
    path = fifo(tmp_path, "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stdio = make(loop, io_dir, stdout=path, direct=False)
    out = child_output(stdio)
    stdio.started()
    for number in range(1000):
        os.write(out, b"%03d\n" % number)
        turn(loop, 1)
    turn_until(loop, lambda: stdio.log_bytes == 4000)
    assert waiting_bytes(out) == 0
    os.close(out)
    play(loop, stdio.drain(DRAIN_S))
    stdio.close()

    assert os.read(reader, 10_000) == b"".join(b"%03d\n" % number for number in range(1000))
    os.close(reader)


def test_a_file_in_a_fifos_place_is_appended_to(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_bytes(b"old ")
    stdio = make(loop, io_dir, stdout=str(path), stderr=str(path))
    out, err = child_output(stdio, 1), child_output(stdio, 2)
    stdio.started()

    os.write(out, b"a")
    os.write(err, b"b")

    assert path.read_bytes() == b"old ab"
    os.close(out)
    os.close(err)
    stdio.close()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "stdout", "stderr", "code"),
    [
        ("", "{dir}/none", "", Code.INVALID_ARGUMENT),
        ("{dir}/none", "", "", Code.INVALID_ARGUMENT),
        ("", "{dir}", "", Code.INVALID_ARGUMENT),
        ("", "ftp://x", "", Code.INVALID_ARGUMENT),
        ("", "log://{dir}", "", Code.INVALID_ARGUMENT),
        ("attach:", "attach:", "{dir}/none", Code.INVALID_ARGUMENT),
    ],
)
def test_a_refused_request_leaves_nothing_open(
    loop: Loop, io_dir: str, tmp_path: Path, stdin: str, stdout: str, stderr: str, code: Code
) -> None:
    uris = [uri.format(dir=tmp_path) for uri in (stdin, stdout, stderr)]
    with pytest.raises(StatusError) as refusal:
        make(loop, io_dir, *uris)

    assert refusal.value.code == code
    assert os.listdir(io_dir) == []


def test_close_is_idempotent_and_closes_the_childs_ends(loop: Loop, io_dir: str) -> None:
    stdio = make(loop, io_dir, "attach:", "attach:", "attach:")
    ends = [fd for fd in stdio.child_ends() if fd is not None]
    assert all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in ends)
    assert len(os.listdir(io_dir)) == 6  # and what attach clients come back by

    stdio.close()
    stdio.close()

    for fd in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert os.listdir(io_dir) == []


def test_drain_does_not_wait_for_a_process_left_behind(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """The stream is still open, and what was written before the exit is in the log: that is enough."""
    log = tmp_path / "c.log"
    stdio = make(loop, io_dir, stdout=f"log://{log}?format=raw")
    out = child_output(stdio)
    stdio.started()
    os.write(out, b"x" * 300_000)

    began = loop.clock()
    play(loop, stdio.drain(DRAIN_S))

    assert loop.clock() - began < 1.5
    assert log.stat().st_size == 300_000
    os.write(out, b"late")
    turn(loop)
    assert log.stat().st_size == 300_004, "until it is deleted, its log goes on"
    os.close(out)
    stdio.close()


def test_a_client_that_held_the_process_up_does_not_cost_the_log_anything(
    loop: Loop, io_dir: str, tmp_path: Path
) -> None:
    """What waited in the pipe for that client when everything is closed goes to the log."""
    log = tmp_path / "c.log"
    stdio = make(loop, io_dir, stdout=f"log://{log}?format=raw")
    client = FakeCall(high_water_bytes=0)
    stdio.attach(client, api.AttachOpen(output=True, backpressure=True))  # type: ignore[arg-type]
    out = child_output(stdio)
    stdio.started()

    os.write(out, b"x" * 1_000_000)
    turn(loop)
    assert log.stat().st_size == 0
    os.close(out)
    stdio.close()

    assert log.stat().st_size == 1_000_000
    assert stdio.dropped_bytes == 0
    assert client.sent[-1].cut.reason == "the process is gone"


def test_a_clients_input_is_opened_for_the_start_only(loop: Loop, io_dir: str, tmp_path: Path) -> None:
    """Its writer waits until then: `ctr` has nobody to tell the end of its input to before its Exec is answered."""
    path = fifo(tmp_path, "in")
    stdio = Stdio(loop, io_dir, "exec.e1", StdioRequest(path, "", ""))
    stdio.open()
    with pytest.raises(OSError, match="No such device") as refusal:
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    assert refusal.value.errno == errno.ENXIO
    ready(stdio)

    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    stdio.close()
