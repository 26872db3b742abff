"""One shim's services with a deadline on every call; what the connection loses is said in words."""

import math
from typing import TYPE_CHECKING, Any

import trio

from daemon.errors import unavailable
from ttrpc.errors import ConnectionLost

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.aio import TrioClient

TASK = "containerd.task.v2.Task"
SHIM = "shimd.shim.v1.Shim"


class ShimClient:
    """Borrows the connection; the link that opened it closes it."""

    def __init__(self, client: "TrioClient", name: str) -> None:
        self.raw = client
        self._name = name

    async def task(self, method: str, request: "Message", timeout_s: float) -> Any:
        """Call containerd's Task service.

        Raises: StatusError of the shim; DeadlineExceeded; Unavailable when the connection was lost meanwhile.
        """
        return await self._call(TASK, method, request, timeout_s)

    async def shim(self, method: str, request: "Message", timeout_s: float) -> Any:
        """Call our Shim service. Raises: as `task`; Unimplemented by a shim that is not ours."""
        return await self._call(SHIM, method, request, timeout_s)

    async def _call(self, service: str, method: str, request: "Message", timeout_s: float) -> Any:
        try:
            return await self.raw.call(service, method, request, timeout_s=timeout_s)
        except ConnectionLost as lost:
            raise unavailable(
                f"{self._name}: the connection to its shim was lost during {method}; "
                f"whether it took effect is not known, look before trying again ({lost})"
            ) from None


def earlier(timeout_s: float, deadline: float | None) -> float:
    """Our own limit for a call or what is left of the client's, whichever is less; never negative."""
    if deadline is None or math.isinf(deadline):
        return timeout_s
    return max(0.001, min(timeout_s, deadline - trio.current_time()))
