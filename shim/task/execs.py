"""Execs: more processes in a running container."""

import json
import os
import signal
import time

from shim import faults
from shim.bundle import parse_object, remove, write_replacing
from shim.core import kernel
from shim.core.reaper import NotOurChild
from shim.core.steps import DeadlinePassed, Fired, Signal
from shim.errors import already_exists, failed_precondition, invalid_argument, not_found, unknown
from shim.task import runc
from shim.task.ending import ENDING_S, on_exit
from shim.task.lifecycle import CREATED, PAUSED, RUNNING
from shim.task.pinning import pin, unpin
from shim.task.process import Process
from shim.task.saving import save_and_tell
from ttrpc.api import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.streams.stdio import StdioRequest
    from shim.task.container import Container

# Execs that are over and wait to be deleted: as many as clients have under way at once, and more.
KEPT_ENDED = 64


def add(container: "Container", exec_id: str, io: "StdioRequest", spec: bytes) -> None:
    """Register an exec: its id is taken, its streams are open (so a client can attach first), nothing runs yet.

    Raises: AlreadyExists; UNKNOWN unless the container is created or runs; InvalidArgument for what nobody could run.
    """
    container.require("exec")
    if exec_id == container.id:
        raise invalid_argument(f"exec id {exec_id!r} is the container's own: their exits could not be told apart")
    if exec_id in container.execs:
        raise already_exists(f"id {exec_id}")
    process_spec = check_process(spec, io.terminal)
    faults.point("exec.begun")
    process = Process(exec_id, io)
    container.open_stdio(process)
    try:
        write_replacing(_file(container, exec_id, "process.json"), json.dumps(process_spec).encode())
    except OSError as error:
        process.close(container.parts)
        raise unknown(f"cannot write the process of exec {exec_id}: {error.strerror}") from None
    container.execs[exec_id] = process
    faults.point("exec.written")
    added = events.TaskExecAdded(container_id=container.id, exec_id=exec_id)
    save_and_tell(container, "/tasks/exec-added", added, process)


def check_process(raw: bytes, terminal: bool) -> "dict[str, Any]":
    """An OCI process object as runc can take it; the request's word about a terminal is the one that counts. Pure.

    Raises: InvalidArgument naming the field.
    """
    spec = parse_object(raw, "exec spec")
    arguments = spec.get("args")
    if not isinstance(arguments, list) or not arguments or not all(isinstance(word, str) for word in arguments):
        raise invalid_argument("exec spec: args must be a list of strings, the program first")
    if not isinstance(spec.get("cwd"), str) or not spec["cwd"].startswith("/"):
        raise invalid_argument("exec spec: cwd must be an absolute path")
    return {**spec, "terminal": terminal}


def start(container: "Container", process: Process) -> "Handler":
    """Run it. The value is its pid. Order: `exec-started` is told before its exit.

    Raises: FailedPrecondition after init's exit, UNKNOWN in the wrong state or with runc's words.
    """
    if container.init.reaped or container.state not in (CREATED, RUNNING, PAUSED):
        raise failed_precondition(f"container {container.id} init process is not running")
    if container.state == PAUSED or container.is_pausing:
        raise unknown("cannot start an exec in a paused container")
    if process.lifecycle.state != CREATED or process.starting is not None:
        state = "running" if process.starting is not None else process.lifecycle.state
        raise unknown(f"cannot start a {state} process")
    process.starting = starting = Signal()
    container.parts.reaper.hold()
    try:
        yield from _run(container, process)
    except Exception as error:
        unpin(container, process)  # while its pid is known and its pidfd open
        _kill_leftover(container, process)
        process.lifecycle.record("start_failed")
        process.close(container.parts)
        if isinstance(error, OSError):
            raise unknown(f"cannot start exec {process.exec_id}: {error}") from None
        raise
    finally:
        container.parts.reaper.release()
        process.starting = None
        starting.fire()
    return process.pid


