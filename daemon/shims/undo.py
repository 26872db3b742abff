"""What was done, and how it is taken back: in reverse, completely, whatever fails on the way."""

import logging
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger(__name__)


class UndoStack:
    """Steps push how they are undone; `unwind` does it. Owns nothing else."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    def push(self, what: str, step: Callable[[], Awaitable[object]]) -> None:
        self._steps.append((what, step))

    async def unwind(self, timeout_s: float) -> bool:
        """Undo everything, last first; True when all of it went well. A cancelled operation is undone, too.

        Blocks: at most ``timeout_s``. What fails is logged and does not keep the rest from being undone; the failure
        that led here stays the one that is told.
        """
        is_complete = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + timeout_s) as scope:
            while self._steps:
                what, step = self._steps.pop()
                try:
                    await step()
                except Exception as error:  # noqa: BLE001 - the rest must be undone whatever this was
                    is_complete = False
                    log.error("could not undo: %s", what, extra={"reason": str(error)})
        return is_complete and not scope.cancelled_caught
