"""What of one process's streams is in memory alone, carried over an upgrade in place: see upgrading.py.

Everything else is in the FIFOs, which stay open, or on disk, where a successor finds it too.
"""

from shim.streams.jsonlines import STDOUT
from shim.streams.outlets import PipeSink
from shim.streams.terminal import TerminalPump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.streams.stdio import Stdio


def trouble(stdio: "Stdio") -> str:
    """Why these streams cannot be carried now; empty when they can."""
    log = stdio.log
    if log is not None and not (log.idle and not log.unmarked_bytes):
        return f"log {log.path} cannot be written, and output waits for it"
    return ""


def staged_bytes(stdio: "Stdio") -> int:
    """What is in the FIFO between a terminal and where its output goes."""
    return sum(pump.staged_bytes for pump in stdio.pumps if isinstance(pump, TerminalPump))


def carry(stdio: "Stdio") -> "dict[str, Any]":
    """As plain values, bytes as Latin-1 text."""
    carried: dict[str, Any] = {"stdin": stdio.input.outlet.unsent().decode("latin-1")}
    carried["unsent"] = {stream: sink.outlet.unsent().decode("latin-1") for stream, sink in _sinks(stdio).items()}
    if stdio.hub is not None:
        carried["ring"] = stdio.hub.ring.snapshot()
        carried["lost_bytes"] = stdio.hub.ring.lost_bytes
    if stdio.log is not None and stdio.terminal:
        carried["held"] = stdio.log.records.held_unspooled(STDOUT).decode("latin-1")
    return carried


def put_back(stdio: "Stdio", carried: "dict[str, Any]") -> None:
    """Order: the streams are open, and nothing is copied yet."""
    data = carried["stdin"].encode("latin-1")
    if data and stdio.input.outlet.account is None:  # else it is there already
        stdio.input.outlet.write(data)
    sinks = _sinks(stdio)
    for stream, text in carried["unsent"].items():
        sink = sinks.get(stream)
        if text and sink is not None:
            sink.outlet.write(text.encode("latin-1"))
            sink.blocked = not sink.idle
    if stdio.hub is not None and "ring" in carried:
        stdio.hub.ring.load(carried["ring"])
        stdio.hub.ring.lost_bytes = int(carried["lost_bytes"])
    if stdio.log is not None and carried.get("held"):
        stdio.log.write(STDOUT, carried["held"].encode("latin-1"))


def _sinks(stdio: "Stdio") -> "dict[str, PipeSink]":
    """Where output leaves for a client's FIFO, by stream."""
    if stdio.terminal:
        return {STDOUT: stdio.sinks[0]} if stdio.sinks else {}
    return {pump.stream: pump.sink for pump in stdio.pumps if isinstance(pump.sink, PipeSink)}
