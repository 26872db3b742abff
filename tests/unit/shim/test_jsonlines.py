"""Output → records → output: nothing changes on the way, whatever the bytes and however they are cut into chunks."""

import itertools
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shim.streams.jsonlines import MAX_RECORD_BYTES, LineFormatter, RecordReader, output_bytes, record
from shim.streams.stamps import Stamper, StampReader

STAMP = b"2026-11-24T05:30:28.123456789Z"
AT_NS = 1795498228123456789

# Pieces that meet every rule: plain, escaped, control, multi-byte, line separators, over-long.
PIECES = st.sampled_from(
    [
        b"plain",
        b"\n",
        b'"',
        b"\\",
        b"\\n",
        b"\t\r\x00\x1f\x7f",
        "grüße".encode(),
        "\u2028\u2029".encode(),
        "😀".encode(),
        b"y" * MAX_RECORD_BYTES,
        b"z" * (MAX_RECORD_BYTES - 1),
        "ä".encode() * MAX_RECORD_BYTES,
    ]
)


def formatted(data: bytes, cuts: list[int], stream: str = "stdout") -> bytes:
    formatter = LineFormatter(stream)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    out = [formatter.feed(data[a:b], STAMP) for a, b in itertools.pairwise(edges)]
    return b"".join(out) + formatter.flush(STAMP)


def read_back(records: bytes) -> bytes:
    reader = RecordReader()
    return b"".join(reader.read(line)[2] for line in records.splitlines(keepends=True))


@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 100_000), max_size=4))
@example([b"y" * MAX_RECORD_BYTES, b"\n"], [])
@example([b"y" * (MAX_RECORD_BYTES + 1), b"\n"], [5])
@example([b"x", "ä".encode() * MAX_RECORD_BYTES], [])
def test_text_comes_back_byte_for_byte(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    assert read_back(formatted(data, cuts)) == data


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_any_bytes_become_records_any_json_parser_reads(data: bytes, cuts: list[int]) -> None:
    """What is no UTF-8 becomes U+FFFD; lines stay lines."""
    records = formatted(data, cuts).decode("utf-8").split("\n")
    assert records.pop() == ""

    texts = [json.loads(line) for line in records]

    assert all(list(text) == ["log", "stream", "time"] for text in texts)
    assert all(text["log"].endswith("\n") for text in texts[:-1])
    assert "".join(text["log"] for text in texts) == data.decode("utf-8", "replace")


@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 100_000), max_size=4))
def test_records_are_bounded_and_what_is_held_back_too(pieces: list[bytes], cuts: list[int]) -> None:
    formatter = LineFormatter("stderr")
    reader = RecordReader()
    for piece in pieces:
        for line in formatter.feed(piece, STAMP).splitlines():
            assert len(reader.read(line)[2]) <= MAX_RECORD_BYTES + 1, "with its newline"
        assert formatter.held_bytes <= MAX_RECORD_BYTES


@given(st.lists(PIECES.filter(lambda piece: b"\0" not in piece), max_size=8))
def test_the_fast_reader_agrees_with_a_json_parser(pieces: list[bytes]) -> None:
    reader = RecordReader()
    for line in formatted(b"".join(pieces), [], "stderr").splitlines():
        at_ns, stream, data = reader.read(line)
        assert (at_ns, stream) == (AT_NS, "stderr")
        assert data.decode() == json.loads(line)["log"]


def test_a_record_has_the_shape_of_dockers_json_file() -> None:
    assert formatted(b'say "hi"\n', []) == (
        b'{"log":"say \\"hi\\"\\n","stream":"stdout","time":"2026-11-24T05:30:28.123456789Z"}\n'
    )
    assert record("stderr", b"mark\n", STAMP) == (
        b'{"log":"mark\\n","stream":"stderr","time":"2026-11-24T05:30:28.123456789Z"}\n'
    )


def test_a_long_line_is_written_in_parts_without_a_newline_but_the_last() -> None:
    line = b"a" * (2 * MAX_RECORD_BYTES + 10) + b"\n"
    texts = [json.loads(each)["log"] for each in formatted(line, []).splitlines()]
    assert [len(text) for text in texts] == [MAX_RECORD_BYTES, MAX_RECORD_BYTES, 11]
    assert [text.endswith("\n") for text in texts] == [False, False, True]


@pytest.mark.parametrize(
    "line", [b"", b"no json", b"{}", b'{"log":1,"stream":"stdout","time":"x"}', b"[1]", b'{"log":"to']
)
def test_a_line_that_is_no_record_is_read_as_text(line: bytes) -> None:
    assert RecordReader().read(line) == (None, None, line)


def test_output_bytes_counts_what_the_records_hold() -> None:
    data = b'one "quoted"\ntwo\\\nthr\xc3\xa9e\nrest'
    assert output_bytes(formatted(data, [])) == len(data)


# --- time -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4_000_000_000_000_000_000))
@example(951_782_400_000_000_000)  # 2000-02-29
@example(1_709_164_800_000_000_001)  # 2024-02-29
def test_stamps_are_read_back_to_the_nanosecond(at_ns: int) -> None:
    assert StampReader().nanoseconds(Stamper().stamp(at_ns)) == at_ns


def test_a_stamp_is_rfc_3339_with_nine_digits() -> None:
    assert Stamper().stamp(AT_NS) == STAMP
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(AT_NS // 10**9)) == "2026-11-24T05:30:28"


@pytest.mark.parametrize(
    ("stamp", "at_ns"),
    [
        (b"1970-01-01T00:00:01Z", 1_000_000_000),
        (b"1970-01-01T00:00:01.5Z", 1_500_000_000),
        (b"1970-01-01T00:00:01.123456789Z", 1_123_456_789),
        (b"1970-01-01T00:00:01.1234567890Z", None),
        (b"1970-01-01T00:00:01+01:00", None),
        (b"1970-13-01T00:00:01Z", None),
        (b"1970-01-01 00:00:01Z", None),
        (b"now", None),
        (b"", None),
    ],
)
def test_stamps_of_other_writers(stamp: bytes, at_ns: int | None) -> None:
    """Go leaves trailing zeros out; anything but UTC is none of ours."""
    assert StampReader().nanoseconds(stamp) == at_ns
