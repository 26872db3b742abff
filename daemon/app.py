"""The composition root: what there is, who owns it, in which order it starts and stops.

    seat (locks) → store → sockets → (nursery: API, recovery, events' pruning, keeper, signals, watchdog)

The API answers before recovery is done. SIGTERM and SIGINT end the daemon and nothing else: containers run on. An
upgrade ends it too: the seat then goes to another process, or comes back when that one fails.
"""

import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio

from daemon import faults, procfs, server
from daemon.config import Config
from daemon.events import EventLog
from daemon.handover import Seat, inherited_channel
from daemon.notify import Notifier, watchdog_s
from daemon.predecessor import Predecessor
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
from daemon.store import schema
from daemon.store.database import Database
from daemon.successor import Successor
from daemon.upgrade import Upgrader
from daemon.version import VERSION
from ttrpc.aio import Door, serve_ttrpc
from ttrpc.errors import StatusError
from ttrpc.service import Registry

log = logging.getLogger(__name__)

# What shims are told to publish events with; they need not, they are followed.
_OWN_PROGRAM = os.path.abspath(sys.argv[0])
REOPEN_MIN_S, REOPEN_MAX_S = 0.1, 2.0


def run(config: Config, environ: Mapping[str, str]) -> None:
    """Run the daemon until SIGTERM or SIGINT, or until another process has taken its place.

    Raises: AlreadyRunning, SocketTaken, NewerSchema, StoreFull, StoreFailed, OSError: it did not start. NotTakenOver.
    """
    for directory, mode in ((config.root_dir, 0o711), (config.state_dir, 0o700), (config.shim_socket_dir, 0o700)):
        os.makedirs(directory, mode=mode, exist_ok=True)
    _name_process()
    trio.run(_main, config, environ)


