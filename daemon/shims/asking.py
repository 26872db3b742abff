"""Asking one shim who it is and how its container is, within a budget; else looking at what it left."""

import contextlib
import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING

import trio

from daemon.shims import bundle, evidence, launch, recovery
from daemon.shims.client import ShimClient
from daemon.shims.evidence import Evidence
from daemon.store.records import TaskRow
from shim import policy
from ttrpc.aio import open_client
from ttrpc.api import shim, task
from ttrpc.errors import DeadlineExceeded, StatusError, TtrpcError
from ttrpc.status import Code

if TYPE_CHECKING:
    from ttrpc.api.shim import InfoResponse
    from ttrpc.api.task import StateResponse


CONTAINERD_SOCKET_DIR = "/run/containerd/s"  # where containerd's shims listen, whatever its state directory is


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The shim's own word (client, info, state), or evidence and the reason why there is no word."""

    facts: recovery.Facts
    client: ShimClient | None = None
    info: "InfoResponse | None" = None
    state: "StateResponse | None" = None
    evidence: Evidence | None = None
    reason: str = ""


def socket_path(socket_dir: str, grpc_address: str, namespace: str, container_id: str) -> str:
    """Where a shim listens that was told this address: containerd's rule, so it can be found without being recorded."""
    joined = os.path.normpath(f"{grpc_address}/{namespace}/{container_id}")
    return f"{socket_dir}/{hashlib.sha256(joined.encode()).hexdigest()}"


async def ask(
    stack: contextlib.AsyncExitStack,
    row: TaskRow,
    boot_id: str,
    budget_s: float,
    *,
    exit_is_stored: bool,
) -> Found:
    """Facts about one task. A connection that answered stays open in ``stack``.

    Blocks: at most about ``budget_s`` for connecting and as much for the answers.
    """
    basis = recovery.Facts(row=row.state, is_this_boot=row.boot_id == boot_id, exit_known=exit_is_stored)
    if not basis.is_this_boot:
        return await _look(row, basis, boot_id, "the machine was restarted")
    log_fd = bundle.open_log(row.bundle)
    if log_fd is not None:  # containerd's shim does not serve before somebody reads its log
        stack.callback(os.close, log_fd)
    is_connected = False
    try:
        raw = await stack.enter_async_context(open_client(row.address, connect_timeout_s=budget_s))
        is_connected = True
        client = ShimClient(raw, f"task {row.id}")
        info = await info_of(client, row, budget_s)
        state = await state_of(client, row.id, budget_s)
    except (OSError, TtrpcError) as error:
        await stack.aclose()
        is_late = is_connected and isinstance(error, DeadlineExceeded)
        reason = f"{error.strerror}: {row.address}" if isinstance(error, OSError) and error.strerror else str(error)
        return await _look(row, basis, boot_id, reason, is_late=is_late)
    facts = dataclasses.replace(basis, shim=recovery.Shim.SERVING, task=task_of(state))
    return Found(facts, client, info, state)


async def info_of(client: ShimClient, row: TaskRow, timeout_s: float) -> "InfoResponse":
    """Who the shim is. One that has no such service is not ours: it tells its pid, and which task it has is our note.

    Raises: as `ShimClient.shim`.
    """
    try:
        info: InfoResponse = await client.shim("Info", shim.InfoRequest(), timeout_s)
    except StatusError as error:
        if error.code != Code.UNIMPLEMENTED:
            raise
    else:
        return info
    client.is_foreign = True
    told = await client.task("Connect", task.ConnectRequest(id=row.id), timeout_s)
    return shim.InfoResponse(
        pid=told.shim_pid,
        version=f"{os.path.basename(row.shim_path)} {told.version}".strip(),
        namespace=row.ns,
        container_id=row.id,
        bundle=row.bundle,
        incarnation=bundle.read_small(row.bundle, bundle.INCARNATION) or row.incarnation,
    )


async def state_of(client: ShimClient, container_id: str, timeout_s: float) -> "StateResponse | None":
    """The shim's word on its container; None when it has none. Raises: as `ShimClient.task`."""
    try:
        state: StateResponse = await client.task("State", task.StateRequest(id=container_id), timeout_s)
    except StatusError as error:
        if error.code == Code.NOT_FOUND:
            return None
        raise
    return state


def task_of(state: "StateResponse | None") -> recovery.Task:
    """That word as a fact for `recovery`. Pure."""
    if state is None:
        return recovery.Task.NONE
    if state.status == task.CREATED and not state.pid:
        return recovery.Task.CREATING
    known = {
        task.CREATED: recovery.Task.CREATED,
        task.RUNNING: recovery.Task.RUNNING,
        task.PAUSED: recovery.Task.RUNNING,
        task.PAUSING: recovery.Task.RUNNING,
        task.STOPPED: recovery.Task.STOPPED,
    }
    return known.get(state.status, recovery.Task.CREATING)


async def _look(row: TaskRow, basis: recovery.Facts, boot_id: str, reason: str, *, is_late: bool = False) -> Found:
    """``is_late``: somebody took the connection. That may be a successor who is not on record yet, and takes over."""
    found = await trio.to_thread.run_sync(evidence.gather, row.bundle, row, boot_id)
    # A record of another task's bundle of this name proves nothing about this one.
    mine = ("", policy.journal_of(row.incarnation))
    exit_found = found.init_exit is not None and (
        row.incarnation == "" or policy.journal_of(found.init_exit.incarnation) in mine
    )
    facts = dataclasses.replace(
        basis,
        has_bundle=found.has_bundle,
        shim=recovery.Shim.SILENT if is_late else found.shim,
        init=found.init,
        exit_known=basis.exit_known or exit_found,
        can_raise=found.can_raise and policy.journal_of(found.incarnation) in mine,
        is_coming_back=found.is_coming_back,
    )
    return Found(facts, evidence=found, reason=reason)


def address_of(row: TaskRow, socket_dir: str, grpc_address: str) -> str:
    """Where the task's shim listens: as recorded, as its bundle says, or as the rule has it."""
    written = bundle.read_small(row.bundle, "address").removeprefix("unix://")
    if launch.is_foreign(row.runtime, row.shim_path):
        socket_dir = CONTAINERD_SOCKET_DIR
    return row.address or written or socket_path(socket_dir, grpc_address, row.ns, row.id)
