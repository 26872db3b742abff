"""containerd.services.events.v1 for clients, and events.ttrpc.v1 for shims that forward: one journal behind both."""

import time
from typing import TYPE_CHECKING

from daemon.errors import invalid_argument
from daemon.events import EventLog
from daemon.identifiers import require_identifier
from daemon.services.call import Call, namespace_of
from daemon.store.records import NewEvent, StoredEvent
from ttrpc.api import events_service, wkt

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
            found, is_end = reader.next_page()
            for event in found:
                await call.send(envelope(event))
            reader.require_close(self._log.limits.max_lag)
            if is_end:
                await reader.wait_more()


class ShimEvents:
    """Handlers of containerd.services.events.ttrpc.v1.Events."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def Forward(self, request: "ShimForwardRequest", _call: Call) -> "Message":  # noqa: N802
        await self._log.append(_of_envelope(request.envelope))
        return wkt.Empty()


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
