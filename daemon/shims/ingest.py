"""A shim's journal into the store: follow from the stored cursor, commit, acknowledge. In this order, whatever dies.

A record told twice is stored once (by incarnation and number); a record not acknowledged is told again. What the store
cannot take now stays in the shim's journal on disk.
"""

import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from daemon import faults
from daemon.errors import StoreFailed, StoreFull, unavailable
from daemon.shims import asking, runs
from daemon.shims.client import SHIM, ShimClient
from daemon.shims.handle import Handle
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.database import Database
from daemon.store.records import CREATED, LIVE_STATES, PAUSED, RUNNING, STOPPED, NewEvent, NewExit, TaskRow
from shim import policy
from ttrpc.aio_client import raise_only_leaf
from ttrpc.api import shim, shimd, wkt
from ttrpc.errors import StatusError

if TYPE_CHECKING:
    from ttrpc.aio import TrioStream
    from ttrpc.api.shim import JournalRecord

log = logging.getLogger(__name__)

MAX_BATCH = 256
ACK_TIMEOUT_S = 5.0
FULL_RETRY_MIN_S, FULL_RETRY_MAX_S = 0.2, 5.0
GAP_TOPIC = "/shimd/journal-gap"

# The row's state after a journal record of this topic, as far as it is about init.
_STATE_AFTER = {
    "/tasks/create": CREATED,
    "/tasks/start": RUNNING,
    "/tasks/resumed": RUNNING,
    "/tasks/paused": PAUSED,
    "/tasks/exit": STOPPED,
}


async def follow(
    handle: Handle, client: ShimClient, incarnation: str, database: Database, on_stopped: Callable[[Handle], None]
) -> None:
    """Store the shim's records until its connection is lost; each is acknowledged once it is on disk.

    ``on_stopped`` is called once init's exit is stored.

    Raises: ConnectionLost, StatusError of the shim.
    """
    handle.stored_seq = database.read(lambda connection: tasks.cursor(connection, incarnation))
    request = shim.FollowRequest(after_seq=handle.stored_seq)
    try:
        async with client.raw.open_stream(SHIM, "Follow", request) as stream, trio.open_nursery() as nursery:
            # As much as one commit takes is read ahead; what the store cannot take stays with the shim.
            sender, receiver = trio.open_memory_channel["JournalRecord"](MAX_BATCH)
            nursery.start_soon(_read, stream, sender)
            async for first in receiver:
                batch = [first, *_at_hand(receiver)]
                await _store(handle, incarnation, batch, database)
                if handle.row.state == STOPPED and any(is_init_exit(record) for record in batch):
                    on_stopped(handle)
                await _acknowledge(handle, client, batch[-1].seq)
    except BaseExceptionGroup as group:
        raise_only_leaf(group)
        raise


async def _read(stream: "TrioStream", sender: "trio.MemorySendChannel[JournalRecord]") -> None:
    async with sender:
        async for record in stream:
            faults.point("ingest.received")
            await sender.send(record)


def _at_hand(receiver: "trio.MemoryReceiveChannel[JournalRecord]") -> "list[JournalRecord]":
    found: list[JournalRecord] = []
    while len(found) < MAX_BATCH - 1:
        try:
            found.append(receiver.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    return found


async def _store(handle: Handle, incarnation: str, batch: "list[JournalRecord]", database: Database) -> None:
    """Commit a batch, trying again for as long as the disk is full."""
    expected = handle.stored_seq + 1
    has_exit = any(record.HasField("exit") for record in batch)
    pause_s = FULL_RETRY_MIN_S
    faults.point("ingest.before_commit")
    if has_exit:
        faults.point("exit.before_commit")
    while True:
        try:
            row = await database.write(lambda connection: store(connection, handle.row, incarnation, batch, expected))
            break
        except (StoreFull, StoreFailed) as error:
            log.warning("events wait in the shim's journal", extra={"reason": error.message, "retry_s": pause_s})
            handle.reason = f"its events cannot be stored: {error.message}"
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 2, FULL_RETRY_MAX_S)
    faults.point("ingest.committed")
    if has_exit:
        faults.point("exit.committed")
    handle.reason = ""
    handle.stored_seq = batch[-1].seq
    # Not while an operation is still making it.
    if row is not None and policy.journal_of(row.incarnation) == policy.journal_of(incarnation):
        if policy.run_of(row.incarnation) > policy.run_of(handle.row.incarnation):  # else it is a newborn's first
            log.info("restarted by policy", extra={"restarts": row.restarts, "pid": row.pid, "id": row.id})
        handle.row = row
    runs.note_plan(handle, batch)
    handle.tell()


