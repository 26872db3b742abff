"""Our own service beside containerd's: who this shim is, its journal, its logs and live streams."""
# ruff: noqa: N802 - handlers are named like the rpcs they answer

import os

from shim import faults
from shim.errors import failed_precondition, invalid_argument, not_found
from shim.serving.journal import Cursor
from shim.streams.attach import Hub
from shim.streams.logs import EndedLog, LogFollower
from shim.task import execs
from shim.task.lifecycle import DELETED
from shim.task.runc import find_binary
from shim.version import VERSION
from ttrpc.api import shim, wkt
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.empty_pb2 import Empty

    from shim.core.steps import Handler
    from shim.serving.parts import Parts
    from shim.serving.service import TaskService
    from shim.streams.stdio import Stdio
    from shim.task.process import Process
    from ttrpc.server_call import ServerCall

SERVICE = "shimd.shim.v1.Shim"
# Records read at once for one follower: a bound for one turn of the loop.
BATCH = 64


class ShimService:
    """Answers from the journal and the Task service's container; owns only the followers' cursors."""

    def __init__(self, parts: "Parts", tasks: "TaskService", started_at_ns: int) -> None:
        self.parts = parts
        self._tasks = tasks
        self._started_at_ns = started_at_ns

    def _processes(self) -> "list[Process]":
        container = self._tasks.container
        if container is None or container.state == DELETED:
            return []
        return [container.init, *container.execs.values()]

    def Info(self, _request: "shim.InfoRequest", _call: "ServerCall") -> "shim.InfoResponse":
        parts, container = self.parts, self._tasks.container
        processes = self._processes()
        streams = [process.stdio for process in processes if process.stdio is not None]
        reply = shim.InfoResponse(
            version=VERSION,
            pid=os.getpid(),
            namespace=parts.params.namespace,
            container_id=parts.params.id,
            bundle=parts.bundle.path,
            incarnation=parts.incarnation,
            journal_seq=parts.journal.last_seq,
            acked_seq=parts.journal.acked_seq,
            started_at=wkt.timestamp(self._started_at_ns),
            log_bytes=parts.log_bytes + sum(stdio.log_bytes for stdio in streams),
            dropped_bytes=parts.dropped_bytes + sum(stdio.dropped_bytes for stdio in streams),
            attached=sum(stdio.attached for stdio in streams),
            processes=len(processes),
            unwritten_exits=parts.unwritten_exits,
            unwritten_records=parts.journal.pending,
            dropped_records=parts.journal.dropped,
        )
        reply.features.extend(("restart", "upgrade"))
        if container is not None and container.restart is not None:
            reply.restart.CopyFrom(container.restart.message())
        if container is not None:
            reply.runtime = find_binary(container.runc.binary, parts.params.environment.get("PATH", ""))
        return reply

    def Follow(self, request: "shim.FollowRequest", call: "ServerCall") -> None:
        """Every record after a seq, then each new one. A follower that reads slowly is waited for, by nobody else."""
        if request.after_seq > self.parts.journal.last_seq:
            raise invalid_argument(
                f"after_seq {request.after_seq} is beyond the newest record, {self.parts.journal.last_seq}"
            )
        Follower(self.parts, call, request.after_seq)

    def Ack(self, request: "shim.AckRequest", _call: "ServerCall") -> "Empty":
        journal = self.parts.journal
        if self.parts.params.events_address:
            raise failed_precondition("this shim's events are acknowledged by containerd, to which they are forwarded")
        if request.seq > journal.last_seq:
            raise invalid_argument(f"seq {request.seq} is beyond the newest record, {journal.last_seq}")
        faults.point("ack.begun")
        journal.ack(request.seq)
        faults.point("ack.done")
        if self._tasks.container is not None:
            execs.forget_surplus(self._tasks.container, journal.acked_seq)
        return wkt.Empty()

    def SetRestart(self, request: "shim.SetRestartRequest", _call: "ServerCall") -> "shim.RestartState":
        container = self._tasks.find("")
        container.find("")
        from shim.task import restarting  # no shim without a policy has it in memory

        is_first = container.restart is None
        restart = container.restart or restarting.Restart(container)
        restarting.check(request)
        container.restart = restart
        restart.set(request, is_first=is_first)
        return restart.message()

    def Upgrade(self, request: "shim.UpgradeRequest", _call: "ServerCall") -> "Handler":
        assert self._tasks.upgrade is not None, "made with the shim"
        return self._tasks.upgrade.lead(request)

    def Exits(self, _request: "shim.ExitsRequest", _call: "ServerCall") -> "shim.ExitsResponse":
        found = [process.exit for process in self._processes() if process.exit is not None]
        return shim.ExitsResponse(exits=[record.to_message() for record in found])

    def Logs(self, request: "shim.LogsRequest", call: "ServerCall") -> None:
        container = self._tasks.find("")
        stdio = container.find("").stdio
        if stdio is None:
            raise not_found("the container's streams are closed; read its log file")
        stdio.follow_logs(call, request)

    def Attach(self, _request: None, call: "ServerCall") -> None:
        """The first message says to what; the rest is between the caller and that process's streams."""
        opened = False

        def first(message: "shim.AttachInput") -> None:
            nonlocal opened
            opened = True
            try:
                self._attach(message, call)
            except StatusError as error:
                call.fail(error.code, error.message)

        def ended() -> None:
            if not opened:
                call.fail(invalid_argument("").code, "the stream ended before its open message")

        call.on_message(first)
        call.on_half_close(ended)

    def go_on(self, call: "ServerCall", carried: "dict[str, Any]", copy: "Callable[[int], int]") -> None:
        """Serve a stream that other code in this process has served; ``carried`` is what ServerCall.carry told it.

        Nothing is sent before the loop runs. Raises: ValueError for one that nobody here knows.
        """
        if call.method.name == "Follow":
            Follower(self.parts, call, int(carried["after_seq"]))
        elif call.method.name == "Attach":
            self._go_on_attached(call, carried)
        elif call.method.name == "Logs":
            stdio = self._stdio_of("")
            log = stdio.log if stdio is not None and not carried["is_over"] else None
            carried["fds"] = [copy(fd) for fd in carried["fds"]]
            ended = EndedLog(carried["path"], is_json=carried["is_json"])
            LogFollower(self.parts.loop, log or ended, call, call.request, over=log is None, carried=carried)
        else:
            raise ValueError(f"a stream of {call.method.name} cannot be gone on with")

    def _go_on_attached(self, call: "ServerCall", carried: "dict[str, Any]") -> None:
        stdio = self._stdio_of(shim.AttachOpen.FromString(carried["opening"]).exec_id)
        if stdio is not None and stdio.hub is not None:
            client = stdio.hub.restore(call, carried)
            stdio.inputs.serve(call, client, is_paused=True)
            return
        # Its process is deleted, and it has still to be told what was before.
        client = Hub(terminal=False, keep=False).restore(call, carried)
        if not client.is_finishing:
            self.parts.loop.call_soon(lambda: client.cut("the process is gone"))

    def _stdio_of(self, exec_id: str) -> "Stdio | None":
        return next((process.stdio for process in self._processes() if process.exec_id == exec_id), None)

    def _attach(self, message: "shim.AttachInput", call: "ServerCall") -> None:
        if message.WhichOneof("input") != "open":
            raise invalid_argument("the first message of an attach stream must be open")
        process = self._tasks.find("").find(message.open.exec_id)
        if process.stdio is None:
            raise failed_precondition("the process has no streams: it was deleted, or its start failed")
        faults.point("attach.begun")
        process.stdio.attach(call, message.open)
        faults.point("attach.opened")


