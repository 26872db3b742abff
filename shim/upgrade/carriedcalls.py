"""Clients' connections on which something streams, carried over an upgrade in place: no client notices anything.

Carried are the sockets with half a frame, what is unsent and unread, and each call with what its handler has of it:
the queue of an Attach, the place of a Logs, the number of a Follow. A call that was not begun is begun afterwards.
Connections without a stream have a ledger, by which even a killed shim's are gone on with (connections.py).
"""

import socket

from shim.errors import failed_precondition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.serving.serve import Shim
    from ttrpc.loop_connection import LoopConnection
    from ttrpc.server_call import ServerCall

# What a program says that it can go on with. One that says another number, or none, gets no stream: its clients'
# connections are closed as by a kill.
VERSION = 1
# All of it is written into memory while nobody is served.
CARRIED_MAX_BYTES = 64 << 20


def is_carried(connection: "LoopConnection") -> bool:
    """Whether it would end with this code, having no ledger."""
    return getattr(connection, "ledger", None) is None


def carry(shim: "Shim", *, but: str = "") -> "tuple[dict[str, Any], set[int]]":
    """As plain values and bytes, and the fds they name. Order: all is quiet, and nothing runs from here to the execve.

    ``but``: connections with a call of this method are not carried.
    Raises: FailedPrecondition when it is too much.
    """
    connections = []
    fds: set[int] = set()
    for connection in filter(is_carried, shim.server.connections):
        if but and any(call.method.name == but for call in connection.calls.values()):
            continue
        state = connection.snapshot()
        for each, call in zip(state["calls"], connection.calls.values(), strict=True):
            each["carried"] = carried = call.carry() if call.carry is not None else None
            fds.update(carried.get("fds", ()) if carried is not None else ())
        connections.append({"fd": connection.fd, **state})
        fds.add(connection.fd)
    held_bytes = _bytes_in(connections)
    if held_bytes > CARRIED_MAX_BYTES:
        raise failed_precondition(f"busy: clients have {held_bytes} bytes to read; nothing was changed, try again")
    return {"version": VERSION, "connections": connections, "fds": sorted(fds)}, fds


def _bytes_in(value: "Any") -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_bytes_in, value.values()))
    return sum(map(_bytes_in, value)) if isinstance(value, (list, tuple)) else 0


def restore(shim: "Shim", carried: "dict[str, Any] | None", copy: "Callable[[int], int]") -> None:
    """Go on with them. Nothing is written until the loop runs: until then other code may have to go on after all.

    ``copy`` makes of an fd named in the values one of our own. Raises: whatever hinders it.
    """
    if carried is None or carried["version"] != VERSION:
        return
    for state in carried["connections"]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, copy(state["fd"]))
        connection = shim.server.restore(sock, state)
        afresh = []
        for each, call in zip(state["calls"], tuple(connection.calls.values()), strict=True):
            if each["carried"] is None:
                afresh.append(call)
            else:
                shim.service.go_on(call, each["carried"], copy)
        shim.loop.call_soon(lambda connection=connection, afresh=afresh: _begin(connection, afresh))  # type: ignore[misc]


def _begin(connection: "LoopConnection", calls: "list[ServerCall]") -> None:
    for call in calls:
        if call.is_open:
            connection.begin(call)
            call.resume()
    connection.adjust()
