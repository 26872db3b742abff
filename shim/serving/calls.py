"""How a call becomes an answer: what it has to wait for, its handler, and what is told of a failure."""

from shim.serving import answers
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.loop import Loop
    from shim.core.shimlog import ShimLog
    from shim.serving.service import TaskService
    from ttrpc.server_call import ServerCall


class Calls:
    """Starts every call of the server. Owns nothing but the word that the shim is ending."""

    __slots__ = ("_log", "_loop", "_tasks", "is_refused")

    def __init__(self, loop: "Loop", tasks: "TaskService", log: "ShimLog") -> None:
        self._loop = loop
        self._tasks = tasks
        self._log = log
        self.is_refused = False

    def start(self, call: "ServerCall") -> None:
        """Run a handler: its value or error is the answer; a generator is run on the loop; None answers by itself."""
        if self.is_refused:
            call.fail(Code.UNAVAILABLE, "the shim is ending")
            return
        before = self._tasks.must_wait_for(call)
        if before is not None:
            call.on_cancel(before.subscribe(lambda _: self._loop.call_soon(lambda: self.start(call))))
            return
        try:
            answer = answers.begin(self._tasks, call)
        except Exception as error:  # noqa: BLE001 - translated to the wire here
            self._fail(call, error)
            return
        if hasattr(answer, "send"):
            self._loop.spawn(answer, lambda value, error: self._answer(call, value, error))
        elif answer is not None:
            call.reply(answer)

    def _answer(self, call: "ServerCall", value: "Any", error: "BaseException | None") -> None:
        if error is not None:
            self._fail(call, error)
        else:
            call.reply(value)

    def _fail(self, call: "ServerCall", error: BaseException) -> None:
        if isinstance(error, StatusError):
            self._log.debug(f"{call.method.name}: {error}")
            call.fail(error.status.code, error.status.message, error.status.details)
        else:
            self._log.failure(f"{call.method.name} fails by a bug", error)
            call.fail(Code.INTERNAL, f"{call.method.name}: {type(error).__name__}: {error}; see the shim's log")

    def on_wire_error(self, error: BaseException) -> None:
        """What no caller can be told."""
        if isinstance(error, (ConnectionLost, OSError)):
            self._log.warning(f"connection: {error}")
        else:
            self._log.failure("connection", error)
