"""The serving process: puts the parts of one shim together and runs them until the container is gone.

`serve` is one function that a forked child can call: it takes the listener's fd and values, and reads neither argv nor
the environment.
"""

import faulthandler
import gc
import os
import signal
import socket
import time

from shim import faults
from shim.actions.delete import response
from shim.bundle import Bundle, remove, write_replacing
from shim.cgroup import cgroups, metrics
from shim.cgroup.oom import OomWatch
from shim.core import kernel
from shim.core.loop import Loop
from shim.core.pulse import begin_pulse
from shim.core.reaper import Reaper
from shim.core.shimlog import ShimLog
from shim.core.wakeup import Wakeup
from shim.keeper.looks import inode_of
from shim.params import Params
from shim.recovery import takeover
from shim.recovery.rejoin import Rejoin
from shim.recovery.spares import LISTENER, LOCK, KeeperLink, Spares
from shim.recovery.successor import exit_code, find_task, is_locked
from shim.serving.calls import Calls
from shim.serving.connections import Connections
from shim.serving.forwarder import Forwarder
from shim.serving.journal import Journal, JournalVersion
from shim.serving.listening import listen_again
from shim.serving.parts import Parts
from shim.serving.service import SERVICES, TaskService
from shim.serving.shimservice import SERVICE, ShimService
from shim.serving.uplink import Uplink, plain_path
from shim.streams.stdio import Stdio
from shim.task.exits import ExitStore
from shim.task.lifecycle import DELETED, STOPPED
from shim.task.pinning import unpin_left, unpin_stale
from shim.task.saving import save_process
from shim.upgrade import relief
from shim.upgrade.upgrading import Upgrade, drop_ballast
from shim.version import VERSION
from ttrpc.loopdriver import LoopServer
from ttrpc.service import Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.task.process import Process

# A shim nobody asked anything of for so long, and which has nothing to keep, was forgotten by whoever started it.
IDLE_S = 60.0
# The same once its container was deleted: Shutdown follows at once, unless who was to send it has died.
DELETED_S = 10.0
# For answers under way when the shim ends.
FINISH_S = 1.0
# For the last events to be delivered. containerd deletes and shuts down in one go: normally this takes a millisecond.
# It is longer than a restart of containerd takes.
FAREWELL_S = 10.0


def serve(listener_fd: int, params: Params, link: "KeeperLink | None" = None) -> int:
    """Serve one container until its shim is no longer needed; the value is the exit code. Blocks.

    Where the bundle holds the task of a shim that died, that task is taken over. ``link``: what the keeper gives.

    Owns: the listener and its path. Order: the caller has given us fds 0, 1, 2 that nobody waits for.
    """
    faults.arm(params.environment)
    if link is not None and link.is_raised and link.lock_fd >= 0 and not is_locked(params.bundle, link.lock_fd):
        return 0  # what it was raised for was removed, and another may have the name by now
    log = ShimLog(params.bundle, params.id, debug=params.debug)
    try:
        pipes = relief.receive(link, log) if link is not None and link.is_raised else []
        shim = Shim(listener_fd, params, log, link)
        if pipes:
            drop_ballast(shim.loop, pipes)  # last: who is the last reader of one reads on
    except Exception as error:  # noqa: BLE001 - the last place to say it
        log.failure("the shim cannot start", error)
        if link is None or not link.is_raised:
            remove(params.socket_path)
        return exit_code(error)
    if link is None or link.is_large:
        relief.Relief(shim).begin()
    run(shim, log)
    return 0


def run(shim: "Shim", log: ShimLog) -> None:
    """Serve to the end, and close everything. Blocks. Raises: whatever bug ends it."""
    try:
        shim.run()
    except BaseException as error:
        log.failure("the shim ends by a bug", error)
        shim.die_if_needed()
        raise
    finally:
        shim.close()
    log.info("the shim ends")
    log.close()