def _run(container: "Container", process: Process) -> "Handler":
    parts = container.parts
    pid_file = _file(container, process.exec_id, "pid")
    remove(pid_file)
    container.reserve_exit(process.exec_id)
    stdio = process.stdio or container.open_stdio(process)  # closed when an earlier start failed
    yield from stdio.prepare()
    faults.point("exec_start.begun")
    arguments = ["exec", "--detach", "--process", _file(container, process.exec_id, "process.json")]
    arguments += ["--pid-file", pid_file]
    if stdio.console_socket:
        arguments += ["--console-socket", stdio.console_socket]
    process.started_at_ns = time.time_ns()
    yield from container.runc.call(
        parts.reaper, "exec", *arguments, container.id,
        deadline_s=runc.EXEC_S, stdio=stdio.child_ends(), log_path=_file(container, process.exec_id, "log.json"),
    )  # fmt: skip
    faults.point("exec_start.run")
    ended = yield from container.adopt(process, pid_file)
    faults.point("exec_start.adopted")
    yield from pin(container, process)
    process.lifecycle.record("started")
    remove(_file(container, process.exec_id, "process.json"))
    started = events.TaskExecStarted(container_id=container.id, exec_id=process.exec_id, pid=process.pid)
    save_and_tell(container, "/tasks/exec-started", started, process)
    ended.subscribe(lambda status: on_exit(container, process, status))


def _kill_leftover(container: "Container", process: Process) -> None:
    """Kill what a runtime left behind that failed, or was killed, with the process already running.

    Order: while the reaper holds strangers, so that the pid is still that process.
    """
    try:
        pid = container.parts.bundle.read_pid(_file(container, process.exec_id, "pid"))
        container.parts.reaper.adopt(pid)
        kernel.send_signal(None, pid, signal.SIGKILL)
        container.parts.reaper.take(pid)
    except (OSError, ValueError, NotOurChild):  # the usual case: there is none
        pass
    process.pid, process.reaped = 0, False


def delete(container: "Container", process: Process, about_to: "Callable[[], None] | None" = None) -> "Handler":
    """Forget an exec that ended or never started, with its files. Its exit stays in the journal.

    ``about_to`` is called when nothing can hinder it any more. Raises: UNKNOWN while it runs; NotFound the second time.
    """
    if (process.lifecycle.state == RUNNING and not process.reaped) or process.starting is not None:
        raise unknown("cannot delete a running process")
    if process.reaped:
        try:
            yield Fired(process.told, deadline_s=ENDING_S)
        except DeadlinePassed:
            raise failed_precondition(
                f"exec {process.exec_id} ended but its exit is not on disk yet; try again"
            ) from None
    if process.stdio is not None:
        yield from process.stdio.finish()
    if container.execs.pop(process.exec_id, None) is not process:
        raise not_found(f"process does not exist {process.exec_id}")
    if about_to is not None:
        about_to()
    faults.point("exec_delete.begun")
    process.close(container.parts)
    remove_files(container.parts, process.exec_id)
    faults.point("exec_delete.done")
    if not process.told.fired:
        process.told.fire(None)


def forget_surplus(container: "Container", stored_seq: int) -> None:
    """Forget execs that are over, stored elsewhere, and deleted by nobody, such as detached ones: all but the newest.

    Whoever asks for one afterwards is answered by who stored it. One that a client is attached to stays.
    """
    over = [
        process
        for process in container.execs.values()
        if process.told.fired
        and process.exit is not None
        and process.exit.seq <= stored_seq
        and (process.stdio is None or not process.stdio.attached)
    ]
    if len(over) > KEPT_ENDED:
        over.sort(key=lambda process: process.exit.seq if process.exit is not None else 0)
        for process in over[:-KEPT_ENDED]:
            # Its only failure is that somebody has deleted it meanwhile.
            container.parts.loop.spawn(delete(container, process), lambda _value, _error: None)


def remove_files(parts: "Parts", exec_id: str) -> None:
    """Order: the exit record first. Without it, a state file that says `stopped` tells of a delete cut short."""
    parts.exits.forget(exec_id)
    faults.point("exec_delete.half")
    for name in ("process.json", "pid", "log.json", "state.json"):
        remove(parts.bundle.file("execs", f"{exec_id}.{name}"))


def remove_unfinished(parts: "Parts") -> None:
    """Remove what a shim was writing when it was killed: nobody reads it, and its exec may never be written again."""
    directory = parts.bundle.execs_dir
    for name in os.listdir(directory):
        if name.endswith(".new"):
            remove(os.path.join(directory, name))


def _file(container: "Container", exec_id: str, name: str) -> str:
    return container.parts.bundle.file("execs", f"{exec_id}.{name}")
