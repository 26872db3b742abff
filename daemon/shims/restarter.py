"""Acting on restart policies where no shim does: wait out the pause, look again, have the task restarted.

For shims that are not ours, that are older, or gone, and after a reboot; see `terms` for the others.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from daemon import log as logs
from daemon import restart
from daemon.config import Restart as Limits
from daemon.exits import known_status
from daemon.shims import terms
from daemon.shims.handle import Handle
from daemon.store import containers
from daemon.store import events as journal
from daemon.store.database import Database
from daemon.store.records import STOPPED
from ttrpc.api import shim, wkt
from ttrpc.errors import StatusError

if TYPE_CHECKING:
    from ttrpc.api.shim import ExitRecord

log = logging.getLogger(__name__)


class Restarter:
    """Owns a waiting task per stopped task that is to come back."""

    def __init__(
        self,
        database: Database,
        limits: Limits,
        nursery: trio.Nursery,
        restart_now: Callable[[Handle, int], Awaitable[None]],
    ) -> None:
        self._database = database
        self._backoff = restart.Backoff(limits.backoff_min_s, limits.backoff_max_s, limits.reset_after_s, limits.budget)
        self._nursery = nursery
        self._restart_now = restart_now

    def consider(self, handle: Handle) -> None:
        """A task is over and its exit is stored: bring it back if its policy says so. Replaces what was planned.

        Its shim's affair where that restarts by itself: we learn of it from the journal.
        """
        handle.restarter.cancel()
        if terms.acts_itself(handle):
            return
        handle.restarter = trio.CancelScope()
        self._nursery.start_soon(self._run, handle, handle.restarter)

    async def _run(self, handle: Handle, scope: trio.CancelScope) -> None:
        with scope, logs.begin(ns=handle.ns, id=handle.id):
            try:
                while await self._wait_and_try(handle):
                    pass
            except StatusError as error:  # a policy nobody can read
                log.error("not restarted", extra={"reason": error.message})
            except Exception:  # a bug met in one task's affairs is that task's trouble
                log.exception("not restarted")
            finally:
                if handle.restarter is scope:
                    handle.next_restart_at_ns = None
                    handle.is_after_reboot = False

    async def _wait_and_try(self, handle: Handle) -> bool:
        """One attempt; True when another is due."""
        decision = self._decide(handle)
        if decision is None or decision.pause_s is None:
            log.debug("left stopped", extra={"reason": decision.reason if decision else "gone"})
            return False
        ended_at_ns = self._ended_at_ns(handle)
        due_ns = ended_at_ns + int(decision.pause_s * 1e9)
        handle.next_restart_at_ns = max(due_ns, time.time_ns())
        # The wall clock may have been set back meanwhile: never wait longer than the pause itself.
        await trio.sleep(min(decision.pause_s, max(0.0, (due_ns - time.time_ns()) / 1e9)))
        again = self._decide(handle)  # the user may have stopped it, or changed its policy
        if again is None or again.pause_s is None:
            return False
        try:
            await self._restart_now(handle, again.streak + 1)
        except StatusError as error:
            log.warning("restart failed", extra={"reason": error.message, "restarts": handle.row.restarts})
            handle.failed_at_ns = time.time_ns()
            return True
        return False

    def _decide(self, handle: Handle) -> restart.Decision | None:
        if handle.is_deleted or handle.row.state != STOPPED or terms.acts_itself(handle):
            return None
        container = self._database.read(lambda c: containers.get(c, handle.ns, handle.id))
        if container is None:
            return None
        record = self._exit(handle)
        ended = restart.Ended(
            exit_status=known_status(record),
            ran_for_s=_ran_for_s(record) if not handle.failed_at_ns else 0.0,
            restarts=handle.row.restarts,
            streak=handle.row.streak,
        )
        return restart.decide(container.labels, ended, self._backoff, is_after_reboot=handle.is_after_reboot)

    def _exit(self, handle: Handle) -> "ExitRecord":
        row = handle.row
        stored = self._database.read(lambda c: journal.last_exit(c, row.ns, row.id, row.incarnation, ""))
        return shim.ExitRecord.FromString(stored.record) if stored is not None else shim.ExitRecord()

    def _ended_at_ns(self, handle: Handle) -> int:
        return handle.failed_at_ns or wkt.nanoseconds(self._exit(handle).exited_at) or time.time_ns()


def _ran_for_s(record: "ExitRecord") -> float:
    started, exited = wkt.nanoseconds(record.started_at), wkt.nanoseconds(record.exited_at)
    return (exited - started) / 1e9 if started is not None and exited is not None else 0.0
