"""Telling containerd: every record of the journal, in order, to its event service, until it has taken each.

The position is the journal's own acknowledgement: delivered is acknowledged, on disk, and so a successor goes on where
this shim was. There is one such cursor. A shim forwards only if it was started with a TTRPC_ADDRESS, which containerd
sets and our own daemon never does; where a shim forwards, nobody else may acknowledge (shimservice.py refuses), but
anybody may follow.

Delivered means at least once: a containerd that dies between taking an event and answering is told it again.
"""

import os

from shim.serving.journal import Cursor
from ttrpc.api import forward, shim
from ttrpc.connection import CALLER, Connection
from ttrpc.errors import ConnectionLost
from ttrpc.service import find_method
from ttrpc.status import Code
from ttrpc.wire_events import ResponseReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop, Timer
    from shim.core.shimlog import ShimLog
    from shim.serving.journal import Journal
    from shim.serving.uplink import Uplink
    from ttrpc.status import Status

    Dial = Callable[[Callable[[bytes], None], Callable[[str], None]], Uplink]

SERVICE = "containerd.services.events.ttrpc.v1.Events"
# What containerd is told of our patience, as its own shim tells it.
DEADLINE_S = 5.0
# Our patience itself is longer. While the connection stands the request is with containerd and will be read: to say it
# again on another connection would tell the event twice, once the one who was slow (or stopped) goes on.
PATIENCE_S = 30.0
# Between tries, doubling up to the limit; all shims of a host notice at the same moment, so each waits a bit
# more or less.
RETRY_FIRST_S, RETRY_MAX_S = 0.1, 5.0
JITTER = 0.25
# containerd keeps no event for those who subscribe later, and its clients need a moment to be back after its restart:
# told at once, an exit would be told to nobody (dockerd takes about a second, and never asks what it has missed).
HOMECOMING_S = 2.0
# An event that containerd answers with an error so often is given up, so that it holds up no exit. An exit never is.
REFUSALS_MAX = 5
BATCH = 64


