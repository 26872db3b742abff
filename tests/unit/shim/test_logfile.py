"""The log file: whole records, rotation without loss, and patience with a disk that refuses."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.core.loop import Loop
from shim.core.pipes import CHUNK_BYTES, SPLICE_BYTES, enlarge, waiting_bytes
from shim.streams import logfile
from shim.streams.logfile import KEPT_BYTES, RAW_SLACK_BYTES, LogFile
from shim.streams.rotation import existing_files, room_cut
from shim.streams.targets import parse
from tests.support.streams import turn_until
from ttrpc.errors import StatusError
from ttrpc.status import Code


class Clock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    loop = Loop(clock)
    yield loop
    loop.close()


def opened(loop: Loop, path: Path, query: str = "", reports: list[str] | None = None) -> LogFile:
    lines = reports if reports is not None else []
    log = LogFile(loop, parse("stdout", f"log://{path}?{query}" if query else f"log://{path}"), report=lines.append)
    log.open()
    return log


def everything(path: Path) -> bytes:
    return b"".join(Path(each).read_bytes() for each in existing_files(str(path)))


def texts(path: Path) -> str:
    return "".join(json.loads(line)["log"] for line in everything(path).splitlines())


# --- rotation ---------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(1, 9000)), min_size=1, max_size=10),
    st.sampled_from(["json", "raw"]),
    st.integers(4096, 12000),
)
def test_rotation_loses_and_doubles_no_byte(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[str, int]], form: str, max_size: int
) -> None:
    path = tmp_path_factory.mktemp("r") / "c.log"
    loop = Loop()
    log = opened(loop, path, f"format={form}&max-size={max_size}&max-files=1000")
    written = {"stdout": b"", "stderr": b""}
    counter = 0
    raw = b""
    for stream, size in chunks:
        data = b""
        while len(data) < size:
            counter += 1
            data += b"%d\n" % counter if counter % 3 else b"%d " % counter
        written[stream] += data
        raw += data
        log.write(stream, data)
    log.settle("stdout")
    log.settle("stderr")
    log.close()
    loop.close()

    if form == "raw":
        assert everything(path) == raw
    else:
        records = [json.loads(line) for line in everything(path).splitlines()]
        for stream, data in written.items():
            assert "".join(each["log"] for each in records if each["stream"] == stream).encode() == data
    sizes = [os.stat(each).st_size for each in existing_files(str(path))]
    assert all(size <= max_size for size in sizes)


@pytest.mark.parametrize("form", ["json", "raw"])
def test_writing_nothing_changes_nothing(loop: Loop, tmp_path: Path, form: str) -> None:
    log = opened(loop, tmp_path / "c.log", f"format={form}&max-size=4096")
    log.write("stdout", b"")
    log.close()
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("c.log", 0)]


def test_the_oldest_file_goes_when_there_are_enough(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    log = opened(loop, path, "format=raw&max-size=4096&max-files=3")
    for number in range(10):
        log.write("stdout", b"%d" % number * 4095 + b"\n")
    log.close()

    assert sorted(os.listdir(tmp_path)) == ["c.log", "c.log.1", "c.log.2"]
    assert [Path(each).read_bytes()[:1] for each in existing_files(str(path))] == [b"7", b"8", b"9"]


def test_with_one_file_rotation_starts_it_anew(loop: Loop, tmp_path: Path) -> None:
    log = opened(loop, tmp_path / "c.log", "format=raw&max-size=4096&max-files=1")
    log.write("stdout", b"a" * 4095 + b"\n")
    log.write("stdout", b"b\n")
    log.close()

    assert os.listdir(tmp_path) == ["c.log"]
    assert (tmp_path / "c.log").read_bytes() == b"b\n"


def test_a_spliced_raw_log_rotates_at_a_lines_end_where_it_can(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    log = opened(loop, path, "format=raw&max-size=4096&max-files=9")
    source, end = os.pipe2(os.O_NONBLOCK)
    for piece in (b"x" * 5000, b"still the same line\n", b"a new one\n"):
        os.write(end, piece)
        while waiting_bytes(source):
            assert log.splice(source)
    os.close(source)
    os.close(end)
    log.close()
    assert [Path(each).read_bytes() for each in existing_files(str(path))] == [
        b"x" * 5000 + b"still the same line\n",
        b"a new one\n",
    ]


def test_a_large_splice_outgrows_max_size_by_no_more_than_a_chunk(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    log = opened(loop, path, "format=raw&max-size=100000&max-files=99")
    source, end = os.pipe2(os.O_NONBLOCK)
    enlarge(end)
    lines = b"%063d\n" % 7 * 8192
    assert os.write(end, lines) == len(lines)
    while waiting_bytes(source):
        assert log.splice(source, None, SPLICE_BYTES)
    os.close(source)
    os.close(end)
    log.close()

    files = [Path(each).read_bytes() for each in existing_files(str(path))]
    assert b"".join(files) == lines
    assert max(map(len, files)) < 100_000 + CHUNK_BYTES


def test_a_spliced_raw_log_without_lines_rotates_all_the_same(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    log = opened(loop, path, "format=raw&max-size=4096&max-files=99")
    source, end = os.pipe2(os.O_NONBLOCK)
    total = 0
    while total < 3 * RAW_SLACK_BYTES:
        total += os.write(end, b"x" * 4096)
        assert log.splice(source)
    os.close(source)
    os.close(end)
    log.close()

    sizes = [os.stat(each).st_size for each in existing_files(str(path))]
    assert sum(sizes) == total
    assert len(sizes) > 1
    assert max(sizes) <= 4096 + RAW_SLACK_BYTES + 4096


def test_a_directory_in_the_way_of_rotation_does_not_stop_the_log(loop: Loop, tmp_path: Path, clock: Clock) -> None:
    """It outgrows its size, says so once, and rotates when it can."""
    path = tmp_path / "c.log"
    reports: list[str] = []
    log = opened(loop, path, "format=raw&max-size=4096&max-files=2", reports)
    (tmp_path / "c.log.1").mkdir()
    for _ in range(3):
        log.write("stdout", b"x" * 4095 + b"\n")
    assert path.stat().st_size == 3 * 4096
    assert [report.partition(":")[0] for report in reports] == [f"log {path}"]

    (tmp_path / "c.log.1").rmdir()
    clock.now_s += 1
    log.write("stdout", b"next\n")
    assert path.read_bytes() == b"next\n"
    log.close()


def test_a_kill_in_the_middle_of_a_rotation_is_tidied_up(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "c.log.rotating").write_bytes(b"")
    log = opened(loop, tmp_path / "c.log", "format=raw&max-size=4096")
    assert os.listdir(tmp_path) == ["c.log"]
    log.write("stdout", b"x" * 4095 + b"\n")
    log.write("stdout", b"y\n")
    log.close()
    assert sorted(os.listdir(tmp_path)) == ["c.log", "c.log.1"]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20), st.integers(-5, 60), st.booleans())
def test_a_cut_never_cuts_a_record(lengths: list[int], room: int, at_start: bool) -> None:
    batch = b"".join(b"r" * length + b"\n" for length in lengths)
    cut = room_cut(batch, room, at_start=at_start)
    assert 0 <= cut <= len(batch)
    assert cut == 0 or batch[cut - 1 : cut] == b"\n"
    if at_start:
        assert cut > 0, "a file's first record always fits"
    elif cut:
        assert cut <= room


# --- a disk that refuses ----------------------------------------------------------------------------------------------


class Disk:
    """Stands in for pwrite: writes what it has room for, then ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room_bytes: float = float("inf")
        self._pwrite = os.pwrite
        monkeypatch.setattr(logfile.os, "pwrite", self.write)

    def write(self, fd: int, data: bytes, offset: int) -> int:
        if self.room_bytes <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = int(min(len(data), self.room_bytes))
        self.room_bytes -= count
        return self._pwrite(fd, bytes(data[:count]), offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("form", ["json", "raw"])
def test_a_full_disk_blocks_and_loses_nothing(loop: Loop, clock: Clock, disk: Disk, tmp_path: Path, form: str) -> None:
    path = tmp_path / "c.log"
    reports: list[str] = []
    log = opened(loop, path, f"format={form}", reports)
    told = []
    log.on_room(lambda: told.append(clock.now_s))
    log.write("stdout", b"one\n")
    disk.room_bytes = 30

    log.write("stdout", b"two\nthree\nfour and more of it, beyond the room there is\n")

    assert log.blocked
    assert not log.idle
    for _ in range(3):
        clock.now_s += 0.6
        loop.run_once(0)
        assert log.blocked
    assert told == []
    disk.room_bytes = float("inf")
    clock.now_s += 0.6
    turn_until(loop, lambda: not log.blocked)
    assert len(told) == 1
    log.write("stdout", b"five\n")
    log.close()

    whole = "one\ntwo\nthree\nfour and more of it, beyond the room there is\nfive\n"
    assert (path.read_text() if form == "raw" else texts(path)) == whole
    assert log.dropped_bytes == 0
    assert [report.split("; ")[0] for report in reports] == [
        f"log {path}: No space left on device",
        f"log {path}: writing again",
    ]


def test_a_reader_never_sees_half_a_record(loop: Loop, disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    log = opened(loop, path)
    log.write("stdout", b"one\n")
    committed = log.size_bytes
    disk.room_bytes = 10
    log.write("stdout", b"two\n")
    assert path.stat().st_size > committed
    assert log.size_bytes == committed

    log.close()
    assert path.stat().st_size == committed, "what could not be finished is taken back"
    assert log.dropped_bytes == len(b"two\n")


@pytest.mark.parametrize("form", ["json", "raw"])
def test_mode_drop_goes_on_counts_and_marks(loop: Loop, clock: Clock, disk: Disk, tmp_path: Path, form: str) -> None:
    """The oldest goes first, and the log says how much once it can be written again."""
    path = tmp_path / "c.log"
    log = opened(loop, path, f"format={form}&mode=drop")
    log.write("stdout", b"before\n")
    disk.room_bytes = 40
    batches = [b"%04d %s\n" % (number, b"x" * 60000) for number in range(40)]
    for batch in batches:
        log.write("stdout", batch)
        assert not log.blocked
    assert log.dropped_bytes > 0

    disk.room_bytes = float("inf")
    clock.now_s += 0.6
    turn_until(loop, lambda: log.idle)
    log.write("stdout", b"after\n")
    log.close()

    text = path.read_text() if form == "raw" else texts(path)
    mark = f"[shimd: {log.dropped_bytes} bytes dropped: no space]\n"
    assert mark in text
    begin, _, rest = text.partition(mark)
    assert begin.startswith("before\n")
    assert rest.endswith("after\n")
    kept = sum(map(len, batches)) - log.dropped_bytes
    total = len("before\n") + kept + len(mark) + len("after\n")
    assert len(text) - total in ((0,) if form == "json" else (0, 1)), "a raw log may need a newline before the mark"
    assert len(rest) <= KEPT_BYTES + len("after\n")
    if form == "json":
        marks = [json.loads(line) for line in path.read_text().splitlines() if "shimd" in line]
        assert [each["stream"] for each in marks] == ["stderr"]


def test_a_torn_record_of_an_earlier_life_gets_a_line_of_its_own(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    path.write_bytes(b'{"log":"whole\\n","stream":"stdout","time":"2026-11-24T05:30:28.123456789Z"}\n{"log":"to')
    log = opened(loop, path)
    log.write("stdout", b"next\n")
    log.close()
    lines = path.read_bytes().splitlines()
    assert lines[1] == b'{"log":"to'
    assert json.loads(lines[2])["log"] == "next\n"


# --- opening ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_log_is_refused(loop: Loop, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    for path, words in ((tmp_path / "fifo", "not a regular"), (tmp_path / "file" / "x", "exists"), (tmp_path, "Is a")):
        with pytest.raises(StatusError, match=words) as refusal:
            opened(loop, path)
        assert refusal.value.code == Code.INVALID_ARGUMENT


def test_its_directory_is_made_and_private(loop: Loop, tmp_path: Path) -> None:
    opened(loop, tmp_path / "deep" / "er" / "c.log").close()
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "deep" / "er" / "c.log").stat().st_mode & 0o777 == 0o640