class Shim:
    """Owns every part, in the order they are made here."""

    def __init__(self, listener_fd: int, params: Params, log: ShimLog, link: "KeeperLink | None" = None) -> None:
        link = link or KeeperLink()
        self.params = params
        self.log = log
        carried = link.carried
        self.started_at_ns = int(carried["started_at_ns"]) if carried is not None else time.time_ns()
        kernel.become_subreaper()
        kernel.name_process(f"shim:{params.id}", f"shim:{params.id} -namespace {params.namespace}")
        faulthandler.register(signal.SIGUSR1, file=log.fd, all_threads=True)
        # SIGPIPE needs nothing: Python ignores it from its start on.
        self.socket_inode = inode_of(params.socket_path)
        self.loop = Loop()
        self.loop.on_error = lambda error: log.failure("a callback fails", error)
        self.reaper = self.loop.reaper = Reaper(params.environment, self._stray)
        self.wakeup = Wakeup(
            self.loop,
            {
                signal.SIGCHLD: self.reaper.reap,
                signal.SIGTERM: lambda: self._asked_to_end("SIGTERM"),
                signal.SIGINT: lambda: self._asked_to_end("SIGINT"),
                signal.SIGURG: lambda: listen_again(self),
            },
        )
        bundle = Bundle(params.bundle)
        bundle.make_directories()
        boot_id = kernel.boot_id()
        has_task = carried is None or bool(carried["has_task"])
        earlier = find_task(params, boot_id, is_raised=link.is_raised) if has_task else None
        self.parts = Parts(
            params,
            loop=self.loop,
            reaper=self.reaper,
            bundle=bundle,
            journal=self._open_journal(bundle, is_new=earlier is None and carried is None),
            exits=ExitStore(bundle.exits_dir),
            log=log,
            boot_id=boot_id,
            incarnation=str((earlier or carried or {}).get("incarnation") or os.urandom(16).hex()),
            make_stdio=self._make_stdio,
            find_cgroup=cgroups.find,
            watch_oom=lambda paths, on_oom: OomWatch(self.loop, paths, on_oom),
            spares=Spares(self.loop, link.connection_fd, link.spares),
        )
        self.tasks = TaskService(self.parts, metrics.read, self.finish)
        self.tasks.on_deleted = lambda: self.loop.call_later(DELETED_S, lambda: self._end_when_idle(DELETED_S))
        self.forwarder = self._make_forwarder()
        self.calls = Calls(self.loop, self.tasks, log)
        self.connections = Connections(self.parts.spares)
        self.service = ShimService(self.parts, self.tasks, self.started_at_ns)
        self.server = self._make_server(listener_fd)
        self.loop.call_later(IDLE_S, lambda: self._end_when_idle(IDLE_S))
        log.info(f"serving version={VERSION} pid={os.getpid()} namespace={params.namespace}")
        self.rejoin = self._stay_kept(listener_fd, link.lock_fd)
        self.upgrade = Upgrade(self, listener_fd, link.lock_fd)
        self.tasks.upgrade = self.upgrade
        # Last: where nothing is to be waited for it settles at once, and what is not held goes.
        if carried is not None:
            self._go_on(earlier, carried, link)
        else:
            self._begin(earlier, is_raised=link.is_raised)

    def _stay_kept(self, listener_fd: int, lock_fd: int) -> Rejoin:
        """Have every keeper hold what makes us this container's shim, and another one looked for when it is gone."""
        spares = self.parts.spares
        if lock_fd >= 0:
            spares.hold(LOCK, lock_fd, is_known=True)
        spares.hold(LISTENER, listener_fd, is_known=True)
        spares.on_connected = self._joined
        return Rejoin(self.loop, self.params, spares, self.log, listener_fd, lock_fd)

    def _joined(self) -> None:
        if self.tasks.container is not None and self.tasks.restoring is None:
            unpin_stale(self.tasks.container)

    def _begin(self, earlier: "dict[str, Any] | None", *, is_raised: bool) -> None:
        """Take over what an earlier shim left, if that is anything; a shim raised for nothing ends."""
        if earlier is not None:
            self.log.info(f"taking over from shim {earlier['shim_pid']}, the container is {earlier['state']}")
            self.loop.spawn(takeover.begin(self.tasks, earlier), self._taken_over)
            self.log.info(f"{self.connections.resume(self.server)} connections go on")
        else:
            self.parts.spares.settle()
            if is_raised:
                self.loop.call_soon(self.finish)

    def _go_on(self, earlier: "dict[str, Any] | None", carried: "dict[str, Any]", link: KeeperLink) -> None:
        """Go on where other code stopped in this process, or a relieved shim. Raises: whatever hinders that."""
        if (earlier is not None) != bool(carried["has_task"]):
            raise ValueError("the state file is not what this shim has written a moment ago")
        self.parts.log_bytes, self.parts.dropped_bytes = int(carried["log_bytes"]), int(carried["dropped_bytes"])
        if "failed" in carried:
            self.upgrade.outcome = carried
        if earlier is not None:
            takeover.go_on(self.tasks, earlier, carried)
        else:
            self.parts.spares.settle()
        if carried.get("clients"):
            from shim.upgrade import carriedcalls, handover  # only here

            carriedcalls.restore(self, carried["clients"], handover.copy if link.copies is None else link.copies.pop)
        self.connections.resume(self.server)  # last: these calls are answered at once

    def run(self) -> None:
        """Serve until `finish`. Blocks."""
        self.begin_pulse()
        # What exists now lives as long as we do: the collector need not look at it, nor dirty its pages, again.
        gc.freeze()
        self.loop.run()

    # --- making parts

    def begin_pulse(self) -> None:
        """Order: once SIGUSR1 is caught, which is sent when a pulse stands still."""
        self.loop.pulse = begin_pulse(self.params.bundle, self.log)

    def _make_server(self, listener_fd: int) -> LoopServer:
        registry = Registry()
        for name in SERVICES:
            registry.register(name, self.tasks)
        registry.register(SERVICE, self.service)
        return LoopServer(
            self.loop,
            registry,
            listener=socket.socket(fileno=listener_fd),
            start=self.calls.start,
            on_error=self.calls.on_wire_error,
            holder=self.connections,
        )

    def _open_journal(self, bundle: Bundle, *, is_new: bool) -> Journal:
        """Begin the journal. That of a task which was deleted in this bundle is put aside: its seqs are not ours."""
        path = bundle.file("journal")
        try:
            journal = Journal(path)
        except (ValueError, JournalVersion) as error:
            self.log.error(f"{error}; it is kept as journal.old")
            os.rename(path, path + ".old")
            return Journal(path)
        if journal.damage:
            self.log.error(f"the journal is damaged, records are missing: {journal.damage}")
        if journal.last_seq and is_new:
            journal.close()
            os.rename(path, path + ".old")
            return Journal(path)
        return journal

    def _make_forwarder(self) -> "Forwarder | None":
        path = plain_path(self.params.events_address)
        if not path:
            return None
        return Forwarder(
            self.loop,
            self.parts.journal,
            self.log,
            self.params.namespace,
            lambda on_bytes, on_lost: Uplink(self.loop, path, on_bytes, on_lost),
        )

    def _make_stdio(self, process: "Process", uid: int, gid: int) -> Stdio:
        return Stdio(
            self.loop,
            self.parts.bundle.io_dir,
            process.name,
            process.request,
            spares=self.parts.spares,
            on_change=lambda: self._save_process(process),
            uid=uid,
            gid=gid,
            # Where the I/O is to have an owner (of a user namespace), that cannot be made of a client's own FIFO.
            direct=not process.exec_id and not (uid or gid),
            labels={
                "CONTAINER_ID": process.exec_id or self.params.id,  # as containerd's shim has it
                "CONTAINER_NAMESPACE": self.params.namespace,
            },
            report=self.log.warning,
        )

    def _save_process(self, process: "Process") -> None:
        if self.tasks.container is not None:
            save_process(self.tasks.container, process)

    def _taken_over(self, _value: object, error: "BaseException | None") -> None:
        if error is not None:
            self.log.failure("the container cannot be taken over", error)
            os._exit(exit_code(error))  # whoever asked us now would be told that there is no container
        self.log.info("the container is taken over")

    def die_if_needed(self) -> None:
        """End as by SIGKILL, with everything left to a successor, if there is a container: its streams live on so."""
        if self.tasks.is_needed:
            os._exit(1)

    def _stray(self, pid: int, status: int) -> None:
        self.log.debug(f"reaped a stray, pid {pid}, wait status {status}")

    # --- the end

    @property
    def is_finishing(self) -> bool:
        """Whether it is about to end: then it does not change its mind."""
        return self.calls.is_refused

    def _asked_to_end(self, name: str) -> None:
        container = self.tasks.container
        is_coming_back = container is not None and container.restart is not None and container.restart.is_planned
        if container is not None and (is_coming_back or container.state not in (STOPPED, DELETED)):
            self.log.warning(f"{name} is ignored: the container is {container.state}, coming back: {is_coming_back}")
            return
        self.log.info(f"{name}: ending")
        self.finish()

    def _end_when_idle(self, idle_s: float) -> None:
        """End when whoever started us has forgotten us: nothing lives here, nothing is untold, nobody is connected."""
        journal = self.parts.journal
        is_told = self.tasks.container is None or journal.acked_seq == journal.last_seq
        is_idle = not self.tasks.is_needed and not self.server.connections and is_told
        if is_idle or self.tasks.is_forsaken:
            self.log.info(f"nothing to do for {idle_s:g} s")
            self.finish()
        else:
            self.loop.call_later(idle_s, lambda: self._end_when_idle(idle_s))

    def finish(self, answer: "Callable[[], None] | None" = None) -> None:
        """Let answers and events reach their readers, then end.

        Order: the path goes and what `delete` will need is there before ``answer`` is given, for whoever has that may
        start a new shim, or remove the bundle.
        """
        if not self.is_finishing:
            faults.point("shutdown.begun")
            self.rejoin.close()
            self.parts.spares.finish()
            faults.point("shutdown.excused")
            self._unlink_socket()
            faults.point("shutdown.unlinked")
            self._leave_answer()
            unpin_left(self.parts)
        if answer is not None:
            answer()
            faults.point("shutdown.answered")
        if not self.is_finishing:
            self.calls.is_refused = True
            self.server.finish(self._say_farewell, deadline_s=FINISH_S)

    def _say_farewell(self) -> None:
        if self.forwarder is not None:
            self.forwarder.finish(self.loop.stop, deadline_s=FAREWELL_S)
        else:
            self.loop.stop()

    def _leave_answer(self) -> None:
        """When nothing is left to clean up: what `delete` is to answer, where it need not look further (launch.py)."""
        container = self.tasks.container
        if container is None or container.state != DELETED or container.init.exit is None:
            return
        record = container.init.exit
        answer = response(record.pid, record.status, record.exited_at_ns)
        try:
            write_replacing(self.parts.bundle.file("ended"), self.params.id.encode() + b"\n" + answer)
        except OSError as error:
            self.log.warning(f"`delete` will have to look for itself: {error}")

    def _unlink_socket(self) -> None:
        """Only our own: someone else may have found it stale and bound the path anew."""
        if self.socket_inode is not None and inode_of(self.params.socket_path) == self.socket_inode:
            remove(self.params.socket_path)

    def close(self) -> None:
        """Close what is left. Idempotent enough to follow any failure."""
        self._unlink_socket()
        self.server.close()
        self.connections.close()
        if self.forwarder is not None:
            self.forwarder.close()
        container = self.tasks.container
        if container is not None:
            for process in (container.init, *container.execs.values()):
                process.close(self.parts)
        self.wakeup.close()
        faulthandler.unregister(signal.SIGUSR1)
        self.parts.journal.close()
        self.rejoin.close()
        self.parts.spares.close()
        self.loop.close()
        if self.loop.pulse is not None:
            self.loop.pulse.close()
