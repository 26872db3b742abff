"""Having the kernel keep how processes end, for whoever comes when all of us were killed: see pins.py."""

from shim.core import pidfds
from shim.core.steps import DeadlinePassed, Fired
from shim.recovery import pins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.task.container import Container
    from shim.task.process import Process

# For the keeper to pin a process; then we do it ourselves.
PIN_S = 0.25


def pin(container: "Container", process: "Process") -> "Handler":
    """Pin a process, be it over already. Linux 6.15; nothing is done below that. Idempotent.

    Blocks: for the keeper, at most PIN_S, and if that cannot, which is tried here once more, so long again. A process
    that cannot be pinned runs all the same.
    """
    parts = container.parts
    if process.pidfd is None or not process.inode or not pidfds.keeps_exit_status():
        return
    path = pins.pin_path(parts.params.socket_path, process.pid, process.inode)
    pinned = parts.spares.pin(path, process.pidfd)
    why = "no keeper"
    try:
        if pinned is not None:
            why = yield Fired(pinned, deadline_s=PIN_S)
            if not why:
                return
    except DeadlinePassed:
        why = "the keeper does not answer"
    try:
        parts.pin(process.pidfd, path)
    except OSError as error:
        parts.log.warning(f"the exit status of {process.name} is not pinned: {why}; and here: {error}")


def pin_again(container: "Container", process: "Process") -> None:
    """Have a keeper know what it is to pin, without waiting for it; one that has pinned it does nothing."""
    if process.pidfd is not None and process.inode and pidfds.keeps_exit_status():
        path = pins.pin_path(container.parts.params.socket_path, process.pid, process.inode)
        container.parts.spares.pin(path, process.pidfd)


def unpin(container: "Container", process: "Process") -> None:
    """Take the pin away: what it keeps is on disk. Idempotent."""
    if not process.inode:
        return
    parts = container.parts
    path = pins.pin_path(parts.params.socket_path, process.pid, process.inode)
    try:
        if not parts.spares.unpin(path):
            parts.unpin(path)
    except OSError as error:
        parts.log.warning(f"the pin of {process.name} stays: {error}")


def unpin_stale(container: "Container") -> None:
    """Have a keeper that is new to us take away what the one before was asked to and did not, because it died.

    Order: all that is to stay pinned is known: what was asked to be, and whoever's exit is not on disk.
    """
    parts = container.parts
    path = parts.params.socket_path
    waited_for = [pins.pin_path(path, each.pid, each.inode) for each in container.processes() if each.exit is None]
    for pinned in pins.pinned(path):
        if pinned not in waited_for and not parts.spares.is_pinning(pinned):
            parts.spares.unpin(pinned)


def unpin_left(parts: "Parts") -> None:
    """At the shim's end: take away what a keeper was asked to and did not, because it died."""
    try:
        pins.unpin_all(parts.params.socket_path)
    except OSError as error:
        parts.log.warning(f"a pin stays: {error}")
