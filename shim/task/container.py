"""The container of this shim: what may be asked of it, and what that does to runc, its files and its events."""

import json
import os
import signal
import time

from shim import faults
from shim.bundle import parse_object
from shim.cgroup import cgroups
from shim.core.lock import Lock
from shim.core.reaper import NotOurChild
from shim.core.steps import DeadlinePassed, Fired, Signal
from shim.errors import failed_precondition, internal, not_found, unknown
from shim.task import mounts, runc
from shim.task.ending import ENDING_S, execs_started, freeze, kill_everyone, thaw
from shim.task.lifecycle import CREATED, CREATING, DELETED, PAUSED, RUNNING, STOPPED
from shim.task.process import Process
from shim.task.saving import save_and_tell
from ttrpc.api import events, wkt
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.streams.stdio import Stdio, StdioRequest
    from shim.task.restarting import Restart
    from ttrpc.api.runc import Options


class Container:
    """Owns init, the execs, the rootfs mounts, the OOM watch, and `state.json`.

    Order: the calls that change the container through runc are serialised by ``lock``; State, Wait, Kill and CloseIO
    never wait for them.
    """

    def __init__(self, parts: "Parts", options: "Options", io: "StdioRequest", *, shares_pids: bool) -> None:
        self.parts = parts
        self.id = parts.params.id
        self.options = options
        self.runc = runc.Runc(
            parts.bundle.path,
            self.id,
            binary=options.binary_name,
            root=os.path.join(options.root or runc.DEFAULT_ROOT, parts.params.namespace),
            systemd_cgroup=options.systemd_cgroup,
            criu_path=options.criu_path,
        )
        self.init = Process("", io)
        self.execs: dict[str, Process] = {}
        self.lock = Lock()
        self.is_pausing = False
        self.shares_pids = shares_pids
        self.mounted = False
        self.cgroup: Any = None
        self.oom: Any = None
        self.oom_count = 0
        self.oom_at: float | None = None
        self.restart: Restart | None = None  # once a policy was set

    @property
    def state(self) -> str:
        return self.init.lifecycle.state

    def processes(self) -> "list[Process]":
        return [self.init, *self.execs.values()]

    def find(self, exec_id: str) -> Process:
        """Init (empty id) or an exec. Raises: NotFound."""
        if self.state == DELETED:
            raise not_found(f"container {self.id} does not exist: it was deleted")
        if not exec_id:
            if self.state == CREATING:
                raise not_found("container not created")
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise not_found(f"process does not exist {exec_id}")
        return process

    # --- what creating and starting a process needs

    def reserve_exit(self, exec_id: str) -> None:
        """Set room for an exit record aside. Raises: UNKNOWN when there is none: better before than after."""
        try:
            self.parts.exits.reserve(exec_id)
        except OSError as error:
            raise unknown(f"no room for the exit record in {self.parts.exits.path}: {error.strerror}") from None

    def open_stdio(self, process: Process) -> "Stdio":
        """Open a process's streams. Raises: InvalidArgument and the like, with nothing left open."""
        stdio = process.stdio = self.parts.make_stdio(process, self.options.io_uid, self.options.io_gid)
        stdio.open()
        if process.stdin_closed:
            stdio.close_stdin()
        return stdio

    def adopt(self, process: Process, pid_file: str) -> "Handler":
        """Take the process runc has left us, and its console. The value is the signal of its exit.

        Order: while the reaper holds strangers. Raises: INTERNAL when the runtime claims success but left none.
        """
        try:
            ended = process.adopt(self.parts.reaper, self.parts.bundle.read_pid(pid_file))
        except (OSError, ValueError, NotOurChild) as error:
            raise internal(f"{self.runc.binary} reported success but left no process to us: {error}") from None
        assert process.stdio is not None
        if process.stdio.console_socket:
            try:
                yield from process.stdio.receive_console()
            except Exception:
                process.signal(signal.SIGKILL)
                raise
        process.stdio.started()
        return ended

    # --- OOM

    def watch_cgroup(self) -> None:
        """Find the cgroup and watch it for OOM kills. A container without either runs all the same."""
        try:
            self.cgroup = self.parts.find_cgroup(self.init.pid)
            self.oom = self.parts.watch_oom(self.cgroup, self._oom_seen)
        except (OSError, StatusError) as error:
            self.parts.log.warning(f"no OOM watch: {error}")

    def _oom_seen(self, _count: int) -> None:
        """Tell it, but not before the start of a process which it may have killed while runc was still at it."""
        for process in self.processes():
            if process.starting is not None:
                process.starting.subscribe(self._oom_seen)
                return
        self.tell_oom()

    def forget_cgroup(self) -> None:
        """Close the OOM watch and the cgroup's fds."""
        if self.oom is not None:
            self.oom.close()
            self.oom = None
        if self.cgroup is not None:
            self.cgroup.close()
            self.cgroup = None

    def tell_oom(self) -> None:
        """Tell of OOM kills that happened since the last time."""
        if self.oom is None:
            return
        try:
            count = self.oom.count()
        except OSError:  # the cgroup is gone: what it counted last was told
            return
        if count > self.oom_count:
            self.oom_count = count
            self.oom_at = time.monotonic()
            save_and_tell(self, "/tasks/oom", events.TaskOOM(container_id=self.id))

    # --- start

    def start(self) -> "Handler":
        """Let init run the user's program. Order: `start` is told before the exit, however soon that came.

        Raises: UNKNOWN in the wrong state, or with runc's words.
        """
        init = self.find("")
        if self.state != CREATED or init.starting is not None or init.reaped:
            raise unknown(f"cannot start a {self._word(init)} process")
        starting = init.starting = Signal()
        try:
            yield from self.lock.acquire()
            try:
                init.started_at_ns = time.time_ns()
                faults.point("start.begun")
                yield from self._run_start()
                faults.point("start.run")
            finally:
                self.lock.release()
            init.lifecycle.record("started")
            save_and_tell(self, "/tasks/start", events.TaskStart(container_id=self.id, pid=init.pid))
        except StatusError:
            init.lifecycle.record("start_failed")
            init.started_at_ns = None
            raise
        finally:
            init.starting = None
            starting.fire()
        return init.pid

    def _run_start(self) -> "Handler":
        """`runc start`; one that was killed half-way may have started it all the same, and that cannot be undone."""
        try:
            yield from self.runc.call(self.parts.reaper, "start", "start", self.id, deadline_s=runc.START_S)
        except StatusError as error:
            if not (yield from self.runc.is_running(self.parts.reaper)):
                raise
            self.parts.log.warning(f"started in spite of: {error}")

    def _word(self, process: Process) -> str:
        """The state as an error names it; a process that runs or is about to is `running`."""
        if process.reaped:
            return STOPPED
        return RUNNING if process.starting is not None or process.lifecycle.state == PAUSED else process.lifecycle.state

    # --- while it runs

    def kill(self, process: Process, signum: int, everyone: bool) -> "Handler":
        """Signal a process, or with ``everyone`` (of init only) all of the container. Raises: see Process.signal."""
        is_over = process.lifecycle.state == STOPPED
        if is_over and signum and process is self.init and self.restart is not None and self.restart.cancel():
            return
        if is_over and not (everyone and process is self.init):
            raise not_found("process already finished")
        if everyone and process is self.init:
            if not process.reaped:  # else it is about whoever is left behind
                process.check_signal(signum)
            yield from kill_everyone(self, signum)
            process.is_killed |= signum == signal.SIGKILL
        else:
            process.signal(signum)
        if process.is_killed and process is self.init and self.state == PAUSED:
            yield from thaw(self)

    def pause(self) -> "Handler":
        """Freeze every process. Raises: UNKNOWN in the wrong state, or with runc's words."""
        self.require("pause")
        yield from self.lock.acquire()
        try:
            self.require("pause")
            self.is_pausing = True  # no exec starts from here on
            try:
                yield from execs_started(self)
                faults.point("pause.begun")
                yield from freeze(self)
                faults.point("pause.run")
            except StatusError:
                yield from thaw(self)  # a freeze that was cut short must not leave the container half frozen
                raise
            finally:
                self.is_pausing = False
            if self.state == RUNNING:  # else it exited meanwhile, which has been told
                self.init.lifecycle.record("paused")
                save_and_tell(self, "/tasks/paused", events.TaskPaused(container_id=self.id))
                if self.init.is_killed:
                    yield from thaw(self)
        finally:
            self.lock.release()

    def resume(self) -> "Handler":
        """Thaw every process. Raises: UNKNOWN in the wrong state, or with runc's words."""
        self.require("resume")
        yield from self.lock.acquire()
        try:
            self.require("resume")
            faults.point("resume.begun")
            try:
                yield from self.runc.call(self.parts.reaper, "resume", "resume", self.id, deadline_s=runc.PAUSE_S)
            except StatusError as error:
                if not (yield from self.runc.is_running(self.parts.reaper)):
                    raise
                self.parts.log.warning(f"resumed in spite of: {error}")
            faults.point("resume.run")
            if self.state == PAUSED:
                self.init.lifecycle.record("resumed")
                save_and_tell(self, "/tasks/resumed", events.TaskResumed(container_id=self.id))
        finally:
            self.lock.release()

    def update(self, resources: bytes) -> "Handler":
        """Change the cgroup's limits; ``resources`` is OCI LinuxResources as JSON.

        Raises: InvalidArgument for bad JSON, UNKNOWN otherwise.
        """
        self.require("update")
        parse_object(resources, "resources")
        yield from self.lock.acquire()
        try:
            self.require("update")
            faults.point("update.begun")
            yield from self.runc.call(
                self.parts.reaper, "update", "update", "--resources=-", self.id,
                deadline_s=runc.UPDATE_S, input_bytes=resources,
            )  # fmt: skip
            faults.point("update.run")
        finally:
            self.lock.release()

    def pids(self) -> "Handler":
        """Every pid of the container: its cgroup's members, or where it has none of its own, what runc lists.

        Raises: UNKNOWN when runc cannot tell.
        """
        members = cgroups.pids(self.cgroup) if self.cgroup is not None else []
        if members:
            return members
        out = yield from self.runc.call(
            self.parts.reaper, "ps", "ps", "--format", "json", self.id, deadline_s=runc.LIST_S
        )
        try:
            return [int(pid) for pid in json.loads(out or b"null") or []]
        except (ValueError, TypeError):
            raise unknown(f"OCI runtime ps failed: unreadable answer {out[:200]!r}") from None

    def require(self, request: str) -> None:
        """Raises: NotFound before create and after delete, UNKNOWN in any other state the table refuses."""
        self.find("")
        if not self.init.lifecycle.may(request) or self.init.reaped:
            raise unknown(f"cannot {request} a {STOPPED if self.init.reaped else self.state} container")

    # --- the end

    def delete(self) -> "Handler":
        """Forget the container: runc's state, cgroup, mounts and fds. A container never started is killed first.

        Order: told after the exit. Raises: UNKNOWN while it runs; NotFound the second time.
        """
        init = self.find("")
        if self.state in (RUNNING, PAUSED) and not init.reaped:
            raise unknown(f"cannot delete a {self.state} process")
        if self.restart is not None:
            self.restart.cancel(for_good=True)
        if self.state == CREATED and not init.reaped:
            init.signal(signal.SIGKILL)
        try:
            yield Fired(init.told, deadline_s=ENDING_S)
        except DeadlinePassed:
            raise failed_precondition(
                f"init {init.pid} was killed but its exit is not on disk yet; try again"
            ) from None
        for process in (*self.execs.values(), init):
            if process.stdio is not None:
                yield from process.stdio.finish()
        yield from self.lock.acquire()
        try:
            self.find("")
            faults.point("delete.begun")
            yield from self.run_delete()
            faults.point("delete.run")
            self._release()
            faults.point("delete.released")
            init.lifecycle.record("deleted")
        finally:
            self.lock.release()
        assert init.exit is not None
        deleted = events.TaskDelete(container_id=self.id, pid=init.pid, exit_status=init.status)
        deleted.exited_at.CopyFrom(wkt.timestamp(init.exit.exited_at_ns))
        save_and_tell(self, "/tasks/delete", deleted)
        return init

    def run_delete(self) -> "Handler":
        """Have runc forget the container; that it knows of none is fine. Raises: UNKNOWN with runc's words."""
        for arguments in (("delete", self.id), ("delete", "--force", self.id)):
            try:
                yield from self.runc.call(self.parts.reaper, "delete", *arguments, deadline_s=runc.DELETE_S)
            except StatusError as error:
                if runc.is_gone(error):
                    return
                if "--force" in arguments:
                    raise
                self.parts.log.warning(f"delete fails, forcing it: {error}")
            else:
                return

    def _release(self) -> None:
        for process in (*self.execs.values(), self.init):
            process.close(self.parts)
            if not process.told.fired:
                process.told.fire(None)
        self.forget_cgroup()
        self.unmount()

    def unmount(self) -> None:
        if self.mounted:
            try:
                mounts.unmount_all(self.parts.bundle.rootfs)
                self.mounted = False
            except OSError as error:
                self.parts.log.error(f"cannot unmount the rootfs: {error}")
