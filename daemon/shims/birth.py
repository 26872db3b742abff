"""Bringing a task into the world: bundle, shim, connection, Task.Create, each with its undoing."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from daemon import faults, procfs
from daemon.config import Config
from daemon.shims import bundle, ending, launch
from daemon.shims.client import earlier
from daemon.shims.handle import Handle
from daemon.shims.supervisor import Supervisors
from daemon.shims.undo import UndoStack
from ttrpc.api import task

if TYPE_CHECKING:
    from ttrpc.api.containers import Container
    from ttrpc.api.task import CreateTaskRequest as ShimCreateRequest
    from ttrpc.api.tasks import CreateTaskRequest
    from ttrpc.api.wkt import Any as ProtoAny


async def bear(
    handle: Handle,
    container: "Container",
    request: "CreateTaskRequest",
    supervisors: Supervisors,
    undo: UndoStack,
    deadline: float | None,
) -> dict[str, Any]:
    """Have a new shim create the container; returns what is to be put on the row. The row itself is the caller's.

    Order: everything that stays when we die is pushed to ``undo`` before it is begun.
    Raises: AlreadyExists, Unknown with the shim's or runc's words, Unavailable, DeadlineExceeded.
    """
    timeouts = supervisors.config.timeouts
    program = supervisors.program_of(handle)
    options = options_of(supervisors.config, container, request)
    bundle.make(handle.row.bundle, container.spec.value)
    undo.push("the bundle", lambda: ending.remove_files(handle.row))
    faults.point("create.bundle_made")

    undo.push("the shim", lambda: _end_shim(handle, program, timeouts.shim_delete_s))
    with _log_held(program, handle.row.bundle):
        address = await launch.start(
            program, handle.ns, handle.id, handle.row.bundle, options, earlier(timeouts.shim_start_s, deadline)
        )
        handle.row = dataclasses.replace(handle.row, address=address)
        faults.point("create.shim_started")

        client = await supervisors.start_newborn(handle)
    faults.point("create.connected")

    asked = _create_request(handle, request, options)
    created = await client.task("Create", asked, earlier(timeouts.create_s, deadline))
    faults.point("create.task_created")
    if handle.foreign is not None:
        handle.foreign.started("", created.pid)
    return {"address": address, **_identities(handle, created.pid)}


@contextlib.contextmanager
def _log_held(program: launch.Program, path: str) -> Iterator[None]:
    """A foreign shim opens its log FIFO as it starts, and ends if nobody reads it; then its follower does."""
    log_fd = bundle.prepare_foreign(path) if program.ttrpc_address else None
    try:
        yield
    finally:
        if log_fd is not None:
            os.close(log_fd)


def options_of(config: Config, container: "Container", request: "CreateTaskRequest") -> "ProtoAny":
    """The request's options, else the container's; completed by the configuration."""
    given = request.options if request.HasField("options") else container.runtime.options
    return launch.options_for(config, container.runtime.name, given)


def _create_request(handle: Handle, request: "CreateTaskRequest", options: "ProtoAny") -> "ShimCreateRequest":
    asked = task.CreateTaskRequest(
        id=handle.id,
        bundle=handle.row.bundle,
        rootfs=request.rootfs,
        terminal=request.terminal,
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
    )
    asked.options.CopyFrom(options)
    return asked


def _identities(handle: Handle, init_pid: int) -> dict[str, Any]:
    """Shim and init with their start times, so that nobody is ever taken for them."""
    found: dict[str, Any] = {"pid": init_pid, "pid_start_ticks": 0}
    if handle.info is None:
        return found
    found["incarnation"] = handle.info.incarnation
    shim = procfs.identify(handle.info.pid)
    if shim is not None:
        found["shim_pid"], found["shim_start_ticks"] = shim.pid, shim.start_ticks
        # An init that is over already may have left its pid to somebody else.
        init = procfs.identify_child(init_pid, shim)
        found["pid_start_ticks"] = init.start_ticks if init is not None else 0
    return found


async def _end_shim(handle: Handle, program: launch.Program, delete_timeout_s: float) -> None:
    """End the shim, which has undone its own part, or did not come so far; then our supervising of it."""
    row = handle.row
    if handle.info is not None:
        shim = procfs.identify(handle.info.pid)
        if shim is not None:
            row = dataclasses.replace(row, shim_pid=shim.pid, shim_start_ticks=shim.start_ticks)
    is_down = handle.client is not None and await ending.shut_down(row, handle.client, program.spared)
    handle.supervisor.cancel()
    if not is_down:
        with contextlib.suppress(FileNotFoundError):
            await ending.end_all(row, program, delete_timeout_s)


async def start_process(handle: Handle, exec_id: str, timeout_s: float, connect_timeout_s: float) -> int:
    """Task.Start of init or an exec; returns its pid. Raises: StatusError of the shim, Unavailable."""
    client = await handle.connected(connect_timeout_s)
    started = await client.task("Start", task.StartRequest(id=handle.id, exec_id=exec_id), timeout_s)
    if handle.foreign is not None:
        handle.foreign.started(exec_id, started.pid)
    return int(started.pid)