def _name_process() -> None:
    """What ps and systemctl call us, also after an upgrade, which starts the interpreter. Source: proc_pid_comm(5)."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("shimd")


async def _main(config: Config, environ: Mapping[str, str]) -> None:
    """Terms of office: one, and another after each hand-over that failed. The seat is ours until it is given away."""
    notifier = Notifier(environ)
    channel = inherited_channel(environ)
    predecessor = Predecessor(channel) if channel is not None else None
    if predecessor is not None:
        notifier.hold()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        seat = Seat.claim(config) if predecessor is None else await predecessor.meet(config)
        is_given = is_taken_back = False
        try:
            while True:
                if is_taken_back:
                    reopened = await _reopen(config, notifier, signals)
                    if reopened is None:
                        break
                    database = reopened
                else:
                    database = Database(config.database_path)
                try:
                    if predecessor is not None:
                        faults.point("successor.store_opened")
                    if not seat.listeners:
                        seat.listeners = server.open_listeners(config, environ, notifier)
                    term = Term(config, environ, database, seat)
                    successor = await term.serve(notifier, signals, predecessor)
                finally:
                    database.close()
                if successor is None:
                    break
                is_given, has_to_stop = await _give(config, successor, seat, notifier, signals)
                if is_given or has_to_stop:
                    break
                predecessor, is_taken_back = None, True
        finally:
            seat.release(is_given=is_given)
    log.info("another process serves" if is_given else "stopped")
    if not is_given:
        notifier.tell(STATUS="stopped; containers run on")


async def _give(
    config: Config, successor: Successor, seat: Seat, notifier: Notifier, signals: AsyncIterator[int]
) -> tuple[bool, bool]:
    """Give the seat away. Returns whether that came to pass, and whether somebody wants us to end meanwhile.

    If it does not come to pass, `_reopen` has the store as we left it.
    """
    faults.point("upgrade.store_closed")
    wanted: list[int] = []
    is_given = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note_signals, signals, wanted)
        try:
            await successor.give(seat, notifier, config.timeouts.handover_s)
            is_given = True
        except StatusError as error:
            log.error("the upgrade failed, this process serves on", extra={"reason": error.message})
            seat.record = successor.failed(error)
        nursery.cancel_scope.cancel()
    if is_given and wanted:
        successor.forward(wanted[-1])
    if not is_given:
        seat.sign()
    return is_given, bool(wanted)


async def _reopen(config: Config, notifier: Notifier, signals: AsyncIterator[int]) -> Database | None:
    """The store after a hand-over that failed, as soon as it can be had: who gave up now would not be there when the
    disk has room again. None when somebody wants us to end. Blocks: as long as it takes; callers wait.
    """
    pause_s = REOPEN_MIN_S
    while True:
        try:
            if schema.restore(config.database_path):
                log.warning("the store is the copy that the new program made before it changed it")
            return Database(config.database_path)
        except (StatusError, OSError, sqlite3.Error) as error:
            log.error("the store cannot be opened again", extra={"reason": str(error), "retry_s": pause_s})
            notifier.tell(WATCHDOG=1, STATUS=f"nobody is served, the store cannot be opened: {error}")
        with trio.move_on_after(pause_s):
            async for _ in signals:
                return None
        pause_s = min(pause_s * 2, REOPEN_MAX_S)


async def _note_signals(signals: AsyncIterator[int], wanted: list[int]) -> None:
    async for number in signals:
        wanted.append(number)


class Term:
    """One time of serving, from an open store to an end by signal or by an upgrade that gets to the hand-over."""

    def __init__(self, config: Config, environ: Mapping[str, str], database: Database, seat: Seat) -> None:
        self.config = config
        self.environ = environ
        self.database = database
        self.seat = seat
        self.gate = Gate()
        self.door = Door(tuple(seat.kept))
        self.upgrader = Upgrader(config.timeouts, seat, self.gate, self.door, environ)

    async def serve(
        self, notifier: Notifier, signals: AsyncIterator[int], predecessor: Predecessor | None
    ) -> Successor | None:
        """Serve. Returns who is to have the seat now; None when the daemon is to end.

        With a predecessor nothing is done but reading until it has let go.
        """
        config, database = self.config, self.database
        events = EventLog(database, config.events)
        database.on_commit = events.committed
        async with trio.open_nursery() as nursery:
            manager = Manager(config, database, nursery, procfs.boot_id(), _OWN_PROGRAM)
            manager.load()
            registry = self._registry(events, manager, await server_uuid(database))
            if predecessor is not None:
                await predecessor.confirm(self.seat)
            api = trio.CancelScope()
            self.seat.kept = []  # the door's now
            await nursery.start(self._answer, registry, api)
            if predecessor is not None:
                await predecessor.finish()
                nursery.start_soon(_introduce, predecessor, notifier)
            log.info("serving", extra={"socket": config.socket_path, "pid": os.getpid()})
            notifier.tell(READY=1, MAINPID=os.getpid(), STATUS="recovering")
            nursery.start_soon(_recover, manager, notifier)
            nursery.start_soon(keeping.keep, config, _OWN_PROGRAM)
            nursery.start_soon(events.prune_forever)
            nursery.start_soon(PulseWatch(config.wedged, manager, events).look_forever)
            nursery.start_soon(_watchdog, notifier, watchdog_s(self.environ))
            if await self._wait_end(signals):
                notifier.tell(STOPPING=1, STATUS="answering the last calls")
                if all(listener.outlives_us for listener in self.seat.listeners):
                    self.door.close()  # whoever connects now waits for the next start
                await self.gate.close(config.timeouts.stop_s)
            if self.upgrader.chosen is not None:
                self.seat.kept = self.door.detach()
            api.cancel()
            nursery.cancel_scope.cancel()
        return self.upgrader.chosen

    async def _wait_end(self, signals: AsyncIterator[int]) -> bool:
        """Wait until this term is to end; true when it is a signal that says so, false for an upgrade."""
        stopped: list[int] = []
        async with trio.open_nursery() as nursery:

            async def look_for_signal() -> None:
                async for number in signals:
                    log.info("stopping, containers run on", extra={"signal": signal.Signals(number).name})
                    stopped.append(number)
                    break
                nursery.cancel_scope.cancel()

            nursery.start_soon(look_for_signal)
            await self.upgrader.has_chosen.wait()
            nursery.cancel_scope.cancel()
        return bool(stopped)

    def _registry(self, events: EventLog, manager: Manager, server_id: str) -> Registry:
        """Every service; the handlers know no transport."""
        registry = Registry()
        for service, implementation, endless in (
            ("containerd.services.version.v1.Version", Version(), ()),
            ("containerd.services.introspection.v1.Introspection", Introspection(server_id), ()),
            ("containerd.services.namespaces.v1.Namespaces", Namespaces(self.database), ()),
            ("containerd.services.containers.v1.Containers", Containers(self.database, manager.policy_changed), ()),
            ("containerd.services.tasks.v1.Tasks", Tasks(manager), ("Wait",)),
            ("containerd.services.events.v1.Events", Events(events), ()),
            ("containerd.services.events.ttrpc.v1.Events", ShimEvents(events, manager), ()),
            ("shimd.v1.Shimd", Shimd(self.config, manager, events, self.upgrader), ()),
        ):
            registry.register(service, Guarded(service, implementation, self.gate, endless=endless))
        return registry

    async def _answer(
        self, registry: Registry, scope: trio.CancelScope, *, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        listeners = [listener.sock for listener in self.seat.listeners]
        limit = self.config.socket.max_connections
        with scope:
            await serve_ttrpc(listeners, registry, max_connections=limit, door=self.door, task_status=task_status)


async def _introduce(predecessor: Predecessor, notifier: Notifier) -> None:
    """Speak to the supervisor once the old daemon has named us to it, or has died."""
    await predecessor.wait_told()
    notifier.release()
    await predecessor.wait_gone()
    if await trio.to_thread.run_sync(notifier.reintroduce, abandon_on_cancel=True):
        log.info("this is the unit's main process", extra={"pid": os.getpid()})


async def _recover(manager: Manager, notifier: Notifier) -> None:
    await manager.recover()
    sick = sum(handle.client is None for handle in manager.handles.values())
    log.info("recovered", extra={"adopted": manager.adopted, "without_shim": sick})
    found = f"adopted {manager.adopted} tasks at its start"
    notifier.tell(STATUS=f"serving {VERSION}; {found}; {sick} without a shim that answers")


async def _watchdog(notifier: Notifier, interval_s: float | None) -> None:
    """Tell the watchdog that the event loop turns: it does as long as this task does."""
    while interval_s is not None:
        notifier.tell(WATCHDOG=1)
        await trio.sleep(interval_s / 3)


def is_told_of(holder: int, environ: Mapping[str, str]) -> bool:
    """Whether systemd was told that another process of our unit is the daemon already: an upgrade was under way when
    the main process died. We are not needed then.
    """
    own, its = procfs.cgroup_of(os.getpid()), procfs.cgroup_of(holder)
    if not environ.get("NOTIFY_SOCKET") or own is None or own != its or not own.endswith(".service"):
        return False
    Notifier(environ).tell(MAINPID=holder, READY=1)
    return True
