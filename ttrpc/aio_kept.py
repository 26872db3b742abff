"""A server that goes on in another process: whether it accepts, and its connections as values that the other takes up.

A connection can be handed on when each of its calls can be begun anew without harm: those that have not begun, and
those whose handler says so by `Context.begin_again`. The peer notices nothing: same socket, same stream ids, no byte
lost or sent twice.
"""

import base64
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from ttrpc.envelope import Request
from ttrpc.wire_events import RequestReceived

if TYPE_CHECKING:
    from ttrpc.aio_server import Context, _Server, _ServerConnection


class KeptCall(NamedTuple):
    """A call to be begun anew. ``timeout_ns`` is what is left, 0 for no deadline; ``state`` one of `ttrpc.streams`."""

    stream_id: int
    state: str
    shape: str
    service: str
    method: str
    payload: bytes
    timeout_ns: int
    metadata: tuple[tuple[str, str], ...]

    def event(self) -> RequestReceived:
        """As it came from the wire."""
        request = Request(self.service, self.method, self.payload, self.timeout_ns, self.metadata)
        return RequestReceived(self.stream_id, self.shape, request)


class KeptConnection(NamedTuple):
    """Owns ``fd``. ``unparsed`` is the part of a frame that has come, ``skip`` how much of a dropped one is to come."""

    fd: int
    last_id: int
    unparsed: bytes
    skip: int
    unsent: bytes
    calls: tuple[KeptCall, ...]

    def close(self) -> None:
        os.close(self.fd)

    def as_json(self) -> dict[str, Any]:
        """Everything but the descriptor."""
        made: dict[str, Any] = {"last_id": self.last_id, "skip": self.skip}
        made["unparsed"], made["unsent"] = _text(self.unparsed), _text(self.unsent)
        made["calls"] = [{**call._asdict(), "payload": _text(call.payload)} for call in self.calls]
        return made

    @classmethod
    def from_json(cls, made: dict[str, Any], fd: int) -> "KeptConnection":
        """Raises: KeyError, TypeError, ValueError for what `as_json` did not make."""
        calls = []
        for call in made["calls"]:
            pairs = tuple((key, value) for key, value in call["metadata"])
            calls.append(KeptCall(**{**call, "payload": base64.b64decode(call["payload"]), "metadata": pairs}))
        unparsed, unsent = base64.b64decode(made["unparsed"]), base64.b64decode(made["unsent"])
        return cls(fd, made["last_id"], unparsed, made["skip"], unsent, tuple(calls))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Door:
    """Whether a server takes new connections. While it is closed they wait in the listeners' backlog.

    Also the way to take a server's connections out of it, once.
    """

    def __init__(self, kept: "tuple[KeptConnection, ...]" = ()) -> None:
        """``kept`` are another process's connections, owned by the server that gets this door."""
        self.kept = kept
        self.is_open = True
        self._opened = trio.Event()
        self._servers: list[_Server] = []

    def add(self, server: "_Server") -> None:
        self._servers.append(server)

    def close(self) -> None:
        """Accept nothing from now on."""
        self.is_open = False
        self._opened = trio.Event()

    def open(self) -> None:
        self.is_open = True
        self._opened.set()

    async def wait_open(self) -> None:
        while not self.is_open:
            await self._opened.wait()

    def detach(self) -> "list[KeptConnection]":
        """Take out every connection that can be handed on; the caller owns them now. Cancel the server after this
        without a checkpoint between: it neither reads nor writes on them any more, and ends its handlers.
        """
        found = (keep(connection) for server in self._servers for connection in tuple(server.open))
        return [kept for kept in found if kept is not None]


def keep(connection: "_ServerConnection") -> "KeptConnection | None":
    """A connection as a value, and mute from here on; None when it has a call that cannot be begun anew."""
    wire, core = connection.wire, connection.core
    if wire.failure is not None or any(call.begin_again is None for call in connection.calls.values()):
        return None
    calls = tuple(_kept_call(core.open_streams[stream_id], call) for stream_id, call in connection.calls.items())
    kept = KeptConnection(
        os.dup(wire.sock.fileno()),
        core.last_id,
        core.reader.unparsed,
        core.reader.skipping_bytes,
        wire.outbox.unsent(),
        calls,
    )
    # What a handler still answers is its successor's to say.
    wire.fail("another process serves it")
    return kept


def _kept_call(state: str, call: "Context") -> KeptCall:
    assert call.begin_again is not None
    left_ns = 0 if math.isinf(call.deadline) else max(1, int((call.deadline - trio.current_time()) * 1e9))
    event = call.event
    payload = call.begin_again.SerializeToString()
    metadata = tuple(call.metadata.items())
    return KeptCall(event.stream_id, state, event.shape, event.service, event.method, payload, left_ns, metadata)