def store(
    connection: sqlite3.Connection, row: TaskRow, incarnation: str, batch: "list[JournalRecord]", expected: int
) -> TaskRow | None:
    """One transaction's work: events, exits, what they say of the row, the cursor. Returns the row, None: deleted."""
    for record in batch:
        if record.seq > expected:
            _store_gap(connection, row, record, expected)
        expected = record.seq + 1
        store_one(connection, row, record.incarnation or incarnation, record)
    tasks.set_cursor(connection, incarnation, batch[-1].seq)
    return tasks.get(connection, row.ns, row.id)


def store_one(connection: sqlite3.Connection, row: TaskRow, incarnation: str, record: "JournalRecord") -> bool:
    """An event, its exit, what it says of the row: in the caller's transaction. False when it was stored before."""
    exit_bytes = None
    if record.HasField("exit"):
        exit_bytes = record.exit.SerializeToString()
        journal.record_exit(
            connection, NewExit(row.ns, row.id, incarnation, record.exit.exec_id, record.seq, exit_bytes)
        )
    at_ns = wkt.nanoseconds(record.at) or 0
    event = record.event
    value = event.value
    if len(value) > journal.MAX_EVENT_BYTES:  # no shim of ours does that; a page of such events would fill our memory
        log.error("an event is too large, it is kept without its content", extra={"id": row.id, "bytes": len(value)})
        value = b""
    is_new = journal.append(
        connection,
        NewEvent(at_ns, row.ns, record.topic, event.type_url, value, exit_bytes, incarnation, record.seq),
    )
    if is_new:
        runs.move(connection, row, incarnation, record)
    _move_row(connection, row, incarnation, record)
    return is_new


def is_init_exit(record: "JournalRecord") -> bool:
    """Whether the record ends the task as a whole."""
    return record.HasField("exit") and not record.exit.exec_id


def _store_gap(connection: sqlite3.Connection, row: TaskRow, record: "JournalRecord", expected: int) -> None:
    """Records the shim no longer has were never stored: say so, in the log and to whoever reads events."""
    log.error("gap in a shim's journal", extra={"expected": expected, "found": record.seq})
    told = shimd.EventRecord(seq=record.seq, namespace=row.ns, topic=record.topic, gap=True)
    value = told.SerializeToString()
    at_ns = wkt.nanoseconds(record.at) or 0
    journal.append(connection, NewEvent(at_ns, row.ns, GAP_TOPIC, "shimd.v1.EventRecord", value))


def _move_row(connection: sqlite3.Connection, row: TaskRow, incarnation: str, record: "JournalRecord") -> None:
    """What the record says of the task as a whole. Rows being created, restarted or deleted are their operation's."""
    state = _STATE_AFTER.get(record.topic)
    if state is None or (record.topic == "/tasks/exit" and not is_init_exit(record)):
        return
    now = tasks.get(connection, row.ns, row.id)
    if now is None or now.incarnation != incarnation or now.state not in LIVE_STATES:
        return
    changes: dict[str, object] = {"state": state}
    if record.topic == "/tasks/start":
        changes["started_at_ns"] = wkt.nanoseconds(record.at) or 0
    tasks.update(connection, row.ns, row.id, **changes)


async def drain(handle: Handle, client: ShimClient, timeout_s: float) -> None:
    """Wait until everything the shim has told so far is stored: nothing of it is lost with the bundle then.

    Raises: Unavailable when that takes too long, with what it waits for; StatusError of the shim.
    """
    info = await asking.info_of(client, handle.row, timeout_s)
    with trio.move_on_after(timeout_s) as scope:
        await handle.wait_until(lambda: handle.stored_seq >= info.journal_seq)
    if scope.cancelled_caught:
        waits_for = handle.reason or f"records {handle.stored_seq + 1} to {info.journal_seq} are not stored yet"
        raise unavailable(f"{handle.name}: {waits_for}; try again")


async def _acknowledge(handle: Handle, client: ShimClient, seq: int) -> None:
    """Let the shim forget. If that fails it tells the records again, which does no harm."""
    try:
        await client.shim("Ack", shim.AckRequest(seq=seq), ACK_TIMEOUT_S)
    except StatusError as error:
        log.debug("acknowledgement not taken", extra={"seq": seq, "reason": error.message, "id": handle.id})
        return
    faults.point("ingest.acknowledged")
