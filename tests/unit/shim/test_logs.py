"""Serving a log: all files in order, the tail from behind, and following over rotations without loss or doubles."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.core.loop import Loop
from shim.streams import logs, records
from shim.streams.jsonlines import LineFormatter
from shim.streams.logfile import LogFile
from shim.streams.logread import TailSearch, search_time
from shim.streams.logs import LogFollower
from shim.streams.stamps import Stamper
from shim.streams.stdio import Stdio, StdioRequest
from shim.streams.targets import parse
from shim.task.exits import DRAIN_S
from tests.support.streams import FakeCall, child_output, play, turn, turn_until
from ttrpc.api import shim as api
from ttrpc.api import wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

SECOND_NS = 1_000_000_000
BEGIN_NS = 1_700_000_000 * SECOND_NS


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The wall clock of writer and reader, as a list of one number."""
    time_ns = [BEGIN_NS]
    for module in (records, logs):
        monkeypatch.setattr(module.time, "time_ns", lambda: time_ns[0])
    return time_ns


def opened(loop: Loop, tmp_path: Path, query: str = "") -> LogFile:
    log = LogFile(loop, parse("stdout", f"log://{tmp_path}/c.log?{query}" if query else f"log://{tmp_path}/c.log"))
    log.open()
    return log


def serve(loop: Loop, log: LogFile, *, high_water_bytes: int = 1 << 30, over: bool = False, **request: Any) -> FakeCall:
    call = FakeCall(high_water_bytes=high_water_bytes)
    LogFollower(loop, log, call, api.LogsRequest(**request), over=over)  # type: ignore[arg-type]
    return call


def served(loop: Loop, log: LogFile, **request: Any) -> FakeCall:
    call = serve(loop, log, **request)
    turn_until(loop, lambda: not call.is_open)
    assert call.failure is None
    return call


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"line %d\n" % number for number in range(start, start + count)]


def test_records_come_with_stream_and_time(loop: Loop, tmp_path: Path, now: list[int]) -> None:
    log = opened(loop, tmp_path)
    log.write("stdout", b"out\n")
    now[0] += 5
    log.write("stderr", b'"err"\n')

    call = served(loop, log)

    assert [(wkt.nanoseconds(each.at), each.stream, each.data) for each in call.sent] == [
        (BEGIN_NS, api.LOG_STREAM_STDOUT, b"out\n"),
        (BEGIN_NS + 5, api.LOG_STREAM_STDERR, b'"err"\n'),
    ]
    log.close()


def test_raw_records_have_neither(loop: Loop, tmp_path: Path) -> None:
    """One per line, the last without its newline; a monster of a line in parts."""
    log = opened(loop, tmp_path, "format=raw")
    log.write("stdout", b"one\ntwo" + b"x" * 200_000 + b"\nthr")

    call = served(loop, log)

    assert call.data() == b"one\ntwo" + b"x" * 200_000 + b"\nthr"
    assert not any(each.HasField("at") or each.stream for each in call.sent)
    assert call.sent[0].data == b"one\n"
    assert call.sent[-1].data == b"thr"
    assert max(len(each.data) for each in call.sent) <= 2 * logs.LONGEST_PART_BYTES
    log.close()


@pytest.mark.parametrize("form", ["json", "raw"])
@pytest.mark.parametrize("tail", [0, 1, 7, 299, 1000, 5000])
def test_the_tail_reaches_back_over_rotated_files(loop: Loop, tmp_path: Path, form: str, tail: int) -> None:
    log = opened(loop, tmp_path, f"format={form}&max-size=8192&max-files=100")
    lines = numbered(1000)
    for line in lines:
        log.write("stdout", line)
    assert len(os.listdir(tmp_path)) > 1

    call = served(loop, log, tail=tail)

    assert [each.data for each in call.sent] == (lines[-tail:] if tail else [])
    log.close()


def test_the_tail_of_a_large_file_is_found_from_behind(loop: Loop, tmp_path: Path) -> None:
    """A sparse file of 50 GB: reading it forward would take minutes."""
    log = opened(loop, tmp_path, "format=raw")
    os.truncate(tmp_path / "c.log", 50 << 30)
    log.write("stdout", b"")
    log.size_bytes = 50 << 30
    log.write("stdout", b"\nlast but one\nlast\n")

    call = served(loop, log, tail=2)

    assert call.data() == b"last but one\nlast\n"
    log.close()


