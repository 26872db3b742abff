"""containerd.services.namespaces.v1. A namespace needs no Create: the first write into one makes it."""

import sqlite3
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from daemon import filters
from daemon.errors import already_exists, failed_precondition, not_found
from daemon.identifiers import require_identifier, require_labels
from daemon.services import fieldmask
from daemon.services.call import Call
from daemon.store import containers
from daemon.store import events as journal
from daemon.store.database import Database
from daemon.store.records import NewEvent
from ttrpc.api import events, namespaces, wkt

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.api.namespaces import (
        CreateNamespaceRequest,
        CreateNamespaceResponse,
        DeleteNamespaceRequest,
        GetNamespaceRequest,
        GetNamespaceResponse,
        ListNamespacesRequest,
        ListNamespacesResponse,
        Namespace,
        UpdateNamespaceRequest,
        UpdateNamespaceResponse,
    )


class Namespaces:
    """Handlers of containerd.services.namespaces.v1.Namespaces."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def Get(self, request: "GetNamespaceRequest", _call: Call) -> "GetNamespaceResponse":  # noqa: N802
        """An unknown one is there, without labels: clients ask before they write the first thing into it."""
        name = require_identifier(request.name, "namespace")
        labels = self._database.read(lambda connection: containers.namespace_labels(connection, name))
        return namespaces.GetNamespaceResponse(namespace=_message(name, labels or {}))

    async def List(self, request: "ListNamespacesRequest", _call: Call) -> "ListNamespacesResponse":  # noqa: N802
        matches = filters.parse(request.filter)
        found = self._database.read(containers.list_namespaces)
        made = namespaces.ListNamespacesResponse()
        made.namespaces.extend(_message(name, labels) for name, labels in found if matches(_lookup(name, labels)))
        return made

    async def Create(self, request: "CreateNamespaceRequest", _call: Call) -> "CreateNamespaceResponse":  # noqa: N802
        name = require_identifier(request.namespace.name, "namespace")
        labels = dict(request.namespace.labels)
        require_labels(labels)

        def work(connection: sqlite3.Connection) -> None:
            if containers.namespace_labels(connection, name) is not None:
                raise already_exists(f"namespace {name}: already exists")
            containers.put_namespace(connection, name, labels)
            _tell(connection, "create", name, events.NamespaceCreate(name=name, labels=labels))

        await self._database.write(work)
        return namespaces.CreateNamespaceResponse(namespace=_message(name, labels))

    async def Update(self, request: "UpdateNamespaceRequest", _call: Call) -> "UpdateNamespaceResponse":  # noqa: N802
        """Replace the labels, or those a mask names."""
        name = require_identifier(request.namespace.name, "namespace")
        require_labels(dict(request.namespace.labels))

        def work(connection: sqlite3.Connection) -> "Namespace":
            now = _message(name, containers.namespace_labels(connection, name) or {})
            fieldmask.apply(now, request.namespace, request.update_mask.paths or ("labels",), ("labels",))
            labels = dict(now.labels)
            containers.put_namespace(connection, name, labels)
            _tell(connection, "update", name, events.NamespaceUpdate(name=name, labels=labels))
            return now

        return namespaces.UpdateNamespaceResponse(namespace=await self._database.write(work))

    async def Delete(self, request: "DeleteNamespaceRequest", _call: Call) -> "Message":  # noqa: N802
        """Only an empty one."""
        name = require_identifier(request.name, "namespace")

        def work(connection: sqlite3.Connection) -> None:
            if containers.namespace_labels(connection, name) is None:
                raise not_found(f"namespace {name}: not found")
            if not containers.is_namespace_empty(connection, name):
                raise failed_precondition(f"namespace {name} must be empty: delete its containers and tasks first")
            containers.delete_namespace(connection, name)
            _tell(connection, "delete", name, events.NamespaceDelete(name=name))

        await self._database.write(work)
        return wkt.Empty()


def _message(name: str, labels: dict[str, str]) -> "Namespace":
    return namespaces.Namespace(name=name, labels=labels)


def _lookup(name: str, labels: dict[str, str]) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "name" and len(path) == 1:
            return name
        return filters.labels_lookup(path[1:], labels) if path[0] == "labels" else None

    return lookup


def _tell(connection: sqlite3.Connection, what: str, name: str, event: "Message") -> None:
    journal.append(
        connection,
        NewEvent(time.time_ns(), name, f"/namespaces/{what}", event.DESCRIPTOR.full_name, event.SerializeToString()),
    )
