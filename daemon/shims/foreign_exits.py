"""What a foreign shim tells, stored once however often and by whichever way it is told.

An event of its is known by what is in it, an exit by process and time: a number made of that stands where our own
shims' journals have theirs.
"""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from google.protobuf.message import DecodeError

from daemon import faults
from daemon.errors import StoreFailed, StoreFull, invalid_argument
from daemon.shims import ingest
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.database import Database
from daemon.store.records import STOPPED, NewEvent, TaskRow
from ttrpc.api import events, shim, wkt

if TYPE_CHECKING:
    from daemon.shims.handle import Handle
    from ttrpc.api.shim import ExitRecord, JournalRecord
    from ttrpc.api.task import DeleteResponse, StateResponse, WaitResponse

    Ended = WaitResponse | StateResponse | DeleteResponse | events.TaskExit

log = logging.getLogger(__name__)

EXIT_TOPIC = "/tasks/exit"
PID_MAX = 1 << 22  # proc_sys_kernel(5), pid_max; containerd's shim says 4294967295 of a process that is gone


class Ledger:
    """Puts one task's events and exits on record."""

    def __init__(
        self, handle: "Handle", incarnation: str, database: Database, on_stopped: "Callable[[Handle], None]"
    ) -> None:
        self._handle = handle
        self._incarnation = incarnation
        self._database = database
        self._on_stopped = on_stopped

    def record(self, exec_id: str, ended: "Ended", pid: int) -> "ExitRecord":
        """The exit as the shim told it: one number, in which code and 128 + signal cannot be told apart."""
        row = self._handle.row
        made = shim.ExitRecord(
            container_id=row.id,
            exec_id=exec_id,
            pid=pid if 0 < pid <= PID_MAX else 0,
            code=ended.exit_status,
            source=shim.EXIT_SOURCE_WAITID,
            boot_id=row.boot_id,
            incarnation=self._incarnation,
        )
        made.exited_at.CopyFrom(wkt.timestamp(wkt.nanoseconds(ended.exited_at) or time.time_ns()))
        if not exec_id:
            made.pid_start_ticks = row.pid_start_ticks
            if row.started_at_ns:
                made.started_at.CopyFrom(wkt.timestamp(row.started_at_ns))
        return made

    def is_stored(self, record: "ExitRecord") -> bool:
        """Whether this exit is on record."""
        return self._database.read(lambda connection: self._has_exit(connection, record))

    def _has_exit(self, connection: sqlite3.Connection, record: "ExitRecord") -> bool:
        """Init ends once in its task; an exec's id may be used again, so it is the time that tells."""
        row = self._handle.row
        found = journal.last_exit(connection, row.ns, row.id, self._incarnation, record.exec_id)
        if found is None:
            return False
        return not record.exec_id or _exit_key(shim.ExitRecord.FromString(found.record)) == _exit_key(record)

    async def forwarded(self, event: NewEvent) -> "ExitRecord | None":
        """Store an event of the shim's; returns the exit it tells, if it does. Raises: StoreFull; InvalidArgument."""
        made = shim.JournalRecord(
            seq=_key(event.topic, event.at_ns, event.value), at=wkt.timestamp(event.at_ns), topic=event.topic
        )
        made.event.CopyFrom(wkt.any_of(event.type_url, event.value))
        told = told_exit(event)
        if told is None:
            await self._write(made)
            return None
        made.exit.CopyFrom(self.record(exec_id_of(told), told, told.pid))
        made.seq = _exit_key(made.exit)
        await self._write(made)
        return made.exit

    async def store(self, record: "ExitRecord") -> None:
        """Store an exit that no event told, with the event that our own shim would have written of it.

        Raises: StoreFull, StoreFailed.
        """
        told = events.TaskExit(
            container_id=record.container_id,
            id=record.exec_id or record.container_id,
            pid=record.pid,
            exit_status=record.code,
            exited_at=record.exited_at,
        )
        made = shim.JournalRecord(seq=_exit_key(record), at=record.exited_at, topic=EXIT_TOPIC, exit=record)
        made.event.CopyFrom(wkt.pack(told))
        await self._write(made)

    async def store_at_last(self, record: "ExitRecord") -> None:
        """The same, trying again for as long as the disk is full."""
        pause_s = ingest.FULL_RETRY_MIN_S
        while True:
            try:
                await self.store(record)
                return
            except (StoreFull, StoreFailed) as error:
                log.warning("an exit waits to be stored", extra={"reason": error.message, "retry_s": pause_s})
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, ingest.FULL_RETRY_MAX_S)

    async def _write(self, record: "JournalRecord") -> None:
        handle, incarnation = self._handle, self._incarnation

        def work(connection: sqlite3.Connection) -> tuple[bool, TaskRow | None]:
            is_new = not (record.HasField("exit") and self._has_exit(connection, record.exit))
            is_new = is_new and ingest.store_one(connection, handle.row, incarnation, record)
            return is_new, tasks.get(connection, handle.ns, handle.id)

        faults.point("foreign.before_commit")
        is_new, row = await self._database.write(work)
        faults.point("foreign.committed")
        if not is_new:
            log.debug("forwarded again", extra={"topic": record.topic})
        if row is not None and row.incarnation == incarnation:  # not while an operation is still making it
            handle.row = row
        handle.tell()
        if is_new and ingest.is_init_exit(record) and handle.row.state == STOPPED:
            self._on_stopped(handle)


def told_exit(event: NewEvent) -> "events.TaskExit | None":
    """The exit that an event tells; None for another event. Raises: InvalidArgument for one that cannot be read."""
    if event.topic != EXIT_TOPIC:
        return None
    try:
        return events.TaskExit.FromString(event.value)
    except DecodeError as error:
        raise invalid_argument(f"{event.topic} holds no containerd.events.TaskExit: {error}") from None


def exec_id_of(told: "events.TaskExit") -> str:
    """Empty for init, which goes by its container's id."""
    return "" if told.id == told.container_id else told.id


def is_told(connection: sqlite3.Connection, ns: str, told: "events.TaskExit") -> bool:
    """Whether an exit is on record of any task of its container, such as one that was deleted since."""
    exec_id = exec_id_of(told)
    key = _key(EXIT_TOPIC, exec_id, wkt.nanoseconds(told.exited_at))
    return journal.has_exit(connection, ns, told.container_id, exec_id, key)


def _exit_key(record: "ExitRecord") -> int:
    return _key(EXIT_TOPIC, record.exec_id, wkt.nanoseconds(record.exited_at))


def _key(*parts: object) -> int:
    """A number in place of a journal's: the same for the same parts, 63 bits as SQLite has them, never 0."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1 or 1