def test_since_and_until(loop: Loop, tmp_path: Path, now: list[int]) -> None:
    log = opened(loop, tmp_path, "max-size=8192&max-files=100")
    for line in numbered(500):
        log.write("stdout", line)
        now[0] += SECOND_NS

    def between(since_s: int | None, until_s: int | None) -> list[bytes]:
        request = {}
        if since_s is not None:
            request["since"] = wkt.timestamp(BEGIN_NS + since_s * SECOND_NS)
        if until_s is not None:
            request["until"] = wkt.timestamp(BEGIN_NS + until_s * SECOND_NS)
        return [each.data for each in served(loop, log, **request).sent]

    assert between(490, None) == numbered(10, 490)
    assert between(None, 4) == numbered(5)
    assert between(100, 102) == numbered(3, 100)
    assert between(9999, None) == []
    log.close()


def test_a_raw_log_cannot_be_asked_for_times(loop: Loop, tmp_path: Path) -> None:
    log = opened(loop, tmp_path, "format=raw")
    with pytest.raises(StatusError, match="keeps no times") as refusal:
        serve(loop, log, since=wkt.timestamp(1))
    assert refusal.value.code == Code.FAILED_PRECONDITION
    assert log.followers == []
    log.close()


# --- following --------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=8),
    st.sampled_from(["json", "raw"]),
    st.sampled_from([1, 2000, 1 << 30]),
    st.integers(0, 150),
)
def test_following_over_rotations_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, bursts: list[int], form: str, high_water: int, before: int
) -> None:
    """Whatever the pace of writer and reader."""
    loop = Loop()
    log = opened(loop, tmp_path_factory.mktemp("f"), f"format={form}&max-size=4096&max-files=1000")
    lines = numbered(before)
    log.write("stdout", b"".join(lines))
    call = serve(loop, log, follow=True, high_water_bytes=high_water)
    for burst in bursts:
        fresh = numbered(burst, len(lines))
        lines += fresh
        log.write("stdout", b"".join(fresh))
        turn(loop, 2)
        call.read()
    for follower in list(log.followers):
        follower.log_ended()
    for _ in range(10_000):
        if not call.is_open:
            break
        turn(loop, 1)
        call.read()

    assert call.finished
    assert call.data() == b"".join(lines)
    assert log.followers == []
    log.close()
    loop.close()


def test_a_follower_wakes_by_the_write_and_ends_with_the_process(loop: Loop, tmp_path: Path) -> None:
    stdio = Stdio(loop, str(tmp_path), "init", StdioRequest("", f"log://{tmp_path}/c.log", ""))
    stdio.open()
    out = child_output(stdio)
    stdio.started()
    call = FakeCall()
    stdio.follow_logs(call, api.LogsRequest(follow=True))  # type: ignore[arg-type]

    os.write(out, b"one\n")
    turn_until(loop, lambda: call.data() == b"one\n", deadline_s=2)
    os.write(out, b"two\nthe end")
    os.close(out)
    play(loop, stdio.drain(DRAIN_S))
    stdio.exited(api.ExitRecord(pid=1, code=0))
    turn_until(loop, lambda: call.finished)

    assert call.data() == b"one\ntwo\nthe end"
    late = FakeCall()
    stdio.follow_logs(late, api.LogsRequest(follow=True))  # type: ignore[arg-type]
    turn_until(loop, lambda: late.finished)
    assert late.data() == call.data()
    stdio.close()


def test_a_raw_prompt_is_shown_before_its_line_ends(loop: Loop, tmp_path: Path) -> None:
    log = opened(loop, tmp_path, "format=raw")
    call = serve(loop, log, follow=True)
    log.write("stdout", b"name? ")
    turn_until(loop, lambda: call.data() == b"name? ")
    log.write("stdout", b"thanks\n")
    assert turn_until(loop, lambda: call.data() == b"name? thanks\n")
    log.close()
    for follower in list(log.followers):
        follower.log_ended()
    turn_until(loop, lambda: call.finished)


