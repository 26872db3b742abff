"""Forgetting a task; with it, where its client asked for that (`run -d --rm`), the container's log and record.

The label alone does not: the container must have ended, by an exit on record, and no restart policy may want it back.
"""

import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import trio

from daemon import restart
from daemon.shims import launch
from daemon.store import containers, tasks
from daemon.store import events as journal
from daemon.store.database import Database
from daemon.store.records import DELETING, NewEvent, TaskRow
from ttrpc.api import events
from ttrpc.api import tasks as api

if TYPE_CHECKING:
    from ttrpc.api.task import DeleteResponse

LABEL = "shimd.io/auto-remove"
TOLD = "/tasks/delete"


def is_due(connection: sqlite3.Connection, row: TaskRow) -> bool:
    """Whether the container of this task has ended and is to be removed then."""
    container = containers.get(connection, row.ns, row.id)
    if container is None or container.labels.get(LABEL) != "true":
        return False
    if container.labels.get(restart.STATUS_LABEL) == "running":
        return False
    return journal.last_exit(connection, row.ns, row.id, row.incarnation, "") is not None


def mark(connection: sqlite3.Connection, row: TaskRow, answer: "DeleteResponse") -> TaskRow | None:
    """From here on the delete is finished by whoever comes next. One that no shim could tell of is told here.

    A shim that is not ours tells its own, and sooner or later. Returns the row.
    """
    if not launch.is_foreign(row.runtime, row.shim_path) and not journal.has_topic(connection, row.incarnation, TOLD):
        told = events.TaskDelete(
            container_id=row.id, pid=answer.pid, exit_status=answer.exit_status, exited_at=answer.exited_at
        )
        name, value = told.DESCRIPTOR.full_name, told.SerializeToString()
        journal.append(connection, NewEvent(time.time_ns(), row.ns, TOLD, name, value))
    return tasks.update(connection, row.ns, row.id, state=DELETING)


async def forget(database: Database, row: TaskRow, root_dir: str) -> None:
    """Delete a task's row. A container that goes with it loses its log first: killed in between, we come here again.

    Raises: StoreFull, StoreFailed.
    """
    if database.read(lambda connection: is_due(connection, row)):
        await trio.to_thread.run_sync(_remove_log, row, root_dir)

    def work(connection: sqlite3.Connection) -> None:
        is_going = is_due(connection, row)
        tasks.delete(connection, row.ns, row.id)
        if is_going:
            containers.delete(connection, row.ns, row.id)
            told = events.ContainerDelete(id=row.id)
            name, value = told.DESCRIPTOR.full_name, told.SerializeToString()
            journal.append(connection, NewEvent(time.time_ns(), row.ns, "/containers/delete", name, value))

    await database.write(work)


def _remove_log(row: TaskRow, root_dir: str) -> None:
    """The log its stdout names, and the rotated files beside it; only below our own log directory. Idempotent."""
    scheme, _, rest = api.CreateTaskRequest.FromString(row.request).stdout.partition("://")
    folder, name = os.path.split(os.path.normpath(unquote(rest.partition("?")[0])))
    if scheme not in ("log", "file") or not name or not folder.startswith(f"{root_dir}/logs/"):
        return
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            if entry == name or entry.startswith(f"{name}."):
                os.unlink(os.path.join(folder, entry))
        os.rmdir(folder)
