"""What keeps output moving: from a process's pipe or terminal to a sink and to whoever is attached."""

import errno
import os
import select

from shim.core import pipes
from shim.core.loop import READ
from shim.core.steps import DeadlinePassed, Fired, Signal, Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from shim.core.loop import Loop
    from shim.core.steps import Handler
    from shim.streams.attach import Hub

    class Sink(Protocol):
        """Where a pump's bytes go."""

        @property
        def blocked(self) -> bool: ...
        @property
        def idle(self) -> bool: ...
        @property
        def takes_splice(self) -> bool: ...
        @property
        def reads_back(self) -> bool: ...
        @property
        def takes_sources(self) -> bool: ...
        @property
        def take_bytes(self) -> int: ...
        def splice(
            self, source_fd: int, tell: "Callable[[bytes], None] | None" = None, count: int = 0
        ) -> "int | None": ...
        def take(self, stream: str, source_fd: int, count: int, tell: "Callable[[bytes], None]") -> int: ...
        def write(self, stream: str, data: bytes) -> None: ...
        def settle(self, stream: str) -> None: ...
        def end(self, stream: str) -> None: ...
        def on_room(self, callback: "Callable[[], None]") -> None: ...


# One round moves at most this many chunks per stream and starts none after this time, so that a flood leaves the loop
# to everybody else. Where one chunk alone takes longer (empty lines, a slow disk) the chunks become smaller.
CHUNKS_PER_ROUND = 4
ROUND_S = 0.004
SMALLEST_CHUNK_BYTES = 1 << 13
# How long a closed exec's output waits for a client that has still to read it.
LINGER_S = 10.0

MORE = "more"  # the round's share is done; more may be there
RESTED = "rested"  # the source has nothing now
HELD_UP = "held up"  # the sink or a client has no room; the source is not read until it has
ENDED = "ended"  # the source's last writer is gone and all was taken