class Forwarder:
    """Owns the connection to containerd and its place in the journal. One event is under way at a time.

    Order: that of the journal. Nothing here blocks, and nobody waits for it but `finish`.
    """

    def __init__(
        self,
        loop: "Loop",
        journal: "Journal",
        log: "ShimLog",
        namespace: str,
        dial: "Dial",
        jitter: "Callable[[], float] | None" = None,
    ) -> None:
        self._loop = loop
        self._journal = journal
        self._log = log
        self._namespace = namespace
        self._dial = dial
        self._jitter = jitter if jitter is not None else _jitter
        self._method = find_method(SERVICE, "Forward")
        self._cursor = Cursor(journal.acked_seq)
        self._queue: list[tuple[int, bytes]] = []  # read from the journal and not delivered yet, in order
        self._link: Uplink | None = None
        self._core = Connection(CALLER)
        self._stream_id = 0  # of the call under way, which tells the head of the queue; 0 for none
        self._patience: Timer | None = None
        self._pause: Timer | None = None  # nothing is sent before it is over
        self._delay_s = RETRY_FIRST_S
        self._was_away = False
        self._refusals = 0
        self._is_troubled = False
        self._is_scheduled = False
        self._on_finished: Callable[[], None] | None = None
        self._unsubscribe = journal.subscribe(self._schedule)
        self._schedule()

    @property
    def untold(self) -> int:
        """How many records containerd has not taken yet."""
        return self._journal.last_seq - self._journal.acked_seq

    @property
    def is_telling(self) -> bool:
        """Whether containerd has an event that it has not answered."""
        return self._stream_id != 0

    def finish(self, on_finished: "Callable[[], None]", *, deadline_s: float) -> None:
        """Try once more without any pause, then call ``on_finished``: when all is delivered, or time is up."""
        self._on_finished = on_finished
        self._loop.call_later(deadline_s, self._give_up)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._delay_s = RETRY_FIRST_S
        self._schedule()

    def close(self) -> None:
        """Stop where it is; the journal keeps what is untold. Idempotent."""
        self._unsubscribe()
        self._on_finished = None
        self._hang_up()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    # --- what is next

    def _schedule(self) -> None:
        """In a turn of its own: whoever appended a record does not wait for us."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_scheduled = False
        if self._stream_id or self._pause is not None:
            return
        if not self._queue:
            self._queue = self._journal.read(self._cursor, BATCH)
        if not self._queue and self._on_finished is not None:
            self._finished()
        # Also with nothing to tell, so that the next event finds containerd's subscribers back already.
        elif (self._queue or self._was_away) and self._is_connected() and self._queue:
            self._send()

    def _is_connected(self) -> bool:
        """Connect if need be; False when something has to be waited for first."""
        if self._link is not None:
            return True
        try:
            self._link = self._dial(self._received, self._lost)
        except OSError as error:
            self._lost(error.strerror or str(error))
            return False
        self._core = Connection(CALLER)
        if self._was_away and self._on_finished is None:
            self._wait(HOMECOMING_S)
            return False
        return True

    def _send(self) -> None:
        seq, payload = self._queue[0]
        record = shim.JournalRecord.FromString(payload)
        request = forward.ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.CopyFrom(record.at)
        envelope.namespace = self._namespace
        envelope.topic = record.topic
        envelope.event.CopyFrom(record.event)
        metadata = (("containerd-namespace-ttrpc", self._namespace),)
        try:
            self._stream_id, data = self._core.send_request(
                self._method.shape, self._method.prefix, request.SerializeToString(), int(DEADLINE_S * 1e9), metadata
            )
        except ConnectionLost as error:  # its ids are used up
            self._lost(str(error))
            return
        self._patience = self._loop.call_later(PATIENCE_S, lambda: self._lost(f"event {seq} is not answered"))
        assert self._link is not None
        self._link.send(data)

    # --- what comes of it

    def _received(self, data: bytes) -> None:
        for event in self._core.receive_bytes(data):
            if type(event) is ResponseReceived and event.stream_id == self._stream_id:
                self._answered(event.status)

    def _answered(self, status: "Status | None") -> None:
        assert self._patience is not None
        self._patience.cancel()
        self._stream_id = 0
        seq, payload = self._queue[0]
        if status is not None and status.code != Code.OK:
            self._refusals += 1
            record = shim.JournalRecord.FromString(payload)
            words = f"containerd refuses event {seq}, {record.topic}: {status.message}"
            if record.HasField("exit") or self._refusals < REFUSALS_MAX:
                self._complain(words)
                self._wait(self._next_delay())
                return
            self._log.error(f"{words}; it is given up")
        elif self._is_troubled:
            self._is_troubled = False
            self._log.info(f"containerd takes events again; {self.untold} to be told")
        del self._queue[0]
        self._journal.ack(seq)
        self._refusals = 0
        self._settled()
        self._schedule()

    def _lost(self, reason: str) -> None:
        """There is no containerd to talk to now; try again later."""
        self._hang_up()
        self._was_away = True
        self._complain(f"containerd cannot be told events: {reason}")
        if self._pause is not None:
            self._pause.cancel()
        self._wait(self._next_delay())

    def _complain(self, words: str) -> None:
        """Once per trouble, not once per try."""
        if not self._is_troubled and self.untold:
            self._is_troubled = True
            self._log.warning(f"{words}; {self.untold} kept in the journal, trying on")

    def _hang_up(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._stream_id = 0
        if self._link is not None:
            self._link.close()
            self._link = None

    # --- pauses

    def _wait(self, seconds: float) -> None:
        self._pause = self._loop.call_later(seconds, self._pause_over)

    def _pause_over(self) -> None:
        self._pause = None
        if self._link is not None and self._was_away:
            self._settled()  # it has stood through the pause
        self._schedule()

    def _settled(self) -> None:
        self._was_away = False
        self._delay_s = RETRY_FIRST_S

    def _next_delay(self) -> float:
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, RETRY_MAX_S)
        return delay_s * (1 + JITTER * self._jitter())

    # --- the end

    def _give_up(self) -> None:
        if self._on_finished is not None:
            self._log.error(f"ending with {self.untold} events that containerd did not take")
            self._finished()

    def _finished(self) -> None:
        callback = self._on_finished
        self.close()
        if callback is not None:
            callback()


def _jitter() -> float:
    """Between -1 and 1; `random` would cost every shim its import."""
    return os.urandom(1)[0] / 127.5 - 1
