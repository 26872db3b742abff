"""shimd.v1: what containerd lacks. Events with a cursor, exits with their source, shim health, logs, attach."""

import os
import time
from typing import TYPE_CHECKING, Any

import trio

from daemon.config import Config
from daemon.errors import invalid_argument, not_found
from daemon.events import EventLog
from daemon.identifiers import require_identifier
from daemon.services import relay
from daemon.services.call import Call, deadline_of, namespace_of
from daemon.shims.client import earlier
from daemon.shims.handle import Handle, Health
from daemon.shims.manager import Manager
from daemon.store import events as journal
from daemon.store.records import StoredEvent
from daemon.upgrade import Upgrader
from daemon.version import VERSION
from ttrpc.api import shim, shimd, wkt

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.api import shimd as api


class Shimd:
    """Handlers of shimd.v1.Shimd."""

    def __init__(self, config: Config, manager: Manager, log: EventLog, upgrader: Upgrader) -> None:
        self._config = config
        self._manager = manager
        self._log = log
        self._upgrader = upgrader
        self._started_at_ns = time.time_ns()

    async def Info(self, _request: "api.InfoRequest", _call: Call) -> "api.InfoResponse":  # noqa: N802
        handles = self._manager.handles.values()
        return shimd.InfoResponse(
            version=VERSION,
            pid=os.getpid(),
            started_at=wkt.timestamp(self._started_at_ns),
            recovering=self._manager.is_recovering,
            adopted=self._manager.adopted,
            unreachable=sum(handle.health is Health.UNREACHABLE for handle in handles),
            state_dir=self._config.state_dir,
            root_dir=self._config.root_dir,
            newest_event_seq=self._log.newest_seq,
            oldest_event_seq=self._log.oldest_seq,
            last_upgrade=self._upgrader.record,
        )

    async def Events(self, request: "api.EventsRequest", call: Call) -> None:  # noqa: N802
        """Stored events after the cursor, then, if asked to follow, each new one. A gap is told, never skipped."""
        ns = None if request.all_namespaces else namespace_of(call)
        after_seq = self._log.newest_seq if request.from_now else request.after_seq
        reader = self._log.reader(after_seq, ns, list(request.filters))
        again = shimd.EventsRequest()
        again.CopyFrom(request)
        again.from_now, again.after_seq = False, after_seq
        call.begin_again = again
        while True:
            page = reader.next_page()
            if page.missed_through is not None:
                again.after_seq = page.missed_through
                await call.send(shimd.EventRecord(seq=page.missed_through + 1, gap=True))
            for event in page.found:
                again.after_seq = event.seq  # first: a message given to `send` is sent at once, or kept unsent
                await call.send(_event_record(event))
            again.after_seq = reader.after_seq
            if not page.is_end:
                await trio.lowlevel.checkpoint()  # a reader whom nothing is for must not keep others from their turn
            elif request.follow:
                await reader.wait_more()
            else:
                return

    async def Exits(self, request: "api.ExitsRequest", call: Call) -> "api.ExitsResponse":  # noqa: N802
        ns = namespace_of(call)
        if request.container_id:
            require_identifier(request.container_id, "container id")
        exec_id = request.exec_id if request.HasField("exec_id") else None
        select = journal.current_exits if request.current else journal.list_exits
        found = self._manager.database.read(
            lambda connection: select(connection, ns, request.container_id, exec_id, request.limit)
        )
        return shimd.ExitsResponse(exits=[shim.ExitRecord.FromString(one.record) for one in found])

    async def Shims(self, request: "api.ShimsRequest", call: Call) -> "api.ShimsResponse":  # noqa: N802
        """Every shim on record, from memory: a sick one is listed, not asked."""
        ns = None if request.all_namespaces else namespace_of(call)
        wanted = request.container_id
        made = shimd.ShimsResponse()
        for (its_ns, its_id), handle in sorted(self._manager.handles.items()):
            if ns in (None, its_ns) and wanted in ("", its_id):
                made.shims.append(_shim_record(handle))
        for (its_ns, its_id), reason in sorted(self._manager.present_strays().items()):
            if ns in (None, its_ns) and wanted in ("", its_id):
                bundle = self._config.bundle(its_ns, its_id)
                made.shims.add(namespace=its_ns, container_id=its_id, bundle=bundle, reason=reason)
        if wanted and not made.shims:
            raise not_found(f"task {wanted} not found")
        return made

    async def Logs(self, request: "api.LogsRequest", call: Call) -> None:  # noqa: N802
        handle = await self._find(request.container_id, call)
        await relay.logs(handle, request.options, call, self._connect_s(call))

    async def Attach(self, requests: Any, call: Call) -> None:  # noqa: N802
        first = await requests.receive()
        if first is None or first.input.WhichOneof("input") != "open":
            raise invalid_argument("the first message of Attach must carry container_id and input.open")
        handle = await self._find(first.container_id, call)
        await relay.attach(handle, first.input, requests, call, self._connect_s(call))

    async def ForceDelete(self, request: "api.ForceDeleteRequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request.container_id, call)
        await self._manager.force_delete(handle)
        return wkt.Empty()

    async def Upgrade(self, request: "api.UpgradeRequest", call: Call) -> None:  # noqa: N802
        await self._upgrader.lead(request, call.send)

    async def _find(self, container_id: str, call: Call) -> Handle:
        require_identifier(container_id, "container id")
        return await self._manager.find(namespace_of(call), container_id, deadline_of(call))

    def _connect_s(self, call: Call) -> float:
        return earlier(self._config.timeouts.connect_s, deadline_of(call))


def _event_record(event: StoredEvent) -> "api.EventRecord":
    made = shimd.EventRecord(
        seq=event.seq,
        timestamp=wkt.timestamp(event.at_ns),
        namespace=event.ns,
        topic=event.topic,
        event=wkt.any_of(event.type_url, event.value),
    )
    if event.exit is not None:
        made.exit.MergeFromString(event.exit)
    return made


def _shim_record(handle: Handle) -> "api.ShimRecord":
    row = handle.row
    made = shimd.ShimRecord(
        namespace=row.ns,
        container_id=row.id,
        address=row.address,
        pid=handle.info.pid if handle.info is not None else row.shim_pid,
        version=handle.info.version if handle.info is not None else "",
        bundle=row.bundle,
        health=handle.health.value,  # type: ignore[arg-type]  # the enum's numbers are the wire's
        reason=handle.trouble or handle.reason,
        trouble=handle.trouble,
        stack=handle.stack,
        incarnation=row.incarnation,
        stored_seq=handle.stored_seq,
        restarts=row.restarts,
    )
    if handle.next_restart_at_ns is not None:
        made.next_restart_at.CopyFrom(wkt.timestamp(handle.next_restart_at_ns))
    return made
