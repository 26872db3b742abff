"""The journal's file: numbered, framed, cut after a crash, compacted when acknowledged, bounded when not."""

import errno
import os

import pytest

from shim.serving import journal
from shim.serving.journal import ACK, EVENT, EXIT, Cursor, Journal, JournalVersion, encode_frame, encode_header, scan


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "journal")


def filled(path: str, count: int = 3) -> None:
    made = Journal(path)
    for number in range(count):
        made.append(EXIT if number == count - 1 else EVENT, b"payload %d" % number)
    made.close()


def content(made: Journal, after: int = 0) -> list[tuple[int, bytes]]:
    return made.read(Cursor(after))


def raw(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


# --- append and read


def test_records_are_numbered_from_one_and_survive_reopening(path: str) -> None:
    filled(path)
    made = Journal(path)

    assert content(made) == [(1, b"payload 0"), (2, b"payload 1"), (3, b"payload 2")]
    assert made.append(EVENT, b"next") == 4
    assert content(made, 2) == [(3, b"payload 2"), (4, b"next")]
    made.close()


def test_cursor_goes_on_where_it_stood(path: str) -> None:
    made = Journal(path)
    cursor = Cursor()
    for number in range(5):
        made.append(EVENT, b"%d" % number)
    assert [seq for seq, _ in made.read(cursor, 2)] == [1, 2]
    assert [seq for seq, _ in made.read(cursor, 2)] == [3, 4]
    made.append(EVENT, b"5")
    assert [seq for seq, _ in made.read(cursor, 9)] == [5, 6]
    assert made.read(cursor) == []
    cursor.rewind(4)
    assert [seq for seq, _ in made.read(cursor)] == [5, 6]
    made.close()


def test_listeners_are_told_of_each_record_until_they_leave(path: str) -> None:
    made, told = Journal(path), []
    leave = made.subscribe(lambda: told.append(made.last_seq))
    made.append(EVENT, b"a")
    made.append(EXIT, b"b")
    leave()
    made.append(EVENT, b"c")
    made.close()

    assert told == [1, 2]


def test_long_records_are_read_in_pieces(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "READ_BYTES", 64)
    made = Journal(path)
    payloads = [bytes([number]) * (number * 37) for number in range(20)]
    for payload in payloads:
        made.append(EVENT, payload)

    assert [payload for _, payload in content(made)] == payloads
    made.close()


# --- damage


@pytest.mark.parametrize("cut", range(1, journal.FRAME_BYTES + len(b"payload 2")))
def test_torn_tail_is_cut_wherever_it_tore(path: str, cut: int) -> None:
    filled(path)
    write(path, raw(path)[:-cut])
    made = Journal(path)

    assert (made.last_seq, made.damage) == (2, [])
    assert made.append(EVENT, b"again") == 3
    made.close()
    made = Journal(path)
    assert content(made) == [(1, b"payload 0"), (2, b"payload 1"), (3, b"again")]
    made.close()


def test_tail_of_garbage_is_cut(path: str) -> None:
    filled(path)
    write(path, raw(path) + b"\0" * 100)
    made = Journal(path)

    assert (made.last_seq, made.damage) == (3, [])
    made.close()


def test_damage_in_the_middle_is_told_and_what_follows_is_kept(path: str) -> None:
    filled(path, 5)
    data = bytearray(raw(path))
    data[data.index(b"payload 1")] ^= 0xFF
    write(path, bytes(data))
    made = Journal(path)

    assert len(made.damage) == 1
    assert [seq for seq, _ in content(made)] == [1, 3, 4, 5]
    assert made.append(EVENT, b"next") == 6
    assert [seq for seq, _ in content(made, 3)] == [4, 5, 6]
    made.close()


@pytest.mark.parametrize("length", range(16))
def test_header_that_was_never_finished_is_an_empty_journal(path: str, length: int) -> None:
    write(path, encode_header()[:length])
    made = Journal(path)

    assert made.append(EVENT, b"first") == 1
    made.close()
    made = Journal(path)
    assert content(made) == [(1, b"first")]
    made.close()


def test_unknown_version_is_refused_and_left_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "VERSION", 2)
    filled(path)
    before = raw(path)
    monkeypatch.undo()

    with pytest.raises(JournalVersion, match="version 2"):
        Journal(path)
    assert raw(path) == before


def test_other_files_are_refused_and_left_alone(path: str) -> None:
    write(path, b"a text that is no journal at all")
    with pytest.raises(ValueError, match="not a shimd journal"):
        Journal(path)

    assert raw(path) == b"a text that is no journal at all"


