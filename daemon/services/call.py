"""What a handler may use of its call, whatever transport carried it; and the guard around every handler."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import trio

from daemon import log as logs
from daemon.errors import failed_precondition, unavailable
from daemon.identifiers import require_identifier
from daemon.stopping import NOT_BEGUN
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.service import Method, methods
from ttrpc.status import Code

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.peer import Peer

log = logging.getLogger(__name__)

# gRPC's header and ttrpc's metadata key; the first one present counts.
NAMESPACE_KEYS = ("containerd-namespace-ttrpc", "containerd-namespace")


class Call(Protocol):
    """A call as handlers see it. `deadline` is of trio's clock, inf for none; `peer` is known of a Unix socket."""

    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def deadline(self) -> float: ...
    @property
    def peer(self) -> "Peer | None": ...

    # The request that begins this call anew without harm, in a daemon that takes our place; None: there is none.
    begin_again: "Message | None"

    async def send(self, message: "Message") -> None: ...


def namespace_of(call: Call) -> str:
    """The namespace the call is about.

    Raises: FailedPrecondition without one, InvalidArgument for one that cannot be.
    """
    for key in NAMESPACE_KEYS:
        if call.metadata.get(key):
            return require_identifier(call.metadata[key], "namespace")
    raise failed_precondition("namespace is required: send it as containerd-namespace metadata")


def deadline_of(call: Call) -> float | None:
    return None if math.isinf(call.deadline) else call.deadline


class Gate:
    """Counts calls under way and closes for the daemon's end: what has begun is answered, what comes is refused.

    Held, it lets nothing new begin and refuses nothing: those who come wait for `release`, or for another process.
    """

    def __init__(self) -> None:
        self.is_closing = False
        self._released: trio.Event | None = None
        self._under_way: int = 0
        self._idle = trio.Event()

    @contextlib.contextmanager
    def passage(self, *, is_counted: bool) -> Iterator[None]:
        """One call. Those that may last for ever (streams, Wait) are not waited for.

        Raises: Unavailable once the gate is closing.
        """
        if self.is_closing:
            reason = "shimd is stopping; containers run on, call again when it is back"
            raise StatusError(Code.UNAVAILABLE, reason, (NOT_BEGUN,))
        self._under_way += is_counted
        try:
            yield
        finally:
            self._under_way -= is_counted
            self._look_idle()

    def _look_idle(self) -> None:
        if (self.is_closing or self._released is not None) and not self._under_way:
            self._idle.set()

    async def wait_held(self) -> None:
        """Return once calls may begin, at once in general."""
        while self._released is not None:
            await self._released.wait()

    async def hold(self, timeout_s: float) -> bool:
        """Let no new call begin; true when none is under way any more, false when some still are after so long."""
        if self._released is None:
            self._released = trio.Event()
        self._idle = trio.Event()
        self._look_idle()
        with trio.move_on_after(timeout_s):
            await self._idle.wait()
        return not self._under_way

    def release(self) -> None:
        """Let begin what has waited. Idempotent."""
        released, self._released = self._released, None
        if released is not None:
            released.set()

    async def close(self, timeout_s: float) -> None:
        """Refuse new calls; wait for those under way, at most so long."""
        self.is_closing = True
        self.release()
        self._look_idle()
        with trio.move_on_after(timeout_s):
            await self._idle.wait()


class Guarded:
    """An implementation with the guard around each handler that its service has. Give it to a registry.

    ``endless`` unary calls only wait for something: not counted, and another process may begin them anew.
    """

    def __init__(self, service: str, implementation: object, gate: Gate, *, endless: tuple[str, ...] = ()) -> None:
        for name, method in methods(service).items():
            handler = getattr(implementation, name, None)
            if handler is not None:
                is_counted = method.is_unary and name not in endless
                guarded = _guarded(name, handler, gate, is_counted=is_counted, method=method)
                setattr(self, name, guarded)


def _guarded(
    name: str, handler: Callable[[Any, Any], Any], gate: Gate, *, is_counted: bool, method: Method
) -> Callable[..., Any]:
    async def guarded(request: Any, call: Any) -> Any:
        call.begin_again = None if method.client_streaming else request
        await gate.wait_held()
        if is_counted or not method.is_unary:
            call.begin_again = None  # streams say themselves how they go on
        began = time.monotonic()
        fields = {"call": name}
        for key in NAMESPACE_KEYS:
            if call.metadata.get(key):
                fields["ns"] = call.metadata[key]
                break
        container_id = getattr(request, "container_id", "") or getattr(request, "id", "")
        if container_id:
            fields["id"] = container_id
        with gate.passage(is_counted=is_counted), logs.bind(**fields):
            try:
                reply = await handler(request, call)
            except StatusError as error:
                level = logging.WARNING if error.code in (Code.INTERNAL, Code.DATA_LOSS) else logging.DEBUG
                log.log(level, "refused", extra={"code": _name(error.code), "reason": error.message})
                raise
            except ConnectionLost as lost:
                raise unavailable(f"the connection to a shim was lost: {lost}") from None
            log.debug("answered", extra={"ms": round((time.monotonic() - began) * 1000, 1)})
            return reply

    return guarded


def _name(code: int) -> str:
    return code.name if isinstance(code, Code) else str(code)
