"""The path of an exit: reaped, others first, output drained, record on disk, journal, and only then anybody is told."""

import signal
import time

from shim import faults
from shim.bundle import remove
from shim.cgroup import cgroups
from shim.core.steps import DeadlinePassed, Fired, Sleep
from shim.keeper import orphans
from shim.task import runc
from shim.task.exits import DRAIN_S, SOURCE_KEEPER, SOURCE_WAITID, Ended, Exit
from shim.task.lifecycle import STOPPED
from shim.task.pinning import unpin
from shim.task.saving import save, save_exec
from ttrpc.api import events, wkt
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.steps import Handler
    from shim.task.container import Container
    from shim.task.process import Process
    from ttrpc.api.events import TaskExit

# For all exits of execs to be told before init's. Their processes are dead with init's namespace; what takes time is
# draining them, and a `runc exec` that was under way.
EXECS_S = 10.0
# How long Delete waits for an exit that is just being told, init having been killed for it if need be.
ENDING_S = 30.0
# How long a container is tried to be frozen, and between the tries.
FREEZE_S, FREEZE_PAUSE_S = 5.0, 0.05
# An OOM kill so shortly before an exit that was not clean is called its cause.
OOM_RECENT_S = 10.0
# Between tries to write an exit record that a full disk refused: this at first, doubling up to the limit.
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 1.0


def on_exit(container: "Container", process: "Process", ended: "int | Ended") -> None:
    """A process is over: from here on its pid is not used any more. The rest takes its time."""
    process.reaped = True
    if isinstance(ended, int):
        ended = Ended(ended, SOURCE_WAITID, time.time_ns())
    container.parts.loop.spawn(end(container, process, ended))


def end(container: "Container", process: "Process", ended: Ended) -> "Handler":
    """Tell a process's exit. Order: after its start, its output, the OOM that caused it, and, for init, all execs."""
    if process.starting is not None:
        yield Fired(process.starting)
    faults.point("exit.reaped.", process.name)
    for step in (_end_others, _drain, _look_for_oom):
        try:
            yield from step(container, process)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong before it, an exit is told
            container.parts.log.failure(f"on the exit of {process.name}", error)
    faults.point("exit.drained.", process.name)
    record = _record(container, process, ended)
    yield from _put_on_disk(container, record)
    faults.point("exit.recorded.", process.name)
    container.parts.reaper.take(process.pid)
    _tell(container, process, record)


def _drain(_container: "Container", process: "Process") -> "Handler":
    if process.stdio is not None:
        yield from process.stdio.drain(DRAIN_S)


def _look_for_oom(container: "Container", _process: "Process") -> "Handler":
    container.tell_oom()
    yield from ()


def _record(container: "Container", process: "Process", ended: Ended) -> Exit:
    parts = container.parts
    record = Exit(
        container_id=container.id,
        exec_id=process.exec_id,
        pid=process.pid,
        exited_at_ns=ended.at_ns,
        source=ended.source,
        started_at_ns=process.started_at_ns,
        start_ticks=process.start_ticks,
        boot_id=parts.boot_id,
        incarnation=parts.incarnation,
    )
    if ended.status is not None:
        record.set_wait_status(ended.status)
    oom_at = container.oom_at
    record.oom = ended.status not in (None, 0) and oom_at is not None and time.monotonic() - oom_at < OOM_RECENT_S
    return record


def _put_on_disk(container: "Container", record: Exit) -> "Handler":
    """Write the record, until it is written: an exit nobody could read back after our death is not told."""
    parts, delay_s, refused = container.parts, RETRY_FIRST_S, False
    while True:
        # The seq is that of the journal record which tells it: nothing may come between this and `tell`.
        record.seq = parts.journal.last_seq + 1
        try:
            parts.exits.write(record)
        except (OSError, MemoryError) as error:
            if not refused:
                refused = True
                parts.unwritten_exits += 1
                # The kernel lets init end only when every process of its namespace is reaped: no disk may delay that.
                parts.reaper.take(record.pid)
            parts.log.error(f"the exit record of {record.exec_id or 'init'} cannot be written, trying again: {error}")
            yield Sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)
            continue
        if refused:
            parts.unwritten_exits -= 1
            parts.log.info(f"the exit record of {record.exec_id or 'init'} is written")
        return


