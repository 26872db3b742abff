"""What a shim tells of restarts it has made: the row follows run by run, in the transaction that stores the record."""

import sqlite3
from typing import TYPE_CHECKING

from daemon import procfs, restart
from daemon.procfs import Identity
from daemon.shims.handle import Handle
from daemon.store import containers, tasks
from daemon.store.records import CREATED, LIVE_STATES, STOPPED, TaskRow
from shim import policy
from ttrpc.api import events, shim, wkt

if TYPE_CHECKING:
    from ttrpc.api.shim import JournalRecord

PLANNED, GAVE_UP, CREATE = "/shimd/restarting", "/shimd/restart-gave-up", "/tasks/create"


def move(connection: sqlite3.Connection, row: TaskRow, incarnation: str, record: "JournalRecord") -> None:
    """Counts, the user's wish, and the present run, as a record of this incarnation says. Others say nothing here."""
    if record.topic not in (PLANNED, GAVE_UP, CREATE):
        return
    now = tasks.get(connection, row.ns, row.id)
    if now is None or now.state not in (*LIVE_STATES, STOPPED):
        return
    if policy.journal_of(now.incarnation) != policy.journal_of(incarnation):
        return
    if record.topic == CREATE:
        if policy.run_of(incarnation) > policy.run_of(now.incarnation):
            _begin_run(connection, now, incarnation, record)
    elif record.topic == PLANNED:
        plan = shim.Restarting.FromString(record.event.value)
        tasks.update(connection, row.ns, row.id, restarts=plan.restart - 1, streak=plan.in_a_row)
    else:
        left = shim.RestartGaveUp.FromString(record.event.value)
        tasks.update(connection, row.ns, row.id, restarts=left.restarts)
        if left.by_user:
            _label(connection, now, restart.STOPPED_LABEL, "true")


def _begin_run(connection: sqlite3.Connection, now: TaskRow, incarnation: str, record: "JournalRecord") -> None:
    """The row is the new run's. An init that is over already may have left its pid to somebody else."""
    run, pid = policy.run_of(incarnation), events.TaskCreate.FromString(record.event.value).pid
    parent = Identity(now.shim_pid, now.shim_start_ticks) if now.shim_pid else None
    init = procfs.identify_child(pid, parent) if parent is not None else None
    ticks = init.start_ticks if init is not None else 0
    tasks.update(
        connection, now.ns, now.id, state=CREATED, incarnation=incarnation, restarts=run,
        pid=pid, pid_start_ticks=ticks, started_at_ns=0,
    )  # fmt: skip
    _label(connection, now, restart.COUNT_LABEL, str(run))


def _label(connection: sqlite3.Connection, row: TaskRow, key: str, value: str) -> None:
    container = containers.get(connection, row.ns, row.id)
    if container is not None and container.labels.get(key) != value:
        container.labels[key] = value
        containers.replace(connection, row.ns, container)


def note_plan(handle: Handle, batch: "list[JournalRecord]") -> None:
    """When the next restart is due, for whoever looks."""
    for record in batch:
        if record.topic == PLANNED:
            handle.next_restart_at_ns = wkt.nanoseconds(shim.Restarting.FromString(record.event.value).at)
        elif record.topic in (GAVE_UP, CREATE):
            handle.next_restart_at_ns = None
