"""The receiving half of all attach clients of one process: its input, sizes of its terminal, the end of its input."""

from shim import faults
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.streams.account import InputOutlet
    from shim.streams.attach import Client
    from ttrpc.api.shim import AttachInput, AttachOpen
    from ttrpc.server_call import ServerCall


class Inputs:
    """Their bytes go into one outlet, and they wait while it is full. Each is told how much of its input was taken."""

    __slots__ = ("_loop", "_waiting", "close_stdin", "outlet", "resize")

    def __init__(
        self,
        loop: "Loop",
        outlet: "InputOutlet",
        close_stdin: "Callable[[], None]",
        resize: "Callable[[int, int], None]",
    ) -> None:
        self._loop = loop
        self.outlet = outlet
        self.close_stdin = close_stdin
        self.resize = resize
        self._waiting: list[ServerCall] = []
        outlet.on_room(self._room)

    def accepted(self, opening: "AttachOpen") -> "int | None":
        """How much of a client's input was taken before; None where nobody knows, or it does not ask."""
        account = self.outlet.open_account() if opening.stdin and opening.input_id else None
        if account is None or (opening.input_goes_on and not account.knows(opening.input_id)):
            return None
        account.enter(opening.input_id)
        return account.taken(opening.input_id)

    def serve(self, call: "ServerCall", client: "Client", *, is_paused: bool = False) -> None:
        """Heed one client's messages until its stream ends. A client that did not ask for stdin cannot write.

        ``is_paused``: it goes on when there is room, in a turn of its own.
        """
        opening = client.opening

        def message(received: "AttachInput") -> None:
            kind = received.WhichOneof("input")
            if kind == "resize":
                self.resize(received.resize.width, received.resize.height)
            elif kind == "stdin" and opening.stdin:
                self._take(call, client, received.stdin)
            elif kind == "close_stdin" and opening.stdin and received.close_stdin:
                self.close_stdin()

        call.on_message(message)
        if is_paused and self.outlet.full:
            self._waiting.append(call)
        elif is_paused:
            self._loop.call_soon(call.resume)

    def _take(self, call: "ServerCall", client: "Client", data: bytes) -> None:
        faults.point("attach.input")
        outlet, input_id = self.outlet, client.opening.input_id
        try:
            outlet.give(data, input_id)
        except OSError as error:
            call.fail(Code.RESOURCE_EXHAUSTED, f"the input cannot be kept: {error.strerror}; it was not taken")
            return
        faults.point("attach.written")
        if input_id and outlet.account is not None:
            client.say_accepted(outlet.account.taken(input_id))
        if outlet.full and call.is_open:
            self._waiting.append(call)
            call.pause()

    def _room(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if call.is_open:
                call.resume()
