"""Looking at the shims' pulses: one that lives and does not move is reported with its stack, then replaced.

Nothing is asked of a shim for it, and a container is never touched. When a shim is wedged is ttrpc.api.wedge's rule.
"""

import contextlib
import json
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

import trio

from daemon import procfs
from daemon.config import Wedged
from daemon.events import EventLog
from daemon.procfs import Identity
from daemon.shims import bundle, evidence, launch
from daemon.shims.handle import Handle, Health
from daemon.store.records import NewEvent
from ttrpc.api import pulse, shimd, wedge, wkt
from ttrpc.api.wedge import CONTINUE, RECOVERED, REPLACE, REPORT, Case
from ttrpc.errors import StatusError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from daemon.shims.manager import Manager

log = logging.getLogger(__name__)

SLOWEST_S = 2.5
STACK_S = 2.0  # until a shim that got SIGUSR1 has written its stack
SUCCESSOR_S = 60.0
KEEPERS_NOTE = "keeper-wedged."  # and a pid, in a bundle: what a keeper did while no daemon was there
WEDGED, RECOVERED_TOPIC, REPLACED = "/shimd/shim/wedged", "/shimd/shim/recovered", "/shimd/shim/replaced"


class PulseWatch:
    """Owns what is known of each shim from one look to the next. The handles are the manager's."""

    def __init__(self, config: Wedged, manager: "Manager", events: EventLog) -> None:
        self._config = config
        self._manager = manager
        self._events = events
        self._limits = wedge.Limits(config.after_s, config.grace_s)
        self._cases: dict[Handle, Case] = {}

    async def look_forever(self) -> None:
        """Look at every shim, again and again, until cancelled; never, when that is not wanted."""
        if not self._config.after_s:
            return
        while True:
            await trio.sleep(min(SLOWEST_S, self._config.after_s / 2))
            handles = [handle for handle in self._manager.handles.values() if not handle.is_deleted]
            self._cases = {handle: case for handle, case in self._cases.items() if not handle.is_deleted}
            stall_percent = pulse.memory_stall_percent()
            for handle in handles:
                try:
                    await self._look(handle, stall_percent)
                except (OSError, StatusError) as error:
                    log.warning("a shim's pulse: %s", error, extra={"ns": handle.ns, "id": handle.id})
                except Exception:  # a bug met with one shim is not everybody's trouble
                    log.exception("a shim's pulse", extra={"ns": handle.ns, "id": handle.id})

    async def _look(self, handle: Handle, stall_percent: float) -> None:
        pid = handle.info.pid if handle.info is not None else handle.row.shim_pid
        if not pid:
            return
        found = pulse.look(handle.row.bundle, pid, time.monotonic_ns())
        if handle.info is None and found.start_ticks != handle.row.shim_start_ticks:
            return  # the one on record is gone, and who follows it has not answered yet
        if not found.state:
            self._manager.nursery.start_soon(self._manager.supervisors.recognise, handle)
            return
        case = self._cases.get(handle)
        if case is None or case.last.pid != pid:
            handle.trouble = handle.stack = ""
            self._cases[handle] = Case(found)
            await self._tell_what_the_keeper_did(handle)
            return
        action = case.judge(found, self._limits, stall_percent=stall_percent)
        if action in (REPORT, CONTINUE):
            await self._report(handle, case, action)
        elif action == REPLACE:
            await self._replace(handle, case)
        elif action == RECOVERED:
            handle.trouble = handle.stack = ""
            log.info("a wedged shim moves again", extra={"ns": handle.ns, "id": handle.id, "shim_pid": pid})
            await self._tell(handle, RECOVERED_TOPIC, shimd.ShimRecovered(container_id=handle.id, pid=pid))

    # --- what is done

    async def _report(self, handle: Handle, case: Case, action: str) -> None:
        """Say it, with the shim's stack; one that is only stopped is continued."""
        process = _identity(case)
        handle.trouble = case.words()
        if action == CONTINUE:
            procfs.kill(process, signal.SIGCONT)
        elif case.fault == wedge.STUCK and not _is_foreign(handle):
            handle.stack = await _stack_of(process, handle.row.bundle)
        handle.stack = handle.stack or pulse.where_in_kernel(process.pid)
        extra = {"ns": handle.ns, "id": handle.id, "shim_pid": process.pid, "reason": handle.trouble}
        log.error("a shim is wedged, its container is not touched", extra={**extra, "stack": handle.stack})
        told = shimd.ShimWedged(container_id=handle.id, pid=process.pid, kind=case.fault)
        told.reason, told.stack = handle.trouble, handle.stack
        await self._tell(handle, WEDGED, told)

    async def _replace(self, handle: Handle, case: Case) -> None:
        """Kill the shim, and it alone, if another can take over: its keeper raises one, or the task's supervisor."""
        if not self._config.is_replaced or _is_foreign(handle):
            return
        left = await trio.to_thread.run_sync(evidence.gather, handle.row.bundle, handle.row, self._manager.boot_id)
        if not left.can_raise:
            return
        process, reason, stack = _identity(case), case.words(), handle.stack
        log.error("replacing a wedged shim", extra={"ns": handle.ns, "id": handle.id, "shim_pid": process.pid})
        procfs.kill(process)
        await procfs.wait_gone(process, STACK_S)
        if handle.health is Health.UNREACHABLE and not handle.is_busy:  # else it would be asked again in a while
            handle.supervisor.cancel()
            self._manager.resume(handle)
        self._manager.nursery.start_soon(self._tell_replaced, handle, process.pid, reason, stack)

    async def _tell_replaced(self, handle: Handle, old_pid: int, reason: str, stack: str) -> None:
        def serves() -> bool:
            return handle.health is Health.SERVING and handle.info is not None and handle.info.pid != old_pid

        with trio.move_on_after(SUCCESSOR_S):
            await handle.wait_until(lambda: handle.is_deleted or serves())
        pid = handle.info.pid if handle.info is not None and serves() else 0
        if pid:
            handle.trouble = handle.stack = ""
        told = shimd.ShimReplaced(container_id=handle.id, old_pid=old_pid, pid=pid, reason=reason, stack=stack)
        await self._tell(handle, REPLACED, told)

    async def _tell_what_the_keeper_did(self, handle: Handle) -> None:
        """Its notes become events. Told at least once: the note goes afterwards."""
        for name in _names(handle.row.bundle):
            if not name.startswith(KEEPERS_NOTE) or not name.removeprefix(KEEPERS_NOTE).isdecimal():
                continue
            with contextlib.suppress(ValueError, TypeError, KeyError):
                said = json.loads(bundle.read_small(handle.row.bundle, name))
                pid = handle.info.pid if handle.info is not None else 0
                told = shimd.ShimReplaced(container_id=handle.id, old_pid=int(said["pid"]), pid=pid)
                told.reason, told.stack = str(said["reason"]), str(said["stack"])
                await self._tell(handle, REPLACED, told, at_ns=int(said["at_ns"]))
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(handle.row.bundle, name))

    async def _tell(self, handle: Handle, topic: str, told: "Message", at_ns: int = 0) -> None:
        packed = wkt.pack(told)
        event = NewEvent(at_ns or time.time_ns(), handle.ns, topic, packed.type_url, packed.value)
        try:
            await self._events.append(event)
        except StatusError as error:
            log.warning("an event is not stored", extra={"topic": topic, "reason": error.message})


def _identity(case: Case) -> Identity:
    return Identity(case.last.pid, case.last.start_ticks)


def _is_foreign(handle: Handle) -> bool:
    return launch.is_foreign(handle.row.runtime, handle.row.shim_path)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


async def _stack_of(process: Identity, path: str) -> str:
    """Have the shim write its stack into its log, which works as long as it can run at all, and read it there."""
    if not pulse.catches_usr1(process.pid):
        return ""
    offset = pulse.log_end(path)
    procfs.kill(process, signal.SIGUSR1)
    stack = ""
    with trio.move_on_after(STACK_S):
        while True:
            await trio.sleep(0.05)
            found = pulse.stack_since(path, offset)
            if found and found == stack:  # nothing more has come
                break
            stack = found
    return stack
