"""An upgrade as the running daemon leads it: check, start, wait until it is ready, stop beginning calls, hand over."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import trio

from daemon import faults
from daemon.config import Timeouts
from daemon.errors import failed_precondition, invalid_argument
from daemon.handover import Seat
from daemon.services.call import Gate
from daemon.successor import Successor, check
from ttrpc.aio import Door
from ttrpc.api import shimd

if TYPE_CHECKING:
    from ttrpc.api.shimd import UpgradeProgress, UpgradeRecord, UpgradeRequest

log = logging.getLogger(__name__)

Tell = Callable[["UpgradeProgress"], Awaitable[None]]


class Upgrader:
    """Leads at most one upgrade at a time. When it comes to the hand-over, `chosen` has the successor, and the daemon's
    term is to end with it: nothing begins any more then, and nothing that must be answered is under way.
    """

    def __init__(self, timeouts: Timeouts, seat: Seat, gate: Gate, door: Door, environ: Mapping[str, str]) -> None:
        self._timeouts = timeouts
        self._seat = seat
        self._gate = gate
        self._door = door
        self._environ = environ
        self._is_busy = False
        self.chosen: Successor | None = None
        self.has_chosen = trio.Event()

    @property
    def record(self) -> "UpgradeRecord | None":
        """The upgrade this process came by, or the last one that failed in it."""
        return self._seat.record

    async def lead(self, request: "UpgradeRequest", tell: Tell) -> None:
        """Do what is asked for. Does not return from an upgrade that comes to the hand-over: its caller is cut off.

        Cancelled before that, by a caller that goes away, it leaves all as it was.
        Raises: FailedPrecondition with the reason; this daemon serves on then.
        """
        if request.program and not request.program.startswith("/"):
            raise invalid_argument("program must be an absolute path")
        if self._is_busy:
            raise failed_precondition("another upgrade is under way: wait for its end")
        self._is_busy = True
        try:
            await self._lead(request, tell)
        finally:
            self._is_busy = False

    async def _lead(self, request: "UpgradeRequest", tell: Tell) -> None:
        found = await check(request.program, self._environ, self._timeouts.upgrade_s)
        facts = {"version": found["version"], "schema": found["schema"]}
        facts |= {"writes_schema": found["writes_schema"], "oldest_reader": found["oldest_reader"]}

        async def told(step: int, pid: int = 0) -> None:
            await tell(shimd.UpgradeProgress(step=step, pid=pid, **facts))  # type: ignore[arg-type]  # enum numbers

        await told(shimd.UpgradeProgress.STEP_CHECKED)
        if request.dry_run:
            return
        successor = Successor.start(request.program, request.id, self._environ)
        try:
            await told(shimd.UpgradeProgress.STEP_STARTED, successor.process.pid)
            await successor.meet(self._seat, self._timeouts.upgrade_s)
            await told(shimd.UpgradeProgress.STEP_READY, successor.process.pid)
            await told(shimd.UpgradeProgress.STEP_HANDING_OVER, successor.process.pid)
            await self._drain(successor)
        except BaseException:
            if self.chosen is None:
                await successor.end()
            raise
        await trio.sleep_forever()

    async def _drain(self, successor: Successor) -> None:
        """Let nothing begin any more, and have what is under way answered; else all goes on as before."""
        self._door.close()
        successor.mark_closed()
        is_idle = False
        try:
            is_idle = await self._gate.hold(self._timeouts.stop_s)
        finally:
            if not is_idle:
                self._gate.release()
                self._door.open()
        if not is_idle:
            raise failed_precondition(
                f"calls under way did not end within {self._timeouts.stop_s:g} s (timeouts.stop_s): try again later"
            )
        faults.point("upgrade.drained")
        log.info("handing over", extra={"pid": successor.process.pid, "version": successor.record.to_version})
        self.chosen = successor
        self.has_chosen.set()
