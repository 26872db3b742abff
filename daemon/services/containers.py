"""containerd.services.containers.v1: the records clients compose. Nothing runs because of them."""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from daemon import faults, filters, restart
from daemon.errors import already_exists, failed_precondition, invalid_argument, not_found
from daemon.identifiers import require_identifier, require_labels
from daemon.services import fieldmask
from daemon.services.call import Call, namespace_of
from daemon.store import containers as table
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.database import Database
from daemon.store.records import DELETING, NewEvent
from ttrpc.api import containers, events, wkt

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.api.containers import (
        Container,
        CreateContainerRequest,
        CreateContainerResponse,
        DeleteContainerRequest,
        GetContainerRequest,
        GetContainerResponse,
        ListContainersRequest,
        ListContainersResponse,
        UpdateContainerRequest,
        UpdateContainerResponse,
    )

# What may change after Create; snapshotter and runtime name what was made and is running already.
UPDATABLE = ("labels", "spec", "image", "extensions", "snapshot_key")


class Containers:
    """Handlers of containerd.services.containers.v1.Containers."""

    def __init__(self, database: Database, on_update: Callable[[str, str], Awaitable[None]]) -> None:
        self._database = database
        self._on_update = on_update

    async def Get(self, request: "GetContainerRequest", call: Call) -> "GetContainerResponse":  # noqa: N802
        container = require_container(self._database, namespace_of(call), request.id)
        return containers.GetContainerResponse(container=container)

    async def List(self, request: "ListContainersRequest", call: Call) -> "ListContainersResponse":  # noqa: N802
        found = self._matching(namespace_of(call), request)
        return containers.ListContainersResponse(containers=found)

    async def ListStream(self, request: "ListContainersRequest", call: Call) -> None:  # noqa: N802
        """One message per container: a long list is bounded by nothing but the reader."""
        for container in self._matching(namespace_of(call), request):
            await call.send(containers.ListContainerMessage(container=container))

    def _matching(self, ns: str, request: "ListContainersRequest") -> "list[Container]":
        matches = filters.parse_all(list(request.filters))
        return self._database.read(
            lambda connection: [one for one in table.iterate(connection, ns) if matches(lookup_of(one))]
        )

    async def Create(self, request: "CreateContainerRequest", call: Call) -> "CreateContainerResponse":  # noqa: N802
        """Record a container.

        Raises: AlreadyExists; InvalidArgument for an id, label, runtime or restart policy that cannot be.
        """
        ns = namespace_of(call)
        container = request.container
        _check(container)
        if not container.HasField("spec"):
            raise invalid_argument(f"container {container.id}: spec is required, the OCI runtime spec as JSON")
        made = containers.Container()
        made.CopyFrom(container)
        made.created_at.CopyFrom(wkt.timestamp(time.time_ns()))
        made.updated_at.CopyFrom(made.created_at)
        faults.point("containers.create.before_commit")

        def work(connection: sqlite3.Connection) -> None:
            if table.get(connection, ns, made.id) is not None:
                raise already_exists(f"container {made.id}: already exists")
            table.ensure_namespace(connection, ns)
            table.insert(connection, ns, made)
            told = events.ContainerCreate(id=made.id, image=made.image)
            told.runtime.name = made.runtime.name
            if made.runtime.HasField("options"):
                told.runtime.options.CopyFrom(made.runtime.options)
            _tell(connection, ns, "create", told)

        await self._database.write(work)
        faults.point("containers.create.committed")
        return containers.CreateContainerResponse(container=made)

    async def Update(self, request: "UpdateContainerRequest", call: Call) -> "UpdateContainerResponse":  # noqa: N802
        """Change what the mask names; without one, all that may change.

        Raises: NotFound; InvalidArgument for a field that may not change.
        """
        ns = namespace_of(call)
        asked = request.container
        require_identifier(asked.id, "container id")

        def work(connection: sqlite3.Connection) -> "Container":
            now = table.get(connection, ns, asked.id)
            if now is None:
                raise not_found(f"container {asked.id}: not found")
            fieldmask.apply(now, asked, request.update_mask.paths or UPDATABLE, UPDATABLE)
            _check(now)
            now.updated_at.CopyFrom(wkt.timestamp(time.time_ns()))
            table.replace(connection, ns, now)
            told = events.ContainerUpdate(id=now.id, image=now.image, snapshot_key=now.snapshot_key)
            told.labels.update(now.labels)
            _tell(connection, ns, "update", told)
            return now

        container = await self._database.write(work)
        await self._on_update(ns, asked.id)
        return containers.UpdateContainerResponse(container=container)

    async def Delete(self, request: "DeleteContainerRequest", call: Call) -> "Message":  # noqa: N802
        """Forget a container without a task.

        Raises: NotFound; FailedPrecondition while it has a task.
        """
        ns = namespace_of(call)
        require_identifier(request.id, "container id")
        faults.point("containers.delete.before_commit")

        def work(connection: sqlite3.Connection) -> None:
            row = tasks.get(connection, ns, request.id)
            if row is not None and row.state != DELETING:
                raise failed_precondition(f"container {request.id} has a task ({row.state}): delete the task first")
            if not table.delete(connection, ns, request.id):
                raise not_found(f"container {request.id}: not found")
            _tell(connection, ns, "delete", events.ContainerDelete(id=request.id))

        await self._database.write(work)
        faults.point("containers.delete.committed")
        return wkt.Empty()


def require_container(database: Database, ns: str, container_id: str) -> "Container":
    """Raises: NotFound, InvalidArgument."""
    require_identifier(container_id, "container id")
    found = database.read(lambda connection: table.get(connection, ns, container_id))
    if found is None:
        raise not_found(f"container {container_id}: not found")
    return found


def _check(container: "Container") -> None:
    require_identifier(container.id, "container id")
    require_labels(dict(container.labels))
    if not container.runtime.name:
        raise invalid_argument(f"container {container.id}: runtime.name is required, such as io.containerd.shimd.v2")
    # A policy nobody can read would be found out at the first exit; say so now.
    restart.parse_policy(container.labels.get(restart.POLICY_LABEL, ""))


def lookup_of(container: "Container") -> filters.Lookup:
    """Fields as containerd names them: id, image, runtime.name, snapshotter, snapshot_key, labels."""

    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "labels":
            return filters.labels_lookup(path[1:], dict(container.labels))
        if tuple(path) == ("runtime", "name"):
            return container.runtime.name
        if len(path) == 1 and path[0] in ("id", "image", "snapshotter", "snapshot_key", "sandbox"):
            return str(getattr(container, path[0]))
        return None

    return lookup


def _tell(connection: sqlite3.Connection, ns: str, what: str, event: "Message") -> None:
    journal.append(
        connection,
        NewEvent(time.time_ns(), ns, f"/containers/{what}", event.DESCRIPTOR.full_name, event.SerializeToString()),
    )
