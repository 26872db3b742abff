"""Streams passed through to a shim, each over a connection of its own: a slow reader slows that stream only."""

from typing import TYPE_CHECKING, Any

import trio

from daemon.errors import failed_precondition, unavailable
from daemon.services.call import Call
from daemon.shims.client import SHIM, ShimClient
from daemon.shims.handle import Handle
from ttrpc.aio import open_client
from ttrpc.aio_client import raise_only_leaf
from ttrpc.errors import ConnectionLost, StatusError

if TYPE_CHECKING:
    from ttrpc.aio import TrioStream
    from ttrpc.api.shim import AttachInput, LogsRequest


async def logs(handle: Handle, options: "LogsRequest", call: Call, connect_timeout_s: float) -> None:
    """The shim's Logs stream to the caller. Raises: StatusError of the shim, Unavailable when it is lost."""
    _require_ours(handle, await handle.connected(connect_timeout_s), "keeps no log: read the file its stdout names")
    try:
        async with (
            open_client(handle.row.address, connect_timeout_s=connect_timeout_s) as client,
            client.open_stream(SHIM, "Logs", options) as stream,
        ):
            async for record in stream:
                await call.send(record)
    except (OSError, ConnectionLost) as lost:
        raise unavailable(f"{handle.name}: the connection to its shim was lost while reading its log: {lost}") from None


async def attach(handle: Handle, opening: "AttachInput", requests: Any, call: Call, connect_timeout_s: float) -> None:
    """Both directions, until the shim ends the stream. The caller's end of input is passed on as such.

    Raises: StatusError of the shim, Unavailable when it is lost.
    """
    _require_ours(handle, await handle.connected(connect_timeout_s), "has no Attach: open the FIFOs its stdio names")
    try:
        async with (
            open_client(handle.row.address, connect_timeout_s=connect_timeout_s) as client,
            client.open_stream(SHIM, "Attach", opening) as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_pass_input, requests, stream)
            async for output in stream:
                await call.send(output)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_only_leaf(group)
        raise
    except (OSError, ConnectionLost) as lost:
        raise unavailable(f"{handle.name}: the connection to its shim was lost while attached: {lost}") from None


def _require_ours(handle: Handle, client: ShimClient, instead: str) -> None:
    """Raises: FailedPrecondition for a shim that has no such service."""
    if client.is_foreign:
        raise failed_precondition(f"{handle.name}: its shim ({handle.row.shim_path}) is not shimd's and {instead}")


async def _pass_input(requests: Any, stream: "TrioStream") -> None:
    try:
        async for message in requests:
            await stream.send(message.input)
        await stream.close_send()
    except (StatusError, ConnectionLost):
        pass  # the stream has ended; whoever reads its output tells how
