"""Attach streams: any number of clients on one process's live stdio, each at its own pace."""

from shim.streams.jsonlines import STDOUT
from shim.streams.places import OUTPUT_FIELDS, Past, output_message, output_of, output_place, output_since
from shim.streams.ring import RING_BYTES, Ring
from shim.streams.spool import LAST_ROLL_BYTES
from ttrpc.api import shim as api
from ttrpc.api.logplace import log_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.streams.logfile import LogFile
    from shim.streams.spool import Book
    from ttrpc.api.shim import AttachOpen, AttachOutput, AttachPlace, ExitRecord
    from ttrpc.server_call import ServerCall

BEHIND_BYTES = 1 << 20  # a client without backpressure that has this much unread is cut
BLOCKS_A_TURN = 16  # of a log that one client catches up with
# A client that held the process up when its shim was killed is waited for so long: what it misses is bounded.
RETURN_S = 3.0


class Hub:
    """Owns the attach clients of one process and the ring. The pumps give it output and heed `congested`.

    A client that comes back after a kill goes on at its place: in ``log``, a raw one, which has all of it; or in the
    spools of ``book``, whatever else becomes of the output. ``keep`` False: no ring.
    """

    __slots__ = (
        "_book",
        "_clients",
        "_expected",
        "_keep",
        "_on_room",
        "_released",
        "congested",
        "exit_record",
        "log",
        "ring",
        "terminal",
    )

    def __init__(self, *, terminal: bool, keep: bool, log: "LogFile | None" = None, book: "Book | None" = None) -> None:
        self.terminal = terminal
        self.congested = False
        self.exit_record: ExitRecord | None = None
        self._keep = keep
        self._released = False
        self.log = log
        self._book = book
        self._expected = 0
        self.ring = Ring()
        self._clients: list[Client] = []
        self._on_room: list[Callable[[], None]] = []

    def recover(self) -> bool:
        """Fill the ring from the spools, and hold the process up for clients that did before; whether there are any."""
        book = self._book
        if book is None:
            return False
        for stream, spool in book.spools.items():
            self.ring.add(stream, spool.since(max(0, spool.count - RING_BYTES))[1], delivered=True)
        self._expected = book.waiting
        self.weigh()
        return self._expected > 0

    def expect_nobody(self) -> None:
        """Wait no longer for clients of before."""
        self._expected = 0
        self.weigh()

    def place(self) -> "AttachPlace | None":
        """Where output goes on now; None where nothing is kept by which a client could come back."""
        if self.log is not None:
            return api.AttachPlace(log=log_place(self.log.fileno(), self.log.size_bytes))
        return output_place(self._book) if self._book is not None else None

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
        place = self.place() if self._clients else None
        for client in list(self._clients):
            if client.wants_output:
                delivered = True
                client.output(stream, data, place)
        if self._keep:
            self.ring.add(stream, data, delivered=delivered)

    def add(self, call: "ServerCall", opening: "AttachOpen", accepted: "int | None" = None) -> "Client":
        """Open one client: `opened`, the replay it asked for, and from then on everything."""
        client = Client(self, call, opening)
        opened = api.AttachOpened(terminal=self.terminal, accepted=accepted)
        place = self.place() if opening.output else None
        goes_on = place is not None and opening.HasField("resume") and self._knows(opening.resume)
        if place is not None:
            opened.place.CopyFrom(opening.resume if goes_on else place)
        client.send(api.AttachOutput(opened=opened))
        if goes_on:
            self._bring_up(client, opening.resume)
        elif opening.HasField("resume"):
            client.miss(0, "this shim does not know how much of the output was passed on before")
        elif opening.output and opening.replay_bytes:
            for stream, data in self._recent(min(opening.replay_bytes, RING_BYTES)):
                client.output(stream, data, None)
        self._count_in(client)
        return self._join(client)

    def _recent(self, count: int) -> "list[tuple[str, bytes]]":
        if self.log is None:
            return self.ring.replay(count)
        past = self.log.last_bytes(count)
        return [(STDOUT, past)] if past else []

    def _knows(self, place: "AttachPlace") -> bool:
        """Whether this is a place in this process's output."""
        if self.log is not None:
            return place.HasField("log")
        has_nothing = not (place.stdout or place.stderr)  # as of an exec that a successor has made ready anew
        return self._book is not None and (place.run == self._book.run or has_nothing)

    def _bring_up(self, client: "Client", place: "AttachPlace") -> None:
        """Give a client what it missed."""
        try:
            if self.log is not None:
                client.catch_up_with(Past(self.log, place.log))
            elif self._book is not None:
                missed, pieces = output_since(self._book, place)
                if missed:
                    client.miss(missed, "it was too much to be kept")
                for stream, data, behind in pieces:
                    client.output(stream, data, behind, is_past=True)
        except OSError as error:
            client.miss(0, f"what was kept of the output cannot be read: {error.strerror}")

    def _count_in(self, client: "Client") -> None:
        if client.is_waited_for and self._expected:
            self._expected -= 1

    def restore(self, call: "ServerCall", carried: "dict[str, Any]") -> "Client":
        """Go on with a client that other code in this process had, and let `carry` tell of it. Sends nothing now."""
        client = Client(self, call, api.AttachOpen.FromString(carried["opening"]))
        client.put_back(carried)
        self._count_in(client)
        return client if client.is_finishing else self._join(client)

    def _join(self, client: "Client") -> "Client":
        """It is told everything from now on, or that all is over."""
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
        held_up = not self._released and (self._expected > 0 or any(client.holds_up for client in self._clients))
        if self._book is not None:
            self._book.wait_for(sum(client.is_waited_for for client in self._clients) + self._expected)
        was, self.congested = self.congested, held_up
        if was and not self.congested:
            for callback in list(self._on_room):
                callback()

    def release(self) -> None:
        """The process has exited: nobody holds it up any more. What it left in its pipes is queued for slow clients."""
        self._released = True
        if self._book is not None:
            self._book.roll_bytes = LAST_ROLL_BYTES
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
        "_past",
        "_queue",
        "_queued_bytes",
        "opening",
    )

    def __init__(self, hub: Hub, call: "ServerCall", opening: "AttachOpen") -> None:
        self.opening = opening
        self._past: Past | None = None  # with what of the log it has to catch up
        self._backpressure: bool = opening.backpressure
        self._hub = hub
        self._call = call
        self._queue: list[tuple[str, bytes, AttachPlace | None]] = []
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
            "queue": [output_message(*each).SerializeToString() for each in self._queue],
            "exit": self._exit.SerializeToString() if self._exit is not None else None,
            "past": self._past.place.SerializeToString() if self._past is not None else None,
        }

    def put_back(self, carried: "dict[str, Any]") -> None:
        """Take what `carry` told. It counts as choked until the connection says how much is unsent."""
        self._queue = [output_of(api.AttachOutput.FromString(raw)) for raw in carried["queue"]]
        self._queued_bytes = sum(len(data) for _, data, _ in self._queue)
        if carried["exit"] is not None:
            self._exit = api.ExitRecord.FromString(carried["exit"])
        if carried.get("past") is not None and self._hub.log is not None:
            self._past = Past(self._hub.log, api.LogPlace.FromString(carried["past"]))
        self._choked = True
        self._call.await_drain()

    @property
    def wants_output(self) -> bool:
        """Whether it is to be given what passes: not while it reads the log to there."""
        return self.opening.output and self._past is None

    @property
    def is_waited_for(self) -> bool:
        """Whether the process is to wait until this client is back, should we be killed."""
        return self._backpressure and self.opening.output and self._exit is None

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

    def output(self, stream: str, data: bytes, place: "AttachPlace | None", *, is_past: bool = False) -> None:
        """Pass a chunk on, with the place behind it. ``is_past``: it is owed, however much of it there is."""
        if self._over:
            return
        if not self._choked:
            self._pass_on(stream, data, place)
            return
        self._queue.append((stream, data, place))
        self._queued_bytes += len(data)
        if not self._backpressure and not is_past and self._queued_bytes > BEHIND_BYTES:
            self.cut("reads too slowly")

    def say_accepted(self, count: int) -> None:
        """Tell how much of its input was taken."""
        if not self._over:
            self._call.send(api.AttachOutput(accepted=count))

    def miss(self, count: int, reason: str) -> None:
        """Tell what is not to be had any more."""
        if not self._over:
            self._call.send(api.AttachOutput(missed=api.AttachMissed(bytes=count, reason=reason)))

    def catch_up_with(self, past: "Past") -> None:
        """Give it a log from a place on, until it is where output goes on."""
        self._past = past
        if past.missed:
            self.miss(0, "the log was rotated away before it was read")
        if not self._choked:
            self._catch_up()

    def _catch_up(self) -> None:
        past = self._past
        for _ in range(BLOCKS_A_TURN):
            if past is None or self._choked or self._over:
                return
            try:
                data = past.read()
            except OSError as error:
                self.cut(f"the log cannot be read: {error.strerror}")
                return
            if not data:
                past.close()
                self._past = None
                return
            self._pass_on(STDOUT, data, api.AttachPlace(log=past.place))
        self._choked = True  # the others have a turn, too
        self._call.await_drain()

    def send(self, message: "AttachOutput") -> None:
        self._heed(self._call.send(message))

    def _pass_on(self, stream: str, data: bytes, place: "AttachPlace | None") -> None:
        self._heed(self._call.send(api.AttachOutput(place=place), data, OUTPUT_FIELDS[stream]))

    def _heed(self, has_room: bool) -> None:
        if not has_room and not self._over:
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
        if not self._choked and self._past is None:
            self._send_exit()

    def _drained(self) -> None:
        self._choked = False
        sent = 0
        while sent < len(self._queue) and not self._choked and not self._over:
            stream, data, place = self._queue[sent]
            sent += 1
            self._queued_bytes -= len(data)
            self._pass_on(stream, data, place)
        del self._queue[:sent]
        if not self._choked and not self._over and self._past is not None:
            self._catch_up()
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
        self._leave_past()
        self._call.finish()
        self._hub.remove(self)

    def _gone(self, *_why: "Any") -> None:
        """The connection died."""
        self._over = True
        self._leave_past()
        self._queue.clear()
        self._queued_bytes = 0
        self._hub.remove(self)

    def _leave_past(self) -> None:
        past, self._past = self._past, None
        if past is not None:
            past.close()
