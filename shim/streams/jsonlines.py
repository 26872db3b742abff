"""JSON-lines log records: output bytes in, whole records out, and back. Pure.

A record is ``{"log":"text\\n","stream":"stdout","time":"2026-11-24T05:30:28.123456789Z"}`` and a newline. Text without
a newline at its end is a part: of a line longer than MAX_RECORD_BYTES, or the last words of a process.
"""

import json

from shim.streams.stamps import StampReader

STDOUT = "stdout"
STDERR = "stderr"

# A longer line is written in parts of this size, and no more than this is ever held back waiting for a line's end.
MAX_RECORD_BYTES = 1 << 14

_HEAD = b'{"log":"'
_MIDDLES = (b'","stream":"stdout","time":"', b'","stream":"stderr","time":"')
_TAIL_BYTES = len(_MIDDLES[0]) + len('2026-11-24T05:30:28.123456789Z"}')
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\') + b"\n\x7f"  # stand for themselves in a batch
_ESCAPES = [(b"\\", b"\\\\"), (b'"', b'\\"'), (b"\t", b"\\t"), (b"\r", b"\\r")] + [
    (bytes((byte,)), b"\\u%04x" % byte) for byte in range(0x20) if byte not in b"\n\t\r"
]


class LineFormatter:
    """Makes records of one stream's output. Holds back an unfinished line, at most MAX_RECORD_BYTES of it."""

    __slots__ = ("_held", "_middle")

    def __init__(self, stream: str) -> None:
        self._held = b""
        self._middle = b'","stream":"%s","time":"' % stream.encode("ascii")

    @property
    def held(self) -> bytes:
        """The unfinished line."""
        return self._held

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes, stamp: bytes) -> bytes:
        """The records which this output completes, all with one time."""
        end = data.rfind(b"\n") + 1
        tail = self._middle + stamp + b'"}\n'
        out: list[bytes] = []
        if end:
            # Copied once: of a busy log each copy of the chunk costs some hundredths of the throughput.
            _records(b"".join((self._held, memoryview(data)[:end])), tail, out)
            held = data[end:]
        else:
            held = self._held + data
        while len(held) > MAX_RECORD_BYTES:
            cut = _character_start(held, MAX_RECORD_BYTES)
            out.append(_HEAD + _escape(held[:cut]) + tail)
            held = held[cut:]
        self._held = held
        return out[0] if len(out) == 1 else b"".join(out)

    def flush(self, stamp: bytes) -> bytes:
        """The record of what is held back; empty when nothing is."""
        if not self._held:
            return b""
        held, self._held = self._held, b""
        return _HEAD + _escape(held) + self._middle + stamp + b'"}\n'


def record(stream: str, text: bytes, stamp: bytes) -> bytes:
    """One record of its own."""
    return _HEAD + _line(text) + b'","stream":"%s","time":"%s"}\n' % (stream.encode("ascii"), stamp)


def _line(text: bytes) -> bytes:
    return _escape(text).replace(b"\n", b"\\n")


def _records(lines: bytes, tail: bytes, out: "list[bytes]") -> None:
    """Append the records of whole lines: one replace for a whole batch, and per line only where one is too long."""
    size = len(lines)
    start = at = 0
    while at < size:
        found = lines.rfind(b"\n", at, at + MAX_RECORD_BYTES + 1)
        if found >= 0:
            at = found + 1
            continue
        if at > start:
            out.append(_batch(lines[start:at], tail))
        cut = _character_start(lines, at + MAX_RECORD_BYTES)
        out.append(_HEAD + _escape(lines[at:cut]) + tail)
        start = at = cut
    if at > start:
        out.append(_batch(lines if start == 0 else lines[start:], tail))


def _batch(lines: bytes, tail: bytes) -> bytes:
    records = _escape(lines).replace(b"\n", b"\\n" + tail + _HEAD)
    return b"".join((_HEAD, memoryview(records)[: -len(_HEAD)]))


def _escape(text: bytes) -> bytes:
    """Make text fit between JSON quotes, newlines excepted (RFC 8259 §7). Bytes that are no UTF-8 become U+FFFD.

    U+2028 and U+2029 are escaped because JavaScript once took them for line ends, as Go's encoder does.
    """
    special = text.translate(None, _PLAIN)
    if not special:
        return text
    if not special.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            text = text.decode("utf-8", "replace").encode("utf-8")
    for plain, escaped in _ESCAPES:
        if plain in special:
            text = text.replace(plain, escaped)
    if b"\xe2" in special:
        text = text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return text


def _character_start(text: bytes, at: int) -> int:
    """The place to cut at or just before ``at``, which is inside the text, so that no character falls apart.

    Source: RFC 3629 §3: at most three continuation bytes follow a lead.
    """
    for back in range(4):
        if text[at - back] & 0xC0 != 0x80:
            return at - back
    return at  # no UTF-8 anyway


class RecordReader:
    """Reads records back. Remembers the last second, so that reading a busy log costs no calendar."""

    __slots__ = ("_stamps",)

    def __init__(self) -> None:
        self._stamps = StampReader()

    def read(self, line: bytes) -> "tuple[int | None, str | None, bytes]":
        """(time, stream, text) of one record, with or without its newline.

        A line that is no record (a foreign hand, a torn write) is answered as text without time and stream.
        """
        line = line.removesuffix(b"\n")
        cut = len(line) - _TAIL_BYTES
        # Most records are as we write them and have nothing to unescape but the newline at the end of their text.
        if line[:8] == _HEAD and line[cut : cut + 28] in _MIDDLES and line.find(b"\\", 8, cut - 2) < 0:
            at_ns = self._stamps.nanoseconds(line[cut + 28 : -2])
            if at_ns is not None and line[cut - 2 : cut] == b"\\n":
                return at_ns, line[cut + 12 : cut + 18].decode("ascii"), line[8 : cut - 2] + b"\n"
        try:
            fields = json.loads(line)
            text, stream, stamp = fields["log"], fields["stream"], fields["time"]
            data = text.encode("utf-8", "replace")
            at_ns = self._stamps.nanoseconds(stamp.encode("ascii", "replace"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, None, line
        return at_ns, stream, data


def output_bytes(records: bytes) -> int:
    """How many bytes of output these whole records hold. Text that was no UTF-8 counts as what stands for it."""
    reader = RecordReader()
    return sum(len(reader.read(line)[2]) for line in records.splitlines())
