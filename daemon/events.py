"""The event journal as clients see it: append, and follow from a cursor. Nothing is kept in memory for a reader.

A reader is a cursor into the store; a commit wakes it and it reads its next page. So a durable follower can be as slow
as it likes, a live one is cut when it is too far behind, and neither costs more than its position.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from daemon import filters
from daemon.config import Events as Limits
from daemon.errors import invalid_argument, resource_exhausted
from daemon.identifiers import require_topic
from daemon.store import events as table
from daemon.store.database import Database
from daemon.store.records import NewEvent, StoredEvent
from ttrpc.api.descriptors import message_class
from ttrpc.errors import StatusError
from ttrpc.status import Code

log = logging.getLogger(__name__)

PAGE = 256
PRUNE_EVERY_S = 30.0
MAX_EVENT_BYTES = table.MAX_EVENT_BYTES


class EventLog:
    """Owns the wake-up of readers; the events are the store's."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self.database = database
        self.limits = limits
        self._changed = trio.Event()
        self._began_at_ns, self._began_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def committed(self) -> None:
        """Wake everyone who waits for news: to be called after each commit."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_commit_after(self, look: Callable[[], bool]) -> None:
        """Return once ``look`` is true; it is asked now and after each commit."""
        while True:
            changed = self._changed
            if look():
                return
            await changed.wait()

    async def append(self, *events: NewEvent) -> None:
        """Store events of our own or a client's, in this order.

        Raises: InvalidArgument for a topic or size that cannot be; StoreFull.
        """
        for event in events:
            require_topic(event.topic)
            if len(event.value) > MAX_EVENT_BYTES:
                raise invalid_argument(f"event of {len(event.value)} bytes: at most {MAX_EVENT_BYTES} are kept")
        await self.database.write(lambda connection: [table.append(connection, event) for event in events])

    @property
    def newest_seq(self) -> int:
        return self.database.read(table.newest_seq)

    @property
    def oldest_seq(self) -> int:
        return self.database.read(table.oldest_seq)

    def reader(self, after_seq: int, ns: str | None = None, texts: Sequence[str] = ()) -> "Reader":
        """A cursor standing after this event; of one namespace or all, passing what any of the filters matches.

        Raises: InvalidArgument for a filter; OutOfRange for a cursor this store never gave.
        """
        if after_seq > self.newest_seq:
            raise StatusError(
                Code.OUT_OF_RANGE,
                f"there is no event {after_seq} yet, the newest is {self.newest_seq}: that number is of another store; "
                "begin anew with 0",
            )
        return Reader(self, after_seq, ns, filters.parse_all(texts))

    async def prune_forever(self) -> None:
        """Keep to the limits. A full disk keeps what is too much until there is room to note that it is gone."""
        while True:
            try:
                while await self.database.write(self._prune):
                    pass
            except StatusError as error:
                log.warning("old events and exits could not be pruned", extra={"reason": error.message})
            await trio.sleep(PRUNE_EVERY_S)

    def _prune(self, connection: sqlite3.Connection) -> int:
        age_ns = int(self.limits.keep_age_s * 1e9)
        older_than_ns = self._surely_past_ns() - age_ns if age_ns else 0
        gone = table.prune(connection, keep_count=self.limits.keep_count, older_than_ns=older_than_ns)
        return gone + table.prune_exits(connection, self.limits.keep_exits)

    def _surely_past_ns(self) -> int:
        """The time of day, but no further on than time has passed: a clock set forward by mistake makes nothing old."""
        passed_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._began_ns
        return min(time.time_ns(), self._began_at_ns + passed_ns)


class Page(NamedTuple):
    """Up to `PAGE` stored events."""

    missed_through: int | None  # the newest event that is no longer stored though the reader has not had it
    found: list[StoredEvent]  # what is for this reader
    is_end: bool  # of what is stored


class Reader:
    """A position in the journal. One task at a time may read through it."""

    def __init__(self, log: EventLog, after_seq: int, ns: str | None, matches: filters.Matcher) -> None:
        self._log = log
        self.after_seq = after_seq
        self._ns = ns
        self._matches = matches

    def next_page(self) -> Page:
        """The next page, and this position moved past it.

        It is read over all namespaces: so it is bounded, and the reader passes the events of others, too.
        """

        def look(connection: sqlite3.Connection) -> tuple[int, list[StoredEvent]]:
            return table.pruned_through(connection), table.page(connection, self.after_seq, PAGE)

        pruned, page = self._log.database.read(look)
        missed = pruned if pruned > self.after_seq else None
        self.after_seq = page[-1].seq if page else max(self.after_seq, pruned)
        return Page(missed, [event for event in page if self._is_for_it(event)], len(page) < PAGE)

    def _is_for_it(self, event: StoredEvent) -> bool:
        return self._ns in (None, event.ns) and self._matches(lookup_of(event))

    def require_close(self, max_lag: int) -> None:
        """Cut a live reader that is too slow.

        Raises: ResourceExhausted.
        """
        behind = self._log.newest_seq - self.after_seq
        if behind > max_lag:
            raise resource_exhausted(
                f"subscriber cut off: {behind} events behind, at most {max_lag} are allowed; "
                f"shimd.v1 Events after_seq={self.after_seq} continues without a gap"
            )

    async def wait_more(self) -> None:
        """Return once there is an event after this position, whether or not it is for this reader."""
        await self._log.wait_commit_after(lambda: self._log.newest_seq > self.after_seq)


def lookup_of(event: StoredEvent) -> filters.Lookup:
    """The fields of an event: namespace, topic, and event.<field> of its payload, read only when asked for."""

    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "namespace" and len(path) == 1:
            return event.ns
        if path[0] == "topic" and len(path) == 1:
            return event.topic
        if path[0] == "event" and len(path) > 1:
            return _payload_field(event, path[1:])
        return None

    return lookup


def _payload_field(event: StoredEvent, path: Sequence[str]) -> str | None:
    """A scalar or map entry of the payload, of nested messages too, as text; None when there is no such field."""
    try:
        value: object = message_class(event.type_url.rpartition("/")[2]).FromString(event.value)
    except Exception:  # noqa: BLE001 - a type or bytes we do not know: its fields are simply not there
        return None
    for number, name in enumerate(path):
        fields = getattr(value, "DESCRIPTOR", None)
        if fields is not None and name in fields.fields_by_name:
            value = getattr(value, name)
            continue
        try:
            return str(value[".".join(path[number:])])  # type: ignore[index]  # a map, or nothing of ours
        except (TypeError, KeyError, IndexError, ValueError):
            return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None
