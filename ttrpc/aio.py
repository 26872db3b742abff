"""ttrpc under trio: `open_client` to call, `serve_ttrpc` to be called."""

from ttrpc.aio_client import TrioClient, open_client
from ttrpc.aio_kept import Door, KeptConnection
from ttrpc.aio_server import Context, Messages, serve_ttrpc
from ttrpc.aio_stream import TrioStream

__all__ = ["Context", "Door", "KeptConnection", "Messages", "TrioClient", "TrioStream", "open_client", "serve_ttrpc"]
