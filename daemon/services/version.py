"""containerd.services.version.v1 and introspection.v1: who answers here."""

import os
import platform
import sqlite3
import uuid
from typing import TYPE_CHECKING

from daemon import filters
from daemon.services.call import Call
from daemon.store import containers
from daemon.store.database import Database
from daemon.version import REVISION, VERSION
from ttrpc.api import introspection, version

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.api.introspection import Plugin, PluginsRequest, PluginsResponse, ServerResponse
    from ttrpc.api.version import VersionResponse

UUID_KEY = "server.uuid"

# What containerd's clients look for, of what there is here: (type, id, requires).
_PLUGINS = (
    ("io.containerd.metadata.v1", "bolt", ()),
    ("io.containerd.runtime.v2", "task", ("io.containerd.metadata.v1",)),
    ("io.containerd.monitor.v1", "cgroups", ()),
    ("io.containerd.internal.v1", "restart", ("io.containerd.metadata.v1", "io.containerd.runtime.v2")),
    ("io.containerd.service.v1", "containers-service", ("io.containerd.metadata.v1",)),
    ("io.containerd.service.v1", "namespaces-service", ("io.containerd.metadata.v1",)),
    ("io.containerd.service.v1", "tasks-service", ("io.containerd.runtime.v2",)),
    ("io.containerd.service.v1", "introspection-service", ()),
)


class Version:
    """Handlers of containerd.services.version.v1.Version."""

    async def Version(self, _request: "Message", _call: Call) -> "VersionResponse":  # noqa: N802
        return version.VersionResponse(version=VERSION, revision=REVISION)


class Introspection:
    """Handlers of containerd.services.introspection.v1.Introspection."""

    def __init__(self, server_uuid: str) -> None:
        self._uuid = server_uuid

    async def Server(self, _request: "Message", _call: Call) -> "ServerResponse":  # noqa: N802
        return introspection.ServerResponse(uuid=self._uuid, pid=os.getpid(), pidns=pid_namespace())

    async def Plugins(self, request: "PluginsRequest", _call: Call) -> "PluginsResponse":  # noqa: N802
        """What is built in. There are no plugins to load; the names are those containerd's clients know."""
        matches = filters.parse_all(list(request.filters))
        made = introspection.PluginsResponse()
        for kind, name, requires in _PLUGINS:
            plugin = introspection.Plugin(type=kind, id=name, requires=requires)
            plugin.platforms.add(os="linux", architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()))
            if matches(_lookup(plugin)):
                made.plugins.append(plugin)
        return made


# As OCI and Go name them.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def _lookup(plugin: "Plugin") -> filters.Lookup:
    fields = {"type": plugin.type, "id": plugin.id}
    return lambda path: fields.get(path[0]) if len(path) == 1 else None


def pid_namespace() -> int:
    """The inode of our pid namespace: tells clients whether our pids are theirs. Source: namespaces(7)."""
    return os.stat("/proc/self/ns/pid").st_ino


async def server_uuid(database: Database) -> str:
    """This store's identity, made with it and kept for its life."""

    def work(connection: sqlite3.Connection) -> str:
        found = containers.get_meta(connection, UUID_KEY)
        if found is not None:
            return found
        made = str(uuid.uuid4())
        containers.set_meta(connection, UUID_KEY, made)
        return made

    # Read first: a daemon on a full disk still starts.
    known = database.read(lambda connection: containers.get_meta(connection, UUID_KEY))
    return known if known is not None else await database.write(work)
