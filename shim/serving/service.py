"""containerd's Task service: requests are checked here and answered from the container. v2 and v3 are the same."""
# ruff: noqa: N802 - handlers are named like the rpcs they answer

import os

from shim.bundle import require_id
from shim.core.steps import Signal
from shim.errors import already_exists, failed_precondition, invalid_argument, not_found, unimplemented, unknown
from shim.serving import answers
from shim.streams.stdio import StdioRequest
from shim.task import creation, execs
from shim.task.checkpoint import checkpoint
from shim.task.container import Container
from shim.task.lifecycle import CREATED, DELETED, PAUSED, RUNNING, STOPPED
from shim.task.runc import check_binary
from shim.version import VERSION
from ttrpc.api import runc, task, wkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.empty_pb2 import Empty

    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.task.exits import Exit
    from shim.task.process import Process
    from shim.upgrade.upgrading import Upgrade
    from ttrpc.server_call import ServerCall

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
# These are answered while a Create is under way; all others wait for its end, as containerd's shim has it. `ctr` counts
# on that: it asks for State as soon as the shim has opened the FIFOs, and gives up closing stdin when it finds none.
DURING_CREATE = ("Create", "Connect", "Shutdown")
# These need no container, and have somebody who waits for a shim to show a sign of life.
DURING_TAKEOVER = ("Info", "Follow", "Ack")
DURING_UPGRADE = ("Info", "Upgrade")
STATUS = {CREATED: 1, RUNNING: 2, STOPPED: 3, PAUSED: 4}
PAUSING = 5
OPTIONS_URL = "containerd.runc.v1.Options"


