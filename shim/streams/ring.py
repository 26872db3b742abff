"""The most recent output of a process, kept for who attaches later."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

RING_BYTES: "Final" = 1 << 16
_MERGE_BYTES: "Final" = 1 << 12  # small writes share one ring entry up to this size, so that entries stay few


class Ring:
    """The last RING_BYTES of output, as (stream, bytes) in order. Counts what leaves it and no client ever got."""

    __slots__ = ("_bytes", "_entries", "lost_bytes")

    def __init__(self) -> None:
        self._entries: list[tuple[str, bytes | bytearray, bool]] = []  # the flag: some client got it
        self._bytes = 0
        self.lost_bytes = 0

    def add(self, stream: str, data: bytes, *, delivered: bool) -> None:
        if len(data) > RING_BYTES:
            if not delivered:
                self.lost_bytes += len(data) - RING_BYTES
            data = data[-RING_BYTES:]
        if self._entries:
            last_stream, last, was_delivered = self._entries[-1]
            if last_stream == stream and was_delivered == delivered and len(last) + len(data) <= _MERGE_BYTES:
                if type(last) is not bytearray:
                    last = bytearray(last)
                    self._entries[-1] = (stream, last, delivered)
                last += data
                self._bytes += len(data)
                self._trim()
                return
        self._entries.append((stream, data, delivered))
        self._bytes += len(data)
        self._trim()

    def replay(self, count: int) -> "list[tuple[str, bytes]]":
        """The newest ``count`` bytes, which from now on count as delivered."""
        out: list[tuple[str, bytes]] = []
        at = len(self._entries)
        while at > 0 and count > 0:
            at -= 1
            stream, data, delivered = self._entries[at]
            if len(data) > count:
                self._entries[at : at + 1] = [(stream, data[:-count], delivered), (stream, data[-count:], True)]
                out.append((stream, bytes(data[-count:])))
                break
            self._entries[at] = (stream, data, True)
            out.append((stream, bytes(data)))
            count -= len(data)
        out.reverse()
        return out

    def snapshot(self) -> "list[tuple[str, str, bool]]":
        """As plain values, bytes as Latin-1 text."""
        return [(stream, data.decode("latin-1"), delivered) for stream, data, delivered in self._entries]

    def load(self, entries: "list[tuple[str, str, bool]]") -> None:
        """Take what another process had, in place of what is here."""
        self._entries.clear()
        self._bytes = 0
        for stream, text, delivered in entries:
            self.add(stream, text.encode("latin-1"), delivered=delivered)

    def _trim(self) -> None:
        surplus = self._bytes - RING_BYTES
        while surplus > 0:
            stream, data, delivered = self._entries[0]
            gone = min(surplus, len(data))
            if gone == len(data):
                del self._entries[0]
            else:
                self._entries[0] = (stream, data[gone:], delivered)
            self._bytes -= gone
            surplus -= gone
            if not delivered:
                self.lost_bytes += gone
