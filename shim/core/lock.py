"""A lock for handlers: first come, first served."""

from shim.core.steps import Fired, Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.steps import Handler


class Lock:
    """Held by one handler at a time. ``yield from lock.acquire()``, then ``try … finally: lock.release()``."""

    __slots__ = ("_held", "_queue")

    def __init__(self) -> None:
        self._held = False
        self._queue: list[Signal] = []

    def acquire(self) -> "Handler":
        """Wait for the lock and hold it."""
        if not self._held:
            self._held = True
            return
        turn = Signal()
        self._queue.append(turn)
        try:
            yield Fired(turn)
        except BaseException:
            if turn.fired:
                self.release()  # it was handed over in the same round in which we gave up
            else:
                self._queue.remove(turn)
            raise

    def release(self) -> None:
        """Hand it to the next in line, if any."""
        if self._queue:
            self._queue.pop(0).fire()
        else:
            self._held = False
