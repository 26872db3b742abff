"""What the parts of one shim share, handed to each instead of found in globals: a test hands in its own."""

import time

from shim.recovery import pins
from shim.recovery.spares import Spares
from shim.serving.journal import EVENT, EXIT
from ttrpc.api import shim, wkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.message import Message

    from shim.bundle import Bundle
    from shim.core.loop import Loop, Timer
    from shim.core.reaper import Reaper
    from shim.core.shimlog import ShimLog
    from shim.params import Params
    from shim.serving.journal import Journal
    from shim.streams.stdio import Stdio
    from shim.task.exits import Exit, ExitStore
    from shim.task.process import Process


JOURNAL_RETRY_S = 1.0


class Parts:
    """The shared parts. Each has its own owner's docstring; this only names them."""

    __slots__ = (
        "_retry", "boot_id", "bundle", "dropped_bytes", "exits", "find_cgroup", "incarnation", "journal", "log",
        "log_bytes", "loop", "make_stdio", "params", "pin", "reaper", "spares", "unpin", "unwritten_exits", "watch_oom",
    )  # fmt: skip

    def __init__(
        self,
        params: "Params",
        *,
        loop: "Loop",
        reaper: "Reaper",
        bundle: "Bundle",
        journal: "Journal",
        exits: "ExitStore",
        log: "ShimLog",
        boot_id: str,
        incarnation: str,
        make_stdio: "Callable[[Process, int, int], Stdio]",
        find_cgroup: "Callable[[int], Any]",
        watch_oom: "Callable[[Any, Callable[[int], None]], Any]",
        spares: "Spares | None" = None,
    ) -> None:
        self.params = params
        self.loop = loop
        self.reaper = reaper
        self.bundle = bundle
        self.journal = journal
        self.exits = exits
        self.log = log
        self.boot_id = boot_id
        self.incarnation = incarnation
        self.make_stdio = make_stdio
        self.find_cgroup = find_cgroup
        self.watch_oom = watch_oom
        self.spares = spares if spares is not None else Spares(loop)
        self.pin: Callable[[int, str], None] = pins.pin  # where there is no keeper to do it
        self.unpin = pins.unpin
        self.unwritten_exits = 0
        self.log_bytes = 0  # of processes whose streams are closed
        self.dropped_bytes = 0
        self._retry: Timer | None = None

    def tell(self, topic: str, event: "Message", exit_record: "Exit | None" = None) -> int:
        """Put an event into the journal, whence every follower gets it; answers with its seq.

        Order: what the event says is true, and an exit on disk, before this is called.
        """
        return self.tell_packed(topic, wkt.pack(event), exit_record)

    def tell_packed(self, topic: str, event: "AnyMessage", exit_record: "Exit | None" = None) -> int:
        """The same with an event that is packed already."""
        record = shim.JournalRecord(at=wkt.timestamp(time.time_ns()), topic=topic, event=event)
        record.incarnation = self.incarnation
        record.seq = self.journal.last_seq + 1
        if exit_record is not None:
            record.exit.CopyFrom(exit_record.to_message())
        seq = self.journal.append(EVENT if exit_record is None else EXIT, record.SerializeToString())
        self._retry_later()
        return seq

    def _retry_later(self) -> None:
        """Have what a full disk refused written once it is possible; readers get it from memory meanwhile."""
        if self.journal.pending and self._retry is None:
            self.log.error(f"the journal cannot be written, {self.journal.pending} records are in memory only")
            self._retry = self.loop.call_later(JOURNAL_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self.journal.flush():
            self.log.info("the journal is written again")
        else:
            self._retry_later()
