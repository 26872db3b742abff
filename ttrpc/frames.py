"""Frames: a ten-byte header and its data. Cuts a byte stream into frames without buffering more than one.

Header, big-endian: data length (4) | stream id (4) | type (1) | flags (1). Source: ttrpc's protocol as of 1.2.
"""

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HEADER_BYTES: "Final" = 10
MAX_DATA_BYTES: "Final" = 4 << 20  # 4 MiB, the protocol's own limit, header not counted

REQUEST: "Final" = 1
RESPONSE: "Final" = 2
DATA: "Final" = 3

REMOTE_CLOSED: "Final" = 0x01  # Request, Data: the sender sends no more on this stream
REMOTE_OPEN: "Final" = 0x02  # Request: the sender will send Data
NO_DATA: "Final" = 0x04  # Data: there is no message in it, not even an empty one

_header = struct.Struct(">IIBB")
pack_header = _header.pack
_unpack_header = _header.unpack_from


class Frame:
    """One frame. ``data`` is None when it was longer than the limit: ``length`` bytes are thrown away unread."""

    __slots__ = ("data", "flags", "length", "stream_id", "type")

    def __init__(self, stream_id: int, type_: int, flags: int, data: "bytes | None", length: int) -> None:
        self.stream_id = stream_id
        self.type = type_
        self.flags = flags
        self.data = data
        self.length = length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        mine = (self.stream_id, self.type, self.flags, self.data, self.length)
        return mine == (other.stream_id, other.type, other.flags, other.data, other.length)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        name = {REQUEST: "Request", RESPONSE: "Response", DATA: "Data"}.get(self.type, f"type {self.type}")
        held = "too long" if self.data is None else "held"
        return f"<{name} stream={self.stream_id} flags={self.flags:#04x} length={self.length} {held}>"


class FrameReader:
    """Cuts what arrives into frames. Raises nothing: every byte string is some sequence of frames.

    Owns: at most one unfinished frame (a header and 4 MiB) plus what one `feed` was given. Frames over the limit and
    frames of unknown type are never buffered, whatever length they claim: their bytes are dropped as they come.
    """

    __slots__ = ("_buffer", "_skip", "unknown_frames")

    def __init__(self, unparsed: bytes = b"", *, skip: int = 0) -> None:
        self._buffer = bytearray(unparsed)
        self._skip = skip
        self.unknown_frames = 0

    @property
    def unparsed(self) -> bytes:
        """The bytes of the unfinished frame: what a successor's reader must be given."""
        return bytes(self._buffer)

    @property
    def skipping_bytes(self) -> int:
        """How many bytes of a dropped frame are still to come."""
        return self._skip

    def feed(self, data: bytes) -> "list[Frame]":
        """Take the next bytes, return the frames they complete. A frame over the limit is told by its header alone."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        frames: list[Frame] = []
        at = 0
        if self._buffer:
            missing = self._missing_bytes()
            if missing > len(data):
                self._buffer += data
                return frames
            if missing > 0:  # the usual way of a large frame: its parts are joined once
                length, stream_id, type_, flags = _unpack_header(self._buffer)
                with memoryview(self._buffer) as begun:
                    body = b"".join((begun[HEADER_BYTES:], memoryview(data)[:missing]))
                frames.append(Frame(stream_id, type_, flags, body, length))
                at = missing
            else:
                data = bytes(self._buffer) + data
            self._buffer.clear()
        at = self._cut(data, at, frames)
        if at < len(data):
            self._buffer += memoryview(data)[at:] if at else data
        return frames

    def _missing_bytes(self) -> int:
        """How much the frame in the buffer lacks; 0 when that is not known, or it is none that is kept."""
        if len(self._buffer) < HEADER_BYTES:
            return 0
        length, _, type_, _ = _unpack_header(self._buffer)
        is_kept = REQUEST <= type_ <= DATA and length <= MAX_DATA_BYTES
        return max(0, HEADER_BYTES + length - len(self._buffer)) if is_kept else 0

    def _cut(self, data: bytes, at: int, frames: "list[Frame]") -> int:
        """Append the whole frames in `data` from there on; the value is where the first unfinished one begins."""
        end = len(data)
        while end - at >= HEADER_BYTES:
            length, stream_id, type_, flags = _unpack_header(data, at)
            body = at + HEADER_BYTES
            known = REQUEST <= type_ <= DATA
            if known and length <= MAX_DATA_BYTES:
                if body + length > end:
                    break
                at = body + length
                frames.append(Frame(stream_id, type_, flags, data[body:at], length))
                continue
            if known:
                frames.append(Frame(stream_id, type_, flags, None, length))
            else:
                self.unknown_frames += 1
            at = min(body + length, end)
            self._skip = length - (at - body)
        return at
