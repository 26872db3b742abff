"""Clearing what is left of a task: shim, container, mounts, socket, bundle. Any step may have been done before."""

import contextlib
import logging
import os
import socket

import trio

from daemon import procfs
from daemon.procfs import Identity
from daemon.shims import bundle, evidence, launch
from daemon.shims.client import ShimClient
from daemon.store.records import TaskRow
from ttrpc.api import task
from ttrpc.errors import StatusError

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 3.0
LISTENER_TIMEOUT_S, LISTENER_PAUSE_S = 2.0, 0.005  # of a dead shim, until its keeper lets it go
KILLED_TIMEOUT_S = 5.0  # after SIGKILL a process can only stay in an uninterruptible wait


async def shut_down(row: TaskRow, client: ShimClient | None, spared: frozenset[Identity] = frozenset()) -> bool:
    """Ask an empty shim to end and wait until its process has; True when it is gone. A shim with a container stays.

    One that died instead has cleared nothing: only who has answered is gone in order.

    One that serves other tasks as well stays too, and what was this task's in it has gone.
    """
    known = evidence.present_shim(row)
    if known in spared:
        return client is not None
    if client is not None:
        try:
            await client.task("Shutdown", task.ShutdownRequest(id=row.id, now=True), SHUTDOWN_TIMEOUT_S)
        except StatusError:
            return False
    return known is None or await procfs.wait_gone(known, SHUTDOWN_TIMEOUT_S)


async def clear(row: TaskRow, client: ShimClient | None, program: launch.Program, delete_timeout_s: float) -> None:
    """End the shim, the container if there still is one, and remove everything of theirs. Idempotent.

    Order: the shim first, so that nothing it does meets our hand; runc's own clearing after it, the bundle last.
    Raises: FailedPrecondition while something stays mounted in the bundle; OSError.
    """
    await shut_down(row, client, program.spared)
    await end_all(row, program, delete_timeout_s)
    await remove_files(row)


async def end_all(row: TaskRow, program: launch.Program, delete_timeout_s: float) -> None:
    """Kill the shim, then have its program's `delete` end the container and clear what runc left."""
    await trio.to_thread.run_sync(bundle.doom, row.bundle)
    await kill_workers(row, program.spared)
    if await trio.to_thread.run_sync(os.path.isdir, row.bundle):
        answer = await launch.delete(program, row.ns, row.id, row.bundle, delete_timeout_s)
        if answer is None:
            log.warning("the shim's `delete` failed; its runc may have left a cgroup")
        await kill_workers(row, program.spared)


async def remove_files(row: TaskRow) -> None:
    """Remove bundle and socket of a task whose shim is gone. A socket that is served is another task's, too.

    Blocks: while the keeper still listens there for a successor, which it is about to know is not wanted.
    """
    await trio.to_thread.run_sync(bundle.remove, row.bundle)
    if not row.address:
        return
    patience_s = 0.0 if launch.is_foreign(row.runtime, row.shim_path) else LISTENER_TIMEOUT_S
    deadline = trio.current_time() + patience_s
    while _is_served(row.address) and trio.current_time() < deadline:  # noqa: ASYNC110 - another process's doing
        await trio.sleep(LISTENER_PAUSE_S)
    if not _is_served(row.address):
        with contextlib.suppress(OSError):
            os.unlink(row.address)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
        return True


async def kill_workers(row: TaskRow, spared: frozenset[Identity]) -> None:
    """Kill the shim and whatever works in its bundle: `start`, runc. Not a shim that has other tasks."""
    found = set(await trio.to_thread.run_sync(lambda: list(procfs.working_in(row.bundle))))
    known = evidence.present_shim(row)
    if known is not None and known.is_running():
        found.add(known)
    found -= spared
    for process in found:
        procfs.kill(process)
    for process in found:
        if not await procfs.wait_gone(process, KILLED_TIMEOUT_S):
            log.error("a process survives SIGKILL", extra={"pid": process.pid})
