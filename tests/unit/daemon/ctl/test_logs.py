"""Logs told once, whatever is asked again; and read from their files."""

from typing import Any

import pytest

from daemon.ctl.logfile import files_of, read_log
from daemon.ctl.logs import Cursor
from ttrpc.api import shim, wkt
from ttrpc.errors import ConnectionLost


def record(at_ns: int | None, text: str) -> Any:
    made = shim.LogRecord(data=text.encode())
    if at_ns is not None:
        made.at.CopyFrom(wkt.timestamp(at_ns))
    return made


def told(cursor: Cursor, *records: Any) -> list[str]:
    return [each.data.decode() for each in records if cursor.is_new(each)]


def test_after_a_loss_nothing_is_told_twice_and_nothing_left_out() -> None:
    """Three records have one time; the connection broke after the second of them."""
    cursor = Cursor(shim.LogsRequest(follow=True, tail=5))
    assert told(cursor, record(1, "a"), record(2, "b1"), record(2, "b2")) == ["a", "b1", "b2"]

    again = cursor.request()
    assert wkt.nanoseconds(again.since) == 2
    assert not again.HasField("tail")
    assert told(cursor, record(2, "b1"), record(2, "b2"), record(2, "b3"), record(3, "c")) == ["b3", "c"]


def test_a_log_that_was_cut_meanwhile_is_not_waited_for() -> None:
    cursor = Cursor(shim.LogsRequest(follow=True))
    told(cursor, record(1, "a"), record(1, "b"))
    cursor.request()

    assert told(cursor, record(5, "later")) == ["later"]


def test_a_raw_log_is_asked_once() -> None:
    cursor = Cursor(shim.LogsRequest(follow=True))
    assert cursor.may_go_on

    told(cursor, record(None, "raw"))
    assert not cursor.may_go_on
    assert not Cursor(shim.LogsRequest(follow=False)).may_go_on


def placed(text: str, end: int, inode: int = 0, at_ns: int | None = None) -> Any:
    made = record(at_ns, text)
    made.end = end
    if inode:
        made.file.CopyFrom(shim.LogPlace(inode=inode, offset=end, head_bytes=1, head_crc=7))
    return made


def test_a_shim_that_says_places_is_asked_for_what_follows_them() -> None:
    """Raw logs too; the records' times do not matter, and a rotation is a new file."""
    cursor = Cursor(shim.LogsRequest(follow=True, tail=5))
    assert cursor.request().places
    assert told(cursor, placed("a", 10, 1), placed("b", 20)) == ["a", "b"]
    assert cursor.may_go_on
    again = cursor.request()
    assert (again.resume.inode, again.resume.offset, again.HasField("tail")) == (1, 20, False)
    assert told(cursor, placed("c", 30, 1), placed("d", 5, 2)) == ["c", "d"]
    assert (cursor.request().resume.inode, cursor.request().resume.offset) == (2, 5)


def test_an_older_shim_after_it_is_understood_by_its_times() -> None:
    cursor = Cursor(shim.LogsRequest(follow=True))
    told(cursor, placed("a", 10, 1, at_ns=1), placed("b1", 20, at_ns=2), placed("b2", 30, at_ns=2))
    cursor.request()

    assert told(cursor, record(2, "b1"), record(2, "b2"), record(2, "b3")) == ["b3"]


def test_an_older_shim_that_begins_a_raw_log_anew_is_not_taken_for_new_output() -> None:
    cursor = Cursor(shim.LogsRequest(follow=True))
    told(cursor, placed("a", 10, 1))
    cursor.request()
    with pytest.raises(ConnectionLost, match="raw log"):
        cursor.is_new(record(None, "a"))


@pytest.mark.parametrize("is_json", [True, False])
def test_files_are_read_on_from_a_place(log: str, is_json: bool) -> None:
    records = list(read_log(log, shim.LogsRequest(), is_json=is_json))
    for index, each in enumerate(records):
        place = next(record.file for record in reversed(records[: index + 1]) if record.HasField("file"))
        place.offset = each.end
        rest = read_log(log, shim.LogsRequest(resume=place), is_json=is_json)
        assert [record.data for record in rest] == [record.data for record in records[index + 1 :]]


@pytest.fixture
def log(tmp_path: Any) -> str:
    path = tmp_path / "container.log"
    line = '{{"log":"{}\\n","stream":"{}","time":"1970-01-01T00:00:0{}Z"}}\n'
    (tmp_path / "container.log.2").write_text(line.format("one", "stdout", 1))
    (tmp_path / "container.log.1").write_text(line.format("two", "stderr", 2) + line.format("three", "stdout", 3))
    path.write_text(line.format("four", "stdout", 4) + '{"log":"torn')
    return str(path)


def texts(path: str, **options: Any) -> list[str]:
    request = shim.LogsRequest()
    for name, value in options.items():
        if name == "tail":
            request.tail = value
        else:
            getattr(request, name).CopyFrom(wkt.timestamp(value * 1_000_000_000))
    return [each.data.decode().strip() for each in read_log(path, request, is_json=True)]


def test_rotated_files_come_first(log: str) -> None:
    assert [name.rpartition("/")[2] for name in files_of(log)] == [
        "container.log.2",
        "container.log.1",
        "container.log",
    ]
    assert texts(log) == ["one", "two", "three", "four", '{"log":"torn']


def test_the_same_choices_as_the_shim_offers(log: str) -> None:
    assert texts(log, tail=2) == ["four", '{"log":"torn']
    assert texts(log, since=3)[:2] == ["three", "four"]
    assert texts(log, until=2)[:2] == ["one", "two"]
    assert texts(log, tail=0) == []


def test_streams_and_times_are_read_back(log: str) -> None:
    records = list(read_log(log, shim.LogsRequest(), is_json=True))

    assert records[1].stream == shim.LOG_STREAM_STDERR
    assert wkt.nanoseconds(records[1].at) == 2_000_000_000


def test_a_raw_log_is_lines(tmp_path: Any) -> None:
    (tmp_path / "l").write_bytes(b"a\nb")

    assert [each.data for each in read_log(str(tmp_path / "l"), shim.LogsRequest(), is_json=False)] == [b"a\n", b"b"]