def test_a_client_that_leaves_costs_nothing_more(loop: Loop, tmp_path: Path) -> None:
    log = opened(loop, tmp_path)
    call = serve(loop, log, follow=True)
    turn(loop)
    assert len(log.followers) == 1
    call.disconnects()
    turn(loop)
    assert log.followers == []
    log.close()


def test_a_connection_found_dead_by_a_send_costs_nothing_more(loop: Loop, tmp_path: Path) -> None:
    log = opened(loop, tmp_path)
    call = FakeCall()
    call.dies_at = 2
    log.write("stdout", b"".join(numbered(5)))
    LogFollower(loop, log, call, api.LogsRequest(follow=True))  # type: ignore[arg-type]
    turn(loop)
    assert len(call.sent) == 1
    assert log.followers == []
    log.close()


def test_a_client_that_does_not_read_costs_one_block(loop: Loop, tmp_path: Path) -> None:
    log = opened(loop, tmp_path)
    for _ in range(100):
        log.write("stdout", b"".join(numbered(1000)))
    call = serve(loop, log, high_water_bytes=1000)
    turn(loop, 20)
    assert 1000 <= call.unread_bytes < 1100
    call.disconnects()
    turn(loop)
    log.close()


def test_a_follower_left_behind_by_rotation_is_told(loop: Loop, tmp_path: Path) -> None:
    """It gets no gap without a word."""
    log = opened(loop, tmp_path, "format=raw&max-size=4096&max-files=1")
    call = serve(loop, log, follow=True, high_water_bytes=1)
    turn(loop)
    for number in range(40):
        log.write("stdout", b"%d" % (number % 10) * 4000 + b"\n")
    for _ in range(2000):
        if not call.is_open:
            break
        call.read()
        turn(loop, 1)
    assert call.failure is not None
    code, message = call.failure
    assert code == Code.DATA_LOSS
    assert "rotated away" in message
    log.close()


def test_until_ends_following(loop: Loop, tmp_path: Path, now: list[int]) -> None:
    log = opened(loop, tmp_path)
    log.write("stdout", b"now\n")
    call = serve(loop, log, follow=True, until=wkt.timestamp(BEGIN_NS + 50_000_000))
    turn_until(loop, lambda: call.finished, deadline_s=5)
    assert call.data() == b"now\n"
    log.close()


def test_no_log_no_logs(loop: Loop, tmp_path: Path) -> None:
    stdio = Stdio(loop, str(tmp_path), "init", StdioRequest("", "attach:", ""))
    stdio.open()
    with pytest.raises(StatusError, match="create it with a log:// stdout") as refusal:
        stdio.follow_logs(FakeCall(), api.LogsRequest())  # type: ignore[arg-type]
    assert refusal.value.code == Code.FAILED_PRECONDITION
    stdio.close()


# --- finding places ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=40),
    st.integers(0, 50),
    st.booleans(),
)
def test_the_tails_start_is_where_splitting_would_put_it(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], tail: int, ended: bool
) -> None:
    data = b"".join(line + b"\n" for line in lines)
    if not ended:
        data += b"x"
    path = tmp_path_factory.mktemp("t") / "f"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    search = TailSearch(tail).search(fd, len(data))
    start: int | None = None
    while True:
        try:
            next(search)
        except StopIteration as found:
            start = found.value
            break
    os.close(fd)
    pieces = _lines(data)
    assert data[start or 0 :] == b"".join(pieces[-tail:] if tail else [])


def _lines(data: bytes) -> list[bytes]:
    *ended, rest = data.split(b"\n")
    return [line + b"\n" for line in ended] + ([rest] if rest else [])


@settings(max_examples=30)
@given(st.integers(0, 3100), st.integers(1, 4000))
def test_bisection_never_skips_a_record_that_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, since: int, width: int
) -> None:
    path = tmp_path_factory.mktemp("s") / "f"
    formatter, stamper = LineFormatter("stdout"), Stamper()
    offsets = []
    data = b""
    for number in range(300):
        offsets.append(len(data))
        data += formatter.feed(b"x" * width + b"\n", stamper.stamp(number * 10 * SECOND_NS))
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    found = search_time(fd, len(data), since * SECOND_NS)
    os.close(fd)
    first_wanted = next((at for number, at in enumerate(offsets) if number * 10 >= since), len(data))
    assert found in offsets
    assert found <= first_wanted
