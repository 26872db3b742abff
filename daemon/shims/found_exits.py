"""Exits that no journal told: read from a dead shim's records, or known only to have happened."""

import sqlite3
import time
from typing import TYPE_CHECKING

from daemon.exits import exit_status
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.records import STOPPED, NewEvent, NewExit, TaskRow
from shim import policy
from ttrpc.api import events, shim, wkt

if TYPE_CHECKING:
    from ttrpc.api.shim import ExitRecord


def unknown_exit(row: TaskRow) -> "ExitRecord":
    """It is over and nobody can say how: neither code nor signal, and the time is when that was found out."""
    return shim.ExitRecord(
        container_id=row.id,
        pid=row.pid,
        source=shim.EXIT_SOURCE_UNKNOWN,
        started_at=wkt.timestamp(row.started_at_ns) if row.started_at_ns else None,
        exited_at=wkt.timestamp(time.time_ns()),
        pid_start_ticks=row.pid_start_ticks,
        boot_id=row.boot_id,
        incarnation=row.incarnation,
    )


def store(connection: sqlite3.Connection, row: TaskRow, records: "list[ExitRecord]", boot_id: str) -> TaskRow | None:
    """Exits and their events, each once, and the row stopped in this boot: one transaction's work. Returns the row."""
    # Execs end before init does.
    for record in sorted(records, key=lambda record: (not record.exec_id, record.seq)):
        _store_one(connection, row, record)
    changes: dict[str, object] = {"state": STOPPED, "boot_id": boot_id}
    for record in records:
        # Its shim had restarted it, and was lost before it could tell that: this is the run that ended last.
        if not record.exec_id and policy.run_of(record.incarnation) > policy.run_of(row.incarnation):
            changes["incarnation"] = record.incarnation
    return tasks.update(connection, row.ns, row.id, **changes)


def _store_one(connection: sqlite3.Connection, row: TaskRow, record: "ExitRecord") -> None:
    value = record.SerializeToString()
    incarnation = record.incarnation or row.incarnation
    is_new = journal.record_exit(connection, NewExit(row.ns, row.id, incarnation, record.exec_id, record.seq, value))
    if not is_new:
        return
    told = events.TaskExit(
        container_id=row.id,
        id=record.exec_id or row.id,
        pid=record.pid,
        exit_status=exit_status(record),
        exited_at=record.exited_at,
    )
    # A record with a number is the journal's: its event has the same one, and is not told twice.
    identity = (incarnation, record.seq) if record.seq else (None, None)
    at_ns = wkt.nanoseconds(record.exited_at) or time.time_ns()
    journal.append(
        connection,
        NewEvent(at_ns, row.ns, "/tasks/exit", told.DESCRIPTOR.full_name, told.SerializeToString(), value, *identity),
    )