def test_every_flipped_byte_is_noticed(path: str) -> None:
    """A frame with one wrong byte anywhere is not taken for a record, or not for that one."""
    filled(path)
    good = raw(path)
    whole, _, _ = scan(good)
    for at in range(16, len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x01
        frames, _, _ = scan(bytes(bad))
        assert len(frames) == len(whole) - 1, at


# --- acknowledgement


def test_acknowledged_records_are_not_read_again(path: str) -> None:
    filled(path)
    made = Journal(path)
    made.ack(2)
    made.ack(1)
    assert [seq for seq, _ in content(made)] == [3]
    made.close()

    made = Journal(path)
    assert (made.acked_seq, made.last_seq) == (2, 3)
    assert [seq for seq, _ in content(made)] == [3]
    made.close()


def test_seq_goes_on_when_everything_was_acknowledged_and_compacted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_MIN_BYTES", 1)
    filled(path)
    made = Journal(path)
    made.ack(3)
    made.close()
    assert scan(raw(path))[0][0].kind == ACK

    made = Journal(path)
    assert made.append(EVENT, b"next") == 4
    made.close()


def test_compaction_keeps_the_file_small_and_cursors_right(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_MIN_BYTES", 4096)
    made = Journal(path)
    slow = Cursor()
    for number in range(1, 1001):
        made.append(EXIT if number % 5 == 0 else EVENT, b"x" * 100)
        if number > 10:
            made.ack(number - 10)
        if number == 500:
            assert [seq for seq, _ in made.read(slow, 3)] == [491, 492, 493]

    assert os.path.getsize(path) < 3 * 4096
    assert [seq for seq, _ in content(made)] == list(range(991, 1001))
    assert [seq for seq, _ in made.read(slow)] == list(range(991, 1001))
    made.close()
    made = Journal(path)
    assert [seq for seq, _ in content(made)] == list(range(991, 1001))
    made.close()


def test_unacknowledged_journal_is_bounded_and_keeps_exits_before_events(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FILE_MAX_BYTES", 8192)
    made = Journal(path)
    for number in range(1, 301):
        made.append(EXIT if number % 10 == 0 else EVENT, b"x" * 50)

    assert os.path.getsize(path) <= 8192
    assert made.dropped > 0
    kept = [seq for seq, _ in made.read(Cursor(), 1000)]
    assert [seq for seq in kept if seq % 10 == 0] == list(range(10, 301, 10))
    assert kept == sorted(kept)
    assert kept[-5:] == [296, 297, 298, 299, 300]
    made.close()


def test_a_large_journal_is_rewritten_and_opened_piece_by_piece(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds, no more than some pieces of it are in memory at a time."""
    monkeypatch.setattr(journal, "READ_BYTES", 512)
    made, pieces = Journal(path), []
    real_pread, real_write = os.pread, journal.write_fully
    for number in range(1, 2001):
        made.append(EXIT if number % 4 == 0 else EVENT, b"x" * 100)
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pieces.append(count) or real_pread(fd, count, at))
    monkeypatch.setattr(journal, "write_fully", lambda fd, data: pieces.append(len(data)) or real_write(fd, data))
    made.ack(1500)
    assert [seq for seq, _ in made.read(Cursor(), 1000)] == list(range(1501, 2001))
    made.close()
    made = Journal(path)

    assert (made.last_seq, made.acked_seq, made.damage) == (2000, 1500, [])
    assert [seq for seq, _ in made.read(Cursor(), 1000)] == list(range(1501, 2001))
    assert max(pieces) <= 1024
    made.close()


def test_without_room_for_all_exits_every_event_and_the_oldest_exits_go(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FILE_MAX_BYTES", 4096)
    made = Journal(path)
    for number in range(1, 201):
        made.append(EVENT if number % 10 == 0 else EXIT, b"x" * 50)
    kept = [seq for seq, _ in made.read(Cursor(), 1000)]

    assert os.path.getsize(path) <= 4096
    assert kept[-1] == 200
    assert len(kept) + made.dropped == 200
    assert all(seq % 10 for seq in kept[: len(kept) // 2])
    made.close()


# --- a full disk


class FullDisk:
    """pwrite that fails, after writing a part, while `is_full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.write)

    def write(self, fd: int, data: bytes, at: int) -> int:
        if not self.is_full:
            return self.real(fd, data, at)
        if len(data) > 8:
            return self.real(fd, data[: len(data) - 8], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_keeps_records_readable_and_writes_them_later(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    made = Journal(path)
    cursor = Cursor()
    made.append(EVENT, b"one")
    disk.is_full = True
    assert made.append(EVENT, b"two") == 2
    assert made.append(EXIT, b"three") == 3
    assert made.pending == 2
    assert made.read(cursor) == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert not made.flush()
    assert scan(raw(path))[2] == len(raw(path)), "no part of a frame is left at the end"

    disk.is_full = False
    assert made.flush()
    made.append(EVENT, b"four")
    assert made.read(cursor) == [(4, b"four")]
    made.close()
    made = Journal(path)
    assert [payload for _, payload in content(made)] == [b"one", b"two", b"three", b"four"]
    made.close()


def test_journal_can_begin_on_a_full_disk(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    disk.is_full = True
    made = Journal(path)
    made.append(EXIT, b"one")
    assert content(made) == [(1, b"one")]
    disk.is_full = False
    assert made.flush()
    made.close()

    assert [frame.payload for frame in scan(raw(path))[0]] == [b"one"]


def test_what_a_full_disk_keeps_in_memory_is_bounded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PENDING_MAX", 10)
    disk = FullDisk(monkeypatch)
    made = Journal(path)
    disk.is_full = True
    for number in range(1, 31):
        made.append(EXIT if number % 3 == 0 else EVENT, b"x")

    assert made.pending == 10
    assert made.dropped == 20
    assert [seq for seq, _ in content(made)] == list(range(3, 31, 3))
    made.close()


def test_acknowledging_what_is_only_in_memory_forgets_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    made = Journal(path)
    disk.is_full = True
    made.append(EVENT, b"one")
    made.append(EVENT, b"two")
    made.ack(1)
    assert content(made) == [(2, b"two")]
    disk.is_full = False
    made.flush()
    made.close()

    frames, _, _ = scan(raw(path))
    assert [frame.seq for frame in frames if frame.kind == EVENT] == [2]


def test_frames_are_what_the_docstring_says() -> None:
    assert encode_frame(EVENT, 7, b"hi")[:8] == b"\xe7\x5a\x01\x00\x02\x00\x00\x00"
    assert encode_header()[:12] == b"shimdjnl\x01\x00\x00\x00"
