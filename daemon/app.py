"""The composition root: what there is, who owns it, in which order it starts and stops.

    locks → store → sockets → (nursery: API, recovery, events' pruning, keeper, signals, watchdog)

The API answers before recovery is done. SIGTERM and SIGINT end the daemon and nothing else: containers run on.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

import trio

from daemon import procfs, server
from daemon.config import Config
from daemon.events import EventLog
from daemon.lock import DirectoryLock
from daemon.notify import Notifier, watchdog_s
from daemon.services.call import Gate, Guarded
from daemon.services.containers import Containers
from daemon.services.events import Events, ShimEvents
from daemon.services.namespaces import Namespaces
from daemon.services.shimd import Shimd
from daemon.services.tasks import Tasks
from daemon.services.version import Introspection, Version, server_uuid
from daemon.shims import keeping
from daemon.shims.manager import Manager
from daemon.shims.pulse import PulseWatch
from daemon.store.database import Database
from ttrpc.aio import serve_ttrpc
from ttrpc.service import Registry

log = logging.getLogger(__name__)

# What shims are told to publish events with; they need not, they are followed.
_OWN_PROGRAM = os.path.abspath(sys.argv[0])


def run(config: Config, environ: Mapping[str, str]) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises: AlreadyRunning, SocketTaken, NewerSchema, StoreFull, StoreFailed, OSError: it did not start.
    """
    for directory, mode in ((config.root_dir, 0o711), (config.state_dir, 0o700), (config.shim_socket_dir, 0o700)):
        os.makedirs(directory, mode=mode, exist_ok=True)
    locks = [DirectoryLock(directory) for directory in dict.fromkeys((config.state_dir, config.root_dir))]
    try:
        database = Database(config.database_path)
        try:
            listeners = server.open_listeners(config, environ)
            try:
                trio.run(_main, config, environ, database, listeners)
            finally:
                server.close_listeners(config, listeners)
        finally:
            database.close()
    finally:
        for lock in locks:
            lock.release()


async def _main(config: Config, environ: Mapping[str, str], database: Database, listeners: list[socket.socket]) -> None:
    notifier = Notifier(environ)
    gate = Gate()
    events = EventLog(database, config.events)
    database.on_commit = events.committed
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            manager = Manager(config, database, nursery, procfs.boot_id(), _OWN_PROGRAM)
            manager.load()
            registry = _registry(config, database, events, manager, gate, await server_uuid(database))
            api = trio.CancelScope()
            await nursery.start(_serve, listeners, registry, config, api)
            log.info("serving", extra={"socket": config.socket_path, "pid": os.getpid()})
            notifier.tell(READY=1, MAINPID=os.getpid(), STATUS="recovering")
            nursery.start_soon(_recover, manager, notifier)
            nursery.start_soon(keeping.keep, config, _OWN_PROGRAM)
            nursery.start_soon(events.prune_forever)
            nursery.start_soon(PulseWatch(config.wedged, manager, events).look_forever)
            nursery.start_soon(_watchdog, notifier, watchdog_s(environ))
            async for number in signals:
                log.info("stopping, containers run on", extra={"signal": signal.Signals(number).name})
                break
            notifier.tell(STOPPING=1, STATUS="answering the last calls")
            await gate.close(config.timeouts.stop_s)
            api.cancel()
            nursery.cancel_scope.cancel()
    log.info("stopped")


def _registry(
    config: Config, database: Database, events: EventLog, manager: Manager, gate: Gate, server_id: str
) -> Registry:
    """Every service; the handlers know no transport."""
    registry = Registry()
    for service, implementation, endless in (
        ("containerd.services.version.v1.Version", Version(), ()),
        ("containerd.services.introspection.v1.Introspection", Introspection(server_id), ()),
        ("containerd.services.namespaces.v1.Namespaces", Namespaces(database), ()),
        ("containerd.services.containers.v1.Containers", Containers(database, manager.policy_changed), ()),
        ("containerd.services.tasks.v1.Tasks", Tasks(manager), ("Wait",)),
        ("containerd.services.events.v1.Events", Events(events), ()),
        ("containerd.services.events.ttrpc.v1.Events", ShimEvents(events, manager), ()),
        ("shimd.v1.Shimd", Shimd(config, manager, events), ()),
    ):
        registry.register(service, Guarded(service, implementation, gate, endless=endless))
    return registry


async def _serve(
    listeners: list[socket.socket],
    registry: Registry,
    config: Config,
    scope: trio.CancelScope,
    *,
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    with scope:
        await serve_ttrpc(listeners, registry, max_connections=config.socket.max_connections, task_status=task_status)


async def _recover(manager: Manager, notifier: Notifier) -> None:
    await manager.recover()
    sick = sum(handle.client is None for handle in manager.handles.values())
    log.info("recovered", extra={"adopted": manager.adopted, "without_shim": sick})
    notifier.tell(STATUS=f"{manager.adopted} tasks adopted, {sick} without a shim that answers")


async def _watchdog(notifier: Notifier, interval_s: float | None) -> None:
    """Tell the watchdog that the event loop turns: it does as long as this task does."""
    while interval_s is not None:
        notifier.tell(WATCHDOG=1)
        await trio.sleep(interval_s / 3)
