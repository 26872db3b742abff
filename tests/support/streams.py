"""What tests of a shim's stdio share: a loop turned until a condition holds, and a call whose client can be slow."""

import os
import time
from collections.abc import Callable, Generator
from typing import Any

from shim.core.loop import Loop
from shim.streams.stdio import Stdio
from ttrpc.envelope import bytes_field_head

Handler = Generator[Any, Any, Any]

TURN_S = 0.02


def turn_until(
    loop: Loop, condition: Callable[[], Any], *, deadline_s: float = 10.0, what: str = "the condition"
) -> Any:
    """Run the loop until the condition holds; answers with what it gave."""
    ends_at = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < ends_at, f"the loop ran {deadline_s} s without {what}"
        loop.run_once(TURN_S)


def turn(loop: Loop, rounds: int = 3) -> None:
    """Let the loop do whatever can be done now."""
    for _ in range(rounds):
        loop.run_once(0.0)


def play(loop: Loop, handler: Handler, *, deadline_s: float = 10.0) -> Any:
    """Run a handler to its end; answers with its value or raises what it raised."""
    task = loop.spawn(handler, lambda _value, _error: None)
    turn_until(loop, lambda: task.done is not None, deadline_s=deadline_s, what="the handler's end")
    assert task.done is not None
    value, error = task.done
    if error is not None:
        raise error
    return value


def child_output(stdio: Stdio, number: int = 1) -> int:
    """A copy of what the process would get as its stdout: it keeps the stream open until closed."""
    fd = stdio.child_ends()[number]
    assert fd is not None
    return os.dup(fd)


class FakeCall:
    """A server call as handlers see it, with a client which reads only when told to.

    ``high_water_bytes``: how much is taken before `send` answers False; `read` empties it and tells of the drain.
    """

    def __init__(self, *, high_water_bytes: int = 1 << 30) -> None:
        self.high_water_bytes = high_water_bytes
        self.sent: list[Any] = []
        self.unread_bytes = 0
        self.is_open = True
        self.finished = False
        self.failure: tuple[int, str] | None = None
        self.paused = False
        self.dies_at = 0  # the send which finds the connection dead
        self.on_drain: Callable[[], None] | None = None
        self.carry: Callable[[], dict[str, Any]] | None = None
        self._message: Callable[[Any], None] | None = None
        self._cancel: list[Callable[[], None]] = []

    # --- the handler's side

    def send(self, message: Any, bulk: bytes = b"", field: int = 0) -> bool:
        if bulk:
            message = type(message).FromString(message.SerializeToString() + bytes_field_head(field, len(bulk)) + bulk)
        if len(self.sent) + 1 == self.dies_at:
            self.disconnects()
        if not self.is_open:
            return False
        assert not self.finished, "nothing is sent after the end"
        self.sent.append(message)
        self.unread_bytes += message.ByteSize()
        return self.unread_bytes <= self.high_water_bytes

    def finish(self) -> None:
        assert not self.finished
        assert self.failure is None
        self.finished = True
        self.is_open = False

    def fail(self, code: int, message: str) -> None:
        assert not self.finished
        self.failure = (int(code), message)
        self.is_open = False

    def await_drain(self) -> None:
        pass

    def on_message(self, callback: Callable[[Any], None]) -> None:
        self._message = callback

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if self.is_open:
            self._cancel.append(callback)
        elif not self.finished and self.failure is None:
            callback()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    # --- the client's side

    def read(self) -> None:
        """Take everything that was sent."""
        was_full = self.unread_bytes > self.high_water_bytes
        self.unread_bytes = 0
        if was_full and self.on_drain is not None and self.is_open:
            self.on_drain()

    def says(self, message: Any) -> None:
        assert self._message is not None, "nobody listens"
        assert not self.paused, "the client was asked to wait"
        self._message(message)

    def disconnects(self) -> None:
        self.is_open = False
        for callback in self._cancel:
            callback()

    # --- what came

    def kinds(self) -> list[str]:
        return [message.WhichOneof("output") for message in self.sent]

    def stdout(self) -> bytes:
        return b"".join(message.stdout for message in self.sent)

    def stderr(self) -> bytes:
        return b"".join(message.stderr for message in self.sent)

    def data(self) -> bytes:
        """Of log records."""
        return b"".join(message.data for message in self.sent)
