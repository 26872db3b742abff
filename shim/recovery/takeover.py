"""Taking over the container of a shim that was killed: from its files, the kernel's word, and what the keeper held.

Nothing is asked of the container. What the dead shim had changed and not told is told now, once; what it had begun is
settled by facts; what ended meanwhile has the status that the keeper noted, or the kernel keeps, or none.
"""

import json
import time

from shim import faults
from shim.bundle import read_file
from shim.core.reaper import NotOurChild
from shim.core.steps import Signal
from shim.keeper import orphans
from shim.recovery import pins
from shim.recovery.successor import read_exec_states, wait_for_runtimes
from shim.recovery.watching import watch
from shim.streams import console
from shim.streams.stdio import StdioRequest
from shim.task import creation, execs
from shim.task.container import Container
from shim.task.ending import exit_event, on_exit
from shim.task.lifecycle import CREATED, CREATING, DELETED, PAUSED, RUNNING, STOPPED
from shim.task.pinning import pin, pin_again, unpin, unpin_stale
from shim.task.process import Process
from shim.task.saving import save, save_and_tell
from shim.upgrade.carrying import put_back
from ttrpc.api import events, wkt
from ttrpc.api import runc as runc_api
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.serving.service import TaskService
    from shim.task.exits import Exit


def begin(tasks: "TaskService", state: "dict[str, Any]") -> "Handler":
    """Take the container over; run it before anything is served, for calls about the container wait for its end.

    Raises: OSError, ValueError, KeyError: then this shim must not serve, for it would say there is no container.
    """
    parts = tasks.parts
    faults.point("takeover.begun")
    container = tasks.container = restore(parts, state)
    tasks.restoring = restoring = Signal()
    programs = {process.log_program[0] for process in container.processes() if process.log_program is not None}
    yield from wait_for_runtimes(parts, int(state["shim_pid"]), programs)
    console.sweep(parts.bundle.io_dir)
    faults.point("takeover.waited")
    retell(container, state)
    faults.point("takeover.retold")
    if container.restart is not None:
        yield from container.restart.settle_create()
    if container.state == CREATING and not (yield from _settle_create(container)):
        tasks.container = None
    else:
        yield from _settle(container)
    faults.point("takeover.settled")
    if tasks.container is not None:
        unpin_stale(container)
    parts.spares.settle()
    if tasks.container is not None and container.restart is not None:
        container.restart.resume()
    tasks.restoring = None
    restoring.fire()


def go_on(tasks: "TaskService", state: "dict[str, Any]", carried: "dict[str, Any]") -> None:
    """The same for what other code in this process has left a moment ago: all of it is exact, and nothing under way.

    Children are children still. Waits for nobody. Raises: whatever hinders it.
    """
    parts = tasks.parts
    container = tasks.container = restore(parts, state)
    container.oom_at = carried["oom_at"]
    retell(container, state)
    console.sweep(parts.bundle.io_dir)
    processes = container.processes()
    for process in processes:
        if process.name in carried["streams"]:
            _reopen(container, process, carried["streams"][process.name])
        if process.pid and not process.reaped:
            _keep(container, process)
    if not container.init.reaped:
        container.watch_cgroup()
    for process in processes:
        if process.exit is not None:
            if process.stdio is not None:
                process.stdio.exited(process.exit.to_message())
            process.told.fire(process.exit)
    orphans.forget_notes(parts.bundle.path, {each.pid for each in processes if each.exit is None})
    save(container)
    parts.spares.settle()
    if container.restart is not None:
        container.restart.resume()


def _keep(container: Container, process: Process) -> None:
    """Have a process's exit told: of a child by waiting for it, of any other as a successor has it."""
    try:
        ended = process.adopt(container.parts.reaper, process.pid)
    except NotOurChild:
        watch(container, process)
    else:
        ended.subscribe(lambda status: on_exit(container, process, status))
        pin_again(container, process)


