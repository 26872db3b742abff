"""Asking many shims at once, and answering from the records for those that do not answer in time."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from daemon import filters
from daemon.shims import answers
from daemon.shims.client import earlier
from daemon.shims.handle import Handle, Health
from daemon.shims.manager import Manager
from daemon.store.records import CREATING
from ttrpc.api import descriptor, process, task, tasks, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from ttrpc.api.descriptor import Metric
    from ttrpc.api.process import Process

log = logging.getLogger(__name__)


async def ask_state(handle: Handle, exec_id: str, timeout_s: float) -> "Process":
    """One process as its shim sees it. Raises: StatusError of the shim, Unavailable, DeadlineExceeded."""
    client = await handle.connected(timeout_s)
    state = await client.task("State", task.StateRequest(id=handle.id, exec_id=exec_id), timeout_s)
    made = answers.process_of_state(handle.id, exec_id, state)
    if not exec_id:
        handle.last_known = made
    return made


def from_records(manager: Manager, handle: Handle) -> "Process":
    """Init as the store has it."""
    record = answers.record_of(manager.stored_exit(handle))
    return answers.process_of_record(handle.row, tasks.CreateTaskRequest.FromString(handle.row.request), record)


async def list_tasks(manager: Manager, ns: str, text: str, deadline: float | None) -> "list[Process]":
    """Every task of the namespace that the filter passes. A silent shim costs its budget once, and nobody else."""
    matches = filters.parse(text)
    budget_s = earlier(manager.config.timeouts.state_s, deadline)
    found: dict[str, Process] = {}

    async def ask(handle: Handle) -> None:
        process_found = await _state_or_record(manager, handle, budget_s)
        if process_found is not None:
            found[handle.id] = process_found

    async with trio.open_nursery() as nursery:
        for handle in manager.of_namespace(ns):
            nursery.start_soon(ask, handle)
    return [one for _, one in sorted(found.items()) if matches(_lookup(one))]


async def _state_or_record(manager: Manager, handle: Handle, budget_s: float) -> "Process | None":
    """None for a task that is only just being created, or gone meanwhile."""
    if handle.row.state == CREATING and handle.health is not Health.UNREACHABLE:
        return None
    if handle.health in (Health.SERVING, Health.CONNECTING):
        try:
            return await ask_state(handle, "", budget_s)
        except StatusError as error:
            if error.code == Code.NOT_FOUND and manager.stored_exit(handle) is None:
                return None
            log.debug("listed from the records", extra={"id": handle.id, "reason": error.message})
    if handle.is_deleted:
        return None
    if manager.stored_exit(handle) is None and handle.last_known is not None:
        return handle.last_known
    return from_records(manager, handle)


def _lookup(one: "Process") -> filters.Lookup:
    fields = {
        "id": one.id,
        "container_id": one.container_id,
        "pid": str(one.pid),
        "status": process.Status.Name(one.status).lower(),
    }
    return lambda path: fields.get(path[0]) if len(path) == 1 else None


async def metrics(manager: Manager, ns: str, texts: Sequence[str], deadline: float | None) -> "list[Metric]":
    """Metrics of every task that a filter passes and whose shim answers in time; the others are left out."""
    matches = filters.parse_all(texts)
    budget_s = earlier(manager.config.timeouts.state_s, deadline)
    found: dict[str, Metric] = {}

    async def ask(handle: Handle) -> None:
        try:
            client = await handle.connected(budget_s)
            answer = await client.task("Stats", task.StatsRequest(id=handle.id), budget_s)
        except StatusError as error:
            log.debug("no metrics", extra={"id": handle.id, "reason": error.message})
            return
        metric = descriptor.Metric(id=handle.id, timestamp=wkt.timestamp(time.time_ns()))
        metric.data.CopyFrom(answer.stats)
        found[handle.id] = metric

    async with trio.open_nursery() as nursery:
        for handle in manager.of_namespace(ns):
            if handle.health is not Health.UNREACHABLE and matches(_id_lookup(handle.id)):
                nursery.start_soon(ask, handle)
    return [found[key] for key in sorted(found)]


def _id_lookup(container_id: str) -> filters.Lookup:
    return lambda path: container_id if tuple(path) in (("id",), ("container_id",)) else None
