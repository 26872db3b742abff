"""Deleting a task whatever it takes; ending a container without its shim's help, by what the kernel says is its own.

Its init is known by pid and start time; its other processes are the members of init's cgroups, where those are its own.
Each is signalled through a pidfd. Sources: cgroups(7), proc_pid_cgroup(5).
"""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from daemon import procfs
from daemon.errors import unavailable
from daemon.procfs import Identity
from daemon.shims import ending, evidence, terms
from daemon.shims.handle import Handle, Health
from daemon.store.records import CREATED, DELETING, STOPPED, TaskRow
from ttrpc.api import task
from ttrpc.errors import StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from daemon.shims.manager import Manager

log = logging.getLogger(__name__)

CGROUP_ROOT = "/sys/fs/cgroup"
ROUNDS = 20  # a process may fork while its siblings are killed
DEATH_S = 5.0  # one that is not gone by then hangs in the kernel
TIMEOUT_S = 30.0
# Until its supervisor has seen that the shim is gone; while another operation is still at it.
RETRIED = (Code.UNAVAILABLE, Code.FAILED_PRECONDITION, Code.ABORTED, Code.UNKNOWN)


async def delete(manager: "Manager", handle: Handle) -> None:
    """Delete a task in whatever state. Where its shim is of no help, container and shim are killed: how the container
    ended is unknown then, unless it was on record.

    Raises: Unavailable when it could not be ended; what the deletion raises.
    """
    ends_at = trio.current_time() + TIMEOUT_S
    await terms.withdraw(handle, manager.config.timeouts.state_s)
    if not await _killed_by_shim(manager, handle):
        log.warning("ending a container and its shim by force", extra={"reason": handle.reason})
        is_over = await kill_container(handle.row)
        await ending.kill_workers(handle.row, manager.program_of(handle).spared)
        if not is_over:
            raise unavailable(f"{handle.name}: its processes survive SIGKILL; see what they hang in: shimctl top")
        if handle.health is Health.UNREACHABLE:  # whoever would ask it again waits; what there is to see has changed
            handle.supervisor.cancel()
            manager.resume(handle)
    while not handle.is_deleted:
        with trio.move_on_after(max(0.0, ends_at - trio.current_time())):
            await handle.wait_until(
                lambda: handle.is_deleted or (handle.health in (Health.SERVING, Health.GONE) and _is_over(handle))
            )
        try:
            await manager.delete_here(handle)
        except StatusError as error:
            if error.code not in RETRIED or trio.current_time() >= ends_at:
                raise
            await handle.wait_changed(manager.config.recovery.retry_min_s)


def _is_over(handle: Handle) -> bool:
    return handle.is_deleted or handle.row.state in (CREATED, STOPPED, DELETING)


async def _killed_by_shim(manager: "Manager", handle: Handle) -> bool:
    """Have the shim kill the container; False when it does not, in the time a healthy one needs."""
    timeouts = manager.config.timeouts
    try:
        client = await handle.connected(timeouts.state_s)
        request = task.KillRequest(id=handle.id, signal=signal.SIGKILL, all=True)
        await client.task("Kill", request, timeouts.state_s)
    except StatusError as error:
        if error.code not in (Code.NOT_FOUND, Code.FAILED_PRECONDITION):  # over already, or never begun
            return False
    with trio.move_on_after(timeouts.call_s) as scope:
        await handle.wait_until(lambda: _is_over(handle))
    return not scope.cancelled_caught


async def kill_container(row: TaskRow) -> bool:
    """SIGKILL every process of a task's container; True when none is left, as far as anybody can tell.

    Blocks: at most about `DEATH_S`.
    """
    init = evidence.recorded_init(row, row.bundle)
    if init is None or not init.is_running():
        return True
    shim = evidence.present_shim(row)
    folders = await trio.to_thread.run_sync(own_cgroups, init.pid, shim.pid if shim is not None else 0)
    if not init.is_running():  # its pid may have been somebody else's when it was looked up
        return True
    with trio.move_on_after(DEATH_S):
        for _ in range(ROUNDS):
            found = await trio.to_thread.run_sync(lambda: {init, *_members(folders)})
            living = {process for process in found if process.is_running()}
            if not living:
                return True
            _thaw(folders)
            for process in living:
                procfs.kill(process)
            for process in living:
                await procfs.wait_gone(process, DEATH_S)
    log.error("a container survives SIGKILL", extra={"pid": init.pid})
    return not init.is_running()


def own_cgroups(pid: int, shim_pid: int) -> list[str]:
    """The cgroups a container's init is in and neither its shim nor we are: no others are known to be its own."""
    shared = {*_cgroups_of(os.getpid()), *_cgroups_of(shim_pid)}
    return [folder for folder in _cgroups_of(pid) if folder not in shared]


def _cgroups_of(pid: int) -> list[str]:
    """The folders of a process's cgroups, of every hierarchy, but no root of one."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if path.strip("/") and "/.." not in path:
            found.append(_base(controllers) + path)
    return [folder for folder in found if os.path.isdir(folder)]


def _base(controllers: str) -> str:
    """Where a hierarchy is mounted. Version 2 is the root itself, or beside version 1 its `unified`."""
    if controllers:
        return f"{CGROUP_ROOT}/{controllers.removeprefix('name=')}"
    return CGROUP_ROOT if os.path.exists(f"{CGROUP_ROOT}/cgroup.controllers") else f"{CGROUP_ROOT}/unified"


def _members(folders: list[str]) -> Iterator[Identity]:
    """Every process in these cgroups and those below."""
    for folder in folders:
        for parent, _, _ in os.walk(folder):
            try:
                with open(f"{parent}/cgroup.procs", encoding="ascii") as file:
                    pids = [int(line) for line in file]
            except (OSError, ValueError):
                continue
            for pid in pids:
                process = procfs.identify(pid)
                if process is not None:
                    yield process


def _thaw(folders: list[str]) -> None:
    """A frozen process of version 1 takes no signal before it is thawed, not even this one."""
    for folder in folders:
        for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with contextlib.suppress(OSError), open(f"{folder}/{name}", "r+", encoding="ascii") as file:
                file.write(word)