def restore(parts: "Parts", state: "dict[str, Any]", *, is_check: bool = False) -> Container:
    """The container and its processes as the files have them; nothing is opened, and with ``is_check`` none removed."""
    options = runc_api.Options()
    try:
        for name, value in json.loads(read_file(parts.bundle.file("options.json"))).items():
            setattr(options, name, value)
    except FileNotFoundError:
        pass  # killed before it was written: nothing was created
    container = Container(parts, options, read_request(state["init"]), shares_pids=bool(state["shares_pids"]))
    container.mounted = bool(state["mounted"])
    container.oom_count = int(state["oom_count"])
    read_process(container.init, state["init"])
    if state.get("restart"):
        from shim.task import restarting  # only where a policy was set

        container.restart = restarting.read(container, state["restart"])
    for snapshot in read_exec_states(parts.bundle, parts.log.error):
        process = Process(snapshot["exec_id"], read_request(snapshot))
        if snapshot["state"] == STOPPED and _read_exit(parts, process.exec_id) is None:
            if not is_check:
                execs.remove_files(parts, process.exec_id)  # killed while it deleted this one
            continue
        read_process(process, snapshot)
        container.execs[process.exec_id] = process
    if not is_check:
        execs.remove_unfinished(parts)
    return container


def read_request(snapshot: "dict[str, Any]") -> StdioRequest:
    return StdioRequest(snapshot["stdin"], snapshot["stdout"], snapshot["stderr"], terminal=bool(snapshot["terminal"]))


def read_process(process: Process, snapshot: "dict[str, Any]") -> None:
    """What the file says of a process, as it was then."""
    process.lifecycle.state = snapshot["state"]
    process.pid = int(snapshot["pid"])
    process.start_ticks = int(snapshot["start_ticks"])
    process.inode = int(snapshot["inode"])
    process.started_at_ns = snapshot["started_at_ns"]
    process.stdin_closed = bool(snapshot["stdin_closed"])
    process.is_killed = bool(snapshot["is_killed"])
    program = snapshot["log_program"]
    process.log_program = (int(program[0]), int(program[1])) if program is not None else None


# --- what was changed and not told


def retell(container: Container, state: "dict[str, Any]") -> None:
    """Tell the changes and exits that are on disk and not in the journal, in their order.

    A number is never used for two events, also if the journal lost some that only its memory had (a full disk).
    """
    parts = container.parts
    journal = parts.journal
    journal.last_seq = max(journal.last_seq, int(state["journal_seq"]))
    untold: list[tuple[int, Any]] = []
    execs_on_disk = read_exec_states(parts.bundle, parts.log.debug)
    for telling in (state["telling"], *(each["telling"] for each in execs_on_disk)):
        if telling is not None and telling["seq"] > journal.last_seq:
            untold.append((int(telling["seq"]), telling))
    for process in (container.init, *container.execs.values()):
        record = _read_exit(parts, process.exec_id)
        if record is None:
            continue
        process.exit, process.reaped = record, True
        if process.lifecycle.state not in (STOPPED, DELETED):
            process.lifecycle.state = STOPPED
        if record.seq > journal.last_seq:
            untold.append((record.seq, record))
    for seq, what in sorted(untold, key=lambda item: item[0]):
        journal.last_seq = max(journal.last_seq, seq - 1)
        if isinstance(what, dict):
            parts.tell_packed(what["topic"], wkt.any_of(what["type_url"], bytes.fromhex(what["value"])))
        else:
            parts.tell("/tasks/exit", exit_event(what), what)


def _read_exit(parts: "Parts", exec_id: str) -> "Exit | None":
    try:
        record = parts.exits.read(exec_id)
    except ValueError as error:
        parts.log.error(f"the exit record of {exec_id or 'init'} is damaged: {error}")
        return None
    return record if record is not None and record.incarnation == parts.incarnation else None


# --- a create that was under way


def _settle_create(container: Container) -> "Handler":
    """Take what `runc create` left for created if it got so far, else undo it. False: there is no container."""
    init, parts = container.init, container.parts
    status = yield from container.runc.status(parts.reaper)
    pid = creation.recorded_pid(parts.bundle)
    if status == "created" and pid and init.identify(pid) and not init.request.terminal:
        init.lifecycle.record("created")
        parts.log.info(f"its create was under way, and was done: pid {pid}")
        yield from pin(container, init)
        save_and_tell(container, "/tasks/create", creation.created_event(container, []))
        return True
    parts.log.info(f"its create was under way and is undone; the runtime says {status or 'nothing'}")
    yield from creation.undo(container, has_run=True)
    return False


