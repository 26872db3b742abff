"""One Attach stream over any number of shims and daemons: what breaks is opened anew, at the place where it broke.

Output comes once, by the place that comes with each piece of it; input arrives once, because what was not said to be
accepted is kept here, and sent again from where the shim says it has it. What cannot be had so is told by `on_gap`.
"""

import os
import time
from collections import deque

from ttrpc.api import shim, shimd
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError, TtrpcError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ttrpc.blocking_stream import BlockingStream

SHIM = "shimd.shim.v1.Shim"
DAEMON = "shimd.v1.Shimd"

OPEN_S = 10.0
PATIENCE_S = 10.0  # a shim is replaced by its successor, a daemon by the next one, within this, or it is lost
RETRY_S = 0.05
# So much of our input may be without an answer; who asks `may_send` reads no more then.
UNANSWERED_BYTES = 1 << 20


class Attachment:
    """Owns the client socket from `open` to `close`.

    ``service`` is the shim's, or with DAEMON our daemon's, which passes the stream on to the shim of ``container_id``.
    """

    def __init__(
        self,
        address: str,
        opening: "shim.AttachOpen",
        *,
        metadata: dict[str, str],
        on_gap: "Callable[[str], None]",
        service: str = SHIM,
        container_id: str = "",
    ) -> None:
        self.address = address
        self._opening = opening
        self._metadata = metadata
        self._on_gap = on_gap
        self._service = service
        self._container_id = container_id
        self._client: BlockingClient | None = None
        self._stream: BlockingStream | None = None
        self._place: shim.AttachPlace | None = None
        self._size: shim.Resize | None = None
        self._has_ended = False
        self._is_counted = False  # whether the shim says how much of our input it has
        self._answered = 0  # bytes
        self._unanswered: deque[bytes] = deque()
        self._unanswered_bytes = 0
        self.times_broken = 0

    # --- beginning and end

    def open(self) -> None:
        """Blocks: at most `OPEN_S`. Raises: StatusError, ConnectionLost, DeadlineExceeded, OSError of connect(2)."""
        if self._opening.stdin:
            self._opening.input_id = _new_id()
        opened = self._begin(self._opening)
        self._is_counted = opened.HasField("accepted")
        self._place = opened.place if opened.HasField("place") else None
        self._opening.replay_bytes = 0
        self._opening.input_goes_on = True

    def _begin(self, opening: "shim.AttachOpen") -> "shim.AttachOpened":
        client = BlockingClient.connect(self.address)
        try:
            stream = client.open_stream(self._service, "Attach", metadata=self._metadata)
            first = self._wrapped(shim.AttachInput(open=opening))
            if self._service == DAEMON:
                first.container_id = self._container_id
            stream.send(first, timeout_s=OPEN_S)
            answer = stream.receive(timeout_s=OPEN_S)
            if answer is None or not answer.HasField("opened"):
                raise ConnectionLost(f"the stream at {self.address} ended before it began")
        except BaseException:
            client.close()
            raise
        self._client, self._stream = client, stream
        opened: shim.AttachOpened = answer.opened
        return opened

    def close(self) -> None:
        """Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- our input

    @property
    def may_send(self) -> bool:
        """Whether there is room for more input."""
        return not self.unsent_bytes and self._unanswered_bytes < UNANSWERED_BYTES

    def send(self, data: bytes) -> None:
        """Queue input; what breaks shows in `receive_nowait`."""
        if self._is_counted:
            self._unanswered.append(data)
            self._unanswered_bytes += len(data)
        self._put(shim.AttachInput(stdin=data))

    def end_input(self) -> None:
        """No more comes."""
        self._has_ended = True
        self._put(shim.AttachInput(close_stdin=True))

    def resize(self, width: int, height: int) -> None:
        self._size = shim.Resize(width=width, height=height)
        self._put(shim.AttachInput(resize=self._size))

    def _put(self, message: "shim.AttachInput") -> None:
        assert self._stream is not None
        try:
            self._stream.send_nowait(self._wrapped(message))
        except TtrpcError:
            pass  # the stream has ended, and receiving tells how

    def _wrapped(self, message: "shim.AttachInput") -> "Any":
        return shimd.AttachInput(input=message) if self._service == DAEMON else message

    def _is_accepted(self, count: int) -> None:
        gone = count - self._answered
        self._answered = count
        self._unanswered_bytes = max(0, self._unanswered_bytes - gone)
        while gone > 0 and self._unanswered:
            first = self._unanswered[0]
            if len(first) > gone:
                self._unanswered[0] = first[gone:]
                return
            gone -= len(first)
            self._unanswered.popleft()

    # --- the socket

    def fileno(self) -> int:
        assert self._client is not None
        return self._client.fileno()

    @property
    def unsent_bytes(self) -> int:
        return self._client.unsent_bytes if self._client is not None else 0

    def pump_nowait(self) -> None:
        """Write and read what can be without blocking."""
        if self._client is not None:
            self._client.pump_nowait()

    def receive_nowait(self) -> "shim.AttachOutput | None":
        """The next message that is the process's: output, exit, cut; None at an end without one.

        Blocks: while a stream that broke is opened anew, at most `PATIENCE_S`.
        Raises: BlockingIOError when nothing has come; StatusError; ConnectionLost when nobody is there any more.
        """
        assert self._stream is not None
        while True:
            try:
                message = self._stream.receive_nowait()
            except ConnectionLost as error:
                self._open_again(str(error))
                continue
            except StatusError as error:
                if error.code != Code.UNAVAILABLE:
                    raise
                self._open_again(error.message)
                continue
            if message is None:
                return None
            if message.HasField("place"):
                self._place = message.place
            kind = message.WhichOneof("output")
            if kind == "accepted":
                self._is_accepted(message.accepted)
            elif kind == "missed":
                count = f"{message.missed.bytes} bytes" if message.missed.bytes else "some"
                self._on_gap(f"{count} of the output missing here: {message.missed.reason}")
            else:
                answer: shim.AttachOutput = message
                return answer

    def _open_again(self, reason: str) -> None:
        """Whoever served is gone: the next one serves at the same path. Raises: ConnectionLost, StatusError."""
        self.times_broken += 1
        until = time.monotonic() + PATIENCE_S
        opening = shim.AttachOpen()
        opening.CopyFrom(self._opening)
        if self._place is not None:
            opening.resume.CopyFrom(self._place)
        self.close()
        while True:
            try:
                opened = self._begin(opening)
                if self._is_known(opened, opening):
                    break
                self.close()
                continue
            except (OSError, ConnectionLost, DeadlineExceeded) as error:
                if time.monotonic() >= until:
                    raise ConnectionLost(f"{reason}; {error}") from None
            except StatusError as error:
                if error.code != Code.UNAVAILABLE or time.monotonic() >= until:
                    raise
            time.sleep(RETRY_S)
        self._go_on(opened)

    def _is_known(self, opened: "shim.AttachOpened", opening: "shim.AttachOpen") -> bool:
        """Whether our input can be gone on with, or there is none; else it is counted anew, by another stream."""
        if not opening.stdin or not opening.input_goes_on:
            return True
        if opened.HasField("accepted") and self._is_counted and opened.accepted >= self._answered:
            return True
        if self._unanswered or not self._is_counted:
            self._on_gap("the shim was replaced; input of the last moment may be lost")
        self._unanswered.clear()
        self._unanswered_bytes = self._answered = 0
        self._opening.input_id = opening.input_id = _new_id()
        opening.input_goes_on = False
        return False

    def _go_on(self, opened: "shim.AttachOpened") -> None:
        if self._place is None and self._opening.output:
            self._on_gap("the shim was replaced; output of the moment between may be missing here")
        self._place = opened.place if opened.HasField("place") else None
        if self._size is not None:
            self._put(shim.AttachInput(resize=self._size))
        self._is_counted = opened.HasField("accepted")
        if self._is_counted:
            self._is_accepted(opened.accepted)
        for data in self._unanswered:
            self._put(shim.AttachInput(stdin=data))
        if self._has_ended:
            self._put(shim.AttachInput(close_stdin=True))


def _new_id() -> int:
    return int.from_bytes(os.urandom(8), "little") or 1