class TaskService:
    """Owns the container of this shim. A handler returns its reply, or is a generator that does, or answers the call
    itself and returns None.
    """

    names = SERVICES

    def __init__(
        self,
        parts: "Parts",
        read_stats: "Callable[[Any, int], Any]",
        shutdown: "Callable[[Callable[[], None]], None]",
    ) -> None:
        self.parts = parts
        self.container: Container | None = None
        self.creating: Signal | None = None
        self.restoring: Signal | None = None
        self.freezing: Signal | None = None  # while other code is about to go on: what comes is left to it
        self.upgrade: Upgrade | None = None
        self.on_deleted: Callable[[], object] = object
        self._read_stats = read_stats
        self._shutdown = shutdown

    def must_wait_for(self, call: "ServerCall") -> "Signal | None":
        """What has to happen before this call can be answered."""
        if self.freezing is not None:
            return None if call.method.name in DURING_UPGRADE else self.freezing
        if self.restoring is not None:
            return None if call.method.name in DURING_TAKEOVER else self.restoring
        name, restart = call.method.name, self.container.restart if self.container is not None else None
        if restart is not None and restart.under_way is not None and name not in DURING_CREATE + DURING_TAKEOVER:
            return restart.under_way
        if call.service in SERVICES and name not in DURING_CREATE:
            return self.creating
        return None

    @property
    def is_needed(self) -> bool:
        """Whether there is a container that was not deleted: then this shim must not end."""
        return self.container is not None and self.container.state != DELETED

    @property
    def is_forsaken(self) -> bool:
        """Whether the container is over and its bundle was removed: nobody deletes it any more, nothing can be kept."""
        container = self.container
        return container is not None and container.init.reaped and not os.path.lexists(self.parts.params.bundle)

    def find(self, container_id: str) -> Container:
        """Raises: NotFound for any id but that of the container created here."""
        if self.container is None or container_id not in ("", self.container.id):
            raise not_found(
                "container not created" if self.container is None else f"container {container_id} not found"
            )
        return self.container

    # --- create, start, exec, delete

    def Create(self, request: "task.CreateTaskRequest", _call: "ServerCall") -> "Handler":
        parts = self.parts
        require_id(request.id, "container id")
        if request.id != parts.params.id:
            raise invalid_argument(f"this shim was started for {parts.params.id}, not for {request.id}")
        if self.container is not None:
            if self.container.state == DELETED:
                raise failed_precondition(f"the task of {request.id} was deleted: start a new shim for a new one")
            raise already_exists(f"container {request.id} exists")
        parts.bundle.check_is(request.bundle)
        self._check_bundle_unused()
        if request.checkpoint:
            raise unimplemented("restoring from a checkpoint is not supported")
        options = read_options(request.options)
        check_binary(options.binary_name)
        spec = parts.bundle.read_spec()
        container = self.container = Container(
            parts, options, stdio_request(request), shares_pids=creation.shares_pid_namespace(spec)
        )
        creating = self.creating = Signal()
        try:
            pid = yield from creation.create(container, request)
        except BaseException:
            self.container = None
            raise
        finally:
            self.creating = None
            creating.fire()
        return task.CreateTaskResponse(pid=pid)

    def _check_bundle_unused(self) -> None:
        """A bundle holds one task: what an earlier shim left may be a container that runs.

        Raises: FailedPrecondition unless it was deleted.
        """
        try:
            state = self.parts.bundle.find_state()
        except ValueError:
            state = None  # what it was about the runtime knows: see creation.check_unused
        except OSError as error:
            raise unknown(f"what the bundle holds cannot be read: {error}") from None
        if state is not None and state.get("state") != DELETED:
            raise failed_precondition(
                f"the bundle holds the task of an earlier shim ({state.get('shim_pid')}): run the delete action first"
            )

    def Start(self, request: "task.StartRequest", _call: "ServerCall") -> "Handler":
        container = self.find(request.id)
        process = container.find(request.exec_id)
        started = execs.start(container, process) if request.exec_id else container.start()
        pid = yield from started
        return task.StartResponse(pid=pid)

    def Exec(self, request: "task.ExecProcessRequest", _call: "ServerCall") -> "Empty":
        container = self.find(request.id)
        container.find("")
        require_id(request.exec_id, "exec id")
        execs.add(container, request.exec_id, stdio_request(request), request.spec.value)
        return wkt.Empty()

    def Delete(self, request: "task.DeleteRequest", call: "ServerCall") -> "Handler":
        container = self.find(request.id)
        process = container.find(request.exec_id)
        if request.exec_id:
            yield from execs.delete(container, process, lambda: call.promise(answers.delete_response(process)))
        else:
            yield from container.delete()
            self.on_deleted()
        return answers.delete_response(process)

    # --- what is

    def State(self, request: "task.StateRequest", _call: "ServerCall") -> "task.StateResponse":
        container = self.find(request.id)
        process = container.find(request.exec_id)
        io = process.request
        return task.StateResponse(
            id=request.exec_id or container.id,  # as containerd's shim has it: an exec's id is in `id`
            bundle=self.parts.bundle.path,
            pid=process.pid,
            status=status_of(container, process),  # type: ignore[arg-type]  # an open enum
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
            exit_status=process.status,
            exited_at=wkt.timestamp(process.exited_at_ns),
        )

    def Wait(self, request: "task.WaitRequest", call: "ServerCall") -> None:
        """Answered at the exit, or at once after it. A waiter costs one dictionary entry, no handler."""
        process = self.find(request.id).find(request.exec_id)

        def told(record: "Exit | None") -> None:
            if record is None:
                error = not_found("process was deleted before it ran")
                call.fail(error.code, error.message)
            else:
                call.reply(task.WaitResponse(exit_status=record.status, exited_at=wkt.timestamp(record.exited_at_ns)))

        call.on_cancel(process.told.subscribe(told))

    def Pids(self, request: "task.PidsRequest", _call: "ServerCall") -> "Handler":
        container = self.find(request.id)
        init = container.find("")
        if container.state == STOPPED:
            # A task that has not been deleted still has something to say. containerd 1.7 and later take an empty list
            # after their restart for a leaked shim, and would erase it together with the exit status.
            pids = [init.pid]
        else:
            pids = yield from container.pids()
        owners = {process.pid: process.exec_id for process in container.execs.values() if process.is_alive}
        reply = task.PidsResponse()
        for pid in pids:
            info = reply.processes.add(pid=pid)
            if pid in owners:
                info.info.CopyFrom(wkt.pack(runc.ProcessDetails(exec_id=owners[pid])))
        return reply

    def Stats(self, request: "task.StatsRequest", _call: "ServerCall") -> "task.StatsResponse":
        container = self.find(request.id)
        container.find("")
        if container.cgroup is None:
            raise not_found("cgroup does not exist")
        return task.StatsResponse(
            stats=wkt.pack(self._read_stats(container.cgroup, container.init.pid if container.init.is_alive else 0))
        )

    def Connect(self, request: "task.ConnectRequest", _call: "ServerCall") -> "task.ConnectResponse":
        """Never fails: it is how a daemon finds out whether we live. Of another's container there is no pid."""
        container = self.container
        pid = container.init.pid if container is not None and request.id in ("", container.id) else 0
        return task.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=VERSION)

    # --- what is done to it

    def Kill(self, request: "task.KillRequest", call: "ServerCall") -> "Handler":
        container = self.find(request.id)
        yield from container.kill(container.find(request.exec_id), request.signal, request.all)
        call.promise(wkt.Empty())  # a successor need not send it once more
        return wkt.Empty()

    def Pause(self, request: "task.PauseRequest", _call: "ServerCall") -> "Handler":
        yield from self.find(request.id).pause()
        return wkt.Empty()

    def Resume(self, request: "task.ResumeRequest", _call: "ServerCall") -> "Handler":
        yield from self.find(request.id).resume()
        return wkt.Empty()

    def Update(self, request: "task.UpdateTaskRequest", _call: "ServerCall") -> "Handler":
        yield from self.find(request.id).update(request.resources.value)
        return wkt.Empty()

    def Checkpoint(self, request: "task.CheckpointTaskRequest", _call: "ServerCall") -> "Handler":
        options = runc.CheckpointOptions()
        if request.options.value:
            options.ParseFromString(request.options.value)
        if not request.path.startswith("/"):
            raise invalid_argument(f"checkpoint path {request.path!r} is not absolute")
        yield from checkpoint(self.find(request.id), request.path, options)
        return wkt.Empty()

    def CloseIO(self, request: "task.CloseIORequest", _call: "ServerCall") -> "Empty":
        """Asked for before the start it is remembered: `ctr` does so every time."""
        process = self.find(request.id).find(request.exec_id)
        if request.stdin:
            process.close_stdin()
        return wkt.Empty()

    def ResizePty(self, request: "task.ResizePtyRequest", _call: "ServerCall") -> "Empty":
        process = self.find(request.id).find(request.exec_id)
        if process.stdio is not None:
            process.stdio.resize(request.width, request.height)
        return wkt.Empty()

    def Shutdown(self, _request: "task.ShutdownRequest", call: "ServerCall") -> None:
        """End this shim, after the answer; while the container is not deleted, nothing."""
        if self.is_needed:
            call.reply(wkt.Empty())
        else:
            self._shutdown(lambda: call.reply(wkt.Empty()))


def status_of(container: Container, process: "Process") -> int:
    """The Status enum of the wire; an exec of a frozen container is frozen too. Pure."""
    if process.lifecycle.state == RUNNING:
        if container.is_pausing:
            return PAUSING
        if container.state == PAUSED:
            return STATUS[PAUSED]
    return STATUS[process.lifecycle.state]


def stdio_request(request: "task.CreateTaskRequest | task.ExecProcessRequest") -> StdioRequest:
    return StdioRequest(request.stdin, request.stdout, request.stderr, terminal=request.terminal)


def read_options(packed: "Any") -> "runc.Options":
    """runc's options out of the request. Another type's (Docker sends such) are not ours to read: all defaults.

    Raises: InvalidArgument for options that claim to be runc's and are not.
    """
    options = runc.Options()
    if packed.type_url.rsplit("/", 1)[-1] != OPTIONS_URL:
        return options
    try:
        options.ParseFromString(packed.value)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError, which costs a module to name
        raise invalid_argument(f"options are no {OPTIONS_URL}: {error}") from None
    return options
