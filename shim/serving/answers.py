"""What a call is answered with that a shim had begun and was killed: by what is so now, where that says it was done.

A request that changes something is noted with one fact before it is begun: whether it could be done as things stood.
If it could, and now what it asks for is there, then it was done: nothing but this request can have done it. In all
other cases it is begun (again), as if it had come a little later.
"""

from shim.core import kernel
from shim.errors import unknown
from shim.task.lifecycle import CREATED, CREATING, DELETED, PAUSED, RUNNING, STOPPED
from ttrpc.api import task, wkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from google.protobuf.message import Message

    from shim.serving.service import TaskService
    from shim.task.container import Container
    from shim.task.process import Process
    from ttrpc.server_call import ServerCall

    Before: TypeAlias = Callable[[TaskService, Any], bool]
    After: TypeAlias = Callable[[TaskService, Any, "bytes | None"], "Message | None"]

REFUSED, POSSIBLE = 0, 1
OUR_SERVICE = "shimd.shim.v1.Shim"


def begin(tasks: "TaskService", call: "ServerCall") -> "Any":
    """The answer of a call, or the handler that will have it; None where that answers by itself.

    Raises: whatever the handler does.
    """
    if call.recovered is not None:
        answer = known_answer(tasks, call)
        if answer is not None:
            return answer
    fact = fact_of(tasks, call)
    if fact is not None:
        call.begin(fact)
    return call.handler(call.request, call)


def fact_of(tasks: "TaskService", call: "ServerCall") -> "int | None":
    """What is to be noted of a request before it is begun; None for one that can be done twice without harm."""
    rule = _RULES.get(call.method.name)
    if rule is None or call.service not in (*tasks.names, OUR_SERVICE):
        return None
    return POSSIBLE if rule[0](tasks, call.request) else REFUSED


def known_answer(tasks: "TaskService", call: "ServerCall") -> "Message | None":
    """The answer of a request that a predecessor had begun, where it is known; None: begin it.

    Raises: StatusError when nobody can know.
    """
    recovered, call.recovered = call.recovered, None
    if recovered is None or recovered.fact != POSSIBLE:
        return None
    return _RULES[call.method.name][1](tasks, call.request, recovered.promise)


def _process(tasks: "TaskService", request: "Any") -> "tuple[Container | None, Process | None]":
    container = tasks.container
    if container is None or request.id not in ("", container.id):
        return None, None
    return container, container.execs.get(request.exec_id) if request.exec_id else container.init


# --- could it be done?


def _can_create(tasks: "TaskService", _request: "Any") -> bool:
    return tasks.container is None


def _can_start(tasks: "TaskService", request: "Any") -> bool:
    _, process = _process(tasks, request)
    return process is not None and process.lifecycle.state == CREATED and process.starting is None


def _can_exec(tasks: "TaskService", request: "Any") -> bool:
    container, process = _process(tasks, request)
    return container is not None and process is None


def _can_delete(tasks: "TaskService", request: "Any") -> bool:
    container, process = _process(tasks, request)
    return container is not None and container.state != DELETED and process is not None


def _can_kill(tasks: "TaskService", request: "Any") -> bool:
    _, process = _process(tasks, request)
    return process is not None and process.is_alive


def _is_running(tasks: "TaskService", _request: "Any") -> bool:
    return tasks.container is not None and tasks.container.state == RUNNING


def _is_paused(tasks: "TaskService", _request: "Any") -> bool:
    return tasks.container is not None and tasks.container.state == PAUSED


def _can_checkpoint(tasks: "TaskService", _request: "Any") -> bool:
    return tasks.container is not None and tasks.container.init.lifecycle.may("checkpoint")


# --- was it done?


def _created(tasks: "TaskService", _request: "Any", _promise: "bytes | None") -> "Message | None":
    container = tasks.container
    if container is None or container.state == CREATING:
        return None
    return task.CreateTaskResponse(pid=container.init.pid)


def _started(tasks: "TaskService", request: "Any", _promise: "bytes | None") -> "Message | None":
    container, process = _process(tasks, request)
    if container is None or process is None or not process.pid:
        return None
    state = process.lifecycle.state
    if process is container.init and (state == CREATED or (state == STOPPED and process.started_at_ns is None)):
        return None
    return task.StartResponse(pid=process.pid)


def _added(tasks: "TaskService", request: "Any", _promise: "bytes | None") -> "Message | None":
    _, process = _process(tasks, request)
    return wkt.Empty() if process is not None else None


def _deleted(tasks: "TaskService", request: "Any", promise: "bytes | None") -> "Message | None":
    container, process = _process(tasks, request)
    if container is None or (process is not None and container.state != DELETED):
        return None
    if process is not None and process is container.init:
        return delete_response(process)
    return task.DeleteResponse.FromString(promise) if promise is not None else None


def _killed(tasks: "TaskService", request: "Any", promise: "bytes | None") -> "Message | None":
    _, process = _process(tasks, request)
    if promise is None and process is not None and process.is_alive:
        try:
            kernel.send_signal(process.pidfd, process.pid, 0)
        except ProcessLookupError:
            pass  # it is over, and we have not been told yet
        else:
            return None
    return wkt.Empty()


def _paused(tasks: "TaskService", request: "Any", _promise: "bytes | None") -> "Message | None":
    return wkt.Empty() if _is_paused(tasks, request) else None


def _resumed(tasks: "TaskService", request: "Any", _promise: "bytes | None") -> "Message | None":
    return wkt.Empty() if _is_running(tasks, request) else None


def _checkpointed(tasks: "TaskService", request: "Any", _promise: "bytes | None") -> "Message | None":
    if _is_running(tasks, request) or _is_paused(tasks, request):
        return None
    raise unknown("the shim was killed while it made the checkpoint: whether that is complete is not known")


def _can_upgrade(_tasks: "TaskService", _request: "Any") -> bool:
    return True


def _upgraded(tasks: "TaskService", _request: "Any", _promise: "bytes | None") -> "Message | None":
    outcome = tasks.upgrade.answer() if tasks.upgrade is not None else None
    if outcome is None:
        raise unknown("the shim was killed during its upgrade, and another took over: see which version it has")
    return outcome


def delete_response(process: "Process") -> "task.DeleteResponse":
    """What Delete answers for a process that ended, or never ran."""
    return task.DeleteResponse(
        pid=process.pid, exit_status=process.status, exited_at=wkt.timestamp(process.exited_at_ns)
    )


_RULES: "dict[str, tuple[Before, After]]" = {
    "Create": (_can_create, _created),
    "Start": (_can_start, _started),
    "Exec": (_can_exec, _added),
    "Delete": (_can_delete, _deleted),
    "Kill": (_can_kill, _killed),
    "Pause": (_is_running, _paused),
    "Resume": (_is_paused, _resumed),
    "Checkpoint": (_can_checkpoint, _checkpointed),
    "Upgrade": (_can_upgrade, _upgraded),
}
