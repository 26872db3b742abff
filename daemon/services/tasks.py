"""containerd.services.tasks.v1: names and records here, the state of things in the shims."""

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import trio

from daemon import faults, procfs
from daemon.errors import invalid_argument, not_found, unimplemented
from daemon.identifiers import require_identifier
from daemon.services import fleet, waiting
from daemon.services.call import Call, deadline_of, namespace_of
from daemon.services.containers import require_container
from daemon.shims import answers, evidence, foreign
from daemon.shims.client import earlier
from daemon.shims.handle import Handle, Health
from daemon.shims.manager import Manager
from daemon.store.records import CREATING, STOPPED
from ttrpc.api import runc, task, tasks, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ttrpc.api import tasks as api
    from ttrpc.api.process import Process

log = logging.getLogger(__name__)


class Tasks:
    """Handlers of containerd.services.tasks.v1.Tasks. What they forward keeps the client's deadline."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._timeouts = manager.config.timeouts

    async def _find(self, request: Any, call: Call) -> Handle:
        """The task a request is about. Raises: NotFound, also for a container that is not there."""
        ns = namespace_of(call)
        require_identifier(request.container_id, "container id")
        if self._manager.known(ns, request.container_id) is None:
            require_container(self._manager.database, ns, request.container_id)
        return await self._manager.find(ns, request.container_id, deadline_of(call))

    async def _forward(self, handle: Handle, call: Call, method: str, request: "Message", timeout_s: float) -> Any:
        """One call to the task's shim, within our limit and the client's."""
        deadline = deadline_of(call)
        client = await handle.connected(earlier(self._timeouts.connect_s, deadline))
        return await client.task(method, request, earlier(timeout_s, deadline))

    # --- life

    async def Create(self, request: "api.CreateTaskRequest", call: Call) -> "api.CreateTaskResponse":  # noqa: N802
        ns = namespace_of(call)
        container = require_container(self._manager.database, ns, request.container_id)
        if request.HasField("checkpoint"):
            raise unimplemented("restoring a checkpoint needs the content store, which this release lacks")
        handle = await self._manager.create(ns, container, request, deadline_of(call))
        return tasks.CreateTaskResponse(container_id=handle.id, pid=handle.row.pid)

    async def Start(self, request: "api.StartRequest", call: Call) -> "api.StartResponse":  # noqa: N802
        handle = await self._find(request, call)
        pid = await self._manager.start(handle, request.exec_id, deadline_of(call))
        return tasks.StartResponse(pid=pid)

    async def Delete(self, request: "api.DeleteTaskRequest", call: Call) -> "api.DeleteResponse":  # noqa: N802
        handle = await self._find(request, call)
        answer = await self._manager.delete(handle)
        return tasks.DeleteResponse(
            id=handle.id, pid=answer.pid, exit_status=answer.exit_status, exited_at=answer.exited_at
        )

    async def DeleteProcess(self, request: "api.DeleteProcessRequest", call: Call) -> "api.DeleteResponse":  # noqa: N802
        if not request.exec_id:
            raise invalid_argument("exec id must not be empty: Delete is for the task itself")
        handle = await self._find(request, call)
        asked = task.DeleteRequest(id=handle.id, exec_id=request.exec_id)
        await handle.connected(earlier(self._timeouts.connect_s, deadline_of(call)))
        if handle.foreign is not None:
            await handle.foreign.settle(request.exec_id)
        answer = await self._forward(handle, call, "Delete", asked, self._timeouts.delete_s)
        if handle.foreign is not None:
            await handle.foreign.deleted(request.exec_id, answer)
        return tasks.DeleteResponse(
            id=request.exec_id, pid=answer.pid, exit_status=answer.exit_status, exited_at=answer.exited_at
        )

    async def Exec(self, request: "api.ExecProcessRequest", call: Call) -> "Message":  # noqa: N802
        require_identifier(request.exec_id, "exec id")
        handle = await self._find(request, call)
        asked = task.ExecProcessRequest(
            id=handle.id,
            exec_id=request.exec_id,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        asked.spec.CopyFrom(request.spec)
        client = await handle.connected(earlier(self._timeouts.connect_s, deadline_of(call)))
        faults.point("exec.before_call")
        with foreign.noting_exec(handle.row.bundle, request.exec_id) if client.is_foreign else contextlib.nullcontext():
            await self._forward(handle, call, "Exec", asked, self._timeouts.call_s)
        faults.point("exec.called")
        return wkt.Empty()

    # --- looking

    async def Get(self, request: "api.GetRequest", call: Call) -> "api.GetResponse":  # noqa: N802
        """The shim's word; of a task that is over and whose shim is gone, the store's."""
        handle = await self._find(request, call)
        if request.exec_id:
            return tasks.GetResponse(process=await self._get_exec(handle, request.exec_id, call))
        return tasks.GetResponse(process=await self._get_init(handle, call))

    async def _get_init(self, handle: Handle, call: Call) -> "Process":
        """Of a task whose exit is stored, the record: nothing can change it. Else the shim's word; one that is lost
        while it is asked is asked again once it is found again."""
        ends_at = trio.current_time() + earlier(self._timeouts.state_s, deadline_of(call))
        while True:
            handle.require_present()
            is_over = self._manager.stored_exit(handle) is not None
            if is_over or (handle.client is None and handle.row.state == STOPPED):
                return fleet.from_records(self._manager, handle)
            try:
                return await fleet.ask_state(handle, "", earlier(self._timeouts.state_s, ends_at))
            except StatusError as error:
                if error.code == Code.NOT_FOUND:  # the shim has no container yet
                    raise not_found(f"task {handle.id} not found") from None
                is_lost = error.code == Code.UNAVAILABLE and handle.health in (Health.SERVING, Health.CONNECTING)
                if not is_lost or trio.current_time() >= ends_at:
                    raise
            await handle.wait_changed(ends_at - trio.current_time())

    async def _get_exec(self, handle: Handle, exec_id: str, call: Call) -> "Process":
        stored = answers.record_of(self._manager.stored_exit(handle, exec_id))
        if handle.client is None and stored is not None:
            return answers.exec_of_record(handle.id, stored)
        if handle.health is Health.GONE:
            raise not_found(f"process {exec_id} of task {handle.id} does not exist, or went with its shim")
        return await fleet.ask_state(handle, exec_id, earlier(self._timeouts.state_s, deadline_of(call)))

    async def List(self, request: "api.ListTasksRequest", call: Call) -> "api.ListTasksResponse":  # noqa: N802
        """All at once, two seconds each; a shim that does not answer is reported as last known."""
        found = await fleet.list_tasks(self._manager, namespace_of(call), request.filter, deadline_of(call))
        return tasks.ListTasksResponse(tasks=found)

    async def Metrics(self, request: "api.MetricsRequest", call: Call) -> "api.MetricsResponse":  # noqa: N802
        found = await fleet.metrics(self._manager, namespace_of(call), list(request.filters), deadline_of(call))
        return tasks.MetricsResponse(metrics=found)

    async def ListPids(self, request: "api.ListPidsRequest", call: Call) -> "api.ListPidsResponse":  # noqa: N802
        handle = await self._find(request, call)
        answer = await self._forward(handle, call, "Pids", task.PidsRequest(id=handle.id), self._timeouts.call_s)
        made = tasks.ListPidsResponse()
        for one in answer.processes:
            process = made.processes.add(pid=one.pid)
            if one.HasField("info"):
                process.info.CopyFrom(one.info)
        return made

    async def Wait(self, request: "api.WaitRequest", call: Call) -> "api.WaitResponse":  # noqa: N802
        """The exit, once it is stored: an answer given is never forgotten, whatever dies afterwards.

        Lasts as long as the process; survives the shim, whose successor or records tell the end.
        """
        handle = await self._find(request, call)
        await handle.wait_until(lambda: handle.is_deleted or handle.row.state != CREATING)
        handle.require_present()
        if request.exec_id:
            timeout_s = earlier(self._timeouts.state_s, deadline_of(call))
            return answers.wait_response(await waiting.exec_exit(self._manager, handle, request.exec_id, timeout_s))
        return answers.wait_response(await waiting.init_exit(self._manager, handle))

    # --- acting

    async def Kill(self, request: "api.KillRequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request, call)
        if handle.health is Health.GONE:
            _kill_without_shim(handle, request)
            return wkt.Empty()
        asked = task.KillRequest(id=handle.id, exec_id=request.exec_id, signal=request.signal, all=request.all)
        await self._forward(handle, call, "Kill", asked, self._timeouts.call_s)
        return wkt.Empty()

    async def ResizePty(self, request: "api.ResizePtyRequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request, call)
        asked = task.ResizePtyRequest(id=handle.id, exec_id=request.exec_id, width=request.width, height=request.height)
        await self._forward(handle, call, "ResizePty", asked, self._timeouts.call_s)
        return wkt.Empty()

    async def CloseIO(self, request: "api.CloseIORequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request, call)
        asked = task.CloseIORequest(id=handle.id, exec_id=request.exec_id, stdin=request.stdin)
        await self._forward(handle, call, "CloseIO", asked, self._timeouts.call_s)
        return wkt.Empty()

    async def Pause(self, request: "api.PauseTaskRequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request, call)
        await self._forward(handle, call, "Pause", task.PauseRequest(id=handle.id), self._timeouts.call_s)
        return wkt.Empty()

    async def Resume(self, request: "api.ResumeTaskRequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request, call)
        await self._forward(handle, call, "Resume", task.ResumeRequest(id=handle.id), self._timeouts.call_s)
        return wkt.Empty()

    async def Update(self, request: "api.UpdateTaskRequest", call: Call) -> "Message":  # noqa: N802
        handle = await self._find(request, call)
        asked = task.UpdateTaskRequest(id=handle.id, annotations=dict(request.annotations))
        asked.resources.CopyFrom(request.resources)
        await self._forward(handle, call, "Update", asked, self._timeouts.call_s)
        return wkt.Empty()

    async def Checkpoint(  # noqa: N802
        self, request: "api.CheckpointTaskRequest", call: Call
    ) -> "api.CheckpointTaskResponse":
        """Into a directory of the client's choice; criu does it, and its words are the error's."""
        handle = await self._find(request, call)
        path = _checkpoint_path(request)
        # In a thread: the client's directory may be on a file system that hangs.
        await trio.to_thread.run_sync(lambda: os.makedirs(path, mode=0o700, exist_ok=True), abandon_on_cancel=True)
        asked = task.CheckpointTaskRequest(id=handle.id, path=path)
        asked.options.CopyFrom(request.options)
        await self._forward(handle, call, "Checkpoint", asked, self._timeouts.checkpoint_s)
        return tasks.CheckpointTaskResponse()


def _checkpoint_path(request: "api.CheckpointTaskRequest") -> str:
    options = runc.CheckpointOptions()
    if request.options.type_url.rpartition("/")[2] == "containerd.runc.v1.CheckpointOptions":
        options.MergeFromString(request.options.value)
    if not options.image_path:
        raise unimplemented(
            "a checkpoint without image_path goes into the content store, which this release lacks: "
            "name a directory in the options' image_path"
        )
    if not os.path.isabs(options.image_path):
        raise invalid_argument(f"checkpoint image_path {options.image_path!r} must be absolute")
    return str(options.image_path)


def _kill_without_shim(handle: Handle, request: "api.KillRequest") -> None:
    """Signal a container whose shim is gone, so that it can be ended: exactly its init, by pidfd and start time.

    Raises: NotFound when there is nothing to signal.
    """
    init = evidence.recorded_init(handle.row, handle.row.bundle)
    if request.exec_id or handle.row.state == STOPPED or init is None or not procfs.kill(init, request.signal):
        raise not_found(f"task {handle.id}: process already finished")
