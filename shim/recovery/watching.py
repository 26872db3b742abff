"""Knowing the end of processes that are not our children: those of a shim that died, whose container we took over."""

import os
import time

from shim.core import pidfds
from shim.core.steps import Readable, Sleep
from shim.keeper import orphans
from shim.recovery import pins
from shim.task.ending import on_exit
from shim.task.exits import SOURCE_KEEPER, SOURCE_PIDFD, SOURCE_UNKNOWN, Ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.task.container import Container
    from shim.task.process import Process

# A zombie is looked at so often until its parent has reaped it: the keeper does at once, others when they come to it.
_LOOK_FIRST_S, _LOOK_MAX_S = 0.002, 0.1
# So long a keeper may take to note what it has been told of already, or hears of with the next word of the kernel; a
# shim's death it learns together with us, and counts what it hears for a second (distant.py).
NOTE_S = 2.0


def watch(container: "Container", process: "Process") -> None:
    """Have the process's exit told, with what can be known of it; one that is over already, soon."""
    pidfd = pidfds.open_exactly(process.pid, process.start_ticks, process.inode)
    if pidfd is None and process.inode:
        pidfd = pins.open_pin(pins.pin_path(container.parts.params.socket_path, process.pid, process.inode))
    if pidfd is None:
        if (not process.start_ticks and container.parts.spares.is_connected) or _may_be_noted(container.parts):
            container.parts.loop.spawn(_until_noted(container, process), is_watch=True)
            return
        on_exit(container, process, how_it_ended(container.parts, process, None) or unknown())
        return
    if process.pidfd is None:
        process.pidfd = os.dup(pidfd)
    process.inode = pidfds.inode(pidfd)
    container.parts.loop.spawn(_until_over(container, process, pidfd), is_watch=True)


def _may_be_noted(parts: "Parts") -> bool:
    """Whether a keeper may still learn how a process ended that is over: from the process connector.

    It needs that where the kernel keeps no statuses.
    """
    return parts.spares.is_connected and not pidfds.keeps_exit_status()


def _until_noted(container: "Container", process: "Process") -> "Handler":
    """One that is over already: the keeper may be just about to reap it, or to hear how it ended."""
    pause_s, waited_s = _LOOK_FIRST_S, 0.0
    while (ended := how_it_ended(container.parts, process, None)) is None and waited_s < NOTE_S:
        yield Sleep(pause_s)
        waited_s += pause_s
        pause_s = min(2 * pause_s, _LOOK_MAX_S)
    on_exit(container, process, ended or unknown())


def _until_over(container: "Container", process: "Process", pidfd: int) -> "Handler":
    """Owns the pidfd it is given: the process's own may be closed before."""
    try:
        yield Readable(pidfd)
        pause_s = _LOOK_FIRST_S
        while True:
            is_reaped = pidfds.is_reaped(pidfd, process.pid, process.start_ticks)
            ended = how_it_ended(container.parts, process, pidfd)
            if ended is not None or is_reaped:
                break
            yield Sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MAX_S)
    finally:
        os.close(pidfd)
    if ended is None and _may_be_noted(container.parts):
        yield from _until_noted(container, process)
        return
    on_exit(container, process, ended or unknown())


def how_it_ended(parts: "Parts", process: "Process", pidfd: "int | None") -> "Ended | None":
    """The exact status from whoever has it: the keeper that reaped it, the kernel. None: nobody, or not yet."""
    note = orphans.read_note(parts.bundle.path, process.pid, process.start_ticks, parts.boot_id)
    if note is not None:
        return Ended(int(note["wait_status"]), SOURCE_KEEPER, int(note["exited_at_ns"]))
    status = pidfds.exit_status(pidfd) if pidfd is not None else None
    return Ended(status, SOURCE_PIDFD, time.time_ns()) if status is not None else None


def unknown() -> Ended:
    """It is over, and nobody can say how: the time is when that was found out."""
    return Ended(None, SOURCE_UNKNOWN, time.time_ns())
