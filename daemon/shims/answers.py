"""What the store and the shims know, as containerd's messages. Pure."""

from typing import TYPE_CHECKING

from daemon.exits import UNKNOWN_STATUS, exit_status
from daemon.store.records import CREATED, CREATING, DELETING, PAUSED, RESTARTING, RUNNING, STOPPED, StoredExit, TaskRow
from ttrpc.api import process, shim, task, tasks, wkt

if TYPE_CHECKING:
    from ttrpc.api.process import Process
    from ttrpc.api.shim import ExitRecord
    from ttrpc.api.task import DeleteResponse, StateResponse
    from ttrpc.api.tasks import CreateTaskRequest, WaitResponse

_STATUS = {
    CREATING: process.UNKNOWN,
    CREATED: process.CREATED,
    RUNNING: process.RUNNING,
    PAUSED: process.PAUSED,
    STOPPED: process.STOPPED,
    DELETING: process.STOPPED,
    RESTARTING: process.STOPPED,
}


def record_of(stored: StoredExit | None) -> "ExitRecord | None":
    return shim.ExitRecord.FromString(stored.record) if stored is not None else None


def process_of_state(container_id: str, exec_id: str, state: "StateResponse") -> "Process":
    """The shim's own word. `id` is the exec's for an exec, as in containerd."""
    made = process.Process(
        container_id=container_id,
        id=exec_id or container_id,
        pid=state.pid,
        status=state.status,  # type: ignore[arg-type]  # two enums, one meaning, the same numbers
        stdin=state.stdin,
        stdout=state.stdout,
        stderr=state.stderr,
        terminal=state.terminal,
        exit_status=state.exit_status,
    )
    made.exited_at.CopyFrom(wkt.timestamp(wkt.nanoseconds(state.exited_at)))
    return made


def process_of_record(row: TaskRow, request: "CreateTaskRequest", record: "ExitRecord | None") -> "Process":
    """Init as the records have it: last known while its shim is silent, final when its exit is stored."""
    made = process.Process(
        container_id=row.id,
        id=row.id,
        pid=row.pid,
        status=process.STOPPED if record is not None else _STATUS[row.state],
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
        terminal=request.terminal,
    )
    exited_at_ns = None
    if record is not None:
        made.pid = record.pid or row.pid
        made.exit_status = exit_status(record)
        exited_at_ns = wkt.nanoseconds(record.exited_at)
    made.exited_at.CopyFrom(wkt.timestamp(exited_at_ns))
    return made


def exec_of_record(container_id: str, record: "ExitRecord") -> "Process":
    """An exec that is over and whose shim is gone."""
    made = process.Process(
        container_id=container_id,
        id=record.exec_id,
        pid=record.pid,
        status=process.STOPPED,
        exit_status=exit_status(record),
    )
    made.exited_at.CopyFrom(wkt.timestamp(wkt.nanoseconds(record.exited_at)))
    return made


def wait_response(record: "ExitRecord") -> "WaitResponse":
    """An exit as containerd tells it: one number and a time."""
    made = tasks.WaitResponse(exit_status=exit_status(record))
    made.exited_at.CopyFrom(wkt.timestamp(wkt.nanoseconds(record.exited_at)))
    return made


def delete_response(row: TaskRow, stored: StoredExit | None) -> "DeleteResponse":
    """For a task whose shim no longer has it."""
    record = record_of(stored)
    made = task.DeleteResponse(pid=row.pid, exit_status=UNKNOWN_STATUS)
    exited_at_ns = None
    if record is not None:
        made.pid = record.pid or row.pid
        made.exit_status = exit_status(record)
        exited_at_ns = wkt.nanoseconds(record.exited_at)
    made.exited_at.CopyFrom(wkt.timestamp(exited_at_ns))
    return made
