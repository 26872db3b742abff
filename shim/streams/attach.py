"""Attach streams: any number of clients on one process's live stdio, each at its own pace."""

from shim import faults
from ttrpc.api import shim as api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.core.loop import Loop
    from ttrpc.api.shim import AttachInput, AttachOpen, AttachOutput, ExitRecord
    from ttrpc.server_call import ServerCall

RING_BYTES = 1 << 16  # the most recent output kept for who attaches later
BEHIND_BYTES = 1 << 20  # a client without backpressure that has this much unread is cut
_MERGE_BYTES = 1 << 12  # small writes share one ring entry up to this size, so that entries stay few


class Ring:
    """The last RING_BYTES of output, as (stream, bytes) in order. Counts what leaves it and no client ever got."""

    __slots__ = ("_bytes", "_entries", "lost_bytes")

    def __init__(self) -> None:
        self._entries: list[tuple[str, bytearray, bool]] = []  # the flag: some client got it
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
                last += data
                self._bytes += len(data)
                self._trim()
                return
        self._entries.append((stream, bytearray(data), delivered))
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
        """Take what another process had."""
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


class Hub:
    """Owns the attach clients of one process and the ring. The pumps give it output and heed `congested`.

    ``keep`` False: no ring, because the output's place (a raw log) is read for replay through ``replay_from``.
    """

    __slots__ = (
        "_clients",
        "_keep",
        "_on_room",
        "_released",
        "_replay_from",
        "congested",
        "exit_record",
        "ring",
        "terminal",
    )

    def __init__(self, *, terminal: bool, keep: bool, replay_from: "Callable[[int], bytes] | None" = None) -> None:
        self.terminal = terminal
        self.congested = False
        self.exit_record: ExitRecord | None = None
        self._keep = keep
        self._released = False
        self._replay_from = replay_from
        self.ring = Ring()
        self._clients: list[Client] = []
        self._on_room: list[Callable[[], None]] = []

    @property
    def wants_output(self) -> bool:
        return self._keep or any(client.wants_output for client in self._clients)

    @property
    def attached(self) -> int:
        return len(self._clients)

    @property
    def lost_bytes(self) -> int:
        """Output which no client ever got, dropped to make place in the ring."""
        return self.ring.lost_bytes

    def on_room(self, callback: "Callable[[], None]") -> None:
        """Call it when the last client that held the process up has room again or is gone."""
        self._on_room.append(callback)

    def output(self, stream: str, data: bytes) -> None:
        """Hand one chunk to every client; none of them waits for another."""
        delivered = False
        for client in list(self._clients):
            if client.wants_output:
                delivered = True
                client.output(stream, data)
        if self._keep:
            self.ring.add(stream, data, delivered=delivered)

    def add(self, call: "ServerCall", opening: "AttachOpen") -> "Client":
        """Open one client: `opened`, the replay it asked for, and from then on everything."""
        client = Client(self, call, opening)
        client.send(api.AttachOutput(opened=api.AttachOpened(terminal=self.terminal)))
        if opening.output and opening.replay_bytes:
            count = min(opening.replay_bytes, RING_BYTES)
            if self._replay_from is not None:
                past = self._replay_from(count)
                replay = [("stdout", past)] if past else []
            else:
                replay = self.ring.replay(count)
            for stream, data in replay:
                client.output(stream, data)
        if self.exit_record is not None:
            client.finish(self.exit_record)
        else:
            self._clients.append(client)
            self.weigh()
        return client

    def restore(self, call: "ServerCall", carried: "dict[str, Any]") -> "Client":
        """Go on with a client that other code in this process had, and let `carry` tell of it. Sends nothing now."""
        client = Client(self, call, api.AttachOpen.FromString(carried["opening"]))
        client.put_back(carried)
        if client.is_finishing:
            return client
        if self.exit_record is not None:
            client.finish(self.exit_record)
        else:
            self._clients.append(client)
            self.weigh()
        return client

    def remove(self, client: "Client") -> None:
        if client in self._clients:
            self._clients.remove(client)
        self.weigh()

    def weigh(self) -> None:
        """Find out anew whether a client holds the process up."""
        held_up = not self._released and any(client.holds_up for client in self._clients)
        was, self.congested = self.congested, held_up
        if was and not self.congested:
            for callback in list(self._on_room):
                callback()

    def release(self) -> None:
        """The process has exited: nobody holds it up any more. What it left in its pipes is queued for slow clients."""
        self._released = True
        self.weigh()

    def exited(self, exit_record: "ExitRecord") -> None:
        """Every client gets what is queued for it, then the exit, then the end."""
        self.exit_record = exit_record
        self._released = True
        for client in list(self._clients):
            client.finish(exit_record)

    def cut_all(self, reason: str) -> None:
        for client in list(self._clients):
            client.cut(reason)