class Pump:
    """Owns the source fd. Reads it when it has something and everybody it feeds has room."""

    __slots__ = (
        "_chunk_bytes",
        "_count",
        "_edge",
        "_hub",
        "_loop",
        "_on_resume",
        "_watching",
        "fd",
        "on_end",
        "sink",
        "state",
        "stream",
        "taken_bytes",
    )

    def __init__(self, loop: "Loop", fd: int, stream: str, sink: "Sink | None", hub: "Hub | None" = None) -> None:
        self.fd = fd
        self.stream = stream
        self.state = MORE
        self.taken_bytes = 0
        self._loop = loop
        self.sink = sink
        self._hub = hub
        self._watching = False
        self._edge = False
        self._chunk_bytes = self._count = pipes.CHUNK_BYTES  # how much to take, and what was asked for last
        self.on_end: Callable[[], None] = _nothing  # told before the source is closed because it ended
        self._on_resume: Callable[[], None] | None = None  # told each time somebody has room again
        if sink is not None:
            sink.on_room(self._resume)
        if hub is not None:
            hub.on_room(self._resume)

    def start(self) -> None:
        """Begin. The first look is taken unasked: epoll tells nothing of writers gone before we opened the FIFO.

        Source: Linux fs/pipe.c, pipe_poll: EPOLLHUP only where a writer came after the reader.
        """
        self._watch()
        self._loop.call_soon(lambda: self._ready(0))

    def run(self) -> str:
        """Move one round's share, and say how it ended; what follows by itself is arranged."""
        if self.state == ENDED:
            return ENDED
        at = began = self._loop.clock()
        for _ in range(CHUNKS_PER_ROUND):
            if (self.sink is not None and self.sink.blocked) or (self._hub is not None and self._hub.congested):
                self._unwatch()
                self.state = HELD_UP
                return HELD_UP
            try:
                moved = self._move()
            except BlockingIOError:
                self.state = RESTED
                return RESTED
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._hang_up()
                return RESTED
            if moved == 0:
                self._end()
                return ENDED
            if moved is not None:
                self.taken_bytes += moved
            before, at = at, self._loop.clock()
            self._fit_chunk(at - before)
            if at - began > ROUND_S:
                break
        if self._edge:
            self._edge = False
            if self._watching:
                self._loop.modify(self.fd, READ)
        self.state = MORE
        return MORE

    def _fit_chunk(self, took_s: float) -> None:
        if took_s > ROUND_S:
            self._chunk_bytes = max(SMALLEST_CHUNK_BYTES, self._count // 2)
        elif took_s < ROUND_S / 4 and self._chunk_bytes < pipes.SPLICE_BYTES:
            self._chunk_bytes *= 2

    def _move(self) -> "int | None":
        """Take one chunk; 0 is the end, None a sink that just became full."""
        return self._take(self.fd)

    def _take(self, source_fd: int) -> "int | None":
        sink, hub = self.sink, self._hub
        self._count = count = self._chunk_bytes
        if sink is not None and sink.takes_splice and (hub is None or not hub.wants_output):
            return sink.splice(source_fd, None, count)
        self._count = count = min(count, sink.take_bytes if sink is not None else pipes.CHUNK_BYTES)
        if sink is not None and sink.takes_splice and sink.reads_back:
            return sink.splice(source_fd, self._tell_hub, count)
        if sink is not None and sink.takes_sources:
            return sink.take(self.stream, source_fd, count, self._tell_hub)
        data = os.read(source_fd, count)
        if data and sink is not None:
            sink.write(self.stream, data)
        if data and hub is not None:
            hub.output(self.stream, data)
        return len(data)

    def _tell_hub(self, data: bytes) -> None:
        if self._hub is not None:
            self._hub.output(self.stream, data)

    def _hang_up(self) -> None:
        """Every slave of this pty master is closed; one may be opened again, so wait for the next edge only.

        Source: tty_hangup in pty(7)'s driver: the master stays readable with EIO, so level triggering would spin;
        epoll(7) EPOLLET reports the next change.
        """
        self.state = RESTED
        if self._watching and not self._edge:
            self._edge = True
            self._loop.modify(self.fd, READ | select.EPOLLET)

    def _end(self) -> None:
        self.state = ENDED
        self.on_end()
        self.close()
        if self.sink is not None:
            self.sink.end(self.stream)

    def drain(self, deadline: float, *, by_mark: bool) -> "Handler":
        """Move on what is in the source now, to its place, until the loop's clock shows ``deadline``.

        ``by_mark``: a pipe tells how much that is, so that who goes on writing is not waited for. A terminal does not:
        there a read which finds nothing tells (its driver flushes what is on the way first).
        """
        mark = self.taken_bytes + self.unread_bytes() if by_mark else None
        while True:
            state = self.run()
            taken = state in (ENDED, RESTED) or (mark is not None and self.taken_bytes >= mark)
            if taken and self.sink is not None:
                self.sink.settle(self.stream)
            left_s = deadline - self._loop.clock()
            if (taken and (self.sink is None or self.sink.idle)) or left_s <= 0:
                return
            if taken or state == HELD_UP:
                yield from self._until_room(left_s)
            else:
                yield Sleep(0.0)  # everybody else's turn

    def _until_room(self, deadline_s: float) -> "Handler":
        signal = Signal()
        self._on_resume = lambda: None if signal.fired else signal.fire()
        try:
            yield Fired(signal, deadline_s=deadline_s)
        except DeadlinePassed:
            pass
        finally:
            self._on_resume = None

    def finish(self) -> None:
        """Take at once what the source holds now, and see its end. After `drain` there is little."""
        mark = self.taken_bytes + self.unread_bytes()
        while self.run() == MORE and self.taken_bytes < mark:
            pass

    def unread_bytes(self) -> int:
        """What the process wrote and nobody took."""
        return pipes.waiting_bytes(self.fd) if self.fd >= 0 else 0

    def close(self) -> None:
        """Stop and close the source. Idempotent."""
        self._unwatch()
        fd, self.fd = self.fd, -1
        self.state = ENDED
        if fd >= 0:
            os.close(fd)

    def abandon(self) -> None:
        """Stop feeding anybody, but go on emptying a source which still has writers, so that they never block on it.

        That is a process left behind by the one these streams belonged to. Ends with the last of them.
        """
        self._unwatch()
        if self.state == ENDED:
            return
        fd, self.fd = self.fd, -1
        self._end()
        _Discarder(self._loop, fd)

    def linger(self, close_sink: "Callable[[], None]") -> None:
        """Let a slow client have what the source holds by now; then, or after LINGER_S, abandon both."""

        def last_words() -> "Handler":
            yield from self.drain(self._loop.clock() + LINGER_S, by_mark=True)

        def over(_value: object, _error: object) -> None:
            self.abandon()
            close_sink()

        self._loop.spawn(last_words(), over)

    def _ready(self, _mask: int) -> None:
        self.run()

    def _resume(self) -> None:
        if self.state == HELD_UP:
            self.state = MORE
            self._watch()
        if self._on_resume is not None:
            self._on_resume()

    def _watch(self) -> None:
        if not self._watching and self.fd >= 0:
            self._loop.register(self.fd, READ, self._ready)
            self._watching = True
            self._edge = False

    def _unwatch(self) -> None:
        if self._watching:
            self._loop.unregister(self.fd)
            self._watching = False


def discard(loop: "Loop", fd: int) -> None:
    """Empty a source nobody wants, as long as it has writers. The fd is owned from here on."""
    _Discarder(loop, fd)


class _Discarder:
    """Owns a source nobody wants any more, until its last writer is gone."""

    __slots__ = ("_fd", "_loop")

    def __init__(self, loop: "Loop", fd: int) -> None:
        self._loop = loop
        self._fd = fd
        if self._empty():
            loop.register(fd, READ, self._ready)

    def _ready(self, _mask: int) -> None:
        if not self._empty():
            self._loop.unregister(self._fd)  # after the close, which epoll noticed by itself

    def _empty(self) -> bool:
        """Read and forget one round's share; False once the source has ended and is closed."""
        try:
            for _ in range(CHUNKS_PER_ROUND):
                if not os.read(self._fd, pipes.CHUNK_BYTES):
                    os.close(self._fd)
                    return False
        except BlockingIOError:
            pass
        return True


def _nothing() -> None:
    """Nobody asked to be told."""
