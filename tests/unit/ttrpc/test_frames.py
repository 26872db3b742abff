"""Cutting bytes into frames: header, limits, what is thrown away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrpc.frames import DATA, HEADER_BYTES, MAX_DATA_BYTES, REQUEST, RESPONSE, Frame, FrameReader, pack_header

HELLO = b"\x00\x00\x00\x05\x00\x00\x00\x01\x01\x00hello"
EMPTY = b"\x00\x00\x00\x00\x00\x00\x00\x03\x02\x00"


def frame(stream_id: int, type_: int, data: bytes, flags: int = 0) -> Frame:
    return Frame(stream_id, type_, flags, data, len(data))


def test_a_header_is_ten_bytes_big_endian() -> None:
    assert pack_header(5, 1, REQUEST, 0) + b"hello" == HELLO
    assert pack_header(0x010203, 0x04050607, 8, 9) == bytes(range(10))
    assert len(pack_header(0, 0, 0, 0)) == HEADER_BYTES


def test_whole_frames_come_out_of_one_read() -> None:
    assert FrameReader().feed(HELLO + EMPTY) == [frame(1, REQUEST, b"hello"), frame(3, RESPONSE, b"")]


@pytest.mark.parametrize("size", [1, 2, 7, 9, 10, 11, 14])
def test_how_reads_cut_the_bytes_changes_nothing(size: int) -> None:
    reader, wire = FrameReader(), HELLO + EMPTY + HELLO
    got = [found for at in range(0, len(wire), size) for found in reader.feed(wire[at : at + size])]

    assert got == [frame(1, REQUEST, b"hello"), frame(3, RESPONSE, b""), frame(1, REQUEST, b"hello")]
    assert reader.unparsed == b""


@given(
    st.lists(st.tuples(st.sampled_from([REQUEST, RESPONSE, DATA, 9]), st.integers(0, 300)), max_size=8),
    st.lists(st.integers(1, 400), min_size=1, max_size=40),
)
def test_frames_of_any_size_survive_any_cut(kinds: list[tuple[int, int]], cuts: list[int]) -> None:
    frames = [frame(2 * number + 1, kind, bytes((number,)) * size) for number, (kind, size) in enumerate(kinds)]
    wire = b"".join(pack_header(each.length, each.stream_id, each.type, 0) + (each.data or b"") for each in frames)
    reader, got, at = FrameReader(), [], 0
    while at < len(wire):
        cut = cuts[at % len(cuts)]
        got += reader.feed(wire[at : at + cut])
        at += cut

    assert got == [each for each in frames if each.type <= DATA]
    assert reader.unknown_frames == len(frames) - len(got)
    assert (reader.unparsed, reader.skipping_bytes) == (b"", 0)


def test_half_a_frame_waits_and_can_be_handed_to_another_reader() -> None:
    reader = FrameReader()

    assert reader.feed(EMPTY + HELLO[:12]) == [frame(3, RESPONSE, b"")]
    assert reader.unparsed == HELLO[:12]
    assert FrameReader(reader.unparsed).feed(HELLO[12:]) == [frame(1, REQUEST, b"hello")]


def test_the_longest_frame_is_taken() -> None:
    data = bytes(MAX_DATA_BYTES)
    reader, wire = FrameReader(), pack_header(len(data), 1, DATA, 0) + data

    assert reader.feed(wire[:100]) == []
    assert reader.feed(wire[100:] + EMPTY) == [frame(1, DATA, data), frame(3, RESPONSE, b"")]


def test_a_longer_frame_is_told_at_its_header_and_never_held() -> None:
    length = MAX_DATA_BYTES + 1
    reader = FrameReader()

    assert reader.feed(pack_header(length, 7, DATA, 0)) == [Frame(7, DATA, 0, None, length)]
    for _ in range(64):
        assert reader.feed(bytes(MAX_DATA_BYTES // 64)) == []
        assert reader.unparsed == b""
    assert reader.skipping_bytes == 1
    assert reader.feed(b"\x00" + HELLO) == [frame(1, REQUEST, b"hello")]


@pytest.mark.parametrize("length", [0, 3, MAX_DATA_BYTES + 3])
def test_frames_of_unknown_type_are_skipped_whatever_their_length(length: int) -> None:
    reader = FrameReader()

    assert reader.feed(pack_header(length, 1, 0x2A, 0xFF)) == []
    assert reader.feed(bytes(length) + HELLO) == [frame(1, REQUEST, b"hello")]
    assert reader.unknown_frames == 1


def test_a_reader_can_go_on_inside_a_skipped_frame() -> None:
    assert FrameReader(skip=3).feed(b"abc" + HELLO) == [frame(1, REQUEST, b"hello")]


def test_a_frame_prints_what_it_is() -> None:
    assert repr(frame(1, REQUEST, b"hello", 2)) == "<Request stream=1 flags=0x02 length=5 held>"
    assert repr(Frame(3, 9, 0, None, 4)) == "<type 9 stream=3 flags=0x00 length=4 too long>"