class Client:
    """One attach stream's sending half: owns what is queued for it."""

    __slots__ = (
        "_backpressure",
        "_call",
        "_choked",
        "_exit",
        "_hub",
        "_over",
        "_queue",
        "_queued_bytes",
        "opening",
        "wants_output",
    )

    def __init__(self, hub: Hub, call: "ServerCall", opening: "AttachOpen") -> None:
        self.opening = opening
        self.wants_output: bool = opening.output
        self._backpressure: bool = opening.backpressure
        self._hub = hub
        self._call = call
        self._queue: list[AttachOutput] = []
        self._queued_bytes = 0
        self._choked = False  # the connection has its high-water mark queued; it tells when it drained
        self._exit: ExitRecord | None = None
        self._over = False
        call.on_drain = self._drained
        call.on_cancel(self._gone)
        call.carry = self.carry

    def carry(self) -> "dict[str, Any]":
        """What other code needs to go on with this client, in this process."""
        return {
            "opening": self.opening.SerializeToString(),
            "queue": [message.SerializeToString() for message in self._queue],
            "exit": self._exit.SerializeToString() if self._exit is not None else None,
        }

    def put_back(self, carried: "dict[str, Any]") -> None:
        """Take what `carry` told. It counts as choked until the connection says how much is unsent."""
        self._queue = [api.AttachOutput.FromString(raw) for raw in carried["queue"]]
        self._queued_bytes = sum(len(message.stdout) or len(message.stderr) for message in self._queue)
        if carried["exit"] is not None:
            self._exit = api.ExitRecord.FromString(carried["exit"])
        self._choked = True
        self._call.await_drain()

    @property
    def is_finishing(self) -> bool:
        """Whether it knows of the exit, and gets what was before that."""
        return self._exit is not None

    @property
    def holds_up(self) -> bool:
        """Whether the process must wait for this client."""
        return self._choked and self._backpressure and self._exit is None

    @property
    def is_over(self) -> bool:
        return self._over

    def output(self, stream: str, data: bytes) -> None:
        if self._over:
            return
        message = api.AttachOutput(stderr=data) if stream == "stderr" else api.AttachOutput(stdout=data)
        if not self._choked:
            self.send(message)
            return
        self._queue.append(message)
        self._queued_bytes += len(data)
        if not self._backpressure and self._queued_bytes > BEHIND_BYTES:
            self.cut("reads too slowly")

    def send(self, message: "AttachOutput") -> None:
        if not self._call.send(message) and not self._over:
            self._choked = True
            self._hub.weigh()

    def cut(self, reason: str) -> None:
        """End the stream with the reason and the count of what it misses."""
        if self._over:
            return
        missed, self._queued_bytes = self._queued_bytes, 0
        self._queue.clear()
        self._call.send(api.AttachOutput(cut=api.AttachCut(reason=reason, missed_bytes=missed)))
        self._end()

    def finish(self, exit_record: "ExitRecord") -> None:
        self._exit = exit_record
        self._hub.remove(self)
        if not self._choked:
            self._send_exit()

    def _drained(self) -> None:
        self._choked = False
        sent = 0
        while sent < len(self._queue) and not self._choked and not self._over:
            message = self._queue[sent]
            sent += 1
            self._queued_bytes -= len(message.stdout) or len(message.stderr)
            self.send(message)
        del self._queue[:sent]
        if not self._choked and not self._over:
            if self._exit is not None:
                self._send_exit()
            else:
                self._hub.weigh()

    def _send_exit(self) -> None:
        if not self._over:
            self._call.send(api.AttachOutput(exited=self._exit))
            self._end()

    def _end(self) -> None:
        self._over = True
        self._call.finish()
        self._hub.remove(self)

    def _gone(self, *_why: "Any") -> None:
        """The connection died."""
        self._over = True
        self._queue.clear()
        self._queued_bytes = 0
        self._hub.remove(self)


class Inputs:
    """The receiving half of all attach clients: their bytes go into one outlet, and they wait while it is full."""

    __slots__ = ("_loop", "_waiting", "close_stdin", "outlet", "resize")

    def __init__(
        self,
        loop: "Loop",
        outlet: "Any",
        close_stdin: "Callable[[], None]",
        resize: "Callable[[int, int], None]",
    ) -> None:
        self._loop = loop
        self.outlet = outlet
        self.close_stdin = close_stdin
        self.resize = resize
        self._waiting: list[ServerCall] = []
        if outlet is not None:
            outlet.on_room(self._room)

    def serve(self, call: "ServerCall", *, stdin: bool, is_paused: bool = False) -> None:
        """Heed one client's messages until its stream ends. A client that did not ask for stdin cannot write.

        ``is_paused``: it goes on when there is room, in a turn of its own.
        """

        def message(received: "AttachInput") -> None:
            kind = received.WhichOneof("input")
            if kind == "resize":
                self.resize(received.resize.width, received.resize.height)
            elif kind == "stdin" and stdin and self.outlet is not None:
                faults.point("attach.input")
                self.outlet.write(received.stdin)
                faults.point("attach.written")
                if self.outlet.full and call.is_open:
                    self._waiting.append(call)
                    call.pause()
            elif kind == "close_stdin" and stdin and received.close_stdin:
                self.close_stdin()

        call.on_message(message)
        if is_paused and self.outlet is not None and self.outlet.full:
            self._waiting.append(call)
        elif is_paused:
            self._loop.call_soon(call.resume)

    def _room(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if call.is_open:
                call.resume()