def exit_event(record: Exit) -> "TaskExit":
    """What subscribers are told of an exit."""
    told = events.TaskExit(
        container_id=record.container_id,
        id=record.exec_id or record.container_id,
        pid=record.pid,
        exit_status=record.status,
    )
    told.exited_at.CopyFrom(wkt.timestamp(record.exited_at_ns))
    return told


def _tell(container: "Container", process: "Process", record: Exit) -> None:
    process.exit = record
    process.lifecycle.record("exited")
    if process is container.init:
        save(container)
    else:
        save_exec(container, process)
    faults.point("exit.saved.", process.name)
    container.parts.tell("/tasks/exit", exit_event(record), record)
    faults.point("exit.told.", process.name)
    if process.stdio is not None:
        process.stdio.exited(record.to_message())
    if not process.told.fired:  # else deleted meanwhile: its waiters have been told so
        process.told.fire(record)
    unpin(container, process)
    faults.point("exit.done.", process.name)
    if record.source == SOURCE_KEEPER:
        remove(orphans.note_path(container.parts.bundle.path, record.pid))
    if process is container.init and container.restart is not None:
        container.restart.ended()


def _end_others(container: "Container", process: "Process") -> "Handler":
    """If init is dead, end what its PID namespace does not end by itself, and let every exec's exit be told first."""
    if process is not container.init:
        return
    if container.shares_pids:
        yield from kill_everyone(container, signal.SIGKILL)
    deadline = time.monotonic() + EXECS_S
    for other in tuple(container.execs.values()):
        for fact in (other.starting, other.told):
            # What never started is nothing to wait for; `starting` comes first, for it decides that.
            if fact is None or (fact is other.told and other.pid == 0):
                continue
            try:
                yield Fired(fact, deadline_s=max(0.0, deadline - time.monotonic()))
            except DeadlinePassed:
                container.parts.log.warning(f"exec {other.exec_id} did not end within {EXECS_S:g} s of init")
                break


def execs_started(container: "Container") -> "Handler":
    """Wait, within reason, for execs being started: frozen half-way, runc would hang with them until a resume."""
    deadline = time.monotonic() + EXECS_S
    for process in tuple(container.execs.values()):
        if process.starting is not None:
            try:
                yield Fired(process.starting, deadline_s=max(0.0, deadline - time.monotonic()))
            except DeadlinePassed:
                return


def kill_everyone(container: "Container", signum: int) -> "Handler":
    """Signal whoever is in the container's cgroup, by pidfd or cgroup.kill.

    Not by `runc kill --all`: runc 1.2 and later ignore the switch, and signal init alone. Only for a container without
    a cgroup of its own runc is asked; that it knows of none either is no failure.
    """
    if container.cgroup is not None:
        try:
            cgroups.kill_all(container.cgroup, signum)
        except OSError as error:
            container.parts.log.warning(f"signalling the whole container: {error}")
        return
    try:
        yield from container.runc.call(
            container.parts.reaper, "kill", "kill", "--all", container.id, str(signum), deadline_s=runc.KILL_S
        )
    except StatusError as error:
        if not runc.is_not_running(error):
            container.parts.log.warning(f"signalling the whole container: {error}")


def freeze(container: "Container") -> "Handler":
    """`runc pause`, and again when the time ran out that runc gives the kernel. Raises: UNKNOWN with runc's words.

    That is 0.2 s with cgroup v1: on a host that is busy some process may not have run by then, and none is frozen.
    """
    clock = container.parts.loop.clock
    deadline = clock() + FREEZE_S
    while True:
        try:
            yield from container.runc.call(
                container.parts.reaper, "pause", "pause", container.id, deadline_s=runc.PAUSE_S
            )
        except StatusError as error:
            if not runc.has_not_frozen(error) or clock() > deadline or container.init.reaped:
                raise
            yield Sleep(FREEZE_PAUSE_S)
        else:
            return


def thaw(container: "Container") -> "Handler":
    """Let a frozen container go on, so that what was killed in it can die. Not told: its exit is."""
    try:
        yield from container.runc.call(
            container.parts.reaper, "resume", "resume", container.id, deadline_s=runc.PAUSE_S
        )
    except StatusError as error:
        if container.state != STOPPED and not container.init.reaped:
            container.parts.log.warning(f"thawing: {error}")