class Follower:
    """One Follow stream: owns its cursor and its subscription to the journal."""

    __slots__ = ("_call", "_cursor", "_is_choked", "_is_scheduled", "_parts", "_unsubscribe")

    def __init__(self, parts: "Parts", call: "ServerCall", after_seq: int) -> None:
        self._parts = parts
        self._call = call
        self._cursor = Cursor(after_seq)
        self._is_choked = False
        self._is_scheduled = False
        self._unsubscribe = parts.journal.subscribe(self._schedule)
        call.on_drain = self._drained
        call.on_cancel(self._unsubscribe)
        call.carry = lambda: {"after_seq": self._cursor.seq}
        self._schedule()

    def _schedule(self) -> None:
        """Send in a turn of its own: whoever appended a record does not wait for its readers."""
        if not self._is_scheduled and not self._is_choked:
            self._is_scheduled = True
            self._parts.loop.call_soon(self._send)

    def _drained(self) -> None:
        self._is_choked = False
        self._schedule()

    def _send(self) -> None:
        self._is_scheduled = False
        if not self._call.is_open:
            return
        records = self._parts.journal.read(self._cursor, BATCH)
        for index, (seq, payload) in enumerate(records):
            if not self._call.send(shim.JournalRecord.FromString(payload)):
                self._is_choked = True
                # What was read but not sent is read again; the message that filled the queue is in it.
                if index + 1 < len(records):
                    self._cursor.rewind(seq)
                return
        if len(records) == BATCH:
            self._parts.loop.call_later(0, self._schedule)  # let the others have a turn
