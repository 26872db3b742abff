"""containerd.services.events.v1 for clients, and events.ttrpc.v1 for shims that forward: one journal behind both."""

import time
from typing import TYPE_CHECKING

import trio

from daemon.errors import invalid_argument
from daemon.events import EventLog
from daemon.identifiers import require_identifier, require_topic
from daemon.services.call import Call, namespace_of
from daemon.shims.foreign_exits import Ledger, is_told, told_exit
from daemon.shims.registry import Registry
from daemon.store.records import NewEvent, StoredEvent
from ttrpc.api import events_service, wkt
from ttrpc.api.descriptors import message_class

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.api.events_service import Envelope, ForwardRequest, PublishRequest, SubscribeRequest
    from ttrpc.api.forward import Envelope as ForwardEnvelope
    from ttrpc.api.forward import ForwardRequest as ShimForwardRequest


class Events:
    """Handlers of containerd.services.events.v1.Events."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def Publish(self, request: "PublishRequest", call: Call) -> "Message":  # noqa: N802
        ns = namespace_of(call)
        event = request.event
        await self._log.append(NewEvent(time.time_ns(), ns, request.topic, event.type_url, event.value))
        return wkt.Empty()

    async def Forward(self, request: "ForwardRequest", _call: Call) -> "Message":  # noqa: N802
        await self._log.append(_of_envelope(request.envelope))
        return wkt.Empty()

    async def Subscribe(self, request: "SubscribeRequest", call: Call) -> None:  # noqa: N802
        """Live events of all namespaces, as containerd sends them, from now on; a slow reader is cut off.

        Raises: ResourceExhausted naming the cursor from which shimd.v1 Events goes on.
        """
        reader = self._log.reader(self._log.newest_seq, None, list(request.filters))
        while True:
            page = reader.next_page()
            for event in page.found:
                await call.send(envelope(event))
            reader.require_close(self._log.limits.max_lag)
            if page.is_end:
                await reader.wait_more()
            else:
                await trio.lowlevel.checkpoint()  # a reader whom nothing is for must not keep others from their turn


class ShimEvents:
    """Handlers of containerd.services.events.ttrpc.v1.Events: what shims that are not ours tell, until we have it."""

    def __init__(self, log: EventLog, tasks: Registry) -> None:
        self._log = log
        self._tasks = tasks

    async def Forward(self, request: "ShimForwardRequest", call: Call) -> "Message":  # noqa: N802
        """Answered once it is stored: what is not answered is told again, and stored once all the same.

        Raises: InvalidArgument; StoreFull.
        """
        event = _of_envelope(request.envelope)
        require_topic(event.topic)
        handle = self._tasks.sender(event.ns, _container_id(event), call.peer.pid if call.peer is not None else 0)
        if handle is None:
            await self._append(event)
        elif handle.foreign is not None:
            await handle.foreign.forwarded(event)
        elif handle.client is None:  # not found again yet, or no more
            on_stopped = self._tasks.supervisors.on_stopped
            await Ledger(handle, handle.row.incarnation, self._log.database, on_stopped).forwarded(event)
        return wkt.Empty()  # else it is a shim of ours, whose journal is followed

    async def _append(self, event: NewEvent) -> None:
        """From nobody we know, such as the shim of a task deleted meanwhile: an exit that is on record is not news."""
        told = told_exit(event)
        if told is None or not self._log.database.read(lambda connection: is_told(connection, event.ns, told)):
            await self._log.append(event)


def _container_id(event: NewEvent) -> str:
    """Whose event it is; empty for one of no container, or of a type not known here."""
    try:
        told = message_class(event.type_url.rpartition("/")[2]).FromString(event.value)
    except Exception:  # noqa: BLE001 - a type or bytes we do not know
        return ""
    return str(getattr(told, "container_id", ""))


def _of_envelope(told: "Envelope | ForwardEnvelope") -> NewEvent:
    """Raises: InvalidArgument without a namespace or timestamp, as containerd has it."""
    require_identifier(told.namespace, "namespace")
    at_ns = wkt.nanoseconds(told.timestamp)
    if at_ns is None:
        raise invalid_argument("event timestamp must be set")
    return NewEvent(at_ns, told.namespace, told.topic, told.event.type_url, told.event.value)


def envelope(event: StoredEvent) -> "Envelope":
    return events_service.Envelope(
        timestamp=wkt.timestamp(event.at_ns),
        namespace=event.ns,
        topic=event.topic,
        event=wkt.any_of(event.type_url, event.value),
    )
