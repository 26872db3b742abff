"""One shim's services with a deadline on every call; what the connection loses is said in words."""

import math
from typing import TYPE_CHECKING, Any

import trio

from daemon.errors import unavailable
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.aio import TrioClient

TASK = "containerd.task.v2.Task"
TASK_V3 = "containerd.task.v3.Task"  # the same messages; containerd's shims from 2.0 on serve only this
SHIM = "shimd.shim.v1.Shim"


class ShimClient:
    """Borrows the connection; the link that opened it closes it."""

    def __init__(self, client: "TrioClient", name: str) -> None:
        self.raw = client
        self.is_foreign = False  # it has no Shim service: found out by `asking.info_of`
        self._name = name
        self._task_service = ""  # not known yet

    async def task(self, method: str, request: "Message", timeout_s: float | None) -> Any:
        """Call containerd's Task service, in the version the shim serves: the first call finds out which.

        Raises: StatusError of the shim; DeadlineExceeded; Unavailable when the connection was lost meanwhile.
        """
        if self._task_service:
            return await self._call(self._task_service, method, request, timeout_s)
        try:
            return await self._agree(TASK, method, request, timeout_s)
        except StatusError as error:
            if error.code != Code.UNIMPLEMENTED:
                raise
        return await self._agree(TASK_V3, method, request, timeout_s)

    async def _agree(self, service: str, method: str, request: "Message", timeout_s: float | None) -> Any:
        """A call of a service that the shim may not have; remembered once it has answered there, if with a refusal."""
        try:
            answer = await self._call(service, method, request, timeout_s)
        except StatusError as error:
            if error.code not in (Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                self._task_service = service
            raise
        self._task_service = service
        return answer

    async def shim(self, method: str, request: "Message", timeout_s: float) -> Any:
        """Call our Shim service. Raises: as `task`; Unimplemented by a shim that is not ours."""
        return await self._call(SHIM, method, request, timeout_s)

    async def _call(self, service: str, method: str, request: "Message", timeout_s: float | None) -> Any:
        try:
            return await self.raw.call(service, method, request, timeout_s=timeout_s)
        except DeadlineExceeded:
            raise DeadlineExceeded(f"{self._name}: its shim did not answer {method} within {timeout_s:g} s") from None
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