def _is_member(container: Container, pid: int) -> bool:
    """Whether a process is in the same cgroups as init: then the pid file's is meant, and nobody who got its number."""
    try:
        return read_file(f"/proc/{pid}/cgroup") == read_file(f"/proc/{container.init.pid}/cgroup")
    except (OSError, ValueError):
        return False


# --- a container


def _settle(container: Container) -> "Handler":
    """Open what the dead shim had open, and watch what it watched. Order: an exit is told after its start."""
    init = container.init
    if container.state == DELETED:
        return
    for process in tuple(container.execs.values()):
        _find_begun(container, process)
        yield from pin(container, process)
    processes = container.processes()
    for process in processes:
        process.starting = Signal()
        if container.restart is None or not container.restart.is_between_runs:
            _reopen(container, process)
    for process in processes:
        if process.pid and not process.reaped:
            watch(container, process)
    if not init.reaped:
        container.watch_cgroup()
    yield from _settle_init(container)
    for process in processes:
        starting, process.starting = process.starting, None
        if starting is not None:
            starting.fire()
        if process.exit is not None:
            if process.stdio is not None:
                process.stdio.exited(process.exit.to_message())
            process.told.fire(process.exit)
            unpin(container, process)
    orphans.forget_notes(container.parts.bundle.path, {each.pid for each in processes if each.exit is None})
    save(container)


def _reopen(container: Container, process: Process, carried: "dict[str, Any] | None" = None) -> None:
    """Open its streams again. One that cannot be is reported: the container is worth more than its output.

    ``carried``: what was in the memory of the code before this one, in this process.
    """
    stdio = process.stdio = container.parts.make_stdio(process, container.options.io_uid, container.options.io_gid)
    has_input = carried is not None and bool(carried["stdin"])
    if process.stdin_closed and not has_input:
        stdio.close_stdin()
    try:
        stdio.keeps_fifos = True
        stdio.open(reopens=process.pid != 0)
        if carried is not None:
            put_back(stdio, carried)
        if process.stdin_closed and has_input:
            stdio.close_stdin()
        if process.pid:
            stdio.started()
        if process.pid and process.exit is None and stdio.program is not None:
            stdio.program.take_over(process.log_program)
    except (OSError, StatusError) as error:
        container.parts.log.error(f"the streams of {process.name} cannot be opened again: {error}")


def _settle_init(container: Container) -> "Handler":
    """What the runtime says its state is now; a start, pause or resume that was under way may have been done."""
    init = container.init
    status = "" if init.reaped else (yield from container.runc.status(container.parts.reaper))
    if status in ("", "stopped") and init.exit is None and container.state == CREATED and container.runc.was_started():
        status = "running"  # over by now, which is told after its start
    if container.state == CREATED and status in ("running", "paused"):
        init.started_at_ns = time.time_ns()
        init.lifecycle.record("started")
        save_and_tell(container, "/tasks/start", events.TaskStart(container_id=container.id, pid=init.pid))
    if container.state == RUNNING and status == "paused":
        init.lifecycle.record("paused")
        save_and_tell(container, "/tasks/paused", events.TaskPaused(container_id=container.id))
    elif container.state == PAUSED and status == "running":
        init.lifecycle.record("resumed")
        save_and_tell(container, "/tasks/resumed", events.TaskResumed(container_id=container.id))


def _find_begun(container: Container, process: Process) -> None:
    """An exec whose start was under way: `runc exec` writes the pid file once the process is there.

    Without one it was not begun, and can be started, or deleted.
    """
    if process.lifecycle.state != CREATED or process.exit is not None:
        return
    pid = creation.recorded_pid(container.parts.bundle, f"execs/{process.exec_id}.pid")
    if not pid:
        return
    if not (_is_member(container, pid) and process.identify(pid)):
        process.pid = pid  # it is over, and its start time nobody knows; a pin has its inode
        process.inode = pins.find(container.parts.params.socket_path, pid)
    process.started_at_ns = time.time_ns()
    process.lifecycle.record("started")
    container.parts.log.info(f"the start of exec {process.exec_id} was under way, and was done: pid {pid}")
    started = events.TaskExecStarted(container_id=container.id, exec_id=process.exec_id, pid=pid)
    save_and_tell(container, "/tasks/exec-started", started, process)
